"""Scores of the ISBI 2012 challenge: pixels, what belongs together, and topology.

The warping error bends the truth towards the prediction, at pixels that differ and one by one, as
long as no cell is split, merged, made or lost, and counts what stays different. Which pixels can be
bent depends on the order; ours is fixed (four interleaved grids in turn, over and over, until
nothing moves) and without a limit of distance, so it is comparable between runs here, and with the
challenge's Java plug-in only roughly.

Source: Arganda-Carreras et al., Crowdsourcing the creation of image segmentation algorithms for
connectomics, Frontiers in Neuroanatomy 2015; Jain et al., Boundary learning by optimization with
topological constraints, CVPR 2010 (warping error); Kong and Rosenfeld, Digital topology, 1989
(simple points).
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.metrics.results import Metric

__all__ = ["label_components", "pixel_error", "rand_score", "warping_error"]


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


def warping_error(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> Metric:
    """Share of pixels that differ for topology's sake.

    Args:
        truth: (H, W) cell or not.
        predicted: (H, W) cell or not.

    Raises:
        ValueError: the shapes differ.
    """
    _check(truth, predicted)
    # beyond the image is membrane
    warped, wanted = (np.pad(side, 1) for side in (truth, predicted))
    simple = _simple_points()
    grids = [(slice(1 + dy, -1, 2), slice(1 + dx, -1, 2)) for dy in (0, 1) for dx in (0, 1)]
    moved = True
    while moved:
        moved = False
        for grid in grids:  # no two pixels of a grid are neighbours: all can move at once
            moves = simple[_neighbourhood(warped)[grid]] & (warped[grid] != wanted[grid])
            warped[grid] ^= moves
            moved |= bool(moves.any())
    value = float(np.count_nonzero(warped != wanted) / truth.size)
    return Metric(
        "warping error",
        value,
        "share of pixels that still differ after the truth was bent towards the prediction "
        "without splitting, merging, making or losing a cell; fixed order, no limit of distance",
    )


# clockwise from the top left; the four direct neighbours are the odd ones
_AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def _neighbourhood(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(H, W) of each inner pixel, bit i: neighbour i of `_AROUND` is cell; 0 at the margin."""
    code = np.zeros(mask.shape, np.uint8)
    height, width = mask.shape
    for bit, (dy, dx) in enumerate(_AROUND):
        shifted = mask[1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx]
        code[1:-1, 1:-1] |= shifted.astype(np.uint8) << np.uint8(bit)
    return code


@functools.cache
def _simple_points() -> NDArray[np.bool_]:
    """(256,) whether flipping a pixel with such neighbours keeps the topology.

    Cells are 4-connected and membranes 8-connected: one group of cell neighbours that touches the
    pixel directly, and one group of membrane neighbours.
    """
    found = np.zeros(256, np.bool_)
    for code in range(256):
        cell = [bool(code >> i & 1) for i in range(8)]
        cells = sum(
            any(i % 2 for i in group) for group in _groups({i for i in range(8) if cell[i]}, 1)
        )
        rest = _groups({i for i in range(8) if not cell[i]}, 2)
        found[code] = cells == 1 and len(rest) == 1
    return found


def _groups(members: set[int], reach: int) -> list[set[int]]:
    """Connected neighbours: 4-connected steps of 1 around the pixel; 8-connected also over corners.

    Args:
        members: to be grouped.
        reach: 2: direct neighbours that share a corner are connected too.
    """
    groups: list[set[int]] = []
    left = set(members)
    while left:
        group, front = set(), {left.pop()}
        while front:
            one = front.pop()
            group.add(one)
            steps = {(one + 1) % 8, (one - 1) % 8}
            if reach == 2 and one % 2:
                steps |= {(one + 2) % 8, (one - 2) % 8}
            front |= steps & left
            left -= steps
        groups.append(group)
    return groups


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
