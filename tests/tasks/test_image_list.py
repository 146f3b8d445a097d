import base64
import hashlib
import re
from html import unescape

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pixelmill.tasks.image_list import ImageFile, ImageList

EVIL = "<img src=x onerror=alert(1)>\u202e.png"


@pytest.fixture
def folder(tmp_path):
    """Twelve images in two folders, and four files that are none."""
    for number in range(12):
        path = tmp_path / "photos" / ("day" if number % 2 else "night") / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60 + number), (20 * number, 0, 0)).save(path)
    photos = tmp_path / "photos"
    (photos / EVIL).write_bytes(b"")
    (photos / "text.jpg").write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    Image.fromarray(noise).save(photos / "torn.jpg")
    (photos / "torn.jpg").write_bytes((photos / "torn.jpg").read_bytes()[:30_000])
    (photos / "broken.jpg").symlink_to("nothing")
    return photos


def test_repr_tells_count_and_steps(folder):
    images = ImageList.from_folder(folder)
    assert repr(images) == "ImageList('photos': 16 images)"
    chosen = images.filter("day/*").sample(3, seed=5)
    assert repr(chosen) == (
        "ImageList('photos': 3 of 16 images; filter('day/*'), sample(3, seed=5))"
    )
    assert repr(images[2:5]).endswith("3 of 16 images; [2:5])")


def test_filter_takes_globs_and_functions(folder):
    images = ImageList.from_folder(folder)
    assert [file.path for file in images.filter("0?.jpg")][:2] == ["day/01.jpg", "day/03.jpg"]
    assert len(images.filter("night/*.jpg")) == 6
    assert len(images.filter("nowhere/*.jpg")) == 0

    def is_bad(file):
        return file.reason != ""

    assert [file.path for file in images.filter(is_bad)] == ["broken.jpg"]
    assert "filter(is_bad)" in repr(images.filter(is_bad))


def test_sample_is_the_same_for_the_same_seed_and_keeps_the_order(folder):
    images = ImageList.from_folder(folder)
    chosen = [file.path for file in images.sample(6, seed=1)]
    assert chosen == [file.path for file in images.sample(6, seed=1)]
    assert chosen != [file.path for file in images.sample(6, seed=2)]
    assert chosen == sorted(chosen)
    assert len(set(chosen)) == 6
    assert images.sample(100) is images
    with pytest.raises(ValueError, match="negative"):
        images.sample(-1)


def test_steps_leave_the_list_as_it_was(folder):
    images = ImageList.from_folder(folder)
    images.filter("day/*").sample(1)
    assert len(images) == 16
    assert isinstance(images[0], ImageFile)


def test_bad_files_are_shown_as_such(folder):
    html = ImageList.from_folder(folder).html(size=100)
    assert html.count("<img") == 13  # twelve, and what there is of the torn one
    assert html.count('class="pm-bad"') == 3
    assert html.count('class="pm-torn"') == 1
    for reason in ("broken_link", "unknown_format", "empty", "truncated"):
        assert reason in html


def test_names_stay_text(folder):
    images = ImageList.from_folder(folder)
    for html in (images.html(), images.page()):
        assert "<img src=x" not in html
        assert "\u202e" not in html


def test_sheet_of_many_is_a_sample(folder):
    html = ImageList.from_folder(folder).html(sample=5)
    assert html.count("<li") == 5
    assert "5 of 16 images" in html


def test_notebook_gets_a_small_sheet_without_script(folder):
    images = ImageList.from_folder(folder)
    shown = images._repr_html_()
    assert "<script" not in shown
    assert shown.count("<li") == 16
    assert images.html()._repr_html_().startswith("<div")


def test_page_loads_nothing_and_allows_only_itself(folder):
    page = ImageList.from_folder(folder).page(size=40)
    policy = unescape(page.split('Policy" content="')[1].split('"')[0])
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert all(uri.startswith("data:") for uri in re.findall(r'src="([^"]*)"', page))


@pytest.mark.parametrize("size", [0, 7, 641])
def test_sizes_that_make_no_sense_are_refused(folder, size):
    with pytest.raises(ValueError, match="size must be in"):
        ImageList.from_folder(folder).html(size=size)


def test_query_results_become_a_list(folder):
    table = pa.table({"path": ["a.jpg"], "source_uri": [str(folder / "day" / "01.jpg")]})
    images = ImageList.from_table("cars", table, num_listed=1000)
    assert repr(images) == "ImageList('cars': 1 of 1,000 images)"
    assert images.html().count("<img") == 1
