"""Semantic segmentation scores from one confusion matrix of pixels, streamed over the images.

Void policy: pixels that are void in the truth are not scored; a void prediction on a valid pixel
is wrong and has a column of its own. The policy decides the number (on one model's CamVid maps it
moves mIoU from 53 to 60), so every definition states it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.metrics.results import ClassRow, Confusion, Metric

__all__ = [
    "VOID_COLUMN",
    "SemanticScores",
    "class_tallies",
    "confusion_counts",
    "mean_image_iou",
    "mean_iou",
    "score_confusion",
]

VOID_COLUMN = "void or unknown"
_VOID_POLICY = "void truth pixels not scored, void predictions wrong"
_MEAN_POLICY = "mean over the classes that truth or prediction have"


@dataclass(frozen=True, slots=True)
class SemanticScores:
    """What `score_confusion` found."""

    metrics: tuple[Metric, ...]
    per_class: tuple[ClassRow, ...]
    confusion: Confusion


def confusion_counts(
    truth: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], num_classes: int
) -> NDArray[np.int64]:
    """Count the pixels of each (truth, prediction) pair in one image.

    Args:
        truth: (H, W) class indices; anything outside [0, num_classes) is void and not counted.
        predicted: (H, W) class indices; anything outside counts in the last column.
        num_classes: K.

    Returns:
        (K, K + 1) pixels; rows truth, columns prediction, the last one void or unknown.

    Raises:
        ValueError: the shapes differ.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape} and prediction {predicted.shape}, (H, W)")
    valid = (truth >= 0) & (truth < num_classes)
    rows, columns = truth[valid].astype(np.int64), predicted[valid].astype(np.int64)
    columns[(columns < 0) | (columns > num_classes)] = num_classes
    width = num_classes + 1
    return np.bincount(rows * width + columns, minlength=num_classes * width).reshape(-1, width)


def class_tallies(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K, 3) pixels of each class of a (K, K + 1) confusion: right, in the truth, predicted."""
    return np.stack(
        [np.diagonal(confusion), confusion.sum(axis=1), confusion[:, :-1].sum(axis=0)], axis=1
    )


def _class_iou(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K,) intersection over union, NaN for classes that neither side has."""
    hits = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(axis=1) + confusion[:, :-1].sum(axis=0) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def mean_iou(confusion: NDArray[np.int64]) -> float | None:
    """Mean IoU over the classes that truth or prediction have; None where all truth is void."""
    ious = _class_iou(confusion)
    present = ~np.isnan(ious)
    return float(ious[present].mean()) if present.any() else None


def mean_image_iou(images_iou: NDArray[np.float64]) -> Metric:
    """Mean of the images' mIoU, in which a small image or object weighs as much as a large one.

    Args:
        images_iou: (I,) as `mean_iou` gives it, NaN for images whose truth is all void.

    Raises:
        ValueError: no image has a number.
    """
    defined = images_iou[~np.isnan(images_iou)]
    if not len(defined):
        raise ValueError("no image has an mIoU: all truth is void; check the void value")
    return Metric(
        "mIoU per image",
        float(defined.mean()),
        f"mIoU of each image over the classes that its truth or prediction has, mean over images "
        f"(Csurka et al. 2013); {_VOID_POLICY}",
    )


def score_confusion(confusion: NDArray[np.int64], class_names: Sequence[str]) -> SemanticScores:
    """All numbers of a confusion matrix.

    Args:
        confusion: (K, K + 1) as `confusion_counts` gives it, summed over images.
        class_names: K names.

    Raises:
        ValueError: shape and names do not fit, or no pixel was scored.
    """
    num_classes = len(class_names)
    if confusion.shape != (num_classes, num_classes + 1):
        raise ValueError(
            f"confusion must be ({num_classes}, {num_classes + 1}) for {num_classes} classes, "
            f"got {confusion.shape}"
        )
    total = int(confusion.sum())
    if total == 0:
        raise ValueError("no pixel was scored: all truth is void; check the void value")
    hits = np.diagonal(confusion).astype(np.float64)
    in_truth = confusion.sum(axis=1).astype(np.float64)
    in_prediction = confusion[:, :-1].sum(axis=0).astype(np.float64)
    ious = _class_iou(confusion)
    present, labelled = ~np.isnan(ious), in_truth > 0
    dice = 2 * hits[present] / (in_truth + in_prediction)[present]
    metrics = (
        Metric(
            "mIoU",
            float(ious[present].mean()),
            f"intersection over union, pixels of all images together; {_MEAN_POLICY}; "
            f"{_VOID_POLICY}",
        ),
        Metric(
            "Dice",
            float(dice.mean()),
            f"2 TP / (2 TP + FP + FN), pixels of all images together; {_MEAN_POLICY}; "
            f"{_VOID_POLICY}",
        ),
        Metric(
            "pixel accuracy", float(hits.sum() / total), f"right share of pixels; {_VOID_POLICY}"
        ),
        Metric(
            "mean class accuracy",
            float((hits[labelled] / in_truth[labelled]).mean()),
            f"right share of the pixels of a class, mean over classes in the truth; {_VOID_POLICY}",
        ),
        Metric(
            "frequency-weighted IoU",
            float((in_truth[labelled] * ious[labelled]).sum() / total),
            f"IoU weighted by the class's share of the truth; {_VOID_POLICY}",
        ),
    )
    return SemanticScores(
        metrics=metrics,
        per_class=tuple(
            _class_row(name, hits[k], in_truth[k], in_prediction[k])
            for k, name in enumerate(class_names)
        ),
        confusion=Confusion(
            rows=tuple(class_names),
            columns=(*class_names, VOID_COLUMN),
            counts=tuple(tuple(int(value) for value in line) for line in confusion),
            unit="pixels",
        ),
    )


def _class_row(name: str, hits: float, in_truth: float, in_prediction: float) -> ClassRow:
    values: dict[str, float] = {}
    if in_truth + in_prediction > 0:
        values["IoU"] = float(hits / (in_truth + in_prediction - hits))
        values["Dice"] = float(2 * hits / (in_truth + in_prediction))
    if in_truth > 0:
        values["accuracy"] = float(hits / in_truth)
    if in_prediction > 0:
        values["precision"] = float(hits / in_prediction)
    return ClassRow(name, int(in_truth), int(in_prediction), values)
