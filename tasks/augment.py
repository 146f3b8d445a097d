"""Random changes of training images, with their truth."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import resize_image

from pixelmill.configs.schema import TrainConfig
from pixelmill.models.ops.boxes import box_area, clip_boxes, large_enough
from pixelmill.models.targets import BoxTarget, SemanticTarget, Target

__all__ = ["Window", "change_colours", "move_image", "move_target", "sample_window"]

_VOID = 255
# An object of which less is left after a crop is not learnt: often nobody could tell what it is.
_MIN_VISIBLE = 0.3
_MIN_SIDE = 4.0


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a canvas that is shown on the whole canvas; it may reach beyond it.

    Attributes:
        top: first row.
        left: first column.
        size: (height, width).
        flip: mirrored left to right afterwards.
    """

    top: int
    left: int
    size: tuple[int, int]
    flip: bool


def sample_window(
    canvas: tuple[int, int], config: TrainConfig, generator: torch.Generator
) -> Window:
    """Choose magnification, place and mirroring; the place such that no more than need be is lost.

    Args:
        canvas: (height, width) in pixels.
        config: its scale_range and horizontal_flip.
        generator: of the random numbers.
    """
    low, high = config.scale_range
    scale_share, row_share, column_share, coin = torch.rand(4, generator=generator).tolist()
    scale = low * (high / low) ** scale_share
    height, width = (max(1, round(side / scale)) for side in canvas)
    return Window(
        top=round((canvas[0] - height) * row_share),
        left=round((canvas[1] - width) * column_share),
        size=(height, width),
        flip=config.horizontal_flip and coin < 0.5,
    )


def move_image(image: Tensor, window: Window, pad_value: int) -> Tensor:
    """Show the window of a (3, H, W) uint8 image on a canvas of the same size."""
    canvas = image.shape[-2:]
    part = _cut(image, window, pad_value)
    resized = part if part.shape == image.shape else resize_image(part, list(canvas))
    return resized.flip(-1) if window.flip else resized


def move_target(target: Target, window: Window, canvas: tuple[int, int]) -> Target:
    """What the truth becomes; a caption stays as it is."""
    if isinstance(target, BoxTarget):
        return _move_boxes(target, window, canvas)
    if isinstance(target, SemanticTarget):
        return replace(target, labels=_move_labels(target.labels[None], window, canvas, _VOID)[0])
    return target


def _cut(planes: Tensor, window: Window, fill: int) -> Tensor:
    """(C, H, W) -> (C, *window.size); negative padding cuts."""
    height, width = planes.shape[-2:]
    right = window.left + window.size[1] - width
    bottom = window.top + window.size[0] - height
    return F.pad(planes, (-window.left, right, -window.top, bottom), value=fill)


def _move_labels(labels: Tensor, window: Window, canvas: tuple[int, int], fill: int) -> Tensor:
    """(C, H, W) uint8, by the nearest pixel."""
    part = _cut(labels, window, fill)
    resized = F.interpolate(part[None], size=canvas, mode="nearest-exact")[0]
    return resized.flip(-1) if window.flip else resized


def _move_boxes(target: BoxTarget, window: Window, canvas: tuple[int, int]) -> BoxTarget:
    scale_y, scale_x = (side / part for side, part in zip(canvas, window.size, strict=True))
    shift = target.boxes_xyxy.new_tensor((window.left, window.top) * 2)
    scale = target.boxes_xyxy.new_tensor((scale_x, scale_y) * 2)
    whole = (target.boxes_xyxy - shift) * scale
    if window.flip:
        whole = torch.stack(
            (canvas[1] - whole[:, 2], whole[:, 1], canvas[1] - whole[:, 0], whole[:, 3]), dim=1
        )
    boxes_xyxy = clip_boxes(whole, canvas)
    kept = large_enough(boxes_xyxy, _MIN_SIDE) & (
        box_area(boxes_xyxy) >= _MIN_VISIBLE * box_area(whole)
    )
    masks = target.masks
    if masks is not None:
        masks = masks[kept]
        masks = _move_labels(masks, window, canvas, 0) if len(masks) else masks
    return replace(target, boxes_xyxy=boxes_xyxy[kept], labels=target.labels[kept], masks=masks)


def change_colours(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation of each image by a random factor.

    Args:
        images: (B, 3, H, W) float in [0, 1], RGB.
        amount: factors are drawn from 1 - amount to 1 + amount.
        generator: of the random numbers.

    Returns:
        The same shape, in [0, 1].
    """
    factors = 1 + amount * (2 * torch.rand(3, len(images), 1, 1, 1, generator=generator) - 1)
    brightness, contrast, saturation = factors
    grey = images.mean(dim=1, keepdim=True)
    images = grey + saturation * (images - grey)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    images = brightness * (mean + contrast * (images - mean))
    return images.clamp(0, 1)
