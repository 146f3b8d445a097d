import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """Three images in two folders, and one that cannot be read."""
    root = tmp_path / "photos"
    for name in ("day/one.png", "day/two.png", "night/three.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12), "teal").save(path)
    (root / "night" / "bad.png").write_bytes(b"no picture")
    return root


def test_sheet_of_a_folder_has_every_image_and_needs_no_network(folder, tmp_path, run):
    out = tmp_path / "deep" / "sheet.html"
    assert run("gallery", folder, "--size", "20", "--to", out) == (0, f"{out}\n", "")
    html = out.read_text()
    for name in ("day/one.png", "day/two.png", "night/three.png", "night/bad.png"):
        assert name in html
    assert html.count("data:image/") == 3
    assert "://" not in html


def test_sheet_of_a_choice_and_of_a_sample(folder, tmp_path, run):
    out = tmp_path / "sheet.html"
    assert run("gallery", folder, "--match", "day/*", "--sample", "1", "--to", out)[0] == 0
    html = out.read_text()
    assert "night/" not in html
    assert ("one.png" in html) != ("two.png" in html)


def test_questions_to_a_store_are_refused_of_a_folder(folder, tmp_path, run):
    out = tmp_path / "sheet.html"
    code, _, err = run("gallery", folder, "--class", "car", "--to", out)
    assert code == 2
    assert "no store" in err
    assert not out.exists()


def test_a_full_disk_is_a_failure_and_no_wrong_usage(folder, run):
    code, _, err = run("gallery", folder, "--to", "/dev/full")
    assert code == 1
    assert "the disk is full: free some space" in err
