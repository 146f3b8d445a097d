"""Decoding and drawing one image, beside Pillow and the bare decoder.

`pytest -m benchmark -s tests/benchmarks/test_bench_decode.py` prints a line of JSON per format, and
one per way of drawing: milliseconds of CPU time per image on one thread, the least of several
rounds that take turns. Pixels are checked against Pillow's before anything is timed.
"""

import io
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.tasks.engine.decode import decode_image
from pixelmill.tasks.engine.views import draw_view, place_whole

pytestmark = pytest.mark.benchmark

NUM_ROUNDS = 3
HEIGHT, WIDTH = 720, 1280
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 90}),
    "progressive_jpeg": ("JPEG", {"quality": 90, "progressive": True}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 85}),
    "avif": ("AVIF", {"quality": 70}),
    "bmp": ("BMP", {}),
    "tiff_lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "gif": ("GIF", {}),
}


def least_ms(**ways: Callable[[], Any]) -> dict[str, float]:
    """CPU milliseconds of each, the least of rounds that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(NUM_ROUNDS):
        for name, way in ways.items():
            started = time.process_time()
            way()
            seconds[name].append(time.process_time() - started)
    return {f"{name}_ms": round(1000 * min(each), 3) for name, each in seconds.items()}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Smooth surfaces, edges and some grain, as photographs have."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (18, 32, 3), np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(float)
    grain = rng.normal(0, 4, (HEIGHT, WIDTH, 1))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("name", FORMATS)
def test_decoding(picture, machine, name):
    image_format, options = FORMATS[name]
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    data = file.getvalue()
    found = decode_image(data, max_pixels=10**8).pixels
    assert np.abs(found.astype(int) - by_pillow(data)).max() <= 2
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: decode_image(data, max_pixels=10**8),
        "pillow": lambda: by_pillow(data),
    }
    if image_format == "JPEG":
        ways["limit"] = lambda: simplejpeg.decode_jpeg(data)
        for scale in (2, 4, 8):
            ways[f"scaled_{scale}"] = lambda n=scale: decode_image(data, max_pixels=10**8, scale=n)
    figures = {"benchmark": f"decode_{name}", "height": HEIGHT, "width": WIDTH} | least_ms(**ways)
    print(json.dumps(figures | machine("torch", "torchcodec", "pillow", "simplejpeg")))


@pytest.mark.parametrize("canvas", [(320, 320), (640, 640), (720, 1280)])
def test_drawing(picture, machine, canvas):
    pixels = np.array(picture)
    preprocess = PreprocessConfig(canvases=(canvas,))
    placement = place_whole((HEIGHT, WIDTH), preprocess)
    rows, columns = placement.resized

    def pillow_resize() -> np.ndarray:
        return np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR))

    drawn = draw_view(pixels, placement, preprocess)
    assert (drawn[:rows, :columns] == pillow_resize()).all()
    figures = {"benchmark": "draw_view", "canvas": canvas} | least_ms(
        ours=lambda: draw_view(pixels, placement, preprocess), pillow=pillow_resize
    )
    print(json.dumps(figures | machine("torch", "pillow")))
