"""Random changes of training images, with their truth: torchvision v2's transforms.

What v2 has is v2's. Of our own are the placing, because a canvas of training is to be laid as the
engine lays it when scoring (v2's ScaleJitter and RandomCrop know letterboxes of one form and take
the nearest pixel of label maps half a pixel off), and which cut objects are still learnt.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pixelmill.configs.schema import TrainConfig
from pixelmill.models.ops.boxes import box_area, large_enough
from pixelmill.models.targets import BoxTarget, SemanticTarget, Target
from pixelmill.tasks.engine.views import Placement, choose_canvas, place_whole

__all__ = ["Place", "Size", "augment", "canvas_size", "make_transform"]

Size = tuple[int, int]

VOID = 255
# An object of which less is left after a crop is not learnt: often nobody could tell what it is.
_MIN_VISIBLE = 0.3
_MIN_SIDE = 4.0
# Sides of enlarged canvases: what feature pyramids need
_MULTIPLE = 32
_RIGHT_ANGLES = (0, 90, 180, 270)


def canvas_size(image_size: Size, config: TrainConfig, scale: float = 1.0) -> Size:
    """(height, width) of what the network is shown of an image while training.

    Args:
        image_size: (height, width) of the original.
        config: its canvases, or its crop.
        scale: of `canvas_scales`.
    """
    return _scaled(config.crop or choose_canvas(image_size, config.preprocess), scale)


def _scaled(size: Size, scale: float) -> Size:
    if scale == 1:
        return size
    height, width = (max(_MULTIPLE, _MULTIPLE * round(side * scale / _MULTIPLE)) for side in size)
    return height, width


def _lay(image_size: Size, config: TrainConfig, scale: float) -> Placement:
    """Where the whole image lies without any magnification."""
    preprocess = config.preprocess
    if config.crop is None and scale != 1:
        canvas = _scaled(choose_canvas(image_size, preprocess), scale)
        shorter = preprocess.crop_from and round(preprocess.crop_from * scale)
        preprocess = preprocess.model_copy(update={"canvases": (canvas,), "crop_from": shorter})
    return place_whole(image_size, preprocess)


class Place(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Resize an image as the engine does, times a random magnification, and cut or pad it.

    The place is random where there is a choice, and such that no more than need be is lost.

    Args:
        config: its preprocess, scale_range and crop.
        scale: of `canvas_scales`.
        mask_fill: of masks and label maps beyond the image.
    """

    def __init__(self, config: TrainConfig, scale: float, mask_fill: int) -> None:
        super().__init__()
        self.config = config
        self.scale = scale
        self.mask_fill = mask_fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw magnification and place."""
        image = next(each for each in flat_inputs if isinstance(each, tv_tensors.Image))
        size = (image.shape[-2], image.shape[-1])
        canvas = canvas_size(size, self.config, self.scale)
        laid = _lay(size, self.config, self.scale)
        low, high = self.config.scale_range
        shares = torch.rand(3).tolist()
        magnification = low * (high / low) ** shares[0]
        resized = tuple(max(1, round(side * magnification)) for side in laid.resized)
        is_fixed = low == high == 1 and self.config.crop is None
        spans = []
        for axis, cut in enumerate((laid.crop_top, laid.crop_left)):
            slack = canvas[axis] - resized[axis]
            # the engine's place, or a random one
            offset = -cut if is_fixed else round(slack * shares[1 + axis])
            start = max(0, -offset)
            length = min(resized[axis] - start, canvas[axis] - max(0, offset))
            before = max(0, offset)
            spans.append((start, length, before, canvas[axis] - length - before))
        return {"resized": list(resized), "rows": spans[0], "columns": spans[1]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply what was drawn."""
        is_mask = isinstance(inpt, tv_tensors.Mask)
        resized = F.resize(
            inpt,
            params["resized"],
            # v2's own choice for masks, "nearest", lies half a pixel off
            interpolation=InterpolationMode.NEAREST_EXACT
            if is_mask
            else InterpolationMode(self.config.preprocess.interpolation),
            antialias=self.config.preprocess.antialias,
        )
        (top, rows, above, below), (left, columns, before, behind) = (
            params["rows"],
            params["columns"],
        )
        part = F.crop(resized, top, left, rows, columns)
        if not any((above, below, before, behind)):
            return part
        fill = self.mask_fill if is_mask else self.config.preprocess.pad_value
        return F.pad(part, [before, above, behind, below], fill=float(fill))


def make_transform(config: TrainConfig, scale: float) -> v2.Transform:
    """All that happens to an image before it is normalised.

    Args:
        config: of the training.
        scale: of `canvas_scales`, of this batch.

    Returns:
        A transform of a dict of tv_tensors, whose image is (3, H, W) uint8 RGB.
    """
    mask_fill = VOID if config.task == "semantic_segmentation" else 0
    # Any: v2 takes less than its own type for a mapping
    fill: Any = {tv_tensors.Image: config.preprocess.pad_value, tv_tensors.Mask: mask_fill}
    steps: list[v2.Transform] = []
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.vertical_flip:
        steps.append(v2.RandomVerticalFlip())
    if config.right_angles:
        turns = [v2.RandomRotation([angle, angle], expand=True) for angle in _RIGHT_ANGLES]
        steps.append(v2.RandomChoice(turns))
    if config.elastic:
        steps.append(v2.ElasticTransform(alpha=config.elastic, fill=fill))
    if config.iou_crop:
        steps.append(v2.RandomIoUCrop())
    steps.append(Place(config, scale, mask_fill))
    if config.color_jitter:
        amount = config.color_jitter
        steps.append(v2.ColorJitter(brightness=amount, contrast=amount, saturation=amount))
    return v2.Compose(steps)


def augment(image: Tensor, target: Target, transform: v2.Transform) -> tuple[Tensor, Target]:
    """An image and its truth, changed together; random numbers are torch's own.

    Args:
        image: (3, H, W) uint8 RGB.
        target: in pixels of that image; a caption or a class stays as it is.
        transform: of `make_transform`.

    Returns:
        The image and the target of its canvas.
    """
    sample: dict[str, Tensor] = {"image": tv_tensors.Image(image)}
    if isinstance(target, BoxTarget):
        # Twice: what is left of a box after all cutting is compared with the whole of it
        sample["boxes"] = _boxes(target, image, clamping_mode="hard")
        sample["whole"] = _boxes(target, image, clamping_mode=None)
        if target.masks is not None:
            sample["masks"] = tv_tensors.Mask(target.masks)
    elif isinstance(target, SemanticTarget):
        sample["labels"] = tv_tensors.Mask(target.labels[None])
        if target.weights is not None:
            sample["weights"] = tv_tensors.Mask(target.weights[None])
    changed = {key: each.as_subclass(Tensor) for key, each in transform(sample).items()}
    if isinstance(target, BoxTarget):
        return changed["image"], _visible(target, changed)
    if isinstance(target, SemanticTarget):
        weights = changed["weights"][0] if "weights" in changed else None
        return changed["image"], SemanticTarget(changed["labels"][0], weights)
    return changed["image"], target


def _boxes(target: BoxTarget, image: Tensor, clamping_mode: str | None) -> Tensor:
    make: Any = tv_tensors.BoundingBoxes  # its overloads know no clamping mode as a variable
    boxes: Tensor = make(
        target.boxes_xyxy,
        format=tv_tensors.BoundingBoxFormat.XYXY,
        canvas_size=(image.shape[-2], image.shape[-1]),
        clamping_mode=clamping_mode,
    )
    return boxes


def _visible(target: BoxTarget, changed: dict[str, Tensor]) -> BoxTarget:
    """The objects of which enough is left."""
    boxes_xyxy, whole = changed["boxes"].float(), changed["whole"].float()
    kept = large_enough(boxes_xyxy, _MIN_SIDE) & (
        box_area(boxes_xyxy) >= _MIN_VISIBLE * box_area(whole)
    )
    masks = changed["masks"][kept] if target.masks is not None else None
    return replace(target, boxes_xyxy=boxes_xyxy[kept], labels=target.labels[kept], masks=masks)
