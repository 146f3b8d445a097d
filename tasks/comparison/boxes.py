"""Sums over the boxes of two models, and what they tell: what changed, and by how much."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.comparison.findings import lower_mean, lower_share, rank_findings
from pixelmill.tasks.comparison.matching import FLIPPED, MOVED, SAME, BoxColumns, Matched
from pixelmill.tasks.comparison.results import ClassChange, Finding, ScoreShift
from pixelmill.tasks.comparison.tallies import (
    NONE,
    SCORE_BINS,
    count_pairs,
    score_bins,
    score_shift,
    seen_classes,
)
from pixelmill.tasks.metrics.results import Confusion, Metric

__all__ = ["BoxTally"]


@dataclass(frozen=True, slots=True)
class _Group:
    """One class, or all; `others` are the rest: a class counts by how much more it changed."""

    name: str | None
    rows: NDArray[np.int64]
    others: NDArray[np.int64]

    def finding(self, what: str, effect: float, low: float, text: str) -> Finding:
        whose = "all classes" if self.name is None else f"class {self.name}"
        return Finding(what, self.name, effect, low, f"{whose}: {text}")


@dataclass(slots=True)
class BoxTally:
    """Sums over images, from which all numbers of two detectors follow; of K classes.

    Attributes:
        counts: (K,) boxes of A, of B, same, moved, flipped, flipped_to, lost, gained.
        sums: (K, 4) over same and moved pairs: 1 - IoU, shift to the right and down in box sides,
            score in B less score in A; squares: of the same.
        masks: (K, 2) sum of the mask IoU of such pairs, and their number.
        flips: (K + 1, K + 1) pairs by class in A and in B; the last: no partner.
        scores: (K, 1000) boxes by score: all of A, of B, those lost, those gained.
        floors: (K,) lowest score of A, and of B.
    """

    classes: tuple[str, ...]
    counts: dict[str, NDArray[np.int64]] = field(init=False)
    sums: NDArray[np.float64] = field(init=False)
    squares: NDArray[np.float64] = field(init=False)
    masks: NDArray[np.float64] = field(init=False)
    flips: NDArray[np.int64] = field(init=False)
    scores: dict[str, NDArray[np.int64]] = field(init=False)
    floors: dict[str, NDArray[np.float64]] = field(init=False)

    def __post_init__(self) -> None:
        """Begin at nothing."""
        size = len(self.classes)
        names = ("a", "b", "same", "moved", "flipped", "flipped_to", "lost", "gained")
        self.counts = {name: np.zeros(size, np.int64) for name in names}
        self.sums, self.squares = np.zeros((size, 4)), np.zeros((size, 4))
        self.masks = np.zeros((size, 2))
        self.flips = np.zeros((size + 1, size + 1), np.int64)
        shape = (size, SCORE_BINS)
        self.scores = {name: np.zeros(shape, np.int64) for name in ("a", "b", "lost", "gained")}
        self.floors = {name: np.full(size, np.inf) for name in ("a", "b")}

    def add(
        self, a: BoxColumns, b: BoxColumns, matched: Matched, mask_iou: NDArray[np.float64] | None
    ) -> None:
        """Take some images.

        Args:
            a: boxes of A.
            b: of B.
            matched: of these.
            mask_iou: (M,) of the matched pairs' masks, NaN where one has none; None without masks.
        """
        first, second = matched.index_a, matched.index_b
        label_a, label_b = a.labels[first], b.labels[second]
        lost, gained = a.labels[matched.lost], b.labels[matched.gained]
        is_flip = matched.kind == FLIPPED
        for name, labels in (
            ("a", a.labels),
            ("b", b.labels),
            ("same", label_a[matched.kind == SAME]),
            ("moved", label_a[matched.kind == MOVED]),
            ("flipped", label_a[is_flip]),
            ("flipped_to", label_b[is_flip]),
            ("lost", lost),
            ("gained", gained),
        ):
            self.counts[name] += np.bincount(labels, minlength=len(self.classes))
        none = len(self.classes)
        self.flips += count_pairs(
            np.concatenate([label_a, lost, np.full(len(gained), none)]),
            np.concatenate([label_b, np.full(len(lost), none), gained]),
            self.flips.shape,
        )
        for name, labels, scores in (
            ("a", a.labels, a.scores),
            ("b", b.labels, b.scores),
            ("lost", lost, a.scores[matched.lost]),
            ("gained", gained, b.scores[matched.gained]),
        ):
            self.scores[name] += count_pairs(labels, score_bins(scores), self.scores[name].shape)
        np.minimum.at(self.floors["a"], a.labels, a.scores)
        np.minimum.at(self.floors["b"], b.labels, b.scores)
        kept = ~is_flip
        box_a, box_b = a.boxes_xyxy[first[kept]], b.boxes_xyxy[second[kept]]
        sides = np.maximum(box_a[:, 2:] - box_a[:, :2], 1e-6)
        shift = (box_b[:, :2] + box_b[:, 2:] - box_a[:, :2] - box_a[:, 2:]) / 2 / sides
        rise = b.scores[second] - a.scores[first]
        values = np.column_stack([1 - matched.iou[kept], shift, rise[kept]])
        self.sums += self._sum(label_a[kept], values)
        self.squares += self._sum(label_a[kept], values**2)
        if mask_iou is not None:
            known = np.isfinite(mask_iou) & kept
            values = np.column_stack([mask_iou[known], np.ones(np.count_nonzero(known))])
            self.masks += self._sum(label_a[known], values)

    def _sum(self, labels: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(K, V) sums by class of (N, V) values."""
        sums = np.zeros((len(self.classes), values.shape[1]))
        for column, each in enumerate(values.T):
            sums[:, column] = np.bincount(labels, each, minlength=len(self.classes))
        return sums

    def headline(self) -> tuple[Metric, ...]:
        """Numbers over all classes."""
        total = {name: int(each.sum()) for name, each in self.counts.items()}
        pairs = total["same"] + total["moved"]
        both = total["a"] + total["b"]
        kept = total["same"] + total["flipped"]
        found = [
            Metric(
                "matched boxes",
                2 * kept / both if both else 1.0,
                "boxes of A and of B that have a partner in the other at IoU 0.5, of any class, as "
                "a share of all boxes of both; one to one, the best overlap first",
            ),
            Metric(
                "class flips",
                total["flipped"] / kept if kept else 0.0,
                "matched boxes whose class differs, as a share of the matched ones",
            ),
        ]
        if pairs:
            found += [
                Metric(
                    "box IoU",
                    1 - float(self.sums[:, 0].sum()) / pairs,
                    "mean IoU of boxes of one class that were matched or have moved",
                ),
                Metric(
                    "score shift",
                    float(self.sums[:, 3].sum()) / pairs,
                    "score in B less score in A, mean of the same boxes",
                ),
            ]
        if self.masks[:, 1].any():
            found.append(
                Metric(
                    "mask IoU",
                    float(self.masks[:, 0].sum() / self.masks[:, 1].sum()),
                    "mean IoU of the masks of the same boxes",
                )
            )
        return tuple(found)

    def per_class(self) -> tuple[ClassChange, ...]:
        """Numbers of each class that either has found."""
        rows = []
        for k, name in enumerate(self.classes):
            count = {key: int(each[k]) for key, each in self.counts.items()}
            pairs = count["same"] + count["moved"]
            if not count["a"] and not count["b"]:
                continue
            values = {
                key.replace("_", " "): float(count[key])
                for key in ("same", "moved", "flipped", "flipped_to", "lost", "gained")
            }
            values["matched"] = 2 * count["same"] / (count["a"] + count["b"])
            if pairs:
                means = self.sums[k] / pairs
                values["box IoU"] = float(1 - means[0])
                values["shift right"] = float(means[1])
                values["shift down"] = float(means[2])
                values["score shift"] = float(means[3])
            if self.masks[k, 1]:
                values["mask IoU"] = float(self.masks[k, 0] / self.masks[k, 1])
            rows.append(ClassChange(name, count["a"], count["b"], values))
        return tuple(rows)

    def confusion(self) -> Confusion | None:
        """Classes of A against those of B; the last row and column are boxes without partner."""
        return seen_classes(self.flips, (*self.classes, NONE), "boxes")

    def score_shift(self) -> ScoreShift:
        """Histograms of both, and thresholds that keep as many boxes."""
        return score_shift(self.scores["a"].sum(axis=0), self.scores["b"].sum(axis=0))

    def findings(self) -> tuple[Finding, ...]:
        """What changed, the largest first."""
        every = np.arange(len(self.classes))
        cut = {side: self._cut(side, every) for side in ("a", "b")}
        found = [one for side in ("a", "b") if (one := self._threshold_finding(side, cut[side]))]
        is_cut = {"lost": cut["a"] is not None, "gained": cut["b"] is not None}
        groups = [_Group(None, every, every[:0])]
        present = np.flatnonzero(self.counts["a"] + self.counts["b"])
        if len(present) > 1:
            groups += [
                _Group(self.classes[k], every[k : k + 1], np.delete(every, k)) for k in present
            ]
        for group in groups:
            found += [*self._shares(group, is_cut), *self._shifts(group), *self._masks(group)]
        return rank_findings(found)

    def _cut(self, side: str, rows: NDArray[np.int64]) -> tuple[float, int, int] | None:
        """Where a threshold explains losses (side "a") or gains ("b").

        Returns:
            The lowest score of the other side, the boxes that lie below it, and all boxes; None
            if scores begin at the same place, or boxes above it changed as much.
        """
        other = "b" if side == "a" else "a"
        gone = self.scores["lost" if side == "a" else "gained"][rows].sum(axis=0)
        whole = self.scores[side][rows].sum(axis=0)
        floor = float(self.floors[other][rows].min(initial=np.inf))
        if not np.isfinite(floor):
            return None
        end = int(floor * SCORE_BINS)
        below, total = int(gone[:end].sum()), int(whole.sum())
        all_below = int(whole[:end].sum())
        if below < 5 or below < 0.5 * gone.sum() or below < 0.8 * all_below:
            return None
        return floor, below, total

    def _threshold_finding(self, side: str, cut: tuple[float, int, int] | None) -> Finding | None:
        if cut is None:
            return None
        floor, below, total = cut
        own = float(self.floors[side].min())
        names = ("B", "A") if side == "a" else ("A", "B")
        return Finding(
            "threshold",
            None,
            below / total,
            lower_share(below, total),
            f"scores of {names[0]} begin at {floor:.3f}, those of {names[1]} at {own:.3f}: "
            f"{below:,} of {total:,} boxes of {names[1]} lie below that and have no partner; the "
            "score threshold has moved",
        )

    def _shares(self, group: _Group, is_cut: Mapping[str, bool]) -> list[Finding]:
        """Boxes that were lost, gained or flipped."""
        found = []
        for what, side in (("lost", "a"), ("gained", "b"), ("flipped", "a")):
            part, whole = self._gone(what, side, group.rows, is_cut)
            if not part:
                continue
            rest_part, rest_whole = self._gone(what, side, group.others, is_cut)
            low = lower_share(part, whole) - (rest_part / rest_whole if rest_whole else 0.0)
            text = self._share_text(what, part, whole, group, is_cut)
            found.append(group.finding(what, part / whole, low, text))
        return found

    def _share_text(
        self, what: str, part: int, whole: int, group: _Group, is_cut: Mapping[str, bool]
    ) -> str:
        num_a, num_b = (int(self.counts[side][group.rows].sum()) for side in ("a", "b"))
        if what == "flipped":
            return f"{part:,} of {whole:,} boxes have {self._flip_text(group.rows)}"
        if what == "lost" and not num_b:
            return f"gone, none of {whole:,} boxes is left in B"
        if what == "gained" and not num_a:
            return f"new, {part:,} boxes in B and none in A"
        own, other = ("A", "B") if what == "lost" else ("B", "A")
        text = f"{part:,} of {whole:,} boxes of {own} have no partner in {other}"
        if is_cut[what]:
            return f"{text} above the threshold"
        # of all classes a threshold is a finding of its own
        cut = None if group.name is None else self._cut(own.lower(), group.rows)
        if cut is None:
            return text
        return f"{text}; scores of {other} begin at {cut[0]:.3f}, its threshold has moved"

    def _shifts(self, group: _Group) -> list[Finding]:
        """How far the same boxes have moved, and how their scores have changed."""
        number = self.counts["same"] + self.counts["moved"]
        pairs, rest = int(number[group.rows].sum()), int(number[group.others].sum())
        if not pairs:
            return []
        found = []
        for column, what in ((0, "moved"), (3, "score")):
            total = self.sums[group.rows, column].sum()
            square = self.squares[group.rows, column].sum()
            usual = self.sums[group.others, column].sum() / rest if rest else 0.0
            mean = float(total / pairs)
            if what == "moved" and mean < usual:
                continue
            # about what is usual, so that one class's score rise stands out of a general fall
            low = lower_mean(
                total - pairs * usual, square - 2 * usual * total + pairs * usual**2, pairs
            )
            text = f"scores of the same {pairs:,} boxes changed by {mean:+.3f} on average"
            if what == "moved":
                text = self._shift_text(group.rows, pairs)
            found.append(group.finding(what, min(1.0, abs(mean - usual)), low, text))
        return found

    def _masks(self, group: _Group) -> list[Finding]:
        """How far masks differ, beyond what their boxes differ by anyway."""
        masks, count = self.masks[group.rows].sum(axis=0)
        rest_masks, rest_count = self.masks[group.others].sum(axis=0)
        if not count:
            return []
        pairs = int((self.counts["same"] + self.counts["moved"])[group.rows].sum())
        boxes_apart = float(self.sums[group.rows, 0].sum()) / pairs
        usual = 1 - rest_masks / rest_count if rest_count else 0.0
        apart = 1 - masks / count
        low = lower_share(count - masks, count) - max(usual, boxes_apart)
        text = f"masks of the same {int(count):,} boxes overlap by {1 - apart:.3f} (mean IoU)"
        return [group.finding("masks", float(apart), float(low), text)]

    def _gone(
        self, what: str, side: str, rows: NDArray[np.int64], is_cut: Mapping[str, bool]
    ) -> tuple[int, int]:
        """Boxes lost, gained or flipped, and of how many; less those that a threshold explains."""
        part, whole = int(self.counts[what][rows].sum()), int(self.counts[side][rows].sum())
        if is_cut.get(what):
            floor = float(self.floors["b" if side == "a" else "a"].min())
            end = int(floor * SCORE_BINS)
            part -= int(self.scores[what][rows, :end].sum())
            whole -= int(self.scores[side][rows, :end].sum())
        return part, max(whole, part)

    def _flip_text(self, rows: NDArray[np.int64]) -> str:
        inner = self.flips[:-1, :-1].copy()
        np.fill_diagonal(inner, 0)
        to = inner[rows].sum(axis=0)
        if len(rows) > 1 or not to.any():
            return "another class in B"
        best = int(np.argmax(to))
        return f"another class in B, {int(to[best]):,} of them {self.classes[best]}"

    def _shift_text(self, rows: NDArray[np.int64], pairs: int) -> str:
        means = self.sums[rows].sum(axis=0) / pairs
        moved = int(self.counts["moved"][rows].sum())
        right, down = means[1], means[2]
        where = [
            f"{abs(value):.0%} of their {size} to the {positive if value > 0 else negative}"
            for value, size, positive, negative in (
                (right, "width", "right", "left"),
                (down, "height", "bottom", "top"),
            )
            if abs(value) >= 0.01
        ]
        text = f"the same {pairs:,} boxes overlap by {1 - means[0]:.3f} (mean IoU)"
        if moved:
            text += f", {moved:,} of them below 0.5"
        return text + (f"; they lie {' and '.join(where)}" if where else "")
