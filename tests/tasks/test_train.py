import json

import pytest
import torch

from pixelmill.configs.load import TRAIN_PRESETS, list_presets, load_train_config
from pixelmill.configs.schema import PreprocessConfig, TrainConfig
from pixelmill.models.checkpoint import load_state, read_metadata
from pixelmill.models.zoo import ARCHITECTURES
from pixelmill.tasks.train import train

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


def test_the_same_config_gives_the_same_weights(base, tmp_path):
    config = make_config("unet", epochs=1)
    states = [load_state(train(config, tmp_path / name, base).weights) for name in ("one", "other")]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_the_loss_falls(base, tmp_path):
    reports = []
    config = make_config("unet", epochs=12, learning_rate=1e-2, train_fraction=1.0)
    summary = train(config, tmp_path, base, on_epoch=reports.append)
    first, last = (sum(report.losses.values()) for report in (reports[0], reports[-1]))
    assert last < 0.8 * first
    assert summary.num_held_out == 0
    assert summary.metrics == {}


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
