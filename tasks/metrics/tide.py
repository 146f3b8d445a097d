"""Why detections are wrong: six kinds of error, and what mending each would be worth.

A wrong detection is one at IoU 0.50 that is neither right nor ignored. Its kind is the first of
these that holds: it lies (IoU 0.10 to 0.50) on an instance of its class: localisation; it lies
(0.50 or more) on one of another class: class; on one of its class that a better one has taken:
duplicate; on nothing (below 0.10): background; the rest lies beside one of another class: both. An
instance is missed if nothing found it and no localisation or class error points at it.

What a kind costs is measured by mending it alone, all else as it is (their "oracles"): a class
error moves to the instance's class, a localisation error onto the instance, and is then right if
nothing has found the instance and no better one of its kind points at it, else it goes; the other
wrong ones go; missed instances are no longer asked for.

Unlike the authors' code, AP is COCO's at IoU 0.50: 101 points, mean over the classes that have
truth.

Source: Bolya et al., TIDE: a general toolbox for identifying object detection errors, ECCV 2020,
section 2; https://github.com/dbolya/tide.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.metrics.matching import MatchRecords
from pixelmill.tasks.metrics.pairs import LEAST_IOU, run_begins
from pixelmill.tasks.metrics.precision import interpolate_precision
from pixelmill.tasks.metrics.results import ErrorBreakdown, ErrorKind, ErrorShare

__all__ = ["KINDS", "NO_ERROR", "Errors", "break_down", "find_errors"]

KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)
NO_ERROR = -1
CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
_SOURCE = "Bolya et al., TIDE, ECCV 2020; AP at IoU 0.50 as COCO's, mean over classes with truth"
_DEFINITIONS = {
    "class": "on an instance (IoU 0.50) of another class",
    "localisation": "beside an instance of its class (IoU 0.10 to 0.50)",
    "class and localisation": "beside an instance of another class (IoU 0.10 to 0.50)",
    "duplicate": "on an instance of its class that a better detection has",
    "background": "on no instance (IoU below 0.10)",
    "missed": "instances that no detection found, nor a class or localisation error points at",
}


@dataclass(frozen=True, slots=True)
class Errors:
    """The error of each detection and instance of `MatchRecords`.

    Attributes:
        kind: (N,) index of `KINDS`, `NO_ERROR` of what is right or ignored.
        target: (N,) row of the instance that it is meant for or lies beside, -1 for none.
        missed: (G,) whether the instance is missed.
    """

    kind: NDArray[np.int64]
    target: NDArray[np.int64]
    missed: NDArray[np.bool_]


def find_errors(records: MatchRecords) -> Errors:
    """Tell the kinds apart."""
    starts = np.searchsorted(records.truth_image, records.image)
    wrong = ((records.right | records.ignored) & 1) == 0
    same, other = records.same_iou, records.other_iou
    kind = np.select(
        [
            ~wrong,
            (same >= LEAST_IOU) & (same < 0.5),
            other >= 0.5,
            same >= 0.5,
            other < LEAST_IOU,
        ],
        [NO_ERROR, LOCALISATION, CLASS, DUPLICATE, BACKGROUND],
        default=BOTH,
    )
    of_other = (kind == CLASS) | (kind == BOTH)
    place = np.where(of_other, records.other_truth, records.same_truth)
    place[(kind == BACKGROUND) | ~wrong] = -1
    target = np.where(place >= 0, starts + place, -1)
    missed = (records.truth_ignored & 1 == 0) & np.isnan(records.found_score)
    missed[target[(kind == CLASS) | (kind == LOCALISATION)]] = False
    return Errors(kind, target, missed)


def break_down(
    records: MatchRecords, errors: Errors, order: NDArray[np.int64], num_classes: int
) -> ErrorBreakdown | None:
    """What each kind costs; None where the truth has no instance.

    Args:
        records: of all images.
        errors: theirs.
        order: rows by class and falling score, as `Accumulated` has them.
        num_classes: K.
    """
    num_truth = records.counted_truth(num_classes)
    if not num_truth.any():
        return None
    counts = (records.ignored & 1) == 0
    right = (records.right & 1) == 1
    classes, kind = records.class_index, errors.kind

    def ap(
        kept: NDArray[np.bool_],
        right: NDArray[np.bool_] = right,
        num_truth: NDArray[np.int64] = num_truth,
    ) -> float:
        rows = order[kept[order]]
        return _mean_ap(rows, classes[rows], right, num_truth, asked)

    asked = num_truth > 0
    base = ap(counts)
    gains = np.zeros(len(KINDS))
    for k in (BOTH, DUPLICATE, BACKGROUND):
        gains[k] = ap(counts & (kind != k)) - base
    beside = _mended(records, errors, LOCALISATION)
    gains[LOCALISATION] = ap(counts & ((kind != LOCALISATION) | beside), right | beside) - base
    renamed = _mended(records, errors, CLASS)
    left = order[(counts & (kind != CLASS))[order]]
    moved = _merged(records, left, np.flatnonzero(renamed), errors.target)
    gains[CLASS] = _mean_ap(*moved, right | renamed, num_truth, asked) - base
    lost = np.bincount(records.truth_class[errors.missed], minlength=num_classes)
    gains[MISSED] = ap(counts, num_truth=num_truth - lost) - base
    numbers = np.bincount(kind[kind >= 0], minlength=len(KINDS))
    numbers[MISSED] = np.count_nonzero(errors.missed)
    found = np.bincount(classes[right & counts], minlength=num_classes)
    return ErrorBreakdown(
        ap=base,
        shares=tuple(
            ErrorShare(name, int(numbers[k]), float(gains[k]), _DEFINITIONS[name])
            for k, name in enumerate(KINDS)
        ),
        delta_false_positives=ap(counts & right) - base,
        delta_misses=ap(counts, num_truth=np.minimum(num_truth, found)) - base,
        source=_SOURCE,
    )


def _mended(records: MatchRecords, errors: Errors, kind: int) -> NDArray[np.bool_]:
    """Errors that would be right: the best of each instance that nothing has found."""
    rows = np.flatnonzero(errors.kind == kind)
    target = errors.target[rows]
    free = np.isnan(records.found_score[target])
    rows, target = rows[free], target[free]
    order = np.lexsort((-records.score[rows], target))
    first = run_begins(target[order])
    mended = np.zeros(len(errors.kind), np.bool_)
    mended[rows[order[first]]] = True
    return mended


def _merged(
    records: MatchRecords,
    rows: NDArray[np.int64],
    moved: NDArray[np.int64],
    target: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows by class and falling score, and their classes, after some moved to their target's.

    Args:
        records: of all images.
        rows: those that stay, in that order.
        moved: those that move.
        target: (N,) instance of each.
    """
    classes = records.class_index[rows]
    new_class = records.truth_class[target[moved]]
    best_first = np.lexsort((-records.score[moved], new_class))
    moved, new_class = moved[best_first], new_class[best_first]
    place = np.zeros(len(moved), np.int64)
    for k in np.unique(new_class).tolist():
        own = new_class == k
        start, end = np.searchsorted(classes, [k, k + 1])
        falling = -records.score[rows[start:end]]
        place[own] = start + np.searchsorted(falling, -records.score[moved[own]], "right")
    return np.insert(rows, place, moved), np.insert(classes, place, new_class)


def _mean_ap(
    rows: NDArray[np.int64],
    classes: NDArray[np.int64],
    right: NDArray[np.bool_],
    num_truth: NDArray[np.int64],
    asked: NDArray[np.bool_],
) -> float:
    """AP at IoU 0.50 of detections by class and falling score, mean over the classes `asked` for.

    `classes` are those of `rows`, `right` is of all detections.

    A class of which nothing is left to be found has AP 1 without wrong detections, else 0.
    """
    right = right[rows]
    ends = np.searchsorted(classes, np.arange(len(num_truth) + 1))
    values = []
    for k in np.flatnonzero(asked).tolist():
        hits = np.flatnonzero(right[ends[k] : ends[k + 1]])
        if num_truth[k]:
            values.append(float(interpolate_precision(hits + 1, int(num_truth[k])).mean()))
        else:
            values.append(float(ends[k] == ends[k + 1]))
    return float(np.mean(values))
