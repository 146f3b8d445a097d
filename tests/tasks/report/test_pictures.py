import base64
import io
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from pixelmill.tasks.report.pictures import (
    encode_picture,
    encode_regions,
    shrink_mask,
    trace_outline,
)


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))


def filled(path, shape):
    """Pixels whose centre is inside the path, by even-odd, at four times the size."""
    inside = np.zeros(shape, bool)
    for loop in filter(None, path.split("M")):
        points = [tuple(map(int, p.split())) for p in loop.rstrip("Z").split("L")]
        canvas = Image.new("1", (4 * shape[1] + 1, 4 * shape[0] + 1))
        ImageDraw.Draw(canvas).polygon([(4 * x, 4 * y) for x, y in points], fill=1)
        inside ^= np.asarray(canvas)[2:-1:4, 2:-1:4]
    return inside


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_exact_outline_encloses_just_the_mask(mask):
    assert np.array_equal(filled(trace_outline(mask, tolerance=0.0), mask.shape), mask)


def test_simplified_outline_of_a_ring_stays_close_and_keeps_its_hole():
    y, x = np.mgrid[:100, :120]
    distance = np.hypot(x - 60, y - 50)
    ring = (distance < 40) & (distance > 15)
    path = trace_outline(ring)
    assert path.count("M") == 2
    again = filled(path, ring.shape)
    assert (again & ring).sum() / (again | ring).sum() > 0.95
    assert len(re.findall(r"[ML]", path)) < 90


def test_smallest_mask_has_an_outline_and_an_empty_one_none():
    assert trace_outline(np.ones((1, 1), bool)).startswith("M")
    assert trace_outline(np.zeros((4, 4), bool)) == ""


def test_picture_is_bounded_in_size_and_keeps_its_shape():
    noise = np.random.default_rng(0).integers(0, 255, (600, 900, 3), dtype=np.uint8)
    large = encode_picture(noise, max_bytes=10**9)
    small = encode_picture(noise, max_bytes=20_000)
    assert opened(large).size == (640, 427)
    assert len(base64.b64decode(small.split(",")[1])) <= 20_000
    assert opened(small).size[0] in {360, 240, 160}


def test_small_picture_is_not_enlarged():
    assert opened(encode_picture(np.zeros((3, 5, 3), np.uint8), max_bytes=10**6)).size == (5, 3)


def test_regions_have_their_colours_and_void_is_clear():
    labels = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
    image = opened(encode_regions(labels, [None, (1, 2, 3), (4, 5, 6)])).convert("RGBA")
    pixels = np.asarray(image)
    assert pixels[0, 1].tolist() == [1, 2, 3, 255]
    assert pixels[0, 2].tolist() == [4, 5, 6, 255]
    assert pixels[0, 0, 3] == pixels[1, 2, 3] == 0


def test_regions_of_very_many_classes_share_a_palette():
    labels = np.arange(1000, dtype=np.uint16).reshape(20, 50)
    colours = [(k % 30, 0, 0) for k in range(1000)]
    pixels = np.asarray(opened(encode_regions(labels, colours)).convert("RGB"))
    assert np.array_equal(pixels[..., 0], labels % 30)


def test_shrinking_takes_pixels_at_even_distances():
    assert shrink_mask(np.arange(12).reshape(1, 12), 4).tolist() == [[1, 4, 7, 10]]
