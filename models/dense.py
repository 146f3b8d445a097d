"""Reading dense detectors: many boxes with class scores each, of which few are worth keeping."""

from typing import cast

from torch import Tensor

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.interface import BoxOutput
from pixelmill.models.ops.boxes import clip_boxes
from pixelmill.models.ops.candidates import best_candidates, fetch, pieces, taken_from
from pixelmill.models.ops.suppression import class_thresholds
from pixelmill.models.spec import ModelSpec

__all__ = ["dense_outputs"]


def dense_outputs(
    boxes_xyxy: Tensor, scores: Tensor, spec: ModelSpec, canvas: tuple[int, int]
) -> list[BoxOutput]:
    """The best candidates over their class' threshold, by image.

    Args:
        boxes_xyxy: (B, A, 4) float, canvas pixels; they may reach over the canvas.
        scores: (B, A, K) float in [0, 1].
        spec: thresholds, and `pre_nms_top_k`.
        canvas: (height, width).

    Returns:
        Per image at most `pre_nms_top_k` candidates on the CPU, best first.
    """
    postprocess = cast("BoxPostprocess", spec.postprocess)
    floors = class_thresholds(postprocess, spec.classes).to(scores.device, non_blocking=True)
    found: list[BoxOutput] = []
    for piece in pieces(len(scores), scores.device):
        found += _of_piece(boxes_xyxy[piece], scores[piece], floors, postprocess, canvas)
    return found


def _of_piece(
    boxes_xyxy: Tensor,
    scores: Tensor,
    floors: Tensor,
    postprocess: BoxPostprocess,
    canvas: tuple[int, int],
) -> list[BoxOutput]:
    best = best_candidates(
        scores >= floors,
        taken_from(scores),
        postprocess.pre_nms_top_k,
    )
    boxes = boxes_xyxy.gather(1, best.places[..., None].expand(-1, -1, 4))
    return fetch(clip_boxes(boxes, canvas), best)
