"""How sure a number is: bootstrap over images, for one run and for two on the same images.

Images are the unit that is drawn: objects, pixels and words of one image depend on each other, and
an interval that treats them as independent is far too narrow. A draw is a count of how often each
image was drawn, so that every metric is computed again from per-image statistics by weighted sums
(see `pixelmill.tasks.metrics.statistics`), exactly as it would be on the drawn images.

Intervals are BCa (bias-corrected and accelerated). The numbers here are bounded and often lie near
their bound, where a plain percentile interval is shifted: BCa corrects for the bias of the draws (a
drawn set repeats images, which moves AP and macro F1) and for skewness, never leaves the range of
the number, and costs a jackknife over at most 100 groups of images besides.

Of more than 20,000 images as many are drawn at random, once, and the spread of draws from them is
scaled down by the square root of their share (m out of n bootstrap): it says the same of a million
images at a fiftieth of the cost.

Source: Efron, Better bootstrap confidence intervals, JASA 1987; Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapters 14 and 15; Bickel, Goetze and van Zwet, Resampling
fewer than n observations, 1997; Holm, A simple sequentially rejective multiple test procedure,
1979; Benjamini and Hochberg, Controlling the false discovery rate, 1995.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FALSE_DISCOVERY_NOTE",
    "HOLM_NOTE",
    "MIN_IMAGES",
    "Difference",
    "Number",
    "Resampled",
    "Statistics",
    "benjamini_hochberg",
    "compare_runs",
    "draw_images",
    "holm",
    "intervals",
]

MIN_IMAGES = 10
HOLM_NOTE = (
    "Many differences are looked at, and of those that are not there one in twenty would seem "
    "real: p values are Holm-adjusted over all rows together, so that the chance of a single false "
    "alarm among them is at most 5 %."
)
FALSE_DISCOVERY_NOTE = (
    "Less strict: of the differences whose Benjamini-Hochberg-adjusted p value is at most 5 %, one "
    "in twenty may be a false alarm."
)
_JACKKNIFE_GROUPS = 100
_MOST_DRAWN = 20_000
_DRAWS_AT_ONCE = 500


class Number(NamedTuple):
    """A number of a metric; `class_name` None: over all classes."""

    metric: str
    class_name: str | None = None


Resampled = Mapping[Number, NDArray[np.float64]]


class Statistics(Protocol):
    """What each image adds to the numbers of a run."""

    @property
    def num_images(self) -> int:
        """Length of a draw."""
        ...

    def resample(self, weights: NDArray[np.int32]) -> Resampled:
        """Numbers of (B, num_images) draws: (B,) each, NaN where a draw leaves one undefined."""
        ...

    def take(self, images: NDArray[np.int64]) -> Self:
        """The statistics of some of the images, of which each is named once, by rising index."""
        ...


@dataclass(frozen=True, slots=True)
class Difference:
    """Run B minus run A in one number, on one slice of the images.

    Attributes:
        slice_name: "all" for all images.
        num_images: of the slice.
        interval: of the difference; p_value: of there being none, two-sided.
        adjusted_p: by Holm over all differences that were looked at together.
        false_discovery: by Benjamini and Hochberg over the same.
    """

    number: Number
    slice_name: str
    num_images: int
    value_a: float
    value_b: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    adjusted_p: float
    false_discovery: float


def draw_images(num_images: int, num_resamples: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Draws of `num_images` with replacement: (num_resamples, num_images) counts of each image."""
    drawn = rng.integers(0, num_images, size=(num_resamples, num_images))
    drawn += num_images * np.arange(num_resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * num_images)
    return counts.reshape(num_resamples, num_images).astype(np.int32)


def intervals(
    statistics: Statistics, num_resamples: int, *, level: float = 0.95, seed: int = 0
) -> dict[Number, tuple[float, float]]:
    """BCa interval of every number.

    Args:
        statistics: of one run.
        num_resamples: B; the ends of the interval are themselves exact to about a twentieth of its
            width at 1,000.
        level: share of such intervals that hold the true number.
        seed: the same seed and statistics give the same intervals.

    Returns:
        Nothing for fewer than `MIN_IMAGES` images, of which draws say too little, and nothing for
        a number that less than half of the draws define.

    Raises:
        ValueError: fewer than 100 resamples, or a level that is no share.
    """
    _check(num_resamples, level)
    if statistics.num_images < MIN_IMAGES:
        return {}
    images = np.arange(statistics.num_images)
    point, draws, left_out = _replicates([statistics], images, num_resamples, seed)[0]
    return {
        number: _bca(float(value[0]), draws[number], left_out[number], level)
        for number, value in point.items()
        if _is_usable(value[0], draws[number])
    }


def compare_runs(
    a: Statistics,
    b: Statistics,
    num_resamples: int = 1000,
    *,
    slices: Mapping[str, NDArray[np.bool_]] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Difference, ...]:
    """Paired bootstrap of run B against run A: both are computed on the same drawn images.

    What makes an image hard is hard for both runs and cancels, which makes a paired interval much
    narrower than two intervals side by side suggest.

    Args:
        a: of run A.
        b: of run B; its image i is the same as A's.
        num_resamples: draws of each slice; p values are no smaller than 2 / (num_resamples + 1).
        slices: name -> (num_images,) bool, such as the images of one camera. None: all images as
            one slice "all". Slices of fewer than `MIN_IMAGES` images are left out.
        level: of the intervals, which are not adjusted.
        seed: as of `intervals`.

    Returns:
        Every number that both runs have, per class and over all, slice by slice. State
        `HOLM_NOTE` beside `adjusted_p`.

    Raises:
        ValueError: different numbers of images, a mask of another length, and as `intervals`.
    """
    _check(num_resamples, level)
    if a.num_images != b.num_images:
        raise ValueError(
            f"runs must be of the same images in the same order, got {a.num_images} and "
            f"{b.num_images}; keep the images that both have"
        )
    if slices is None:
        slices = {"all": np.ones(a.num_images, dtype=bool)}
    found: list[Difference] = []
    for name, mask in slices.items():
        if mask.shape != (a.num_images,) or mask.dtype != np.bool_:
            raise ValueError(
                f"slice {name!r} must be ({a.num_images},) bool, got {mask.shape} {mask.dtype}"
            )
        images = np.flatnonzero(mask)
        if len(images) >= MIN_IMAGES:
            found += _differences(a, b, name, images, num_resamples, level, seed)
    p_values = [one.p_value for one in found]
    return tuple(
        replace(one, adjusted_p=strict, false_discovery=lenient)
        for one, strict, lenient in zip(
            found, holm(p_values), benjamini_hochberg(p_values), strict=True
        )
    )


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjustment, in the order of `p_values`; reject those of at most 5 %.

    Raises:
        ValueError: a value outside [0, 1].
    """
    _check_p_values(p_values)
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return tuple(float(p) for p in adjusted)


def benjamini_hochberg(p_values: Sequence[float]) -> tuple[float, ...]:
    """Step-up adjustment for the share of false alarms, in the order of `p_values`.

    Raises:
        ValueError: a value outside [0, 1].
    """
    _check_p_values(p_values)
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return tuple(float(p) for p in adjusted)


def _check_p_values(p_values: Sequence[float]) -> None:
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values must lie in [0, 1], got {list(p_values)}")


def _check(num_resamples: int, level: float) -> None:
    if num_resamples < 100:
        raise ValueError(f"needs at least 100 resamples, got {num_resamples}; 1000 is usual")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; 0.95 is usual")


_Replicates = tuple[Resampled, Resampled, Resampled]


def _replicates(
    runs: Sequence[Statistics], images: NDArray[np.int64], num_resamples: int, seed: int
) -> list[_Replicates]:
    """Each run's numbers of all `images`, of draws from them, and with a group left out."""
    rng = np.random.default_rng(seed)
    num_images, share = len(images), 1.0
    whole = [_one_draw(run, images) for run in runs]
    if num_images > _MOST_DRAWN:
        images = np.sort(rng.choice(images, _MOST_DRAWN, replace=False))
        share = float(np.sqrt(_MOST_DRAWN / num_images))
    num_groups = min(_JACKKNIFE_GROUPS, len(images))
    group = rng.permutation(len(images)) % num_groups
    kept = (group[None, :] != np.arange(num_groups)[:, None]).astype(np.int32)
    drawn = [draw_images(len(images), size, rng) for size in _parts(num_resamples, _DRAWS_AT_ONCE)]
    found: list[_Replicates] = []
    for run, point in zip(runs, whole, strict=True):
        taken = run if len(images) == run.num_images else run.take(images)
        parts = [taken.resample(counts) for counts in drawn]
        draws: Resampled = {
            number: np.concatenate([part[number] for part in parts]) for number in parts[0]
        }
        left_out = taken.resample(kept)
        if share < 1:
            centre = _one_draw(taken, np.arange(len(images)))
            draws = _shrink(draws, centre, point, share)
            left_out = _shrink(left_out, centre, point, share)
        found.append((point, draws, left_out))
    return found


def _one_draw(run: Statistics, images: NDArray[np.int64]) -> Resampled:
    """The numbers of these images, each drawn once."""
    taken = run if len(images) == run.num_images else run.take(images)
    return taken.resample(np.ones((1, len(images)), dtype=np.int32))


def _shrink(values: Resampled, centre: Resampled, point: Resampled, share: float) -> Resampled:
    """Spread around one centre as a smaller spread around another."""
    return {
        number: point[number] + share * (found - centre[number]) for number, found in values.items()
    }


def _parts(total: int, most: int) -> Iterator[int]:
    for start in range(0, total, most):
        yield min(most, total - start)


def _is_usable(point: float, draws: NDArray[np.float64]) -> bool:
    num_defined = int(np.count_nonzero(np.isfinite(draws)))
    return bool(np.isfinite(point)) and 2 * num_defined >= len(draws)


def _bca(
    point: float, draws: NDArray[np.float64], left_out: NDArray[np.float64], level: float
) -> tuple[float, float]:
    """Bias-corrected and accelerated interval.

    The acceleration of a grouped jackknife estimates that of the full one: a group's influence is
    the sum of its images', and sums of squares and cubes of independent terms add up alike.
    """
    draws = np.sort(draws[np.isfinite(draws)])
    if draws[0] == draws[-1]:
        return float(draws[0]), float(draws[0])
    normal = NormalDist()
    # draws equal to the number count half: on a grid of few values they are many
    below = (np.searchsorted(draws, point, "left") + np.searchsorted(draws, point, "right")) / 2
    share = min(max(below, 0.5), len(draws) - 0.5) / len(draws)
    bias = normal.inv_cdf(float(share))
    influence = left_out[np.isfinite(left_out)]
    influence = influence.mean() - influence
    spread = float((influence**2).sum()) ** 1.5
    acceleration = float((influence**3).sum()) / (6 * spread) if spread > 0 else 0.0
    ends = []
    for quantile in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal.inv_cdf(quantile)
        shifted = normal.cdf(bias + z / max(1 - acceleration * z, 0.1))
        ends.append(float(np.quantile(draws, shifted)))
    return ends[0], ends[1]


def _differences(
    a: Statistics,
    b: Statistics,
    slice_name: str,
    images: NDArray[np.int64],
    num_resamples: int,
    level: float,
    seed: int,
) -> Iterator[Difference]:
    (point_a, draws_a, left_a), (point_b, draws_b, left_b) = _replicates(
        [a, b], images, num_resamples, seed
    )
    for number in point_a:
        if number not in point_b:
            continue
        value_a, value_b = float(point_a[number][0]), float(point_b[number][0])
        draws = draws_b[number] - draws_a[number]
        if not _is_usable(value_b - value_a, draws):
            continue
        defined = draws[np.isfinite(draws)]
        tail = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
        p_value = min(1.0, 2 * (float(tail) + 1) / (len(defined) + 1))
        yield Difference(
            number=number,
            slice_name=slice_name,
            num_images=len(images),
            value_a=value_a,
            value_b=value_b,
            difference=value_b - value_a,
            interval=_bca(value_b - value_a, draws, left_b[number] - left_a[number], level),
            p_value=p_value,
            adjusted_p=p_value,
            false_discovery=p_value,
        )
