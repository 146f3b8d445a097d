"""Panoptic quality of segments that are pixels of one map: things and stuff in one number.

Policies, as panopticapi has them: a segment is found when IoU with one of its own class is above
0.5, which can hold of one pair only. Pixels that are void in the truth leave the union; a segment
of the prediction that is left over and lies more than half on void, or on a crowd of its own class,
or on both together, is not counted. Crowds need not be found. Void pixels of the prediction belong
to no segment.

Source: Kirillov et al., Panoptic segmentation, CVPR 2019; https://github.com/cocodataset/panopticapi.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.metrics.results import ClassRow, Metric

__all__ = ["VOID", "PanopticScores", "panoptic_counts", "score_panoptic"]

VOID = 0
_POLICY = (
    "segments match at IoU > 0.5; void truth pixels left out of the union, leftovers more than "
    "half on void or on a crowd of their class not counted"
)


@dataclass(frozen=True, slots=True)
class PanopticScores:
    """What `score_panoptic` found."""

    metrics: tuple[Metric, ...]
    per_class: tuple[ClassRow, ...]


def panoptic_counts(
    truth: NDArray[np.integer[Any]],
    predicted: NDArray[np.integer[Any]],
    truth_classes: Mapping[int, int],
    predicted_classes: Mapping[int, int],
    num_classes: int,
    *,
    crowds: Collection[int] = (),
) -> NDArray[np.float64]:
    """Match the segments of one image.

    Args:
        truth: (H, W) segment ids, 0 void.
        predicted: (H, W) segment ids, 0 void.
        truth_classes: segment id -> class index, of every id in `truth` but 0.
        predicted_classes: the same of `predicted`.
        num_classes: K.
        crowds: ids of `truth` that stand for many instances.

    Returns:
        (K, 4) sum of IoU, TP, FP and FN of each class; they add up over images.

    Raises:
        ValueError: shapes differ, or an id has no class or one outside [0, K).
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape} and prediction {predicted.shape}, (H, W)")
    _check("truth", truth, truth_classes, num_classes)
    _check("predicted", predicted, predicted_classes, num_classes)
    truth_ids, rows = np.unique(truth, return_inverse=True)
    predicted_ids, columns = np.unique(predicted, return_inverse=True)
    width = len(predicted_ids)
    shared = np.bincount(
        rows.ravel() * width + columns.ravel(), minlength=len(truth_ids) * width
    ).reshape(-1, width)
    truth_area, predicted_area = shared.sum(axis=1), shared.sum(axis=0)
    on_void = shared[truth_ids == VOID].sum(axis=0)

    counts = np.zeros((num_classes, 4))
    found, used = set(), set()
    for i, j in np.argwhere(shared):
        true_id, guess_id = int(truth_ids[i]), int(predicted_ids[j])
        if VOID in (true_id, guess_id) or true_id in crowds:
            continue
        if truth_classes[true_id] != predicted_classes[guess_id]:
            continue
        iou = shared[i, j] / (truth_area[i] + predicted_area[j] - shared[i, j] - on_void[j])
        if iou > 0.5:
            counts[truth_classes[true_id], :2] += iou, 1
            found.add(true_id)
            used.add(guess_id)
    for true_id in truth_ids.tolist():
        if true_id != VOID and true_id not in crowds and true_id not in found:
            counts[truth_classes[true_id], 3] += 1
    crowd_classes = np.array(
        [truth_classes[one] if one in crowds else -1 for one in truth_ids.tolist()]
    )
    for j, guess_id in enumerate(predicted_ids.tolist()):
        if guess_id == VOID or guess_id in used:
            continue
        own_crowd = shared[crowd_classes == predicted_classes[guess_id], j].sum()
        if on_void[j] + own_crowd <= 0.5 * predicted_area[j]:
            counts[predicted_classes[guess_id], 2] += 1
    return counts


def _check(
    name: str, ids: NDArray[np.integer[Any]], classes: Mapping[int, int], num_classes: int
) -> None:
    faults = [
        one
        for one in np.unique(ids).tolist()
        if one != VOID and not 0 <= classes.get(one, -1) < num_classes
    ]
    if faults:
        raise ValueError(
            f"{name} has segments without a class in [0, {num_classes}): {faults[:10]}; "
            f"list them, or make their pixels {VOID} (void)"
        )


def score_panoptic(
    counts: NDArray[np.float64], class_names: Sequence[str], things: Collection[str]
) -> PanopticScores:
    """PQ, SQ and RQ over all classes, over things and over stuff.

    Args:
        counts: (K, 4) as `panoptic_counts` gives it, summed over images.
        class_names: K names.
        things: those of countable objects; the others are stuff.

    Raises:
        ValueError: shape and names do not fit, a thing is no class, or no segment was compared.
    """
    if counts.shape != (len(class_names), 4):
        raise ValueError(
            f"counts must be ({len(class_names)}, 4) for {len(class_names)} classes, "
            f"got {counts.shape}"
        )
    if unknown := sorted(set(things) - set(class_names)):
        raise ValueError(f"things are no classes: {', '.join(unknown)}")
    iou, hits, extra, lost = counts.T
    size = hits + (extra + lost) / 2
    seen = size > 0
    if not seen.any():
        raise ValueError("no segment was compared: truth and predictions are void")
    quality = np.divide(iou, size, out=np.zeros_like(iou), where=seen)
    segmentation = np.divide(iou, hits, out=np.zeros_like(iou), where=hits > 0)
    recognition = np.divide(hits, size, out=np.zeros_like(iou), where=seen)
    is_thing = np.array([name in set(things) for name in class_names])
    metrics = [
        Metric(
            f"{name}{suffix}",
            float(values[chosen].mean()),
            f"{words}, mean over {which} that truth or prediction have; {_POLICY}",
        )
        for suffix, which, chosen in (
            ("", "classes", seen),
            (" things", "classes of things", seen & is_thing),
            (" stuff", "classes of stuff", seen & ~is_thing),
        )
        if chosen.any()
        for name, values, words in (
            ("PQ", quality, "panoptic quality, SQ times RQ of each class"),
            ("SQ", segmentation, "mean IoU of the matched segments, 0 without any"),
            ("RQ", recognition, "TP / (TP + FP / 2 + FN / 2)"),
        )
    ]
    rows = tuple(
        ClassRow(
            name,
            int(hits[k] + lost[k]),
            int(hits[k] + extra[k]),
            {
                "PQ": float(quality[k]),
                "SQ": float(segmentation[k]),
                "RQ": float(recognition[k]),
            }
            if seen[k]
            else {},
        )
        for k, name in enumerate(class_names)
    )
    return PanopticScores(tuple(metrics), rows)
