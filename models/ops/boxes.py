"""Box arithmetic on (N, 4) float tensors of x_min, y_min, x_max, y_max; max is exclusive."""

import math

import torch
from torch import Tensor

__all__ = [
    "box_area",
    "box_ios",
    "box_iou",
    "box_iou_pairs",
    "clip_boxes",
    "decode_boxes",
    "encode_boxes",
    "large_enough",
]

Weights = tuple[float, float, float, float]

# exp() of a larger log ratio would blow a 16 px anchor up beyond a 1000 px image
MAX_LOG_RATIO = math.log(1000 / 16)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """(...,) areas of (..., 4) boxes; zero where a box is inside out."""
    width, height = _sides(boxes_xyxy)
    return width.clamp(min=0) * height.clamp(min=0)


def box_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Intersection over union of (N, 4) with (M, 4) boxes: (N, M) in [0, 1]; empty pairs give 0."""
    intersection = _intersection(boxes_xyxy, others_xyxy)
    union = box_area(boxes_xyxy)[:, None] + box_area(others_xyxy)[None, :] - intersection
    return _ratio(intersection, union)


def box_iou_pairs(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Intersection over union of (..., 4) boxes with (..., 4) others, shapes that broadcast."""
    low = torch.maximum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    high = torch.minimum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    return _ratio(intersection, box_area(boxes_xyxy) + box_area(others_xyxy) - intersection)


def box_ios(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Intersection over the smaller box of (N, 4) with (M, 4) boxes: (N, M) in [0, 1].

    A box inside another overlaps it by 1 however large the other is, as parts cut off by a tile
    edge do.
    """
    intersection = _intersection(boxes_xyxy, others_xyxy)
    smaller = torch.minimum(box_area(boxes_xyxy)[:, None], box_area(others_xyxy)[None, :])
    return _ratio(intersection, smaller)


def clip_boxes(boxes_xyxy: Tensor, size: tuple[int, int]) -> Tensor:
    """Move corners outside of an image of `size` (height, width) onto its border."""
    height, width = size
    limit = boxes_xyxy.new_tensor((width, height, width, height))
    return boxes_xyxy.clamp(min=0).minimum(limit)


def large_enough(boxes_xyxy: Tensor, min_size: float) -> Tensor:
    """(N,) bool: boxes that have an inside and both sides of at least `min_size` pixels."""
    width, height = _sides(boxes_xyxy)
    return (width > 0) & (height > 0) & (width >= min_size) & (height >= min_size)


def encode_boxes(
    reference_xyxy: Tensor, proposals_xyxy: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """What has to be done to each proposal to make it its reference box.

    Args:
        reference_xyxy: (N, 4) boxes to reach, with sides above zero.
        proposals_xyxy: (N, 4) boxes to start from (anchors, proposals), with sides above zero.
        weights: factors on the shifts in x, y and the log ratios of width, height.

    Returns:
        (N, 4): shift of the centre in proposal sides, log ratio of the sides, each weighted.

    Source: Girshick et al., Rich feature hierarchies (R-CNN), 2014, appendix C.
    """
    width, height = _sides(proposals_xyxy)
    reference_width, reference_height = _sides(reference_xyxy)
    x, y = _centres(proposals_xyxy)
    reference_x, reference_y = _centres(reference_xyxy)
    wx, wy, ww, wh = weights
    return torch.stack(
        (
            wx * (reference_x - x) / width,
            wy * (reference_y - y) / height,
            ww * torch.log(reference_width / width),
            wh * torch.log(reference_height / height),
        ),
        dim=-1,
    )


def decode_boxes(
    deltas: Tensor, proposals_xyxy: Tensor, weights: Weights = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Undo `encode_boxes`; log ratios are capped so that no box becomes infinite.

    Args:
        deltas: (..., 4) predicted shifts and log ratios.
        proposals_xyxy: boxes they refer to, of a shape that broadcasts with `deltas`.
        weights: as they were encoded.

    Returns:
        (..., 4) boxes, not clipped to any image.
    """
    width, height = _sides(proposals_xyxy)
    x, y = _centres(proposals_xyxy)
    wx, wy, ww, wh = weights
    dx, dy, dw, dh = deltas.unbind(-1)
    centre_x = dx / wx * width + x
    centre_y = dy / wy * height + y
    half_width = torch.exp((dw / ww).clamp(max=MAX_LOG_RATIO)) * width / 2
    half_height = torch.exp((dh / wh).clamp(max=MAX_LOG_RATIO)) * height / 2
    return torch.stack(
        (
            centre_x - half_width,
            centre_y - half_height,
            centre_x + half_width,
            centre_y + half_height,
        ),
        dim=-1,
    )


def _sides(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Widths and heights."""
    return boxes_xyxy[..., 2] - boxes_xyxy[..., 0], boxes_xyxy[..., 3] - boxes_xyxy[..., 1]


def _centres(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    return (
        (boxes_xyxy[..., 0] + boxes_xyxy[..., 2]) / 2,
        (boxes_xyxy[..., 1] + boxes_xyxy[..., 3]) / 2,
    )


def _intersection(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    low = torch.maximum(boxes_xyxy[:, None, :2], others_xyxy[None, :, :2])
    high = torch.minimum(boxes_xyxy[:, None, 2:], others_xyxy[None, :, 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, and 0 where the whole is empty."""
    return torch.where(whole > 0, part / whole.clamp(min=torch.finfo(whole.dtype).tiny), 0.0)
