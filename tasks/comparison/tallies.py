"""What sums over images have in common, whatever is compared: tables of classes, score scales."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.comparison.results import ScoreShift
from pixelmill.tasks.metrics.results import Confusion

__all__ = ["NONE", "SCORE_BINS", "count_pairs", "score_bins", "score_shift", "seen_classes"]

# A class beside all others: no partner, no label
NONE = "none"
# Scores are compared to a bin of the histograms
SCORE_BINS = 1000
_DRAWN_BINS = 20
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def count_pairs(
    rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """(R, C) how often each row and column occur together.

    Args:
        rows: (N,) below R.
        columns: (N,) below C.
        shape: (R, C).
    """
    return np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)


def seen_classes(table: NDArray[np.int64], names: Sequence[str], unit: str) -> Confusion | None:
    """Classes of A against those of B, without those that neither has; None: there is none.

    Args:
        table: (K, K) counts, rows = class in A, columns = class in B.
        names: (K,) of the classes.
        unit: of the counts.
    """
    seen = np.flatnonzero(table.any(axis=0) | table.any(axis=1))
    kept = tuple(names[k] for k in seen.tolist())
    counts = tuple(tuple(row) for row in table[np.ix_(seen, seen)].tolist())
    return Confusion(kept, kept, counts, unit) if kept else None


def score_bins(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) the bin, of 0 .. `SCORE_BINS` - 1, that each score in [0, 1] lies in."""
    return np.clip((scores * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)


def score_shift(counts_a: NDArray[np.int64], counts_b: NDArray[np.int64]) -> ScoreShift:
    """Histograms of both, and thresholds that keep as many.

    Args:
        counts_a: (SCORE_BINS,) boxes or labels of A by score.
        counts_b: the same of B.
    """
    drawn = (
        tuple(counts.reshape(_DRAWN_BINS, -1).sum(axis=1).tolist())
        for counts in (counts_a, counts_b)
    )
    edges = tuple(np.linspace(0, 1, _DRAWN_BINS + 1).tolist())
    return ScoreShift(_THRESHOLDS, _equivalents(counts_a, counts_b), edges, *drawn)


def _equivalents(
    counts_a: NDArray[np.int64], counts_b: NDArray[np.int64]
) -> tuple[float | None, ...]:
    """Thresholds of B above which as many lie as above `_THRESHOLDS` of A."""
    above_a = np.append(np.cumsum(counts_a[::-1])[::-1], 0)
    above_b = np.append(np.cumsum(counts_b[::-1])[::-1], 0)
    equivalents: list[float | None] = []
    for threshold in _THRESHOLDS:
        wanted = above_a[round(threshold * len(counts_a))]
        if not wanted or wanted > above_b[0]:
            equivalents.append(None)
            continue
        # the highest threshold that still keeps as many
        at = len(above_b) - 1 - int(np.searchsorted(above_b[::-1], wanted, side="left"))
        equivalents.append(at / len(counts_b))
    return tuple(equivalents)
