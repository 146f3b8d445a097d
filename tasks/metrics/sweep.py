"""Which score a class's detections should have to be kept: precision, recall and F1 at each."""

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.metrics.results import ThresholdSweep

__all__ = ["best_threshold", "sweep_thresholds"]

_MOST_POINTS = 101


def sweep_thresholds(
    class_name: str, scores: NDArray[np.float64], right: NDArray[np.bool_], num_truth: int
) -> ThresholdSweep:
    """Precision, recall and F1 at the scores of a class's detections.

    Args:
        class_name: whose.
        scores: (N,) falling, of detections that count.
        right: (N,) whether each is, at IoU 0.50.
        num_truth: to be found, at least 1.

    Returns:
        At most about a hundred points, those of the best F1 and of both ends among them.
    """
    thresholds, hits, kept = _at_thresholds(scores, right)
    precision, recall = hits / np.maximum(kept, 1), hits / num_truth
    f1 = 2 * hits / (kept + num_truth)
    best = int(np.argmax(f1)) if len(f1) else 0
    chosen = np.unique(
        np.append(np.linspace(0, len(f1) - 1, _MOST_POINTS).round().astype(int), best)
        if len(f1)
        else np.zeros(0, int)
    )
    return ThresholdSweep(
        class_name=class_name,
        thresholds=_floats(thresholds[chosen]),
        precision=_floats(precision[chosen]),
        recall=_floats(recall[chosen]),
        f1=_floats(f1[chosen]),
        recommended=float(thresholds[best]) if len(f1) and f1[best] > 0 else None,
    )


def best_threshold(
    scores: NDArray[np.float64], right: NDArray[np.bool_], num_truth: int
) -> tuple[float, float] | None:
    """Score threshold with the best F1, the highest of equals, and that F1; None: none is right.

    Args:
        scores: (N,) falling.
        right: (N,).
        num_truth: to be found.
    """
    thresholds, hits, kept = _at_thresholds(scores, right)
    if not right.any():
        return None
    f1 = 2 * hits / (kept + num_truth)
    best = int(np.argmax(f1))
    return float(thresholds[best]), float(f1[best])


def _at_thresholds(
    scores: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Each score once, falling, with right ones and all of at least it: a threshold takes both."""
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    return scores[last], np.cumsum(right, dtype=np.int64)[last], last + 1


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
