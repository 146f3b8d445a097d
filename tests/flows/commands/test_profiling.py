def test_profile_prints_stages_limits_and_the_bottleneck(scenes, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    images = str(scenes / "images")
    code, out, _ = run("profile", images, "--preset", "demo", "--images", "4", "--device", "cpu")
    assert code == 0
    assert "4 images in" in out
    for expected in ("decode", "forward", "raw decode", "pure forward of demo-detector-", "bound"):
        assert expected in out
    assert "-bound: " in out.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []  # nothing is kept


def test_profile_refuses_an_empty_sample(scenes, run):
    code, _, err = run("profile", str(scenes), "--preset", "demo", "--images", "0")
    assert code == 2
    assert "--images and --seconds must be positive" in err


def test_profile_has_an_example(run):
    code, out, _ = run("profile", "--help")
    assert code == 0
    assert "Example: pixelmill profile" in out
