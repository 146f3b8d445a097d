"""Optimal localisation-recall-precision error: one number and the best score threshold of a class.

Source: Oksuz et al., Localization recall precision (LRP), ECCV 2018.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["OptimalLrp", "optimal_lrp"]

_IOU = 0.5


@dataclass(frozen=True, slots=True)
class OptimalLrp:
    """The lowest LRP error of any score threshold.

    Attributes:
        error: in [0, 1], 0 is perfect; threshold: keep scores of at least this. 1 and None where
            keeping nothing is best.
        localisation: mean of 1 - IoU of the hits kept.
        false_positives: share of wrong ones among those kept; misses: share not found.
    """

    error: float
    threshold: float | None
    localisation: float
    false_positives: float
    misses: float


def optimal_lrp(
    scores: NDArray[np.floating[Any]], ious: NDArray[np.floating[Any]], num_truth: int
) -> OptimalLrp:
    """LRP at every score threshold, and the best, the highest of equals.

    LRP is the mean, over hits, wrong detections and misses, of 1 for the wrong and missed and of
    (1 - IoU) / 0.5 for hits, at IoU 0.50.

    Args:
        scores: (N,) of the detections of one class, ignored ones left out.
        ious: (N,) with the matched instance, 0 for those that are wrong.
        num_truth: instances to be found.

    Raises:
        ValueError: lengths differ, a hit has an IoU below 0.5 or above 1, or nothing was to find.
    """
    if scores.shape != ious.shape or scores.ndim != 1:
        raise ValueError(f"need one IoU per score, got {scores.shape} and {ious.shape}")
    right = ious > 0
    if not ((ious[right] >= _IOU - 1e-9) & (ious[right] <= 1 + 1e-9)).all():
        raise ValueError("IoU of a hit must lie in [0.5, 1]; give 0 for a detection that is wrong")
    if num_truth < 1:
        raise ValueError(f"LRP needs instances to be found, got {num_truth}")
    order = np.argsort(-scores, kind="stable")
    scores, ious, right = scores[order], ious[order].astype(np.float64), right[order]
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
    hits, wrong = np.cumsum(right)[last], np.cumsum(~right)[last]
    loss = np.cumsum(np.where(right, 1 - ious, 0.0))[last]
    errors = (loss / (1 - _IOU) + wrong + num_truth - hits) / (num_truth + wrong)
    if not len(errors) or errors.min() >= 1:
        return OptimalLrp(1.0, None, 0.0, 0.0, 1.0)
    best = int(np.argmin(errors))
    return OptimalLrp(
        error=float(errors[best]),
        threshold=float(scores[last][best]),
        localisation=float(loss[best] / hits[best]),
        false_positives=float(wrong[best] / (hits[best] + wrong[best])),
        misses=float(1 - hits[best] / num_truth),
    )
