"""Boxes of two models on one image: which are the same, moved, of another class, lost or gained."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.comparison.findings import lower_mean, lower_share, rank_findings
from pixelmill.tasks.comparison.results import ClassChange, Finding, ScoreShift
from pixelmill.tasks.metrics.results import Confusion, Metric

__all__ = [
    "FLIPPED",
    "MOVED",
    "NONE",
    "SAME",
    "BoxTally",
    "ImageBoxes",
    "Matched",
    "match_boxes",
    "pair_mask_iou",
    "threshold_mapping",
]

SAME_IOU = 0.5
SAME, FLIPPED, MOVED = 0, 1, 2
_SCORE_BINS = 1000
_DRAWN_BINS = 20
_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Scores are compared to a bin of the histograms
_SCORE_STEP = 1 / _SCORE_BINS
NONE = "none"


@dataclass(frozen=True, slots=True)
class ImageBoxes:
    """One model's boxes on one image.

    Attributes:
        boxes_xyxy: (N, 4) float, pixels.
        scores: (N,) in [0, 1].
        labels: (N,) int, indices into the classes of both models together.
    """

    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Matched:
    """Which box of A is which of B.

    Attributes:
        index_a, index_b: (M,) positions.
        kind: (M,) SAME (one class, IoU >= 0.5), FLIPPED (another class, IoU >= 0.5) or MOVED (one
            class, about the same size, the centre no further than the box's diagonal).
        iou: (M,).
        lost: positions in A without a partner; gained: in B.
    """

    index_a: NDArray[np.int64]
    index_b: NDArray[np.int64]
    kind: NDArray[np.int64]
    iou: NDArray[np.float64]
    lost: NDArray[np.int64]
    gained: NDArray[np.int64]


def match_boxes(a: ImageBoxes, b: ImageBoxes) -> Matched:
    """One-to-one, best overlap first: boxes of one class, then of any, then those that moved.

    The same class goes first, so that two boxes of different classes at one place, which both
    models have, are not taken for flips.
    """
    if np.array_equal(a.boxes_xyxy, b.boxes_xyxy) and np.array_equal(a.labels, b.labels):
        every = np.arange(len(a.scores))
        none = every[:0]
        return Matched(
            every, every, np.zeros(len(every), np.int64), np.ones(len(every)), none, none
        )
    iou = _pairwise_iou(a.boxes_xyxy, b.boxes_xyxy)
    same_class = a.labels[:, None] == b.labels[None, :]
    free_a, free_b = np.ones(len(a.labels), bool), np.ones(len(b.labels), bool)
    found: list[tuple[int, int, int]] = []
    overlap = np.where(iou >= SAME_IOU, iou, 0.0)
    for kind, worth in (
        (SAME, np.where(same_class, overlap, 0.0)),
        (FLIPPED, overlap),
        (MOVED, np.where(same_class, _nearness(a.boxes_xyxy, b.boxes_xyxy), 0.0)),
    ):
        if not (free_a.any() and free_b.any()):
            break
        at_a, at_b = np.nonzero((worth > 0) & free_a[:, None] & free_b[None, :])
        for k in np.argsort(-worth[at_a, at_b], kind="stable"):
            i, j = int(at_a[k]), int(at_b[k])
            if free_a[i] and free_b[j]:
                free_a[i] = free_b[j] = False
                found.append((i, j, kind))
    index_a, index_b, kinds = np.array(found, np.int64).reshape(-1, 3).T
    return Matched(
        index_a,
        index_b,
        kinds,
        iou[index_a, index_b],
        np.flatnonzero(free_a),
        np.flatnonzero(free_b),
    )


def _pairwise_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) intersection over union."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter: NDArray[np.float64] = np.prod(np.clip(high - low, 0, None), axis=2)
    union = np.prod(a[:, 2:] - a[:, :2], axis=1)[:, None] + np.prod(b[:, 2:] - b[:, :2], axis=1)
    union = union - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def _nearness(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) how well a box may be another that moved; 0 where it may not."""
    size_a, size_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    common: NDArray[np.float64] = np.prod(np.minimum(size_a[:, None], size_b[None]), axis=2)
    union = np.prod(size_a, axis=1)[:, None] + np.prod(size_b, axis=1)[None] - common
    alike = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    apart = (a[:, None, :2] + a[:, None, 2:] - b[None, :, :2] - b[None, :, 2:]) / 2
    diagonal = np.hypot(size_a[:, 0], size_a[:, 1])[:, None]
    distance = np.divide(
        np.hypot(apart[..., 0], apart[..., 1]),
        diagonal,
        out=np.full_like(alike, 2.0),
        where=diagonal > 0,
    )
    return np.where((alike >= SAME_IOU) & (distance <= 1), alike * (1.01 - distance), 0.0)


def threshold_mapping(
    counts_a: NDArray[np.int64], counts_b: NDArray[np.int64]
) -> tuple[tuple[float, ...], tuple[float | None, ...]]:
    """Thresholds of A, and those of B above which as many boxes lie.

    Args:
        counts_a: (1000,) boxes of A by score, from 0 to 1.
        counts_b: the same of B.
    """
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
    return _THRESHOLDS, tuple(equivalents)


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
        shape = (size, _SCORE_BINS)
        self.scores = {name: np.zeros(shape, np.int64) for name in ("a", "b", "lost", "gained")}
        self.floors = {name: np.full(size, np.inf) for name in ("a", "b")}

    def add(
        self, a: ImageBoxes, b: ImageBoxes, matched: Matched, mask_iou: NDArray[np.float64] | None
    ) -> None:
        """Take one image.

        Args:
            a: boxes of A.
            b: of B.
            matched: of these.
            mask_iou: (M,) of the matched pairs' masks, NaN where one has none; None without masks.
        """
        first, second = matched.index_a, matched.index_b
        label_a, label_b = a.labels[first], b.labels[second]
        is_flip = matched.kind == FLIPPED
        self._count("a", a.labels)
        self._count("b", b.labels)
        self._count("same", label_a[matched.kind == SAME])
        self._count("moved", label_a[matched.kind == MOVED])
        self._count("flipped", label_a[is_flip])
        self._count("flipped_to", label_b[is_flip])
        self._count("lost", a.labels[matched.lost])
        self._count("gained", b.labels[matched.gained])
        np.add.at(self.flips, (label_a, label_b), 1)
        size = len(self.classes)
        self.flips[:-1, size] += np.bincount(a.labels[matched.lost], minlength=size)
        self.flips[size, :-1] += np.bincount(b.labels[matched.gained], minlength=size)
        for name, boxes, rows in (
            ("a", a, slice(None)),
            ("b", b, slice(None)),
            ("lost", a, matched.lost),
            ("gained", b, matched.gained),
        ):
            bins = np.clip((boxes.scores[rows] * _SCORE_BINS).astype(int), 0, _SCORE_BINS - 1)
            np.add.at(self.scores[name], (boxes.labels[rows], bins), 1)
        for name, boxes in (("a", a), ("b", b)):
            np.minimum.at(self.floors[name], boxes.labels, boxes.scores)
        kept = ~is_flip
        box_a, box_b = a.boxes_xyxy[first[kept]], b.boxes_xyxy[second[kept]]
        sides = np.maximum(box_a[:, 2:] - box_a[:, :2], 1e-6)
        shift = (box_b[:, :2] + box_b[:, 2:] - box_a[:, :2] - box_a[:, 2:]) / 2 / sides
        rise = b.scores[second] - a.scores[first]
        values = np.column_stack([1 - matched.iou[kept], shift, rise[kept]])
        np.add.at(self.sums, label_a[kept], values)
        np.add.at(self.squares, label_a[kept], values**2)
        if mask_iou is not None:
            known = np.isfinite(mask_iou) & kept
            np.add.at(self.masks[:, 0], label_a[known], mask_iou[known])
            np.add.at(self.masks[:, 1], label_a[known], 1)

    def _count(self, name: str, labels: NDArray[np.int64]) -> None:
        self.counts[name] += np.bincount(labels, minlength=len(self.classes))

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
        seen = np.flatnonzero(self.flips.any(axis=0) | self.flips.any(axis=1))
        names = tuple((*self.classes, NONE)[k] for k in seen)
        counts = tuple(tuple(int(v) for v in row) for row in self.flips[np.ix_(seen, seen)])
        return Confusion(names, names, counts, "boxes") if names else None

    def score_shift(self) -> ScoreShift:
        """Histograms of both, and thresholds that keep as many boxes."""
        counts = {name: self.scores[name].sum(axis=0) for name in ("a", "b")}
        thresholds, equivalents = threshold_mapping(counts["a"], counts["b"])
        drawn = {
            name: each.reshape(_DRAWN_BINS, -1).sum(axis=1).tolist()
            for name, each in counts.items()
        }
        edges = np.linspace(0, 1, _DRAWN_BINS + 1).tolist()
        return ScoreShift(
            thresholds, equivalents, tuple(edges), tuple(drawn["a"]), tuple(drawn["b"])
        )

    def findings(self) -> tuple[Finding, ...]:
        """What changed, the largest first."""
        every = np.arange(len(self.classes))
        cut = {side: self._cut(side, every) for side in ("a", "b")}
        found = [one for side in ("a", "b") if (one := self._threshold_finding(side, cut[side]))]
        is_cut = {"lost": cut["a"] is not None, "gained": cut["b"] is not None}
        found += self._of(None, every, is_cut)
        present = [k for k in every if self.counts["a"][k] or self.counts["b"][k]]
        if len(present) > 1:
            for k in present:
                found += self._of(int(k), np.array([k]), is_cut)
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
        end = int(floor * _SCORE_BINS)
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

    def _of(self, k: int | None, rows: NDArray[np.int64], is_cut: dict[str, bool]) -> list[Finding]:
        """Findings of one class, or of all; a class counts by how much more it changed."""
        others = np.setdiff1d(np.arange(len(self.classes)), rows)
        name = None if k is None else self.classes[k]
        whose = "all classes" if name is None else f"class {name}"
        found: list[Finding] = []

        def share(what: str, side: str, text: str) -> None:
            part, whole = self._gone(what, side, rows, is_cut)
            rest_part, rest_whole = self._gone(what, side, others, is_cut)
            usual = rest_part / rest_whole if k is not None and rest_whole else 0.0
            if not part:
                return
            effect, low = part / whole, lower_share(part, whole) - usual
            found.append(
                Finding(what, name, effect, low, f"{whose}: " + text.format(part=part, whole=whole))
            )

        cut_note = {
            "lost": self._cut_note("a", k, rows, is_cut["lost"]),
            "gained": self._cut_note("b", k, rows, is_cut["gained"]),
        }
        gone = self.counts["a"][rows].sum() and not self.counts["b"][rows].sum()
        new = self.counts["b"][rows].sum() and not self.counts["a"][rows].sum()
        share(
            "lost",
            "a",
            "gone, none of {whole:,} boxes is left in B"
            if gone
            else "{part:,} of {whole:,} boxes of A have no partner in B" + cut_note["lost"],
        )
        share(
            "gained",
            "b",
            "new, {part:,} boxes in B and none in A"
            if new
            else "{part:,} of {whole:,} boxes of B have no partner in A" + cut_note["gained"],
        )
        share("flipped", "a", "{part:,} of {whole:,} boxes have " + self._flip_text(rows))
        pairs = int((self.counts["same"] + self.counts["moved"])[rows].sum())
        rest = int((self.counts["same"] + self.counts["moved"])[others].sum())
        if pairs:
            for column, what in ((0, "moved"), (3, "score")):
                total, square = self.sums[rows, column].sum(), self.squares[rows, column].sum()
                usual = self.sums[others, column].sum() / rest if k is not None and rest else 0.0
                mean = float(total / pairs)
                moved = abs(mean - usual)
                # about what is usual, so that one class's score rise stands out of a general fall
                low = lower_mean(
                    total - pairs * usual,
                    square - 2 * usual * total + pairs * usual**2,
                    pairs,
                )
                text = (
                    self._shift_text(rows, pairs)
                    if what == "moved"
                    else (f"scores of the same {pairs:,} boxes changed by {mean:+.3f} on average")
                )
                if what == "moved" and mean < usual:
                    continue
                found.append(Finding(what, name, min(1.0, moved), low, f"{whose}: {text}"))
        masks, count = self.masks[rows].sum(axis=0)
        rest_masks, rest_count = self.masks[others].sum(axis=0)
        if count:
            apart = 1 - masks / count
            usual = 1 - rest_masks / rest_count if k is not None and rest_count else 0.0
            low = lower_share(count - masks, count) - max(usual, self._apart(rows, pairs))
            text = f"masks of the same {int(count):,} boxes overlap by {1 - apart:.3f} (mean IoU)"
            found.append(Finding("masks", name, float(apart), float(low), f"{whose}: {text}"))
        return found

    def _cut_note(self, side: str, k: int | None, rows: NDArray[np.int64], is_cut: bool) -> str:
        """What a threshold has to do with the boxes of a class, or of all, that have no partner."""
        if is_cut:
            return " above the threshold"
        cut = None if k is None else self._cut(side, rows)
        other = "B" if side == "a" else "A"
        return f"; scores of {other} begin at {cut[0]:.3f}, its threshold has moved" if cut else ""

    def _apart(self, rows: NDArray[np.int64], pairs: int) -> float:
        """1 - IoU of the same boxes: what their masks differ by anyway."""
        return float(self.sums[rows, 0].sum()) / pairs if pairs else 0.0

    def _gone(
        self, what: str, side: str, rows: NDArray[np.int64], is_cut: dict[str, bool]
    ) -> tuple[int, int]:
        """Boxes lost, gained or flipped, and of how many; less those that a threshold explains."""
        part, whole = int(self.counts[what][rows].sum()), int(self.counts[side][rows].sum())
        if is_cut.get(what):
            floor = float(self.floors["b" if side == "a" else "a"].min())
            end = int(floor * _SCORE_BINS)
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


def pair_mask_iou(
    planes_a: NDArray[Any],
    planes_b: NDArray[Any],
    slots_a: Sequence[tuple[int, int]],
    slots_b: Sequence[tuple[int, int]],
) -> NDArray[np.float64]:
    """IoU of masks by pairs.

    Args:
        planes_a: (layers, H, W) values of the instances of A.
        planes_b: the same of B.
        slots_a: (layer, value) of each pair's mask in A; a negative layer: none.
        slots_b: the same of B.

    Returns:
        (M,), NaN where one of the two has no mask.
    """
    found = np.full(len(slots_a), np.nan)
    for layer_a in range(len(planes_a)):
        for layer_b in range(len(planes_b)):
            wanted = [
                k
                for k, (a, b) in enumerate(zip(slots_a, slots_b, strict=True))
                if a[0] == layer_a and b[0] == layer_b
            ]
            if not wanted:
                continue
            a, b = planes_a[layer_a].astype(np.int64), planes_b[layer_b].astype(np.int64)
            width = int(b.max()) + 1
            joint = np.bincount((a * width + b).ravel(), minlength=(int(a.max()) + 1) * width)
            table = joint.reshape(-1, width)
            sizes_a, sizes_b = table.sum(axis=1), table.sum(axis=0)
            for k in wanted:
                value_a, value_b = slots_a[k][1], slots_b[k][1]
                inside = value_a < len(sizes_a) and value_b < len(sizes_b)
                common = int(table[value_a, value_b]) if inside else 0
                union = (
                    (int(sizes_a[value_a]) if value_a < len(sizes_a) else 0)
                    + (int(sizes_b[value_b]) if value_b < len(sizes_b) else 0)
                    - common
                )
                found[k] = common / union if union else 1.0
    return found
