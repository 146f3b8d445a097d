"""From what a network said of an image's views to one prediction in original pixels."""

from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from pixelmill.configs.schema import BoxPostprocess, ClassificationPostprocess
from pixelmill.models.interface import (
    BoxOutput,
    CaptionOutput,
    ClassOutput,
    SemanticOutput,
    ViewOutput,
)
from pixelmill.models.ops.boxes import clip_boxes, large_enough
from pixelmill.models.ops.masks import Axis, PlacedScores, label_map, linear_axis, paste_masks
from pixelmill.models.ops.suppression import class_thresholds, preselect, suppress
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.views import Placement, to_original
from pixelmill.tasks.predictions import Caption, Detections, ImagePrediction, Label, MaskCrop

__all__ = ["merge_views"]

Size = tuple[int, int]
Output = TypeVar("Output", BoxOutput, SemanticOutput, CaptionOutput, ClassOutput)

# Label maps of up to 254 classes are bytes; the highest value is void
_MAX_BYTE_CLASSES = 254


def merge_views(
    outputs: Sequence[ViewOutput],
    placements: Sequence[Placement],
    spec: ModelSpec,
    image_size: Size,
) -> ImagePrediction:
    """Reconcile the views of one image.

    Args:
        outputs: one per view.
        placements: of the same views, in the order of `plan_views`.
        spec: the model that scored them; says thresholds and suppression.
        image_size: (height, width) of the original.

    Raises:
        TypeError: the network's outputs are not what the spec's task needs.
    """
    if spec.task in ("detection", "instance_segmentation"):
        return _merge_boxes(_all_of(BoxOutput, outputs, spec), placements, spec, image_size)
    if spec.task == "semantic_segmentation":
        scores = _all_of(SemanticOutput, outputs, spec)
        return _merge_semantic(scores, placements, len(spec.classes), image_size)
    if spec.task == "captioning":
        sentences = _all_of(CaptionOutput, outputs, spec)
        return ImagePrediction(
            captions=tuple(Caption(s.text, s.logprob, s.num_tokens) for s in sentences)
        )
    probs = _all_of(ClassOutput, outputs, spec)
    return ImagePrediction(labels=_best_labels([each.probs for each in probs], spec))


def _all_of(kind: type[Output], outputs: Sequence[ViewOutput], spec: ModelSpec) -> list[Output]:
    for output in outputs:
        if not isinstance(output, kind):
            raise TypeError(
                f"{spec.name}: the task {spec.task} needs {kind.__name__}, the network gave "
                f"{type(output).__name__}"
            )
    return cast("list[Output]", list(outputs))


# --- boxes ----------------------------------------------------------------------------------------


def _merge_boxes(
    outputs: Sequence[BoxOutput],
    placements: Sequence[Placement],
    spec: ModelSpec,
    image_size: Size,
) -> ImagePrediction:
    config = cast("BoxPostprocess", spec.postprocess)
    thresholds = class_thresholds(config, spec.classes)
    border = spec.tiling.border if spec.tiling else 0
    candidates = _join(
        [
            _pick(_mapped(output, placement), _seen_whole(output, index, placements, border))
            for index, (output, placement) in enumerate(zip(outputs, placements, strict=True))
        ]
    )
    # Masks are laid over the box as the network gave it, so it is kept beside the clipped one
    clipped = clip_boxes(candidates.boxes_xyxy, image_size)
    usable = large_enough(clipped, config.min_size) & candidates.boxes_xyxy.isfinite().all(dim=1)
    candidates, clipped = _pick(candidates, usable), clipped[usable]
    best = preselect(candidates.scores, candidates.labels, thresholds, config.pre_nms_top_k)
    candidates, clipped = _pick(candidates, best), clipped[best]
    kept = suppress(
        clipped,
        candidates.scores,
        candidates.labels,
        config,
        thresholds,
        num_votes=_num_votes(placements),
    )
    masks = None
    if candidates.mask_probs is not None:
        pasted = paste_masks(
            candidates.mask_probs[kept.source],
            candidates.boxes_xyxy[kept.source],
            image_size,
            config.mask_threshold,
        )
        masks = tuple(MaskCrop(top, left, mask.numpy()) for top, left, mask in pasted)
    return ImagePrediction(
        detections=_detections(kept.boxes_xyxy, kept.scores, kept.labels, masks),
        candidates=_detections(clipped, candidates.scores, candidates.labels)
        if config.keep_candidates
        else None,
    )


def _detections(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    masks: tuple[MaskCrop, ...] | None = None,
) -> Detections:
    return Detections(
        boxes_xyxy=boxes_xyxy.numpy().astype(np.float32),
        scores=scores.numpy().astype(np.float32),
        labels=labels.numpy().astype(np.int32),
        masks=masks,
    )


def _mapped(output: BoxOutput, placement: Placement) -> BoxOutput:
    """The candidates in original pixels, masks turned back with their boxes."""
    probs = output.mask_probs
    axes = [axis for axis, flip in ((1, placement.flip_y), (2, placement.flip_x)) if flip]
    if probs is not None and axes:
        probs = probs.flip(axes)
    boxes_xyxy = to_original(output.boxes_xyxy, placement)
    return BoxOutput(boxes_xyxy, output.scores, output.labels, probs)


def _pick(output: BoxOutput, which: Tensor) -> BoxOutput:
    """Some of the candidates, by index or by mask."""
    probs = output.mask_probs
    return BoxOutput(
        output.boxes_xyxy[which],
        output.scores[which],
        output.labels[which],
        None if probs is None else probs[which],
    )


def _join(outputs: Sequence[BoxOutput]) -> BoxOutput:
    probs = [output.mask_probs for output in outputs if output.mask_probs is not None]
    return BoxOutput(
        torch.cat([output.boxes_xyxy for output in outputs]),
        torch.cat([output.scores for output in outputs]),
        torch.cat([output.labels for output in outputs]),
        torch.cat(probs) if probs else None,
    )


def _seen_whole(
    output: BoxOutput, index: int, placements: Sequence[Placement], border: int
) -> Tensor:
    """(N,) bool: false for boxes that an edge of their tile cuts, if another view shows more.

    A box is cut if it comes closer than `border` pixels to an edge beyond which the image goes on.
    Another view shows more of it if there it keeps that distance.
    """
    boxes_xyxy = to_original(output.boxes_xyxy, placements[index])
    cut = ~_clear_of_cuts(boxes_xyxy, placements[index], border)
    if not cut.any():
        return ~cut
    elsewhere = torch.zeros_like(cut)
    for part in {_part_key(each): each for each in placements}.values():
        if _part_key(part) != _part_key(placements[index]):
            elsewhere |= _clear_of_cuts(boxes_xyxy, part, border)
    return ~(cut & elsewhere)


def _part_key(placement: Placement) -> tuple[int, int, Size]:
    return placement.top, placement.left, placement.source_size


def _clear_of_cuts(boxes_xyxy: Tensor, placement: Placement, border: int) -> Tensor:
    """(N,) bool: boxes at least `border` pixels within the edges at which a tile was cut."""
    height, width = placement.source_size
    left, top, right, bottom = placement.cut
    inside = torch.ones(len(boxes_xyxy), dtype=torch.bool)
    if left:
        inside &= boxes_xyxy[:, 0] >= placement.left + border
    if top:
        inside &= boxes_xyxy[:, 1] >= placement.top + border
    if right:
        inside &= boxes_xyxy[:, 2] <= placement.left + width - border
    if bottom:
        inside &= boxes_xyxy[:, 3] <= placement.top + height - border
    return inside


def _num_votes(placements: Sequence[Placement]) -> int:
    """How often each part of the image was scored: mirrors and scales, but not tiles."""
    first = _part_key(placements[0])
    return sum(_part_key(each) == first for each in placements)


# --- semantic -------------------------------------------------------------------------------------


def _merge_semantic(
    outputs: Sequence[SemanticOutput],
    placements: Sequence[Placement],
    num_classes: int,
    image_size: Size,
) -> ImagePrediction:
    several = len(outputs) > 1
    views = [
        _placed_scores(output.logits.softmax(dim=0) if several else output.logits, placement)
        for output, placement in zip(outputs, placements, strict=True)
    ]
    if num_classes <= _MAX_BYTE_CLASSES:
        labels = label_map(views, image_size, 255, torch.uint8)
        return ImagePrediction(semantic=labels.numpy())
    labels = label_map(views, image_size, 65_535, torch.int32)
    return ImagePrediction(semantic=labels.numpy().astype(np.uint16))


def _placed_scores(scores: Tensor, placement: Placement) -> PlacedScores:
    left, top, right, bottom = placement.region_xyxy
    first_row, last_row = round(top), min(round(bottom), placement.image_size[0])
    first_column, last_column = round(left), min(round(right), placement.image_size[1])
    cut_left, cut_top, cut_right, cut_bottom = placement.cut
    return PlacedScores(
        scores=scores,
        top=first_row,
        left=first_column,
        rows=_score_axis(first_row, last_row, scores, placement, 0, top, placement.flip_y),
        columns=_score_axis(
            first_column, last_column, scores, placement, 1, left, placement.flip_x
        ),
        row_weight=_ramp(last_row - first_row, cut_top, cut_bottom),
        column_weight=_ramp(last_column - first_column, cut_left, cut_right),
    )


def _score_axis(
    first: int,
    last: int,
    scores: Tensor,
    placement: Placement,
    side: int,
    origin: float,
    mirrored: bool,
) -> Axis:
    """Where original rows (side 0) or columns (1) lie in (K, h, w) scores of the canvas.

    The content starts at the original coordinate `origin`, and may be mirrored along this side.
    """
    length = scores.shape[side + 1]
    per_canvas_pixel = length / placement.canvas[side]
    per_pixel = per_canvas_pixel / placement.scale[side]
    end = placement.content[side] * per_canvas_pixel
    if mirrored:
        offset = end + origin * per_pixel
        return linear_axis(first, last, length, scale=-per_pixel, offset=offset, limit=end)
    offset = -origin * per_pixel
    return linear_axis(first, last, length, scale=per_pixel, offset=offset, limit=end)


def _ramp(length: int, cut_before: bool, cut_after: bool) -> Tensor:
    """Say of a tile's rows or columns: falling from the middle to an edge at which it was cut."""
    position = (torch.arange(length, dtype=torch.float32) + 0.5) / (length / 2)
    weight = torch.ones(length)
    if cut_before:
        weight = torch.minimum(weight, position)
    if cut_after:
        weight = torch.minimum(weight, position.flip(0))
    return weight


# --- classes of the whole image -------------------------------------------------------------------


def _best_labels(probs: Sequence[Tensor], spec: ModelSpec) -> tuple[Label, ...]:
    config = cast("ClassificationPostprocess", spec.postprocess)
    mean = probs[0] if len(probs) == 1 else torch.stack(list(probs)).mean(dim=0)
    best = preselect(
        mean,
        torch.arange(len(mean)),
        torch.full((len(mean),), config.score_threshold),
        config.top_k,
    )
    return tuple(map(Label, best.tolist(), mean[best].tolist()))
