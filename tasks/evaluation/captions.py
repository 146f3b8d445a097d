"""Captions against truth."""

from pixelmill.tasks.evaluation.context import Comparison, Context
from pixelmill.tasks.metrics.captions import score_captions
from pixelmill.tasks.truth import CaptionTruth

__all__ = ["compare_captions"]

_POLICIES = {
    "caption": "the best of each image (rank 0); an image without one has an empty caption",
    "tokens": "those of Stanford's PTBTokenizer in lower case without punctuation",
    "document frequencies": "of this truth alone: CIDEr-D of different sets cannot be compared",
    "not computed": "METEOR (its tables of synonyms, paraphrases and function words come with its "
    "Java program alone) and SPICE (needs a parser that is downloaded)",
}


def compare_captions(context: Context, truth: CaptionTruth) -> Comparison:
    """BLEU, ROUGE-L and CIDEr-D of a captioner."""
    scored = context.join(truth.file_names)
    rows = context.table("captions", ["rank", "text"], set(scored.image_ids.values()))
    best = rows.sort_values("rank").drop_duplicates("image_id")
    texts = dict(zip(best["image_id"], best["text"], strict=True))
    candidates = [texts.get(image_id or "", "") for image_id in scored.ids(truth.file_names)]
    scores = score_captions(candidates, truth.captions)
    return context.compare(
        scored,
        "captions",
        truth.file_names,
        scores.metrics,
        scores.statistics,
        (
            "the best caption of each image (rank 0); coco-caption's numbers, own implementation",
            "METEOR (needs Java) and SPICE (needs a download) are not computed",
        ),
        per_image=scored.image_rows(dict(zip(truth.file_names, scores.per_image, strict=True))),
        policies=_POLICIES,
    )
