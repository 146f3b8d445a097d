"""What a shard's scoring measures, and what the measurements say.

The statistics of a receipt are flat, from name to number or text. Of a stage named `<stage>`
(admit, gpu_decode, decode, transform, batch, copy, forward, read_out, post, encode):

- `<stage>_s`: seconds that it was busy, summed over its threads. `forward_s` also holds the
  reading of the outputs, as `forward_s/<model_key>` does of one model.
- `threads/<stage>`: threads that it shares with its lane; absent where all take turns in one.
- `starved_s/<stage>`, `blocked_s/<stage>`: waiting for items, or for room behind it;
  `queue_mean/<stage>`, `queue_max/<stage>`: items that waited before it.

And of the shard: `wall_s`; `load_s` (networks); `read_s` (waiting for files), `read_busy_s` (of the
reading threads), `read_bytes`, `read_bytes_per_s`, `read_retries`; `write_s`, `write_bytes`;
`num_decoded`, `images_per_s`; `device`, `device_share` (of the time in which it ran a forward
pass); `peak_rss_bytes`; `batch_size/<model_key>` (the most frequent one); `engine/<model_key>`
(engine and precision); `gate/<model_key>` (the figures by which the engine compares with PyTorch in
float32 on this machine, or "reference": it is that, or needs no gate); and, of the inputs of
each model, `num_empty/<model_key>`, `num_duplicate/<model_key>`, `num_known/<model_key>` and
`num_failed/<model_key>`, which with `Receipt.num_scored` (that holds the empty ones) add up to all.
`brightness/<k>`: images whose mean brightness is in the k-th of 16 equal bins from black to white;
of those that the GPU decodes it is not taken.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BRIGHTNESS",
    "BRIGHTNESS_BINS",
    "Stats",
    "bottleneck",
    "brightness_bin",
    "sum_stats",
]

Stats = dict[str, float | int | str]

BRIGHTNESS, BRIGHTNESS_BINS = "brightness/", 16
# Rec. 601, as `Image.convert("L")`
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_LOOKED_AT = 48  # rows and columns: within half a bin of all pixels' mean

_LARGEST = ("peak_rss_bytes", "queue_max/", "threads/", "batch_size/")
_RATIOS = ("images_per_s", "read_bytes_per_s", "device_share", "queue_mean/")

# What is left when the slowest stage is gone is not known better than this
_MOST_GAIN = 4.0

# Parts of the work as a user knows them, and the stages that they are made of
_PARTS = {
    "read": ("read",),
    "decode": ("decode", "transform"),
    "gpu_decode": ("gpu_decode",),
    "forward": ("forward",),
    "postprocess": ("read_out", "post", "encode"),
    "write": ("write",),
}
_RELIEF = {
    "read": "faster storage, or a source nearer to the workers,",
    "decode": "scaled decoding (preprocess.decode: scaled)",
    "gpu_decode": "decoding by CPU cores (preprocess.decode: full or scaled)",
    "forward": "a faster engine or precision",
    "postprocess": "a higher score threshold, fewer detections per image or a smaller beam",
    "write": "faster storage under the store, or larger shards,",
}


def sum_stats(shards: Iterable[Mapping[str, float | int | str]]) -> Stats:
    """The statistics of many shards as those of one.

    Sums, but for peaks and settings, of which the largest counts, and for ratios, which are formed
    anew per second of one worker.
    """
    total: Stats = {}
    weights: dict[str, float] = {}
    for stats in shards:
        wall_s = float(stats.get("wall_s", 0))
        for name, value in stats.items():
            if isinstance(value, str):
                total[name] = value
            elif name.startswith(_LARGEST):
                total[name] = max(value, _number(total, name))
            elif name.startswith(_RATIOS):
                total[name] = _number(total, name) + value * wall_s
                weights[name] = weights.get(name, 0.0) + wall_s
            else:
                total[name] = _number(total, name) + value
    for name, weight in weights.items():
        total[name] = _number(total, name) / weight if weight else 0.0
    return total


def bottleneck(stats: Mapping[str, float | int | str]) -> str:
    """One line that says what bounds the throughput, and what would relieve it.

    Args:
        stats: of a receipt, or of `sum_stats`.
    """
    if not _number(stats, "wall_s") or not _number(stats, "num_decoded"):
        return "nothing was scored"
    if any(name.startswith("threads/") for name in stats):
        return _slowest_lane(stats)
    return _largest_part(stats)


def brightness_bin(pixels: NDArray[np.uint8]) -> int:
    """The bin of an image's mean brightness, from some of its pixels.

    Args:
        pixels: (H, W, 3) uint8 RGB.
    """
    rows, columns = (max(1, size // _LOOKED_AT) for size in pixels.shape[:2])
    # The mean of a product, since NumPy's over two axes of three takes many times as long
    mean = float((pixels[::rows, ::columns].astype(np.float32).reshape(-1, 3) @ _LUMA).mean())
    return int(mean + 0.5) * BRIGHTNESS_BINS // 256


def _largest_part(stats: Mapping[str, float | int | str]) -> str:
    """Of stages that take turns in one thread."""
    wall_s = _number(stats, "wall_s") - _number(stats, "load_s")
    seconds = {
        part: sum(_number(stats, f"{stage}_s") for stage in stages)
        for part, stages in _PARTS.items()
    }
    seconds["forward"] -= _number(stats, "read_out_s")  # which it holds too
    part = max(seconds, key=lambda name: seconds[name])
    share = min(1.0, seconds[part] / wall_s) if wall_s > 0 else 0.0
    line = f"{part}-bound: {share:.0%} of a worker's time"
    if part in ("read", "write"):
        return f"{line}; {_RELIEF[part]} would give up to {1 / max(0.01, 1 - share):.1f}x"
    halved = 1 / (1 - share / 2)
    return f"{line}; {_RELIEF[part]} at half the cost would give {halved:.1f}x, as more cores would"


def _slowest_lane(stats: Mapping[str, float | int | str]) -> str:
    """Of stages that run at once: the one whose threads have the most to do."""
    wall_s = _number(stats, "wall_s") - _number(stats, "load_s")
    seconds = {
        "read": _number(stats, "read_busy_s") / max(1, _number(stats, "threads/read")),
        "decode": sum(_number(stats, f"{stage}_s") for stage in ("decode", "transform"))
        / max(1, _number(stats, "threads/decode")),
        "gpu_decode": _number(stats, "gpu_decode_s"),
        "forward": _number(stats, "device_share") * wall_s,
        "postprocess": max(
            _number(stats, f"{stage}_s") / max(1, _number(stats, f"threads/{stage}"))
            for stage in ("post", "encode")
        ),
        "write": _number(stats, "write_s"),
    }
    first, second = sorted(seconds, key=lambda name: seconds[name])[:-3:-1]
    share = min(1.0, seconds[first] / wall_s) if wall_s > 0 else 0.0
    gain = min(_MOST_GAIN, seconds[first] / max(seconds[second], 1e-9))
    line = f"{first}-bound: busy for {share:.0%} of the time"
    if first == "decode":
        threads = max(1, int(_number(stats, "threads/decode")))
        more = max(1, math.ceil(threads * gain - 1e-6) - threads)
        would = min(gain, (threads + more) / threads)
        return f"{line}; {more} more CPU cores per GPU would give {would:.1f}x"
    if first == "forward" and share >= 0.95:
        return f"{line}; the device is full: only {_RELIEF['forward']} or more devices would help"
    return f"{line}; {_RELIEF[first]} would give up to {gain:.1f}x"


def _number(stats: Mapping[str, float | int | str], name: str) -> float:
    value = stats.get(name, 0)
    return 0.0 if isinstance(value, str) else float(value)
