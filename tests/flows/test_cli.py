import subprocess
import sys
import time

import pytest
import torch

from pixelmill.flows import cli
from pixelmill.models import build


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as raised:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    return raised.value.code, out, err


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
        *("backfill", "demo", "evaluate", "plan", "publish", "report", "score", "train"),
        *("config list", "config show", "config check", "models list", "models fetch"),
    ],
)
def test_every_command_has_an_example(capsys, command):
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert f"Example: pixelmill {command}" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("score", "."), "use --preset demo"),
        (("score",), "name a folder to score"),
        (("score", ".", "--preset", "dmo"), "did you mean 'demo'?"),
        (("score", ".", "--preset", "demo", "--config", "a.yaml"), "exclude each other"),
        (("score", ".", "--preset", "demo", "--cluster", "lokal"), "cluster must be auto"),
        (("score", ".", "--preset", "demo", "--weights", "x=y"), "NAME one of demo-detector"),
        (("score", ".", "--weights", "model.onnx"), "does not say what network"),
        (("score", ".", "--preset", "demo", "--labels", "no.csv"), "not there: --labels"),
        (("plan", "nowhere", "--preset", "bccd"), "no folder"),
        (("evaluate", "nowhere"), "no Pixelmill store"),
        (("demo", "--images", "0"), "--images must be at least 1"),
        (("config", "check", "nowhere.yaml"), "no such file"),
        (("train", "nothing"), "no preset is named 'nothing'"),
    ],
)
def test_wrong_usage_is_told_in_a_line_and_ends_with_2(
    capsys, monkeypatch, tmp_path, arguments, told
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(build.torchvision_zoo, "download_weights", refuse)
    code, _, err = run(capsys, *arguments)
    assert code == cli.ExitCode.USAGE
    assert told in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def refuse(*arguments, **options):
    raise OSError("no network")


def test_a_misspelt_option_ends_with_2(capsys):
    assert run(capsys, "score", "--prest", "demo")[0] == 2


def test_config_show_prints_what_loads_again(capsys, tmp_path):
    code, out, _ = run(capsys, "config", "show", "demo")
    assert code == 0
    (tmp_path / "again.yaml").write_text(out)
    assert run(capsys, "config", "check", str(tmp_path / "again.yaml"))[0] == 0


def test_plan_tells_what_would_be_scored(capsys, scenes, tiny_config, tmp_path):
    store = tmp_path / "store"
    code, out, _ = run(
        capsys, "plan", str(scenes / "images"), "--config", str(tiny_config), "--out", str(store)
    )
    assert code == 0
    assert "40 images listed in" in out
    assert "40 to score" in out
    assert "in 5 shards" in out
    assert not store.exists()
