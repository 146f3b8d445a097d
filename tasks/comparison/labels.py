"""Classes that two models give to whole images: which images changed sides."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.comparison.findings import lower_mean, lower_share, rank_findings
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

__all__ = ["LabelTally"]


@dataclass(slots=True)
class LabelTally:
    """Sums over the images of two classifiers.

    Attributes:
        flips: (K + 1, K + 1) images by best class in A and in B; the last: no label.
        rise: images with one best class in both, sum and sum of squares of score B - score A.
        scores: (2, 1000) images by the score of the best class, of A and of B.
    """

    classes: tuple[str, ...]
    flips: NDArray[np.int64] = field(init=False)
    rise: NDArray[np.float64] = field(init=False)
    scores: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        """Begin at nothing."""
        size = len(self.classes) + 1
        self.flips = np.zeros((size, size), np.int64)
        self.rise = np.zeros(3)
        self.scores = np.zeros((2, SCORE_BINS), np.int64)

    def add(
        self,
        a: NDArray[np.int64],
        b: NDArray[np.int64],
        score_a: NDArray[np.float64],
        score_b: NDArray[np.float64],
    ) -> None:
        """Take some images: (N,) their best classes, K for none, and their scores."""
        self.flips += count_pairs(a, b, self.flips.shape)
        for side, (labels, scores) in enumerate(((a, score_a), (b, score_b))):
            found = score_bins(scores[labels < len(self.classes)])
            self.scores[side] += np.bincount(found, minlength=SCORE_BINS)
        rise = (score_b - score_a)[a == b]
        self.rise += [len(rise), rise.sum(), np.square(rise).sum()]

    def headline(self) -> tuple[Metric, ...]:
        """Numbers over all classes."""
        total = int(self.flips.sum())
        if not total:
            return ()
        found = [
            Metric(
                "label flips",
                1 - int(np.trace(self.flips)) / total,
                "images whose best class differs, as a share of all",
            )
        ]
        if self.rise[0]:
            found.append(
                Metric(
                    "score shift",
                    float(self.rise[1] / self.rise[0]),
                    "score in B less score in A of images with one best class, mean",
                )
            )
        return tuple(found)

    def per_class(self) -> tuple[ClassChange, ...]:
        """Images of each class in A and in B, and how many kept it."""
        rows = []
        for k, name in enumerate(self.classes):
            num_a, num_b = int(self.flips[k].sum()), int(self.flips[:, k].sum())
            if num_a or num_b:
                same = int(self.flips[k, k])
                values = {"same": float(same), "lost": float(num_a - same)}
                values |= {"gained": float(num_b - same), "matched": 2 * same / (num_a + num_b)}
                rows.append(ClassChange(name, num_a, num_b, values))
        return tuple(rows)

    def confusion(self) -> Confusion | None:
        """Best classes of A against those of B."""
        return seen_classes(self.flips, (*self.classes, NONE), "images")

    def score_shift(self) -> ScoreShift:
        """Histograms of the best scores, and thresholds that keep as many images."""
        return score_shift(self.scores[0], self.scores[1])

    def findings(self) -> tuple[Finding, ...]:
        """Classes by how much more of them changed than of the others, and all together."""
        total = int(self.flips.sum())
        if not total:
            return ()
        flipped = total - int(np.trace(self.flips))
        found = [
            Finding(
                "flipped",
                None,
                flipped / total,
                lower_share(flipped, total),
                f"all classes: {flipped:,} of {total:,} images have another best class in B",
            )
        ]
        for k, name in enumerate(self.classes):
            for what, row in (("lost", self.flips[k]), ("gained", self.flips[:, k])):
                whole, same = int(row.sum()), int(row[k])
                if not whole:
                    continue
                # images that left or joined this class are the others' changes too: leave them out
                rest_whole = total - int(self.flips[k].sum() + self.flips[:, k].sum()) + same
                rest = rest_whole - (int(np.trace(self.flips)) - same)
                usual = rest / rest_whole if rest_whole else 0.0
                low = lower_share(whole - same, whole) - usual
                found.append(
                    Finding(
                        what, name, 1 - same / whole, low, self._text(what, k, row, whole - same)
                    )
                )
        if self.rise[0]:
            mean = float(self.rise[1] / self.rise[0])
            low = lower_mean(self.rise[1], self.rise[2], self.rise[0])
            text = f"scores of the same labels changed by {mean:+.3f} on average"
            found.append(Finding("score", None, min(1.0, abs(mean)), low, text))
        return rank_findings(found)

    def _text(self, what: str, k: int, row: NDArray[np.int64], changed: int) -> str:
        name, whole = self.classes[k], int(row.sum())
        elsewhere = row.copy()
        elsewhere[k] = 0
        other = (*self.classes, NONE)[int(np.argmax(elsewhere))]
        if what == "lost":
            gone = "gone, " if changed == whole else ""
            text = f"class {name}: {gone}{changed:,} of {whole:,} images of A left it"
            return text + (f", most for {other}" if changed else "")
        text = f"class {name}: {changed:,} of {whole:,} images of B were not in it in A"
        return text + (f", most were {other}" if changed else "")
