"""Whether a score means what it says: of predictions with score 0.8, are 80 % right?

Source: Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015
(equal width); Nguyen and O'Connor, EMNLP 2015 (equal mass); Guo et al., On calibration of modern
neural networks, ICML 2017. For detections: Kuppers et al., Multivariate confidence calibration for
object detection, 2020, with score alone, where "right" is a match at one IoU and recall is not
looked at.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.metrics.results import Curve, Metric

__all__ = ["Reliability", "reliability"]

Binning = Literal["width", "mass"]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Scores against the share of right predictions, by bin; empty bins are left out.

    Attributes:
        counts: (M,) predictions of each bin.
        mean_score: (M,) of each bin.
        share_right: (M,) of each bin.
        binning: "width" or "mass"; num_bins: asked for, M or more.
    """

    counts: NDArray[np.int64]
    mean_score: NDArray[np.float64]
    share_right: NDArray[np.float64]
    binning: Binning
    num_bins: int

    def error(self) -> Metric:
        """Expected calibration error."""
        gaps = np.abs(self.share_right - self.mean_score)
        return Metric(
            "ECE" if self.binning == "width" else "ECE equal mass",
            float((self.counts * gaps).sum() / self.counts.sum()),
            "expected calibration error: |share right - mean score| of a bin, mean over "
            f"predictions; {self.num_bins} bins of equal {self.binning} "
            f"{'over [0, 1]' if self.binning == 'width' else '(number of predictions)'}",
        )

    def curve(self, name: str) -> Curve:
        """The reliability plot's line; a calibrated model's is the diagonal."""
        return Curve(
            group="reliability",
            name=name,
            x_label="mean score",
            y_label="share right",
            x=tuple(float(value) for value in self.mean_score),
            y=tuple(float(value) for value in self.share_right),
        )


def reliability(
    scores: NDArray[np.floating],
    right: NDArray[np.bool_],
    *,
    binning: Binning = "width",
    num_bins: int = 15,
) -> Reliability:
    """Sort predictions into bins of their scores.

    Args:
        scores: (N,) of each prediction, in [0, 1].
        right: (N,) whether it is.
        binning: "width": bins (0, 1/num_bins], ..., 0 in the first; "mass": bins of as many
            predictions each as possible, equal scores never parted.
        num_bins: at least 1.

    Raises:
        ValueError: no predictions, lengths that differ, scores outside [0, 1], or no bins.
    """
    if scores.ndim != 1 or scores.shape != right.shape or not len(scores):
        raise ValueError(
            f"need a score and a truth of each prediction, got {scores.shape} and {right.shape}"
        )
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(
            "scores must be probabilities in [0, 1]; calibration says nothing of others"
        )
    if num_bins < 1:
        raise ValueError(f"needs at least one bin, got {num_bins}")
    values = scores.astype(np.float64)
    if binning == "width":
        edges = np.linspace(0.0, 1.0, num_bins + 1)[1:-1]
    else:
        # edges are scores themselves, so equal ones fall on the same side
        edges = np.unique(np.sort(values)[np.arange(1, num_bins) * len(values) // num_bins - 1])
    index = np.searchsorted(edges, values, side="left")
    counts = np.bincount(index, minlength=num_bins)
    filled = counts > 0
    sums = np.bincount(index, weights=values, minlength=num_bins)
    hits = np.bincount(index, weights=right, minlength=num_bins)
    return Reliability(
        counts=counts[filled],
        mean_score=sums[filled] / counts[filled],
        share_right=hits[filled] / counts[filled],
        binning=binning,
        num_bins=num_bins,
    )
