"""Pairs of boxes in one image, of many images at once: columns instead of loops.

Rows lie in the order of their images, so those of one image are a run of equal image indices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LEAST_IOU",
    "Pairs",
    "box_pairs",
    "image_blocks",
    "pair_up",
    "run_begins",
    "run_index",
    "run_rank",
]

# Overlaps below it tell nothing: a detection with no more lies on the background (TIDE's t_b).
LEAST_IOU = 0.1
_PAIRS_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows of one table with rows of another, of one image each.

    Attributes:
        row: (P,) of the one, such as a detection; other: (P,) of the other, such as an instance.
        iou: (P,); of a crowd, the share of the detection that it covers.
    """

    row: NDArray[np.int64]
    other: NDArray[np.int64]
    iou: NDArray[np.float64]

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """All of them, part after part."""
        return cls(
            np.concatenate([part.row for part in parts]),
            np.concatenate([part.other for part in parts]),
            np.concatenate([part.iou for part in parts]),
        )

    def where(self, chosen: NDArray[Any] | slice) -> Self:
        """Some of them."""
        return type(self)(self.row[chosen], self.other[chosen], self.iou[chosen])


def image_blocks(
    truth_image: NDArray[np.int64], found_image: NDArray[np.int64], num_images: int
) -> Iterator[tuple[int, int]]:
    """Ranges of images with about as many pairs of a detection and an instance each."""
    if num_images == 0:
        yield 0, 0
        return
    pairs = np.bincount(truth_image, minlength=num_images) * np.bincount(
        found_image, minlength=num_images
    )
    total = np.cumsum(pairs + 1)
    first = 0
    while first < num_images:
        done = total[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(total, done + _PAIRS_AT_ONCE, "right")))
        yield first, last
        first = last


def pair_up(
    starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row with a range of others, in their order.

    Args:
        starts: (N,) first of the others.
        counts: (N,) how many.

    Returns:
        (P,) row and (P,) other of each pair.
    """
    row = np.repeat(np.arange(len(counts)), counts)
    other = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    other += np.repeat(starts, counts)
    return row, other


def box_pairs(
    image: NDArray[np.int64],
    boxes_xywh: NDArray[np.float64],
    starts: NDArray[np.int64],
    truth_xywh: NDArray[np.float64],
    crowd: NDArray[np.bool_],
) -> Pairs:
    """Boxes that overlap by `LEAST_IOU`, in the order of detections and then instances.

    The arithmetic is that of pycocotools' `bbIou`, operation by operation.

    Args:
        image: (N,) of each detection.
        boxes_xywh: (N, 4), pixels.
        starts: (I + 1,) where the instances of each image begin.
        truth_xywh: (G, 4), pixels.
        crowd: (G,) instances of which the detection's own area is the union.
    """
    row, truth = pair_up(starts[image], starts[image + 1] - starts[image])
    x, y, w, h = boxes_xywh.T
    tx, ty, tw, th = truth_xywh.T
    wide = np.minimum((w + x)[row], (tw + tx)[truth]) - np.maximum(x[row], tx[truth])
    kept = np.flatnonzero(wide > 0)
    row, truth, wide = row[kept], truth[kept], wide[kept]
    high = np.minimum((h + y)[row], (th + ty)[truth]) - np.maximum(y[row], ty[truth])
    kept = np.flatnonzero(high > 0)
    row, truth = row[kept], truth[kept]
    shared = wide[kept] * high[kept]
    area = (w * h)[row]
    union = np.where(crowd[truth], area, area + (tw * th)[truth] - shared)
    return Pairs(row, truth, shared / union).where(shared >= LEAST_IOU * union)


def run_begins(*columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) whether a row differs from the one before it."""
    begins = np.zeros(len(columns[0]), dtype=np.bool_)
    begins[:1] = True
    for column in columns:
        begins[1:] |= column[1:] != column[:-1]
    return begins


def run_index(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) number of the run of equal rows that each row is in."""
    return np.cumsum(run_begins(*columns), dtype=np.int64) - 1


def run_rank(*columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) place of each row in its run of equal rows."""
    run = run_index(*columns)
    return np.arange(len(run)) - np.searchsorted(run, run)
