import json
import re
from pathlib import Path

import pytest
import torch

from pixelmill.configs.load import TRAIN_PRESETS, list_presets, load_train_config
from pixelmill.configs.schema import PreprocessConfig, TrainConfig
from pixelmill.models.checkpoint import load_state, read_metadata
from pixelmill.models.zoo import ARCHITECTURES
from pixelmill.tasks.scenes import SEMANTIC_CLASSES
from pixelmill.tasks.train import train
from pixelmill.tasks.training import fit as fit_module
from pixelmill.tasks.training.fit import read_curve

# pycocotools 2.0.11 decodes run lengths with what NumPy 2 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ARGUMENTS = {
    "retinamask": {"mask_head": True, "width": 8, "fpn_channels": 8, "head_depth": 1},
    "unet": {"width": 4, "depth": 2},
    "show_attend_tell": {"width": 8, "embed_dim": 16, "hidden_dim": 16, "attention_dim": 8},
    # Of two stages: regions from a network, with masks, and from the pixels
    "mask_rcnn": {
        "backbone": "mobilenet_v3_large",
        "fpn_channels": 8,
        "mask_channels": 8,
        "hidden": 8,
        "num_proposals": 20,
        "num_proposals_training": 20,
    },
    "fast_rcnn": {
        "backbone": "mobilenet_v3_large",
        "proposals": "sliding_windows",
        "num_proposals": 50,
        "hidden": 8,
    },
}
TASKS = {
    "mask_rcnn": "instance_segmentation",
    "fast_rcnn": "detection",
    "retinamask": "instance_segmentation",
    "unet": "semantic_segmentation",
    "show_attend_tell": "captioning",
}


def make_config(architecture, **changes):
    settings = {
        "name": "tiny",
        "task": TASKS[architecture],
        "architecture": architecture,
        "arguments": ARGUMENTS[architecture],
        "preprocess": PreprocessConfig(canvases=((64, 96), (96, 64))),
        "images": "scenes:14:77",
        "epochs": 2,
        "batch_size": 4,
    }
    return TrainConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("base")


@pytest.mark.parametrize("architecture", ARGUMENTS)
def test_a_training_writes_weights_that_score_and_says_what_it_kept_apart(
    base, tmp_path, architecture
):
    reports = []
    config = make_config(architecture)
    summary = train(config, tmp_path, base, on_epoch=reports.append)
    assert [(report.epoch, report.num_epochs) for report in reports] == [(1, 2), (2, 2)]
    assert dict(reports[-1].losses) == dict(summary.losses)
    held_out = summary.held_out.read_text().split()
    assert len(held_out) == summary.num_held_out > 0
    assert all((summary.images / name).is_file() for name in held_out)
    assert summary.num_trained + summary.num_held_out == 14
    # the check goes through the network that scoring builds from the file
    assert summary.metrics
    assert all(value >= 0 for value in summary.metrics.values())
    metadata = read_metadata(summary.weights)
    assert metadata.architecture == architecture
    assert metadata.preprocess == config.preprocess
    assert metadata.training["images"] == "scenes:14:77"
    assert str(base) not in metadata.model_dump_json()
    assert json.loads((tmp_path / "tiny.json").read_text())["name"] == "tiny"


def test_the_curve_and_the_card_stand_beside_the_weights(base, tmp_path):
    config = make_config("unet", data_licence="CC0", check_every=2, epochs=3)
    summary = train(config, tmp_path, base)
    reports = read_curve(tmp_path / "tiny.curve.jsonl")
    assert [report.epoch for report in reports] == [1, 2, 3]
    # every second epoch, and the last
    assert [bool(report.metrics) for report in reports] == [False, True, True]
    assert reports[-1].losses == summary.losses
    best = max(reports[1:], key=lambda report: (report.metrics["mIoU"], report.epoch))
    assert summary.best_epoch == best.epoch
    assert summary.metrics["mIoU"] == best.metrics["mIoU"]
    page = (tmp_path / "tiny.html").read_text()
    assert page.count("<svg") == 3
    assert not re.search(r"(src|href)=|url\(", page)
    card = (tmp_path / "tiny.md").read_text()
    assert "CC0" in card
    assert f"| mIoU | {summary.metrics['mIoU']:.3f} |" in card
    assert str(base) not in card
    assert not (tmp_path / "tiny.state").exists()


def test_a_training_stops_when_nothing_gets_better(base, tmp_path):
    config = make_config("unet", epochs=20, learning_rate=1e-12, patience=2)
    summary = train(config, tmp_path, base)
    reports = read_curve(tmp_path / "tiny.curve.jsonl")
    scores = [report.metrics["mIoU"] for report in reports]
    assert len(scores) < 20
    assert max(scores[-2:]) <= max(scores[:-2])
    assert summary.metrics["mIoU"] == max(scores)


def test_the_last_weights_can_be_asked_for(base, tmp_path):
    summary = train(make_config("unet", keep="last"), tmp_path, base)
    assert summary.best_epoch is None
    assert summary.metrics == read_curve(tmp_path / "tiny.curve.jsonl")[-1].metrics


def test_a_metric_that_is_none_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match="best_by must be one of mIoU"):
        train(make_config("unet", best_by="AP"), tmp_path, base)


class Killed(BaseException):
    """As the end of a process: nothing but what was on the disk is left."""


def weights_after(config, out, base, deaths, monkeypatch):
    """Train to the end, dying once at each of the named places."""
    monkeypatch.setattr(fit_module, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(fit_module, "_LOOK_EVERY", 1)
    steps, saves = fit_module._step, Path.replace
    counts = {"step": 0, "save": 0}

    def die(kind):
        counts[kind] += 1
        if (kind, counts[kind]) in deaths:
            deaths.remove((kind, counts[kind]))
            raise Killed

    def step(*args):
        die("step")
        steps(*args)

    def replace(path, target):
        if path.name.endswith(".state.partial"):
            die("save")
        return saves(path, target)

    monkeypatch.setattr(fit_module, "_step", step)
    monkeypatch.setattr(Path, "replace", replace)
    resumed = []
    while True:
        try:
            summary = train(config, out, base)
        except Killed:
            resumed.append(counts["step"])
        else:
            monkeypatch.undo()
            assert not deaths
            return load_state(summary.weights), summary, resumed


@pytest.mark.parametrize(
    "architecture",
    ["unet", "show_attend_tell"],  # the second has dropout
)
def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(
    base, tmp_path, monkeypatch, architecture
):
    config = make_config(architecture, canvas_scales=(1.0, 1.5), epochs=2)
    whole, summary, _ = weights_after(config, tmp_path / "whole", base, set(), monkeypatch)
    assert summary.resumed_from == 0
    # within the first epoch, while saving, and in the second
    deaths = {("step", 3), ("save", 3), ("step", 7)}
    pieced, resumed, _ = weights_after(config, tmp_path / "pieced", base, deaths, monkeypatch)
    assert resumed.resumed_from > 0
    torch.testing.assert_close(pieced, whole, rtol=0, atol=0)
    assert resumed.metrics == summary.metrics
    assert resumed.num_trained == summary.num_trained
    reports = [read_curve(tmp_path / each / "tiny.curve.jsonl") for each in ("whole", "pieced")]
    assert [each.losses for each in reports[0]] == [each.losses for each in reports[1]]


def test_an_interrupted_training_of_another_config_is_not_gone_on_with(base, tmp_path, monkeypatch):
    def stop(*args):
        raise Killed

    def attempt(config, **options):
        monkeypatch.setattr(fit_module, "_finish", stop)
        with pytest.raises(Killed):
            train(config, tmp_path, base, **options)
        monkeypatch.undo()

    attempt(make_config("unet"))
    assert (tmp_path / "tiny.state").is_file()
    other = make_config("unet", learning_rate=1e-3)
    with pytest.raises(ValueError, match="--fresh"):
        train(other, tmp_path, base)
    assert train(other, tmp_path, base, fresh=True).resumed_from == 0


def test_the_same_config_gives_the_same_weights(base, tmp_path):
    config = make_config("unet", epochs=1)
    states = [load_state(train(config, tmp_path / name, base).weights) for name in ("one", "other")]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_bfloat16_learns_nearly_the_same(base, tmp_path):
    summaries = [
        train(make_config("unet", precision=precision), tmp_path / precision, base)
        for precision in ("fp32", "bf16")
    ]
    exact, mixed = (sum(summary.losses.values()) for summary in summaries)
    assert exact != mixed
    assert mixed == pytest.approx(exact, rel=0.05)


@pytest.mark.slow
def test_two_processes_share_out_the_batches(base, tmp_path):
    config = make_config("unet", train_fraction=1.0, epochs=3, check_every=0, batch_size=7)
    alone = train(config, tmp_path / "alone", base)
    shared = train(
        config.model_copy(update={"devices": 2}), tmp_path / "shared", base, on_epoch=print
    )
    assert shared.num_trained == alone.num_trained
    for name, value in alone.losses.items():
        assert shared.losses[name] == pytest.approx(value, rel=0.1)
    assert len(read_curve(tmp_path / "shared" / "tiny.curve.jsonl")) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"class_weights": "balanced"},
        {"class_weights": {SEMANTIC_CLASSES[-1]: 3.0}},
        {"hard_pixels": 0.2},
        {"pixel_weights": {"background": SEMANTIC_CLASSES[0]}},
        {"loss_weights": {"dice": 0.0}},
        {"optimizer": "sgd", "schedule": "poly"},
        {"canvas_scales": (1.5,)},
        {"crop": (32, 32)},
        {"vertical_flip": True},
    ],
    ids=lambda changes: "-".join(f"{key}-{value}" for key, value in changes.items())[:30],
)
def test_every_design_factor_changes_what_is_learnt(base, tmp_path, plain_losses, changes):
    config = TrainConfig.model_validate(make_config("unet", epochs=1).model_dump() | changes)
    assert train(config, tmp_path, base).losses != plain_losses


@pytest.fixture(scope="module")
def plain_losses(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain")
    return train(make_config("unet", epochs=1), out, base).losses


def test_unknown_classes_have_no_weight(base, tmp_path):
    with pytest.raises(ValueError, match="class_weights names dragon"):
        train(make_config("unet", class_weights={"dragon": 2.0}), tmp_path, base)


def test_the_loss_falls(base, tmp_path):
    reports = []
    config = make_config("unet", epochs=10, learning_rate=2e-2, train_fraction=1.0)
    summary = train(config, tmp_path, base, on_epoch=reports.append)
    first, last = (sum(report.losses.values()) for report in (reports[0], reports[-1]))
    assert last < 0.85 * first
    assert summary.num_held_out == 0
    assert summary.metrics == {}
    assert "no image was kept apart" in (tmp_path / "tiny.md").read_text()


def test_training_can_start_from_another_models_weights(base, tmp_path):
    detector = train(make_config("retinamask", epochs=1), tmp_path, base).weights
    config = make_config(
        "show_attend_tell", name="from-detector", init=str(detector), learning_rate=1e-9, epochs=1
    )
    captioner = load_state(train(config, tmp_path, base).weights)
    before = load_state(detector)
    key = "backbone.stages.2.0.first.0.weight"
    torch.testing.assert_close(captioner[key], before[key], atol=1e-3, rtol=0)


def test_weights_that_do_not_fit_at_all_are_refused(base, tmp_path):
    unet = train(make_config("unet", epochs=1), tmp_path, base).weights
    with pytest.raises(ValueError, match="no tensor"):
        train(make_config("retinamask", init=str(unet)), tmp_path, base)


def test_an_architecture_must_be_ours_and_do_the_task(base, tmp_path):
    with pytest.raises(ValueError, match=r"one of retinamask, .*unet, .*show_attend_tell"):
        train(make_config("unet").model_copy(update={"architecture": "vgg"}), tmp_path, base)
    with pytest.raises(ValueError, match="unet does semantic_segmentation"):
        train(make_config("unet", task="captioning"), tmp_path, base)


@pytest.mark.parametrize("name", list_presets(TRAIN_PRESETS))
def test_every_preset_builds_its_model(name):
    config = load_train_config(name)
    architecture = ARCHITECTURES[config.architecture]
    assert config.name == name
    assert config.task in architecture.tasks
    sizes = {"vocabulary_size": 9} if config.task == "captioning" else {"num_classes": 3}
    assert architecture.build(**config.arguments, **sizes)
