"""Which box of one model is which of another's: same, of another class, moved, lost or gained.

All images of a chunk are matched together, in columns: boxes of different images never compete.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.metrics.pairs import Pairs, box_pairs, image_blocks, pair_up

__all__ = ["FLIPPED", "MOVED", "SAME", "BoxColumns", "Matched", "match_boxes", "pair_mask_iou"]

SAME_IOU = 0.5
SAME, FLIPPED, MOVED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class BoxColumns:
    """One model's boxes on images 0, 1, ...

    Attributes:
        image: (N,) index, not falling.
        boxes_xyxy: (N, 4) float, pixels.
        scores: (N,) in [0, 1].
        labels: (N,) int, indices into the classes of both models together.
    """

    image: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]

    @property
    def boxes_xywh(self) -> NDArray[np.float64]:
        """(N, 4), pixels."""
        return np.hstack([self.boxes_xyxy[:, :2], self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]])

    def block(self, first: int, last: int) -> tuple[int, Self]:
        """Rows on images first .. last - 1, which become 0, 1, ..., and the first row's number."""
        rows = slice(*np.searchsorted(self.image, [first, last]).tolist())
        image = self.image[rows] - first
        columns = self.boxes_xyxy[rows], self.scores[rows], self.labels[rows]
        return rows.start, type(self)(image, *columns)


@dataclass(frozen=True, slots=True)
class Matched:
    """Which box of A is which of B.

    Attributes:
        index_a, index_b: (M,) rows, those of A rising.
        kind: (M,) SAME (one class, IoU >= 0.5), FLIPPED (another class, IoU >= 0.5) or MOVED (one
            class, about the same size, the centre no further than the box's diagonal).
        iou: (M,).
        lost: rows of A without a partner, rising; gained: of B.
    """

    index_a: NDArray[np.int64]
    index_b: NDArray[np.int64]
    kind: NDArray[np.int64]
    iou: NDArray[np.float64]
    lost: NDArray[np.int64]
    gained: NDArray[np.int64]


def match_boxes(a: BoxColumns, b: BoxColumns, num_images: int) -> Matched:
    """One-to-one, best overlap first: boxes of one class, then of any, then those that moved.

    The same class goes first, so that two boxes of different classes at one place, which both
    models have, are not taken for flips.

    Args:
        a: boxes of A.
        b: of B, on the same images.
        num_images: indices are below it; images without rows are empty.
    """
    parts = []
    for first, last in image_blocks(a.image, b.image, num_images):
        (start_a, in_a), (start_b, in_b) = a.block(first, last), b.block(first, last)
        pairs, kind = _match_block(in_a, in_b, last - first)
        parts.append((pairs.row + start_a, pairs.other + start_b, kind, pairs.iou))
    index_a, index_b, kind, iou = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(index_a)
    lost, gained = np.ones(len(a.image), np.bool_), np.ones(len(b.image), np.bool_)
    lost[index_a], gained[index_b] = False, False
    return Matched(
        index_a[order],
        index_b[order],
        kind[order],
        iou[order],
        np.flatnonzero(lost),
        np.flatnonzero(gained),
    )


def _match_block(a: BoxColumns, b: BoxColumns, num_images: int) -> tuple[Pairs, NDArray[np.int64]]:
    """The pairs and their kinds."""
    free_a, free_b = _unequal(a, b, num_images)
    whole = np.flatnonzero(~free_a), np.flatnonzero(~free_b)
    equal = Pairs(*whole, np.ones(len(whole[0])))
    near = _overlapping(a, b, free_a, free_b, num_images)
    is_flip = a.labels[near.row] != b.labels[near.other]
    near = _take(near.where(np.lexsort((-near.iou, is_flip))), free_a, free_b)
    moved = _take(_moved(a, b, free_a, free_b), free_a, free_b)
    kinds = (
        np.full(len(equal.row), SAME),
        np.where(a.labels[near.row] == b.labels[near.other], SAME, FLIPPED),
        np.full(len(moved.row), MOVED),
    )
    return Pairs.concatenate([equal, near, moved]), np.concatenate(kinds)


def _unequal(
    a: BoxColumns, b: BoxColumns, num_images: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows of A and of B on images on which not all boxes and labels are equal, in one order."""
    counts = [np.bincount(side.image, minlength=num_images) for side in (a, b)]
    equal = counts[0] == counts[1]
    rows_a, rows_b = (np.flatnonzero(equal[side.image]) for side in (a, b))
    differs = (a.boxes_xyxy[rows_a] != b.boxes_xyxy[rows_b]).any(axis=1)
    differs |= a.labels[rows_a] != b.labels[rows_b]
    equal[a.image[rows_a[differs]]] = False
    return ~equal[a.image], ~equal[b.image]


def _overlapping(
    a: BoxColumns,
    b: BoxColumns,
    free_a: NDArray[np.bool_],
    free_b: NDArray[np.bool_],
    num_images: int,
) -> Pairs:
    """Free boxes of any class with IoU 0.5 or more."""
    rows_a, rows_b = np.flatnonzero(free_a), np.flatnonzero(free_b)
    image_a, image_b = a.image[rows_a], b.image[rows_b]
    starts = np.searchsorted(image_b, np.arange(num_images + 1))
    no_crowd = np.zeros(len(rows_b), np.bool_)
    pairs = box_pairs(image_a, a.boxes_xywh[rows_a], starts, b.boxes_xywh[rows_b], no_crowd)
    pairs = pairs.where(pairs.iou >= SAME_IOU)
    return Pairs(rows_a[pairs.row], rows_b[pairs.other], pairs.iou)


def _moved(
    a: BoxColumns, b: BoxColumns, free_a: NDArray[np.bool_], free_b: NDArray[np.bool_]
) -> Pairs:
    """Free boxes of one class that may be the same one at another place, the likeliest first."""
    rows_a, rows_b = np.flatnonzero(free_a), np.flatnonzero(free_b)
    num_classes = max(side.labels.max(initial=-1) for side in (a, b)) + 1
    group_a = a.image[rows_a] * num_classes + a.labels[rows_a]
    group_b = b.image[rows_b] * num_classes + b.labels[rows_b]
    order = np.argsort(group_b, kind="stable")
    rows_b, group_b = rows_b[order], group_b[order]
    starts, ends = (np.searchsorted(group_b, group_a, side) for side in ("left", "right"))
    row, other = pair_up(starts, ends - starts)
    row, other = rows_a[row], rows_b[other]
    box_a, box_b = a.boxes_xyxy[row], b.boxes_xyxy[other]
    nearness = _nearness(box_a, box_b)
    likeliest = np.argsort(-nearness, kind="stable")[: np.count_nonzero(nearness)]
    iou = _iou(box_a[likeliest], box_b[likeliest])
    return Pairs(row[likeliest], other[likeliest], iou)


def _take(pairs: Pairs, free_a: NDArray[np.bool_], free_b: NDArray[np.bool_]) -> Pairs:
    """Pair by pair, the best first, those whose boxes are both free; they are not free any more.

    Pairs that are the best left of both their boxes are taken at once: no other can prevent them.
    """
    left, taken = np.arange(len(pairs.row)), [np.zeros(0, np.int64)]
    best_a, best_b = np.zeros(len(free_a), np.int64), np.zeros(len(free_b), np.int64)
    while len(left):
        row, other = pairs.row[left], pairs.other[left]
        # the last write stays: that of the best
        best_a[row[::-1]], best_b[other[::-1]] = left[::-1], left[::-1]
        won = (best_a[row] == left) & (best_b[other] == left)
        taken.append(left[won])
        free_a[row[won]], free_b[other[won]] = False, False
        left = left[free_a[row] & free_b[other]]
    return pairs.where(np.concatenate(taken))


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,) intersection over union of boxes by pairs; 0 where both are empty."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = _area(np.maximum(sides, 0))
    union = _area(a[:, 2:] - a[:, :2]) + _area(b[:, 2:] - b[:, :2]) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _nearness(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,) how well a box may be another that moved; 0 where it may not."""
    size_a, size_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    common = _area(np.minimum(size_a, size_b))
    union = _area(size_a) + _area(size_b) - common
    alike = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    apart = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    diagonal = np.hypot(size_a[:, 0], size_a[:, 1])
    distance = np.divide(
        np.hypot(apart[:, 0], apart[:, 1]),
        diagonal,
        out=np.full_like(alike, 2.0),
        where=diagonal > 0,
    )
    return np.where((alike >= SAME_IOU) & (distance <= 1), alike * (1.01 - distance), 0.0)


def _area(sides: NDArray[np.float64]) -> NDArray[np.float64]:
    return sides[:, 0] * sides[:, 1]


def pair_mask_iou(
    planes_a: NDArray[Any],
    planes_b: NDArray[Any],
    slots_a: Sequence[tuple[int, int]],
    slots_b: Sequence[tuple[int, int]],
) -> NDArray[np.float64]:
    """IoU of masks by pairs.

    Args:
        planes_a: (layers, H, W) values of the instances of A.
        planes_b: the same of B.
        slots_a: (layer, value) of each pair's mask in A; a negative layer: none.
        slots_b: the same of B.

    Returns:
        (M,), NaN where one of the two has no mask.
    """
    found = np.full(len(slots_a), np.nan)
    for layer_a in range(len(planes_a)):
        for layer_b in range(len(planes_b)):
            wanted = [
                k
                for k, (a, b) in enumerate(zip(slots_a, slots_b, strict=True))
                if a[0] == layer_a and b[0] == layer_b
            ]
            if not wanted:
                continue
            a, b = planes_a[layer_a].astype(np.int64), planes_b[layer_b].astype(np.int64)
            width = int(b.max()) + 1
            joint = np.bincount((a * width + b).ravel(), minlength=(int(a.max()) + 1) * width)
            table = joint.reshape(-1, width)
            sizes_a, sizes_b = table.sum(axis=1), table.sum(axis=0)
            for k in wanted:
                value_a, value_b = slots_a[k][1], slots_b[k][1]
                inside = value_a < len(sizes_a) and value_b < len(sizes_b)
                common = int(table[value_a, value_b]) if inside else 0
                union = (
                    (int(sizes_a[value_a]) if value_a < len(sizes_a) else 0)
                    + (int(sizes_b[value_b]) if value_b < len(sizes_b) else 0)
                    - common
                )
                found[k] = common / union if union else 1.0
    return found
