import pytest

from pixelmill.flows import cli


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as raised:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    assert isinstance(raised.value.code, int)
    return raised.value.code, out, err


def test_profile_prints_stages_limits_and_the_bottleneck(scenes, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    images = str(scenes / "images")
    code, out, _ = run(
        capsys, "profile", images, "--preset", "demo", "--images", "4", "--device", "cpu"
    )
    assert code == 0
    assert "4 images in" in out
    for expected in ("decode", "forward", "raw decode", "pure forward of demo-detector-", "bound"):
        assert expected in out
    assert "-bound: " in out.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []  # nothing is kept


def test_profile_refuses_an_empty_sample(scenes, capsys):
    code, _, err = run(capsys, "profile", str(scenes), "--preset", "demo", "--images", "0")
    assert code == 2
    assert "--images and --seconds must be positive" in err


def test_profile_has_an_example(capsys):
    code, out, _ = run(capsys, "profile", "--help")
    assert code == 0
    assert "Example: pixelmill profile" in out
