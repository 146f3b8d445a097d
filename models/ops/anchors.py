"""Reference boxes of a one-stage detector."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["cached_anchors", "make_anchors"]


@functools.lru_cache(maxsize=64)
def cached_anchors(
    canvas: tuple[int, int],
    strides: tuple[int, ...],
    sizes: tuple[float, ...],
    scales: tuple[float, ...],
    ratios: tuple[float, ...],
    device: torch.device,
) -> Tensor:
    """`make_anchors`, made and moved once per canvas and device; not to be written to."""
    with torch.inference_mode(False):  # scoring may be the first to ask, training the next
        return make_anchors(canvas, strides, sizes, scales, ratios).to(device)


def make_anchors(
    canvas: tuple[int, int],
    strides: Sequence[int],
    sizes: Sequence[float],
    scales: Sequence[float],
    ratios: Sequence[float],
) -> Tensor:
    """Boxes of every scale and ratio, centred on every cell of every level.

    Args:
        canvas: (height, width) in pixels.
        strides: pixels per cell, by level; a level has ceil(side / stride) cells along a side.
        sizes: square root of the area of the box of scale 1 in pixels, by level.
        scales: factors on the size.
        ratios: height over width; the area does not depend on it.

    Returns:
        (A, 4) float32 x_min, y_min, x_max, y_max, ordered by level, row, column, scale, ratio.

    Raises:
        ValueError: as many sizes as strides are needed.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, section 4, "Anchors".
    """
    if len(strides) != len(sizes):
        raise ValueError(f"expected one size per stride, got {len(sizes)} for {len(strides)}")
    root = torch.tensor([ratio**0.5 for ratio in ratios])
    scale = torch.tensor(scales)[:, None]
    # (scales * ratios, 4) around the origin, of unit size
    half = torch.stack((scale / root, scale * root), dim=-1).reshape(-1, 2) / 2
    unit = torch.cat((-half, half), dim=1)
    levels = [
        (_centres(canvas, stride)[:, None] + size * unit).reshape(-1, 4)
        for stride, size in zip(strides, sizes, strict=True)
    ]
    return torch.cat(levels)


def _centres(canvas: tuple[int, int], stride: int) -> Tensor:
    """(cells, 4): x, y, x, y of the middle of each cell, row by row."""
    rows, columns = (-(-side // stride) for side in canvas)
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) * stride, (torch.arange(columns) + 0.5) * stride, indexing="ij"
    )
    return torch.stack((x, y, x, y), dim=-1).reshape(-1, 4)
