"""Scores of the ISBI 2012 challenge: pixels, and what belongs together.

The challenge's third number, the warping error, is not here: it flips simple points of the truth
one after another, the number depends on the order, and its only reference is a Java plug-in.

Source: Arganda-Carreras et al., Crowdsourcing the creation of image segmentation algorithms for
connectomics, Frontiers in Neuroanatomy 2015.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.metrics.results import Metric

__all__ = ["label_components", "pixel_error", "rand_score"]


def pixel_error(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> Metric:
    """Share of wrong pixels.

    Args:
        truth: (..., H, W) cell or not.
        predicted: the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    _check(truth, predicted)
    value = float(np.count_nonzero(truth != predicted) / truth.size)
    return Metric("pixel error", value, "share of pixels that are wrong, at the map as it is")


def rand_score(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> tuple[Metric, ...]:
    """Foreground-restricted Rand F-score of the cells' 4-connected components, split and merge.

    Args:
        truth: (H, W) cell or not.
        predicted: (H, W) cell or not.

    Raises:
        ValueError: the shapes differ, or the truth has no cell.
    """
    _check(truth, predicted)
    if not truth.any():
        raise ValueError("truth has no cell pixel; leave the image out")
    cells, guesses = label_components(truth)[truth], label_components(predicted)[truth]
    # every membrane pixel of the prediction is a segment of its own, as in the challenge's script
    alone = int(np.count_nonzero(guesses == 0))
    inside = guesses > 0
    pairs = np.unique(np.stack([cells[inside], guesses[inside]]), axis=1, return_counts=True)[1]
    together = float((pairs.astype(np.float64) ** 2).sum()) + alone
    in_guess = float((np.bincount(guesses[inside]).astype(np.float64) ** 2).sum()) + alone
    in_truth = float((np.bincount(cells).astype(np.float64) ** 2).sum())
    where = (
        "pixels of the truth's cells alone, 4-connected components, membranes not thinned, "
        "predicted membrane pixels each on their own"
    )
    return (
        Metric(
            "Rand F",
            2 * together / (in_guess + in_truth),
            f"share of pairs of pixels rightly together, F of split and merge; {where}",
        ),
        Metric("Rand merge", together / in_guess, f"of pairs together in the prediction; {where}"),
        Metric("Rand split", together / in_truth, f"of pairs together in the truth; {where}"),
    )


def label_components(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """4-connected components of (H, W): 0 outside, the rest 1, 2, ... in reading order."""
    index = np.arange(mask.size).reshape(mask.shape)
    across, down = mask[:, 1:] & mask[:, :-1], mask[1:] & mask[:-1]
    first = np.concatenate([index[:, :-1][across], index[:-1][down]])
    second = np.concatenate([index[:, 1:][across], index[1:][down]])
    root = np.arange(mask.size)
    while True:
        a, b = root[first], root[second]
        apart = a != b
        if not apart.any():
            break
        first, second, a, b = first[apart], second[apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(above := root[root], root):
            root = above
    labels = np.zeros(mask.shape, dtype=np.int64)
    labels[mask] = np.unique(root[mask.ravel()], return_inverse=True)[1] + 1
    return labels


def _check(truth: NDArray[Any], predicted: NDArray[Any]) -> None:
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape} and prediction {predicted.shape}, (H, W)")
    if truth.dtype != np.bool_ or predicted.dtype != np.bool_:
        raise ValueError(f"need bool masks, got {truth.dtype} and {predicted.dtype}")
