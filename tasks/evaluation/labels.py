"""Classes of whole images against truth."""

from pixelmill.tasks.evaluation.context import (
    Comparison,
    Context,
    class_notes,
    no_common_class,
)
from pixelmill.tasks.metrics.classification import score_labels
from pixelmill.tasks.truth import LabelTruth

__all__ = ["compare_labels"]

_POLICIES = {
    "no prediction": "wrong",
    "absent classes": "macro means are over the classes that the truth has; precision of a class "
    "that was never predicted is 0",
    "top-5": "of the labels that are stored",
}


def compare_labels(context: Context, truth: LabelTruth) -> Comparison | str:
    """Top-1, top-5, precision, recall and F1 by class, and calibration of a classifier.

    Returns:
        Why there is nothing to compare, where that is so.
    """
    class_names = context.class_names()
    if reason := no_common_class(class_names, truth.classes):
        return reason
    names = tuple(truth.labels)
    scored = context.join(names)
    rows = context.table("labels", ["rank", "class_id", "score"], set(scored.image_ids.values()))
    rows = rows.sort_values("rank")
    ranked: dict[str, list[str]] = {}
    for image_id, class_id in zip(rows["image_id"], rows["class_id"], strict=True):
        ranked.setdefault(image_id, []).append(class_names[class_id])
    best = rows.drop_duplicates("image_id")
    best_scores = dict(zip(best["image_id"], best["score"].astype(float), strict=True))
    image_ids = scored.ids(names)
    scores = score_labels(
        list(truth.labels.values()),
        [ranked.get(image_id or "", []) for image_id in image_ids],
        truth.classes,
        [best_scores.get(image_id or "") for image_id in image_ids],
    )
    return context.compare(
        scored,
        "labels",
        names,
        scores.metrics,
        scores.statistics,
        class_notes(class_names, truth.classes, what="wrong where they come first"),
        per_class=scores.per_class,
        curves=scores.curves,
        confusion=scores.confusion,
        per_image=scored.image_rows(dict(zip(names, scores.per_image, strict=True))),
        policies=_POLICIES,
    )
