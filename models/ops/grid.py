"""Boxes as YOLO writes them: relative to a cell of a grid and to an anchor of a given shape.

Source: Redmon and Farhadi, YOLO9000, 2017, section 2, "Direct location prediction", figure 3.
"""

import torch
from torch import Tensor

__all__ = ["decode_grid", "encode_grid", "match_shapes"]

# exp() of a larger log ratio would blow an anchor of 10 px up beyond a 1000 px image
MAX_LOG_RATIO = 4.6


def decode_grid(raw: Tensor, anchors: Tensor, stride: int) -> Tensor:
    """Boxes of a grid's cells.

    Args:
        raw: (..., h, w, A, 4): logits of the centre's place in its cell, log ratios of the sides.
        anchors: (A, 2) width and height, pixels.
        stride: pixels per cell.

    Returns:
        (..., h, w, A, 4) x_min, y_min, x_max, y_max in pixels.
    """
    height, width = raw.shape[-4:-2]
    x = raw[..., 0].sigmoid() + torch.arange(width, device=raw.device)[None, :, None]
    y = raw[..., 1].sigmoid() + torch.arange(height, device=raw.device)[:, None, None]
    half = anchors * raw[..., 2:].clamp(max=MAX_LOG_RATIO).exp() / 2
    centres = torch.stack((x, y), dim=-1) * stride
    return torch.cat((centres - half, centres + half), dim=-1)


def encode_grid(
    boxes_xyxy: Tensor, anchors: Tensor, stride: int, cells: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Where boxes lie on a grid and what `decode_grid` would need to give them.

    Args:
        boxes_xyxy: (N, 4) pixels, sides above zero.
        anchors: (N, 2) width and height of the anchor of each box, pixels.
        stride: pixels per cell.
        cells: (rows, columns) of the grid.

    Returns:
        rows (N,) and columns (N,), int64; codes (N, 4): the centre's place in its cell in [0, 1]
        (of which the raw value is the logit), log ratios of the sides.
    """
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2 / stride
    limit = torch.tensor((cells[1] - 1, cells[0] - 1), device=boxes_xyxy.device)
    corner = centres.floor().long().clamp(min=0).minimum(limit)
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    codes = torch.cat((centres - corner, torch.log(sides / anchors)), dim=1)
    return corner[:, 1], corner[:, 0], codes


def match_shapes(boxes_xyxy: Tensor, anchors: Tensor) -> Tensor:
    """The anchor whose shape is nearest to each box's, by the overlap when they share a centre.

    Args:
        boxes_xyxy: (N, 4).
        anchors: (A, 2) width and height.

    Returns:
        (N,) int64 indices of anchors.
    """
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    intersection = torch.minimum(sides[:, None], anchors[None]).prod(dim=2)
    union = sides.prod(dim=1)[:, None] + anchors.prod(dim=1)[None] - intersection
    return (intersection / union).argmax(dim=1)
