import numpy as np
import pytest
from PIL import Image

from pixelmill.tasks.engine.telemetry import bottleneck, brightness_bin, sum_stats

IN_TURNS = {
    "wall_s": 10.0,
    "num_decoded": 100,
    "read_s": 0.5,
    "decode_s": 1.0,
    "transform_s": 0.5,
    "forward_s": 7.0,
    "post_s": 0.5,
    "encode_s": 0.1,
    "write_s": 0.2,
}
AT_ONCE = {
    "wall_s": 10.0,
    "num_decoded": 100,
    "device_share": 0.7,
    "threads/read": 16,
    "threads/decode": 5,
    "threads/post": 2,
    "threads/encode": 1,
    "read_busy_s": 16.0,
    "decode_s": 40.0,
    "transform_s": 9.0,
    "post_s": 3.0,
    "encode_s": 2.0,
    "write_s": 0.1,
}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "forward-bound: 70% of a worker's time; a faster engine or precision at half"),
        ({"forward_s": 1.0, "decode_s": 7.0}, "decode-bound: 75% of a worker's time; scaled"),
        ({"forward_s": 1.0, "read_s": 6.0}, "read-bound: 60% of a worker's time; faster storage"),
        ({"forward_s": 1.0, "encode_s": 6.1}, "postprocess-bound: 66%"),
        ({"read_out_s": 5.0}, "postprocess-bound: 56%"),
        ({"forward_s": 1.0, "write_s": 6.0}, "write-bound: 60%"),
    ],
)
def test_the_largest_part_of_a_core_is_named(changes, line: str):
    assert bottleneck(IN_TURNS | changes).startswith(line)


def test_waiting_can_be_saved_and_work_halved():
    assert "would give up to 2.5x" in bottleneck(IN_TURNS | {"forward_s": 1.0, "read_s": 6.0})
    assert "at half the cost would give 1.5x" in bottleneck(IN_TURNS)


def test_decoding_that_cannot_keep_a_gpu_busy_wants_more_cores():
    assert bottleneck(AT_ONCE) == (
        "decode-bound: busy for 98% of the time; 2 more CPU cores per GPU would give 1.4x"
    )


def test_a_full_device_is_named():
    line = bottleneck(AT_ONCE | {"device_share": 0.99})
    assert line.startswith("forward-bound: busy for 99% of the time; the device is full")


def test_loading_the_networks_is_no_part_of_it():
    first = IN_TURNS | {"wall_s": 110.0, "load_s": 100.0}
    assert bottleneck(first) == bottleneck(IN_TURNS)


@pytest.mark.parametrize("stats", [{}, {"wall_s": 1.0, "num_decoded": 0}])
def test_nothing_scored_has_no_bottleneck(stats):
    assert bottleneck(stats) == "nothing was scored"


def test_shards_sum_to_one_with_peaks_and_ratios_of_their_own_kind():
    one = {
        "wall_s": 1.0,
        "decode_s": 0.5,
        "images_per_s": 100.0,
        "peak_rss_bytes": 5,
        "device": "cpu",
    }
    two = {
        "wall_s": 3.0,
        "decode_s": 1.5,
        "images_per_s": 20.0,
        "peak_rss_bytes": 4,
        "device": "cpu",
    }
    assert sum_stats([one, two]) == {
        "wall_s": 4.0,
        "decode_s": 2.0,
        "images_per_s": 40.0,
        "peak_rss_bytes": 5,
        "device": "cpu",
    }
    assert sum_stats([]) == {}


@pytest.mark.parametrize("size", [(1, 1), (480, 640), (3000, 50)])
@pytest.mark.parametrize("value", [0, 15, 16, 130, 255])
def test_brightness_of_one_shade_is_its_sixteenth(value, size):
    assert brightness_bin(np.full((*size, 3), value, np.uint8)) == value // 16


def test_brightness_is_that_of_all_pixels_in_grey():
    rng = np.random.default_rng(0)
    for _ in range(20):
        shades = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(shades).resize((320, 240))
        mean = float(np.asarray(picture.convert("L")).mean())
        assert abs(brightness_bin(np.asarray(picture)) + 0.5 - mean / 16) < 1
