"""How different two histograms are, and how different chance alone would make them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["Histogram", "Shift", "chi_square_quantile", "compare", "pool"]

# Bins that are narrower than this share of the baseline are joined with their neighbours
_LEAST_SHARE = 0.05
_LEAST_CLASS_SHARE = 0.005
OTHER = "others"


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of one quantity.

    Attributes:
        labels: of the bins, as they are told; counts: of each.
        is_ordered: neighbouring bins are alike (numbers), else each stands alone (classes).
        num_images: that the counts come from: boxes of one image depend on each other, so chance is
            reckoned by images.
    """

    labels: tuple[str, ...]
    counts: tuple[float, ...]
    is_ordered: bool
    num_images: int


@dataclass(frozen=True, slots=True)
class Shift:
    """A night against its baseline in one quantity.

    Attributes:
        psi: population stability index; 0: the same.
        chance: PSI that pure chance exceeds in one of `1 / alpha` cases.
        label: the bin that adds most, with its shares of the baseline and of the night.
    """

    psi: float
    chance: float
    label: str
    share_before: float
    share_now: float


def pool(nights: Sequence[Histogram]) -> Histogram:
    """All nights as one."""
    counts: dict[str, float] = {}
    for night in nights:
        for label, count in zip(night.labels, night.counts, strict=True):
            counts[label] = counts.get(label, 0.0) + count
    return Histogram(
        tuple(counts),
        tuple(counts.values()),
        nights[0].is_ordered,
        sum(night.num_images for night in nights),
    )


def compare(before: Histogram, now: Histogram, *, alpha: float) -> Shift:
    """Population stability index: sum of (q - p) ln(q / p) over the bins.

    Narrow bins are joined, and half a count is added to each, so that an empty bin is no infinity.

    Args:
        before: the baseline.
        now: of the same bins, or of classes.
        alpha: chance of a false alarm by this one comparison.

    Source:
        Yurdakul and Naranjo, Statistical properties of the population stability index, Journal of
        Risk Model Validation 2020: (1/n + 1/m) times a chi square of one degree of freedom less
        than bins, if nothing has changed.
    """
    labels, p, q = _aligned(before, now)
    p, q = (p + 0.5) / (p + 0.5).sum(), (q + 0.5) / (q + 0.5).sum()
    parts = (q - p) * np.log(q / p)
    worst = int(np.argmax(parts))
    freedom = max(1, len(parts) - 1)
    spread = 1 / max(1, before.num_images) + 1 / max(1, now.num_images)
    return Shift(
        psi=float(parts.sum()),
        chance=spread * chi_square_quantile(1 - alpha, freedom),
        label=labels[worst],
        share_before=float(p[worst]),
        share_now=float(q[worst]),
    )


def _aligned(
    before: Histogram, now: Histogram
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    names = list(dict.fromkeys((*before.labels, *now.labels)))
    first, second = (dict(zip(h.labels, h.counts, strict=True)) for h in (before, now))
    p = np.array([first.get(name, 0.0) for name in names], np.float64)
    q = np.array([second.get(name, 0.0) for name in names], np.float64)
    # counts as if each image had one: half a count then means as much for boxes as for images
    for counts, histogram in ((p, before), (q, now)):
        total = counts.sum()
        if total > histogram.num_images > 0:
            counts *= histogram.num_images / total
    if before.is_ordered:
        return _join_neighbours(names, p, q)
    share = np.maximum(p / max(1, p.sum()), q / max(1, q.sum()))
    rare = share < _LEAST_CLASS_SHARE
    if rare.sum() < 2:
        return names, p, q
    kept = [name for name, is_rare in zip(names, rare, strict=True) if not is_rare]
    return (
        [*kept, OTHER],
        np.append(p[~rare], p[rare].sum()),
        np.append(q[~rare], q[rare].sum()),
    )


def _join_neighbours(
    names: Sequence[str], p: NDArray[np.float64], q: NDArray[np.float64]
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Bins of at least a twentieth of the baseline each, so that none rests on a few counts."""
    least = _LEAST_SHARE * p.sum()
    starts = [0]
    held = 0.0
    for k in range(len(p)):
        if held >= least and p[k:].sum() >= least:
            starts.append(k)
            held = 0.0
        held += p[k]
    ends = [*starts[1:], len(p)]
    labels = [
        names[a] if b - a == 1 else f"{names[a].partition(' to ')[0]} to {_end(names[b - 1])}"
        for a, b in zip(starts, ends, strict=True)
    ]
    return labels, np.add.reduceat(p, starts), np.add.reduceat(q, starts)


def _end(label: str) -> str:
    return label.rpartition(" to ")[2]


def chi_square_quantile(share: float, freedom: int) -> float:
    """Quantile of the chi square distribution, to some 5 %; far out at one degree to 15 %.

    Source:
        Wilson and Hilferty, The distribution of chi-square, PNAS 1931.
    """
    z = NormalDist().inv_cdf(share)
    part = 2 / (9 * freedom)
    return float(freedom * max(0.0, 1 - part + z * part**0.5) ** 3)
