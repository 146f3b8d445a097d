"""From matched detections to average precision and recall: pycocotools' numbers, bit by bit.

Source: Lin et al., Microsoft COCO, ECCV 2014; pycocotools 2.0, `COCOeval.accumulate`.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.metrics.matching import (
    AREAS,
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    RECALL_POINTS,
    MatchRecords,
)

__all__ = ["MAX_DETS", "Accumulated", "accumulate", "interpolate_precision"]

MAX_DETS = (1, 10, MAX_DETECTIONS)
_EPS = np.spacing(1)


@dataclass(frozen=True, slots=True)
class Accumulated:
    """Precision and recall, -1 where a class has no truth.

    Attributes:
        precision: (T, 101, K, A) at recall 0, 0.01 .. 1, of the best 100 detections.
        recall: (T, K, A, 3) greatest, of the best 1, 10 and 100 detections.
        order: (N,) rows of the records by class and falling score.
        ends: (K + 1,) where each class's rows begin in `order`.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    order: NDArray[np.int64]
    ends: NDArray[np.int64]

    def rows(self, class_index: int) -> NDArray[np.int64]:
        """Rows of one class, best first."""
        return self.order[self.ends[class_index] : self.ends[class_index + 1]]

    def mean_precision(self, iou: int | None = None, area: int = 0) -> float:
        """AP over all IoU thresholds or at one; -1 where no class has truth."""
        table = self.precision[:, :, :, area] if iou is None else self.precision[iou, :, :, area]
        return _mean_valid(table)

    def mean_recall(self, num_best: int = 2, area: int = 0) -> float:
        """AR over all IoU thresholds; `num_best` is an index of `MAX_DETS`."""
        return _mean_valid(self.recall[:, :, area, num_best])


def accumulate(records: MatchRecords, num_classes: int) -> Accumulated:
    """Average precision and recall of all images together.

    Args:
        records: of the images in their order, by which detections of equal score are ordered.
        num_classes: K.
    """
    order = np.lexsort((-records.score, records.class_index))
    ends = np.searchsorted(records.class_index[order], np.arange(num_classes + 1))
    num_ious, num_areas = len(IOU_THRESHOLDS), len(AREAS)
    precision = np.full((num_ious, len(RECALL_POINTS), num_classes, num_areas), -1.0)
    recall = np.full((num_ious, num_classes, num_areas, len(MAX_DETS)), -1.0)
    wanted = np.stack([records.counted_truth(num_classes, a) for a in range(num_areas)])
    rank = records.group_rank()
    for k in np.flatnonzero(wanted.any(axis=0)).tolist():
        rows = order[ends[k] : ends[k + 1]]
        for a in np.flatnonzero(wanted[:, k]).tolist():
            num_truth = int(wanted[a, k])
            matches = _AreaMatches.sort_out(records.right[rows], records.ignored[rows], a)
            for t in range(num_ious):
                hits = matches.hits(t)
                precision[t, :, k, a] = interpolate_precision(matches.counted(hits, t), num_truth)
                best = rank[rows[hits]]
                for m, most in enumerate(MAX_DETS):
                    recall[t, k, a, m] = np.count_nonzero(best < most) / num_truth
    return Accumulated(precision, recall, order, ends)


@dataclass(frozen=True, slots=True)
class _AreaMatches:
    """One class's detections at one range of area, best first, told apart by how rare they are.

    Most are alike at all IoU thresholds: wrong, or of another size. Only the others are looked at
    threshold by threshold.

    Attributes:
        hit_rows, hit_bits: right at some threshold, and at which.
        odd_rows, odd_bits: ignored at some thresholds only, and at which.
        all_ignored: (N,) running count of those ignored at all thresholds.
    """

    hit_rows: NDArray[np.int64]
    hit_bits: NDArray[np.int64]
    odd_rows: NDArray[np.int64]
    odd_bits: NDArray[np.int64]
    all_ignored: NDArray[np.int64]

    @classmethod
    def sort_out(cls, right: NDArray[np.int64], ignored: NDArray[np.int64], area: int) -> Self:
        every = 2 ** len(IOU_THRESHOLDS) - 1
        shift = len(IOU_THRESHOLDS) * area
        right, ignored = (right >> shift) & every, (ignored >> shift) & every
        hit_rows = np.flatnonzero(right)
        odd_rows = np.flatnonzero((ignored != 0) & (ignored != every))
        all_ignored = np.cumsum(ignored == every, dtype=np.int64)
        return cls(hit_rows, right[hit_rows], odd_rows, ignored[odd_rows], all_ignored)

    def hits(self, threshold: int) -> NDArray[np.int64]:
        """Rows that are right."""
        return self.hit_rows[(self.hit_bits >> threshold) & 1 == 1]

    def counted(self, rows: NDArray[np.int64], threshold: int) -> NDArray[np.int64]:
        """How many up to each row are not ignored, the row itself included."""
        odd = self.odd_rows[(self.odd_bits >> threshold) & 1 == 1]
        return rows + 1 - self.all_ignored[rows] - np.searchsorted(odd, rows)


def interpolate_precision(counted: NDArray[np.int64], num_truth: int) -> NDArray[np.float64]:
    """(101,) best precision at each recall or beyond.

    Args:
        counted: (H,) of each right detection, best first: how many of at least its score count,
            itself included.
        num_truth: to be found, at least 1.
    """
    points = np.zeros(len(RECALL_POINTS))
    if not len(counted):
        return points
    hits = np.arange(1, len(counted) + 1)
    best = np.maximum.accumulate((hits / (counted + _EPS))[::-1])[::-1]
    at = np.searchsorted(hits / num_truth, RECALL_POINTS, side="left")
    reached = at < len(hits)
    points[reached] = best[at[reached]]
    return points


def _mean_valid(values: NDArray[np.float64]) -> float:
    valid = values[values > -1]
    return float(np.mean(valid)) if valid.size else -1.0
