import io

import numpy as np
import pytest
from PIL import Image

from pixelmill.tasks.thumbnails import encode_webp, fit, load_picture, make_thumbnail


@pytest.mark.parametrize(
    ("size", "edge", "expected"),
    [((100, 200), 50, (25, 50)), ((1, 1000), 10, (1, 10)), ((3, 4), 9, (3, 4))],
)
def test_fit_keeps_the_aspect(size, edge, expected):
    assert fit(size, edge) == expected


@pytest.fixture
def photo(tmp_path):
    """A JPEG of 1600 x 1200 whose left half is red."""
    pixels = np.zeros((1200, 1600, 3), np.uint8)
    pixels[:, :800, 0] = 255
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    return path


def test_original_size_is_told_of_a_picture_decoded_small(photo):
    picture = load_picture(str(photo), 100)
    assert picture.pixels is not None
    assert (picture.height, picture.width) == (1200, 1600)
    assert max(picture.pixels.shape) == 200
    assert picture.reason == ""


def test_thumbnail_shows_the_picture(photo):
    data, _ = make_thumbnail(str(photo), 80)
    assert data is not None
    small = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert small.shape == (60, 80, 3)
    assert small[:, :35, 0].min() > 200
    assert small[:, 45:].max() < 60


def test_small_pictures_are_not_enlarged():
    data = encode_webp(np.zeros((3, 5, 3), np.uint8), 100)
    assert Image.open(io.BytesIO(data)).size == (5, 3)


def test_part_of_a_truncated_file_is_shown_and_told(photo):
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    picture = load_picture(str(photo), 100)
    assert picture.pixels is not None
    assert picture.reason.startswith("truncated")


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"no picture at all", None])
def test_bad_file_is_a_reason_and_no_exception(tmp_path, content):
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    data, picture = make_thumbnail(str(path), 80)
    assert data is None
    assert picture.reason
