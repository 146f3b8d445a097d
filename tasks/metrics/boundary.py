"""How well outlines agree, which mIoU of large regions hardly shows.

Source: Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013 (per
class, tolerance 0.75 % of the image's diagonal); Perazzi et al., DAVIS, CVPR 2016 (precision and
recall by dilating each side's outline with a disc).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.metrics.results import Metric

__all__ = ["boundary_counts", "boundary_f", "score_boundaries"]

TOLERANCE = 0.0075


def boundary_counts(
    truth: NDArray[np.integer[Any]],
    predicted: NDArray[np.integer[Any]],
    num_classes: int,
    *,
    tolerance: float = TOLERANCE,
) -> NDArray[np.int64]:
    """Outline pixels of each class in one image, and those near the other side's outline.

    An outline pixel has one of its four neighbours in another class; the image's edge and void are
    no class, so where a region touches these it has no outline.

    Args:
        truth: (H, W) class indices; anything outside [0, num_classes) is void, in both maps.
        predicted: (H, W) class indices.
        num_classes: K.
        tolerance: greatest distance, as a share of the diagonal; rounded up to whole pixels.

    Returns:
        (K, 4): predicted outline pixels near the truth's, all predicted, the truth's near the
        predicted ones, all of the truth.

    Raises:
        ValueError: the shapes differ, or the tolerance is no share.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape} and prediction {predicted.shape}, (H, W)")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be a share of the diagonal in [0, 1), got {tolerance}")
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    valid = (truth >= 0) & (truth < num_classes)
    edges = [_has_other_neighbour(labels, valid) for labels in (truth, predicted)]
    counts = np.zeros((num_classes, 4), dtype=np.int64)
    for k in range(num_classes):
        true_line, guessed_line = edges[0] & (truth == k), edges[1] & (predicted == k)
        true_points, guessed_points = np.nonzero(true_line), np.nonzero(guessed_line)
        counts[k] = (
            _count_near(guessed_points, true_line, radius) if len(true_points[0]) else 0,
            len(guessed_points[0]),
            _count_near(true_points, guessed_line, radius) if len(guessed_points[0]) else 0,
            len(true_points[0]),
        )
    return counts


def boundary_f(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """F of precision and recall of outline pixels, NaN where neither side has an outline.

    Args:
        counts: (..., 4) as `boundary_counts` gives it.
    """
    near, guessed, found, true = np.moveaxis(counts.astype(np.float64), -1, 0)
    precision, recall = near / np.maximum(guessed, 1), found / np.maximum(true, 1)
    both = precision + recall
    f = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return np.where(guessed + true > 0, f, np.nan)


def score_boundaries(
    counts: NDArray[np.int64], class_names: Sequence[str], *, tolerance: float = TOLERANCE
) -> tuple[Metric, dict[str, float]]:
    """Boundary F over images and classes, and of each class that has one.

    Args:
        counts: (I, K, 4) of each image.
        class_names: K names.
        tolerance: that the counts were made with, for the definition.

    Raises:
        ValueError: shape and names do not fit, or there is no outline at all.
    """
    if counts.ndim != 3 or counts.shape[1:] != (len(class_names), 4):
        raise ValueError(
            f"counts must be (images, {len(class_names)}, 4) for {len(class_names)} classes, "
            f"got {counts.shape}"
        )
    scores = boundary_f(counts)
    per_class = {
        name: float(np.nanmean(scores[:, k]))
        for k, name in enumerate(class_names)
        if not np.isnan(scores[:, k]).all()
    }
    if not per_class:
        raise ValueError("no image has an outline between two classes")
    definition = (
        f"F of outline pixels within {100 * tolerance:g} % of the diagonal of the other side's, "
        "mean over the images where truth or prediction outline the class, then over classes"
    )
    return Metric("boundary F", float(np.mean(list(per_class.values()))), definition), per_class


def _has_other_neighbour(
    labels: NDArray[np.integer[Any]], valid: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    found = np.zeros(labels.shape, dtype=bool)
    for low, high in (
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
    ):
        differ = (labels[low] != labels[high]) & valid[low] & valid[high]
        found[low] |= differ
        found[high] |= differ
    return found


def _count_near(points: tuple[NDArray[np.int64], ...], line: NDArray[np.bool_], radius: int) -> int:
    """Points with a pixel of the line within `radius`: a disc as rows of their own half width."""
    if not len(points[0]):
        return 0
    rows, columns = points
    # (H + 2r, W + 2r + 1) pixels of the line to the left, so that no disc leaves the table
    padded = np.pad(line, ((radius, radius), (radius + 1, radius)))
    sums = np.cumsum(padded, axis=1, dtype=np.int32)
    near = np.zeros(len(rows), dtype=np.bool_)
    for dy in range(-radius, radius + 1):
        half = math.isqrt(radius**2 - dy**2)
        row, middle = rows + dy + radius, columns + radius + 1
        near |= sums[row, middle + half] > sums[row, middle - half - 1]
    return int(np.count_nonzero(near))
