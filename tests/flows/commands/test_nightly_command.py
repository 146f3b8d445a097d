import shlex

import pytest

from pixelmill.flows import cli


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("demo", "."), "name the store"),
        (("demo", ".", "--out", "x", "--cron", "at two"), "expected minute, hour"),
        (("demo", ".", "--out", "x", "--watch", "--every", "often"), "expected a duration"),
        (("demo", ".", "--out", "x", "--watch", "--serve"), "exclude each other"),
        (("demo", ".", "--out", "x", "--serve"), "--serve needs a Prefect server"),
    ],
)
def test_wrong_usage_is_told_and_makes_no_store(run, monkeypatch, tmp_path, arguments, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    code, _, err = run("nightly", *arguments)
    assert code == cli.ExitCode.USAGE
    assert told in err
    assert not list(tmp_path.iterdir())


def test_what_is_printed_runs_the_same_command_with_whole_paths(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = ("--out", "store", "--until", "06:00", "--cluster", "local:2")
    code, out, _ = run("nightly", "demo", "images", *options, "--print", "cron")
    assert code == 0
    words = shlex.split(out)
    assert words[:5] == ["0", "2", "*", "*", "*"]
    again = words[words.index("nightly") + 1 : words.index(">>pixelmill-nightly.log")]
    assert again[1:] == [
        *(str(tmp_path / "images"), "--out", str(tmp_path / "store")),
        *("--cluster", "local:2", "--until", "06:00"),
    ]
    assert again[0].endswith("/demo.yaml")
    code, out, _ = run("nightly", *again, "--print", "timer", "--cron", "30 1 * * 1-5")
    assert "OnCalendar=Mon,Tue,Wed,Thu,Fri *-*-* 1:30:00\n" in out
    assert not list(tmp_path.iterdir())
