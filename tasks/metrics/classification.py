"""Scores of whole-image classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.metrics.calibration import reliability
from pixelmill.tasks.metrics.results import ClassRow, Confusion, Curve, Metric
from pixelmill.tasks.metrics.statistics import LabelStatistics

__all__ = ["NO_PREDICTION", "LabelScores", "score_labels"]

NO_PREDICTION = "none or unknown"


@dataclass(frozen=True, slots=True)
class LabelScores:
    """What `score_labels` found; `per_image` is in the order of the truth."""

    metrics: tuple[Metric, ...]
    per_class: tuple[ClassRow, ...]
    curves: tuple[Curve, ...]
    confusion: Confusion
    per_image: tuple[dict[str, float], ...]
    statistics: LabelStatistics


def score_labels(
    truth: Sequence[str],
    ranked: Sequence[Sequence[str]],
    classes: Sequence[str],
    best_scores: Sequence[float | None] | None = None,
) -> LabelScores:
    """Top-1, top-5, calibration, and precision, recall and F1 of each class.

    Args:
        truth: class name of each image.
        ranked: predicted class names of each image, best first; empty: no prediction, wrong.
        classes: class names of the truth, in order; predictions of others count as unknown.
        best_scores: of each image's best guess, None where there is none; calibration is left out
            without scores, and where one is no share.

    Raises:
        ValueError: no images, lengths differ, or a truth name is not in `classes`.
    """
    if not truth or len(truth) != len(ranked):
        raise ValueError(
            f"need as many predictions as truths, at least one; got {len(ranked)} and {len(truth)}"
        )
    index = {name: k for k, name in enumerate(classes)}
    unknown = sorted(set(truth) - set(index))
    if unknown:
        raise ValueError(f"truth has classes that are not listed: {', '.join(unknown)}")
    num_classes = len(classes)
    counts = np.zeros((num_classes, num_classes + 1), dtype=np.int64)
    per_image, best = [], []
    for name, guesses in zip(truth, ranked, strict=True):
        guess = index.get(guesses[0], num_classes) if guesses else num_classes
        counts[index[name], guess] += 1
        best.append(guess)
        per_image.append(
            {"top-1": float(guess == index[name]), "top-5": float(name in guesses[:5])}
        )
    rows = tuple(_class_row(name, counts, k) for k, name in enumerate(classes))
    labelled = [row for row in rows if row.num_truth]
    metrics = (
        Metric(
            "top-1",
            float(np.mean([row["top-1"] for row in per_image])),
            "share of images whose best label is right; no prediction is wrong",
        ),
        Metric(
            "top-5",
            float(np.mean([row["top-5"] for row in per_image])),
            "share of images with the right label among the best five stored",
        ),
        *(
            Metric(
                f"macro {name}",
                float(np.mean([row.values[name] for row in labelled])),
                f"{name} of the best label, mean over classes in the truth",
            )
            for name in ("precision", "recall", "F1")
        ),
    )
    calibration, curves = _calibration(best_scores, [row["top-1"] > 0 for row in per_image])
    confusion = Confusion(
        rows=tuple(classes),
        columns=(*classes, NO_PREDICTION),
        counts=tuple(tuple(int(value) for value in line) for line in counts),
        unit="images",
    )
    statistics = LabelStatistics(
        class_names=tuple(classes),
        truth=np.array([index[name] for name in truth]),
        guess=np.array(best),
        in_top_5=np.array([row["top-5"] > 0 for row in per_image]),
    )
    return LabelScores(
        (*metrics, *calibration), rows, curves, confusion, tuple(per_image), statistics
    )


def _calibration(
    best_scores: Sequence[float | None] | None, right: Sequence[bool]
) -> tuple[tuple[Metric, ...], tuple[Curve, ...]]:
    """Score of the best label against the share of right ones, images without a label left out."""
    pairs = [
        pair
        for pair in zip(best_scores or (), right, strict=best_scores is not None)
        if pair[0] is not None
    ]
    scores = np.array([score for score, _ in pairs], dtype=np.float64)
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return (), ()
    hits = np.array([hit for _, hit in pairs])
    widths, masses = reliability(scores, hits), reliability(scores, hits, binning="mass")
    return (widths.error(), masses.error()), (widths.curve("best label"),)


def _class_row(name: str, counts: NDArray[np.int64], k: int) -> ClassRow:
    """Numbers of class k; precision of a class that was never predicted is 0."""
    hits = int(counts[k, k])
    in_truth, in_prediction = int(counts[k].sum()), int(counts[:, k].sum())
    values: dict[str, float] = {}
    if in_truth or in_prediction:
        values = {
            "precision": hits / in_prediction if in_prediction else 0.0,
            "recall": hits / in_truth if in_truth else 0.0,
            "F1": 2 * hits / (in_truth + in_prediction),
        }
    return ClassRow(name, in_truth, in_prediction, values)
