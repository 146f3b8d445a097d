import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from prefect.states import Cancelled, Completed, Failed

from pixelmill.configs.load import TRAIN_PRESETS, list_presets, load_config
from pixelmill.flows import cli
from pixelmill.flows.commands.running import exit_code
from pixelmill.flows.evaluation import find_last_run
from pixelmill.models import build
from pixelmill.tasks.store import Store, publish


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom pixelmill.flows.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch','prefect','distributed','pandas'} "
        "& set(sys.modules)))"
    )
    started = time.process_time()
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.rstrip().endswith("[]")
    assert "Exit codes: 0 complete" in result.stdout
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "command",
    [
        *("backfill", "demo", "evaluate", "nightly", "plan", "publish", "report", "score", "train"),
        *("config list", "config show", "config check", "models list", "models fetch"),
        *("models quantize", "explain", "runs list", "runs show", "runs compare"),
    ],
)
def test_every_command_has_an_example(run, command):
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert f"Example: pixelmill {command}" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("score", "."), "use --preset demo"),
        (("score", "nowhere"), "no folder"),
        (("score",), "name a folder to score"),
        (("score", ".", "--preset", "dmo"), "did you mean 'demo'?"),
        (("score", ".", "--preset", "demo", "--config", "a.yaml"), "exclude each other"),
        (("score", ".", "--preset", "demo", "--cluster", "lokal"), "cluster must be auto"),
        (
            ("score", ".", "--preset", "demo", "--scheduler", "tcp://127.0.0.1:9"),
            "no Dask scheduler answers at tcp://127.0.0.1:9",
        ),
        (("score", ".", "--preset", "demo", "--until", "noon"), "--until: Value error, expected a"),
        (("score", ".", "--preset", "demo", "--budget", "2"), "--budget: Value error, expected a"),
        (("backfill", ".", "--preset", "demo", "--max-failures", "many"), "--max-failures: "),
        (("score", ".", "--preset", "demo", "--memory", "lots"), "--memory: "),
        (("score", ".", "--preset", "demo", "--weights", "x=y"), "NAME one of demo-detector"),
        (("score", ".", "--weights", "model.onnx"), "does not say what network"),
        (("score", ".", "--preset", "demo", "--labels", "no.csv"), "not there: --labels"),
        (("score", ".", "--preset", "demo", "--subset", "no.txt"), "not there: --subset"),
        (("models", "fetch"), "no network"),
        (("models", "fetch", "torchvision/ssd300_vgg16"), "no network"),
        (
            ("models", "quantize", "demo", "--images", ".", "--out", "x.safetensors"),
            "expected --model, one of demo-detector, ",
        ),
        (("report", "nowhere"), "no Pixelmill store"),
        (("publish", "nowhere"), "no Pixelmill store"),
        (("plan", "nowhere", "--preset", "bccd"), "no folder"),
        (("evaluate", "nowhere"), "no Pixelmill store"),
        (("demo", "--images", "0"), "--images must be at least 1"),
        (("config", "check", "nowhere.yaml"), "no such file"),
        (("train", "nothing"), "no preset is named 'nothing'"),
    ],
)
def test_wrong_usage_is_told_in_a_line_and_ends_with_2(run, monkeypatch, tmp_path, arguments, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(build.torchvision_zoo, "download_weights", refuse)
    code, _, err = run(*arguments)
    assert code == cli.ExitCode.USAGE
    assert told in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_written_is_told_before_the_run_starts(
    run, scenes, tiny_config, tmp_path
):
    (tmp_path / "file").touch()
    where = ("--config", str(tiny_config), "--out", str(tmp_path / "file" / "store"))
    code, _, err = run("score", str(scenes / "images"), *where)
    assert code == cli.ExitCode.USAGE
    assert str(tmp_path / "file" / "store") in err
    assert "Traceback" not in err


def test_failed_images_are_retried_by_a_flag_and_in_no_other_way(run):
    for command in ("score", "plan"):
        out = run(command, "--help")[1]
        assert "--retry-failed" in out
        assert "--reprocess" not in out


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (Completed(), 0),
        (Failed(), 1),
        (Completed(name="CompletedWithQuarantine"), 3),
        (Completed(name="OutOfTime"), 4),
        (Cancelled(message="stopped by Ctrl-C after 1 of 2 shards"), 130),
        (Cancelled(message="stopped by SIGTERM after 1 of 2 shards"), 143),
    ],
)
def test_the_final_state_is_the_exit_code(state, code):
    assert exit_code(state) == code


def refuse(*arguments, **options):
    raise OSError("no network")


def test_a_misspelt_option_ends_with_2(run):
    assert run("score", "--prest", "demo")[0] == 2


def test_config_show_prints_what_loads_again(run, tmp_path):
    code, out, _ = run("config", "show", "demo")
    assert code == 0
    (tmp_path / "again.yaml").write_text(out)
    assert run("config", "check", str(tmp_path / "again.yaml"))[0] == 0


def test_plan_tells_what_would_be_scored(run, scenes, tiny_config, tmp_path):
    store = tmp_path / "store"
    code, out, _ = run("plan", scenes / "images", "--config", tiny_config, "--out", store)
    assert code == 0
    assert "8 images listed in" in out
    assert "8 to score" in out
    assert "in 2 shards" in out
    assert not store.exists()


@pytest.fixture(scope="module")
def scored(scenes, score_plainly, tmp_path_factory):
    """A store of the scenes, finished but not published."""
    root = tmp_path_factory.mktemp("scored") / "store"
    return score_plainly(scenes / "images", root, is_published=False)


def test_publish_shows_what_a_killed_run_had_finished(run, scored):
    assert scored.images().empty
    code, out, _ = run("publish", scored.root)
    assert (code, out) == (0, "2 shards published: 16 rows of images\n")
    assert len(Store(scored.root).images()) == 16
    assert run("publish", scored.root)[1].startswith("0 shards published")


def test_report_is_written_where_it_is_wanted_or_into_the_store(run, scored, tmp_path):
    publish(scored)
    code, out, _ = run("report", scored.root, "--to", str(tmp_path / "a.html"))
    assert (code, out) == (0, f"{tmp_path / 'a.html'}\n")
    assert (tmp_path / "a.html").read_text().startswith("<!")
    code, out, _ = run("report", scored.root)
    assert code == 0
    expected = (
        Path(scored.root) / "reports" / find_last_run(scored, None).collection / "report.html"
    )
    assert out == f"{expected}\n"
    assert expected.exists()


def test_a_collection_that_is_not_there_is_told_with_those_that_are(run, scored):
    known = find_last_run(scored, None).collection
    for command in ("report", "evaluate"):
        code, _, err = run(command, scored.root, "--collection", "birds")
        assert code == 2
        assert f"no run of collection 'birds'; it has: {known}" in err


def test_another_folder_of_the_same_name_is_wrong_usage(
    run, scored, copy_scenes, tiny_config, tmp_path
):
    source = Path(find_last_run(scored, None).source)
    namesake = copy_scenes(tmp_path / source.parent.name / source.name, 1)
    options = (str(namesake), "--config", str(tiny_config), "--out", scored.root)
    code, _, err = run("plan", *options)
    assert code == 2
    assert f"has the images of {source}, not of {namesake}" in err
    assert run("plan", *options, "--collection", "more")[0] == 0


def test_truth_without_its_subset_is_told_before_anything_is_scored(
    run, scenes, tiny_config, tmp_path
):
    config = tiny_config.with_name("held-out.yaml")
    text = tiny_config.read_text()
    config.write_text(text.replace("evaluation:", "evaluation:\n  subset: held-out.txt"))
    store = tmp_path / "store"
    code, _, err = run("score", scenes / "images", "--config", config, "--out", store)
    assert code == 2
    assert f"no {tiny_config.with_name('held-out.txt')}, which names the images to compare" in err
    assert not store.exists()


def test_models_are_listed_and_their_weights_found(run, tiny_config):
    code, out, _ = run("models", "list")
    assert code == 0
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert "embedded:demo-detector" in {line[0] for line in lines}
    assert {"retinamask", "unet", "torchvision/fcn_resnet50"} <= {line[0] for line in lines}
    code, out, _ = run("models", "fetch", str(tiny_config))
    assert code == 0
    for name, line in zip(("detector", "segmenter"), out.splitlines(), strict=True):
        key, path = line.split()
        assert key.startswith(f"{name}-")
        assert path == str(tiny_config.with_name(f"{name}.safetensors"))


def test_presets_are_listed_with_what_they_do(run):
    code, out, _ = run("config", "list")
    assert code == 0
    for name in list_presets():
        assert f"{name:12} {load_config(name).description}\n" in out
    for name in list_presets(TRAIN_PRESETS):
        assert f"(pixelmill train {name})" in out


def test_config_check_tells_a_faulty_file_with_its_line(run, tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\nmodles: []\n")
    code, _, err = run("config", "check", str(tmp_path / "mine.yaml"))
    assert code == 2
    assert "mine.yaml:2: modles: no such key; did you mean 'models'?" in err
