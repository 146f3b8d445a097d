"""What each image adds to a run's numbers, so that they can be computed anew for drawn images.

Each class here is a `pixelmill.tasks.metrics.bootstrap.Statistics`: with every image drawn once it
gives the very numbers that the metric's own function gives, and with draws those of the drawn
images, an image that is drawn twice counting as two.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.metrics.bootstrap import Number, Resampled

__all__ = [
    "CaptionStatistics",
    "LabelStatistics",
    "MatchStatistics",
    "PanopticStatistics",
    "PixelStatistics",
]

Weights = NDArray[np.int32]
# Elements of the (draws, detections) arrays that are worked on at once: they stay in the cache.
_BLOCK = 2**18


@dataclass(frozen=True, slots=True)
class PixelStatistics:
    """Pixels of each class in each image: mIoU, Dice and pixel accuracy.

    Attributes:
        counts: (I, K, 3) right, in the truth, predicted on scored pixels.
        images_iou: (I,) mIoU of each image, NaN where all its truth is void.
        outlines: (I, K) boundary F of each class in each image, NaN where it has no outline.
        means: name -> (I,) numbers whose mean is the run's, NaN where an image has none.
    """

    class_names: tuple[str, ...]
    counts: NDArray[np.int64]
    images_iou: NDArray[np.float64]
    outlines: NDArray[np.float64] | None = None
    means: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.counts)

    def resample(self, weights: Weights) -> Resampled:
        """mIoU, Dice, pixel accuracy, mean of the images' mIoU; IoU and Dice of each class."""
        num_images, num_classes, _ = self.counts.shape
        # sums of pixels stay far below 2**53: exact in floats, and there BLAS is fast
        flat = self.counts.reshape(num_images, -1).astype(np.float64)
        sums = (weights.astype(np.float64) @ flat).reshape(len(weights), num_classes, 3)
        hits, in_truth, predicted = sums[..., 0], sums[..., 1], sums[..., 2]
        iou = _divide(hits, in_truth + predicted - hits)
        dice = _divide(2 * hits, in_truth + predicted)
        found = {
            Number("mIoU"): _mean_defined(iou),
            Number("Dice"): _mean_defined(dice),
            Number("pixel accuracy"): _divide(hits.sum(axis=1), in_truth.sum(axis=1)),
            Number("mIoU per image"): _weighted_mean(weights, self.images_iou),
            **_by_class("IoU", self.class_names, iou),
            **_by_class("Dice", self.class_names, dice),
        }
        if self.outlines is not None:
            defined = ~np.isnan(self.outlines)
            shares = weights.astype(np.float64)
            table = _divide(
                shares @ np.where(defined, self.outlines, 0.0), shares @ defined.astype(np.float64)
            )
            found[Number("boundary F")] = _mean_defined(table)
            found |= _by_class("boundary F", self.class_names, table)
        means = {Number(name): _weighted_mean(weights, each) for name, each in self.means.items()}
        return found | means

    def take(self, images: NDArray[np.int64]) -> Self:
        """The statistics of some of the images."""
        return replace(
            self,
            counts=self.counts[images],
            images_iou=self.images_iou[images],
            outlines=None if self.outlines is None else self.outlines[images],
            means={name: values[images] for name, values in self.means.items()},
        )


@dataclass(frozen=True, slots=True)
class PanopticStatistics:
    """Segments of each class in each image: PQ, SQ and RQ.

    Attributes:
        counts: (I, K, 4) sum of IoU, TP, FP and FN.
        is_thing: (K,).
    """

    class_names: tuple[str, ...]
    counts: NDArray[np.float64]
    is_thing: NDArray[np.bool_]

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.counts)

    def resample(self, weights: Weights) -> Resampled:
        """PQ, SQ and RQ over all, of things and of stuff; PQ of each class."""
        flat = self.counts.reshape(len(self.counts), -1)
        sums = (weights.astype(np.float64) @ flat).reshape(len(weights), -1, 4)
        iou, hits, extra, lost = np.moveaxis(sums, -1, 0)
        size = hits + (extra + lost) / 2
        quality = _divide(iou, size)
        matched = np.where(size > 0, np.nan_to_num(_divide(iou, hits)), np.nan)
        tables = {"PQ": quality, "SQ": matched, "RQ": _divide(hits, size)}
        groups = {"": np.ones_like(self.is_thing), " things": self.is_thing}
        groups[" stuff"] = ~self.is_thing
        found = {
            Number(f"{name}{suffix}"): _mean_defined(table[:, chosen])
            for name, table in tables.items()
            for suffix, chosen in groups.items()
        }
        return found | _by_class("PQ", self.class_names, quality)

    def take(self, images: NDArray[np.int64]) -> Self:
        """The statistics of some of the images."""
        return replace(self, counts=self.counts[images])


@dataclass(frozen=True, slots=True)
class LabelStatistics:
    """Each image's label and best guess: top-1, top-5, precision, recall and F1.

    Attributes:
        truth: (I,) class indices; guess: (I,) class indices, K for none or unknown.
        in_top_5: (I,) bool.
    """

    class_names: tuple[str, ...]
    truth: NDArray[np.int64]
    guess: NDArray[np.int64]
    in_top_5: NDArray[np.bool_]

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.truth)

    def resample(self, weights: Weights) -> Resampled:
        """top-1, top-5 and the macro numbers; precision, recall and F1 of each class."""
        right = self.truth == self.guess
        total = weights.sum(axis=1)
        hits = self._count(self.truth[right], weights[:, right])
        in_truth = self._count(self.truth, weights)
        known = self.guess < len(self.class_names)
        predicted = self._count(self.guess[known], weights[:, known])
        # a class that the draw has not is undefined; one never predicted has precision 0
        has_truth, has_any = in_truth > 0, in_truth + predicted > 0
        tables = {
            "precision": np.where(has_any, hits / np.maximum(predicted, 1), np.nan),
            "recall": np.where(has_any, hits / np.maximum(in_truth, 1), np.nan),
            "F1": _divide(2 * hits, in_truth + predicted),
        }
        found = {
            Number("top-1"): _divide(hits.sum(axis=1), total),
            Number("top-5"): _divide(weights[:, self.in_top_5].sum(axis=1), total),
        }
        for name, table in tables.items():
            found[Number(f"macro {name}")] = _mean_defined(np.where(has_truth, table, np.nan))
            found |= _by_class(name, self.class_names, table)
        return found

    def take(self, images: NDArray[np.int64]) -> Self:
        """The statistics of some of the images."""
        return replace(
            self,
            truth=self.truth[images],
            guess=self.guess[images],
            in_top_5=self.in_top_5[images],
        )

    def _count(self, index: NDArray[np.int64], weights: Weights) -> NDArray[np.float64]:
        """(B, K) weight of each class."""
        size = len(self.class_names)
        rows = [np.bincount(index, weights=row, minlength=size) for row in weights]
        return np.stack(rows).astype(np.float64)


@dataclass(frozen=True, slots=True)
class CaptionStatistics:
    """N-gram counts and similarities of each image's caption: BLEU, ROUGE-L and CIDEr-D.

    Document frequencies of CIDEr-D stay those of all references: they are part of the metric's
    definition, not of what was drawn.

    Attributes:
        bleu_counts: (I, 10) lengths, guesses and hits, which add up over a corpus.
        bleu_of: (10,) sums -> BLEU-1 to 4.
        means: name -> (I,) numbers whose mean is the corpus's.
    """

    bleu_counts: NDArray[np.int64]
    bleu_of: Callable[[Sequence[int]], tuple[float, ...]]
    means: dict[str, NDArray[np.float64]]

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.bleu_counts)

    def resample(self, weights: Weights) -> Resampled:
        """BLEU-1 to 4 and every mean."""
        sums = weights.astype(np.int64) @ self.bleu_counts
        orders = np.array([self.bleu_of(row) for row in sums.tolist()]).reshape(len(weights), -1)
        return {
            **{Number(f"BLEU-{k}"): orders[:, k - 1] for k in range(1, orders.shape[1] + 1)},
            **{Number(name): _weighted_mean(weights, each) for name, each in self.means.items()},
        }

    def take(self, images: NDArray[np.int64]) -> Self:
        """The statistics of some of the images."""
        return replace(
            self,
            bleu_counts=self.bleu_counts[images],
            means={name: values[images] for name, values in self.means.items()},
        )


@dataclass(frozen=True, slots=True)
class MatchStatistics:
    """How each detection was matched, and how much there was to find in each image: AP and AR.

    Attributes:
        image, class_index: (N,) indices of detections; at most maxDets of an image and class.
        score: (N,).
        right: (N, T) matched to an instance, at each IoU threshold (0.50 first, 0.75 in the
            middle, of COCO's ten).
        ignored: (N, T) neither right nor wrong.
        num_truth: (I, K) instances to be found, any integers.
    """

    class_names: tuple[str, ...]
    image: NDArray[np.int64]
    class_index: NDArray[np.int64]
    score: NDArray[np.float64]
    right: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    num_truth: NDArray[np.integer[Any]]
    _classes: tuple["_ClassMatches", ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the shapes, and sort by class and score once.

        Raises:
            ValueError: columns of different lengths, or names that do not fit.
        """
        lengths = {len(self.image), len(self.class_index), len(self.score)}
        if (
            lengths != {len(self.right)}
            or self.right.shape != self.ignored.shape
            or self.num_truth.shape[1:] != (len(self.class_names),)
        ):
            raise ValueError(
                f"columns must be of one length and num_truth (images, {len(self.class_names)}), "
                f"got {sorted(lengths)}, {self.right.shape}, {self.ignored.shape} and "
                f"{self.num_truth.shape}"
            )
        order = np.lexsort((-self.score, self.class_index))
        ends = np.searchsorted(self.class_index[order], np.arange(len(self.class_names) + 1))
        classes = tuple(
            _ClassMatches.sort_out(
                self.image[rows], self.right[rows], self.ignored[rows], self.num_truth[:, k]
            )
            for k in range(len(self.class_names))
            for rows in [order[ends[k] : ends[k + 1]]]
        )
        object.__setattr__(self, "_classes", classes)

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.num_truth)

    def resample(self, weights: Weights) -> Resampled:
        """AP, AP50, AP75 and AR100, over all and of each class; classes without truth left out."""
        num_ious = self.right.shape[1]
        precision = np.full((len(weights), len(self._classes), num_ious), np.nan)
        recall = np.full_like(precision, np.nan)
        for k, matches in enumerate(self._classes):
            for rows in matches.blocks(len(weights)):
                precision[rows, k], recall[rows, k] = matches.accumulate(weights[rows])
        tables = {"AP": precision.mean(axis=2), "AP50": precision[:, :, 0]}
        if num_ious > 5:
            tables["AP75"] = precision[:, :, 5]
        tables["AR100"] = recall.mean(axis=2)
        found: dict[Number, NDArray[np.float64]] = {}
        for name, table in tables.items():
            found[Number(name)] = _mean_defined(table)
            found |= _by_class(name, self.class_names, table)
        return found

    def take(self, images: NDArray[np.int64]) -> "MatchStatistics":
        """The statistics of some of the images, each named once."""
        place = np.full(self.num_images, -1)
        place[images] = np.arange(len(images))
        rows = np.flatnonzero(place[self.image] >= 0)
        return MatchStatistics(
            class_names=self.class_names,
            image=place[self.image[rows]],
            class_index=self.class_index[rows],
            score=self.score[rows],
            right=self.right[rows],
            ignored=self.ignored[rows],
            num_truth=self.num_truth[images],
        )


@dataclass(frozen=True, slots=True)
class _ClassMatches:
    """One class's detections, best first, with the few that decide AP told from the many wrong.

    A detection that is right or ignored at some IoU is a mark. Precision matters at marks only:
    between them are wrong detections, of which only the number counts; after the last, nothing.

    Attributes:
        image: (N,) of all detections up to the last mark.
        marks: (M,) positions.
        right, ignored: (T, M) of the marks.
        num_truth: (I,).
    """

    image: NDArray[np.int64]
    marks: NDArray[np.int64]
    right: NDArray[np.int32]
    ignored: NDArray[np.int32]
    num_truth: NDArray[np.integer[Any]]

    @classmethod
    def sort_out(
        cls,
        image: NDArray[np.int64],
        right: NDArray[np.bool_],
        ignored: NDArray[np.bool_],
        num_truth: NDArray[np.integer[Any]],
    ) -> "_ClassMatches":
        is_mark: NDArray[np.bool_] = np.any(right | ignored, axis=1)
        marks = np.flatnonzero(is_mark)
        end = int(marks[-1]) + 1 if len(marks) else 0
        return cls(
            image=image[:end],
            marks=marks,
            right=(right & ~ignored)[marks].T.astype(np.int32),
            ignored=ignored[marks].T.astype(np.int32),
            num_truth=num_truth,
        )

    def blocks(self, num_draws: int) -> Iterator[slice]:
        """Rows of the draws to be worked on at once."""
        step = max(1, _BLOCK // max(1, len(self.image)))
        for start in range(0, num_draws, step):
            yield slice(start, start + step)

    def accumulate(self, weights: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(B, T) 101-point average precision and greatest recall, NaN where there is no truth."""
        num_ious = len(self.right)
        num_truth = (weights @ self.num_truth).astype(np.int64)
        undefined = np.where(num_truth > 0, 0.0, np.nan)[:, None].repeat(num_ious, axis=1)
        if not len(self.marks):
            return undefined, undefined.copy()
        drawn = weights.take(self.image, axis=1)
        at_marks = drawn.take(self.marks, axis=1)
        counted = np.cumsum(drawn, axis=1, dtype=np.int32).take(self.marks, axis=1)
        needed = _needed_hits(num_truth)
        precision, recall = undefined.copy(), undefined.copy()
        for t in range(num_ious):
            right = np.flatnonzero(self.right[t])
            if not len(right):
                continue
            hits = np.cumsum(at_marks.take(right, axis=1), axis=1, dtype=np.int32)
            scored = counted
            if self.ignored[t].any():
                scored = counted - np.cumsum(at_marks * self.ignored[t], axis=1, dtype=np.int32)
            precision[:, t] += _interpolate(hits, scored.take(right, axis=1), needed)
            recall[:, t] += hits[:, -1] / np.maximum(num_truth, 1)
        return precision, recall


_RECALL_POINTS = np.linspace(0.0, 1.0, 101)


def _needed_hits(num_truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B, 101) fewest hits whose recall, as a float, reaches each recall point as pycocotools'."""
    total = np.maximum(num_truth, 1)[:, None]
    needed = np.ceil(_RECALL_POINTS * total).astype(np.int64)
    needed -= np.asarray((needed > 0) & ((needed - 1) / total >= _RECALL_POINTS), dtype=np.int64)
    return needed + np.asarray(needed / total < _RECALL_POINTS, dtype=np.int64)


def _interpolate(
    hits: NDArray[np.int32], scored: NDArray[np.int32], needed: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(B,) mean over the recall points of the best precision at that recall or beyond."""
    num_draws, width = hits.shape
    precision = hits / np.maximum(scored, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # one search in all rows: each row is lifted above the one before
    lift = (np.arange(num_draws) * (int(max(hits[:, -1].max(), needed.max())) + 1))[:, None]
    at = np.searchsorted((hits + lift).ravel(), (needed + lift).ravel()).reshape(needed.shape)
    at -= width * np.arange(num_draws)[:, None]
    reached = at < width
    values = np.take_along_axis(best, np.minimum(at, width - 1), axis=1)
    return np.where(reached, values, 0.0).mean(axis=1)


def _divide(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _mean_defined(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) mean over the classes (B, K) that are defined, NaN where none is."""
    defined = ~np.isnan(table)
    return _divide(np.where(defined, table, 0.0).sum(axis=1), defined.sum(axis=1))


def _weighted_mean(weights: Weights, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) means of the values that are defined."""
    defined = np.flatnonzero(~np.isnan(values))
    kept = weights[:, defined].astype(np.float64)
    return _divide(kept @ values[defined], kept.sum(axis=1))


def _by_class(
    name: str, class_names: Sequence[str], table: NDArray[np.float64]
) -> dict[Number, NDArray[np.float64]]:
    """The columns of a (B, K) table."""
    return {Number(name, class_name): table[:, k] for k, class_name in enumerate(class_names)}
