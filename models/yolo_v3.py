"""YOLOv3: detection at three scales, on Darknet-53.

Joseph Redmon, Ali Farhadi: YOLOv3: An Incremental Improvement, 2018,
https://arxiv.org/abs/1804.02767, section 2. The heads and the tiny variant follow the published
configurations.

Differences: the places of centres learn by squared error of their sigmoids, as published, where
the paper speaks of their logits.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelmill.models.darknet import Darknet53, TinyDarknet, conv_leaky
from pixelmill.models.dense import dense_outputs
from pixelmill.models.interface import BoxOutput
from pixelmill.models.ops.boxes import box_iou
from pixelmill.models.ops.grid import decode_grid, encode_grid, match_shapes
from pixelmill.models.padding import fill_up
from pixelmill.models.spec import ModelSpec
from pixelmill.models.targets import BoxTarget, Target
from pixelmill.models.yolo_v2 import GridLoss, grid_box_errors

__all__ = ["YOLOv3", "yolo_v3_loss", "yolo_v3_outputs"]

# Section 2.3, nine clusters on COCO, and those of the published tiny one: pixels of a 416 canvas
ANCHORS = (10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326)
TINY_ANCHORS = (10, 14, 23, 27, 37, 58, 81, 82, 135, 169, 344, 319)


class _Head(nn.Module):
    """Convolutions at one scale: what goes to the finer scale, and the predictions."""

    def __init__(self, in_channels: int, channels: int, outputs: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_leaky(in_channels, channels, 1)]
        for _ in range(depth):
            layers += [conv_leaky(channels, 2 * channels), conv_leaky(2 * channels, channels, 1)]
        self.neck = nn.Sequential(*layers) if depth >= 0 else nn.Identity()
        self.predictor = nn.Sequential(
            conv_leaky(channels if depth >= 0 else in_channels, 2 * channels),
            nn.Conv2d(2 * channels, outputs, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.neck(x)
        return x, self.predictor(x)


class YOLOv3(nn.Module):
    """Boxes and classes from the anchors of several grids' cells.

    Args:
        num_classes: K.
        anchors: width, height, width, height, ... in canvas pixels, smallest first, the same
            number for each scale; left out: the paper's.
        variant: "full" on Darknet-53 with strides 8, 16, 32, or "tiny" with strides 16, 32.
        width: channels of the first convolution; 32, or 16 for the tiny one, if left out.
        ignore_iou: boxes that overlap an object this much are no background; the paper's is 0.5
            (section 2.1).
        box_loss: "squared" (the paper's) or another of `yolo_v2.grid_box_errors`.
    """

    def __init__(
        self,
        num_classes: int,
        anchors: Sequence[float] | None = None,
        variant: Literal["full", "tiny"] = "full",
        width: int | None = None,
        ignore_iou: float = 0.5,
        box_loss: GridLoss = "squared",
    ) -> None:
        super().__init__()
        self.ignore_iou = ignore_iou
        self.box_loss: GridLoss = box_loss
        self.num_classes = num_classes
        tiny = variant == "tiny"
        backbone = TinyDarknet(width or 16) if tiny else Darknet53(width or 32)
        self.backbone = backbone
        self.strides = backbone.strides
        chosen = anchors or (TINY_ANCHORS if tiny else ANCHORS)
        shapes = torch.tensor(chosen, dtype=torch.float32).view(len(self.strides), -1, 2)
        self.register_buffer("anchors", shapes, persistent=False)
        outputs = shapes.shape[1] * (5 + num_classes)
        # Coarse to fine. The tiny one's neck is one 1x1 convolution, and none at the finer scale.
        sizes = [each // (4 if tiny else 2) for each in backbone.channels[::-1]]
        if tiny:
            sizes[1] = backbone.channels[0] // 2
        self.heads = nn.ModuleList()
        self.laterals = nn.ModuleList()
        above = 0
        for level, (channels, size) in enumerate(zip(backbone.channels[::-1], sizes, strict=True)):
            depth = (0 if level == 0 else -1) if tiny else 2
            self.heads.append(
                _Head(channels + above, size if depth >= 0 else channels // 2, outputs, depth)
            )
            if level < len(sizes) - 1:
                above = size // 2
                self.laterals.append(conv_leaky(size, above, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) normalised float -> (B, h, w, anchors, 5 + K), finest grid first."""
        features = self.backbone(fill_up(images, self.strides[-1]))
        levels: list[Tensor] = []
        passed: Tensor | None = None
        for index, x in enumerate(reversed(features)):
            if passed is not None:
                finer = F.interpolate(self.laterals[index - 1](passed), scale_factor=2.0)
                x = torch.cat((finer, x), dim=1)
            passed, raw = self.heads[index](x)
            levels.append(raw.permute(0, 2, 3, 1).unflatten(-1, (-1, 5 + self.num_classes)))
        return tuple(reversed(levels))


def yolo_v3_outputs(
    module: nn.Module, outputs: tuple[Tensor, ...], spec: ModelSpec, canvas: tuple[int, int]
) -> list[BoxOutput]:
    """Boxes whose class probability times objectness is over the threshold."""
    model = cast("YOLOv3", module)
    boxes = _decode(model, outputs)
    raw = torch.cat([level.float().flatten(1, 3) for level in outputs], dim=1)
    scores = raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid()
    return dense_outputs(boxes, scores, spec, canvas)


def _decode(model: YOLOv3, outputs: Sequence[Tensor]) -> Tensor:
    """(B, all anchors of all cells, 4) canvas pixels."""
    boxes = [
        decode_grid(raw[..., :4].float(), anchors, stride).flatten(1, 3)
        for raw, anchors, stride in zip(
            outputs, cast("Tensor", model.anchors), model.strides, strict=True
        )
    ]
    return torch.cat(boxes, dim=1)


def yolo_v3_loss(
    module: nn.Module, outputs: tuple[Tensor, ...], targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Squared error of the box codes, cross-entropy of objectness and of each class, per image.

    One anchor of one scale is responsible for an object: that of the nearest shape, in the cell
    that holds its centre.

    Args:
        module: the `YOLOv3` that gave the outputs.
        outputs: of one batch.
        targets: `BoxTarget` per image.

    Returns:
        Scalars "box", "object" and "class".
    """
    model = cast("YOLOv3", module)
    all_anchors = cast("Tensor", model.anchors)
    boxes = _decode(model, outputs)
    raw = torch.cat([level.float().flatten(1, 3) for level in outputs], dim=1)
    sizes = [(level.shape[1], level.shape[2]) for level in outputs]
    starts = torch.tensor([level[0, ..., 0].numel() for level in outputs]).cumsum(0).tolist()
    num_anchors = all_anchors.shape[1]
    sums = {name: raw.new_zeros(()) for name in ("box", "object", "class")}
    height, width = (side * model.strides[0] for side in sizes[0])
    for index, target in enumerate(cast("Sequence[BoxTarget]", targets)):
        truth = target.boxes_xyxy
        best = match_shapes(truth, all_anchors.flatten(0, 1))
        places = torch.zeros_like(best)
        codes = truth.new_zeros(len(truth), 4)
        for level, (stride, cells) in enumerate(zip(model.strides, sizes, strict=True)):
            here = best // num_anchors == level
            anchor = best[here] % num_anchors
            rows, columns, codes[here] = encode_grid(
                truth[here], all_anchors[level][anchor], stride, cells
            )
            start = starts[level - 1] if level else 0
            places[here] = start + (rows * cells[1] + columns) * num_anchors + anchor
        wanted = raw.new_zeros(raw.shape[1])
        counted = torch.ones_like(wanted, dtype=torch.bool)
        if len(truth):
            counted = box_iou(boxes[index].detach(), truth).amax(dim=1) <= model.ignore_iou
            counted[places], wanted[places] = True, 1.0
        sums["object"] = sums["object"] + F.binary_cross_entropy_with_logits(
            raw[index, counted, 4], wanted[counted], reduction="sum"
        )
        found = raw[index, places]
        # Small boxes count for more, as published
        sides = (truth[:, 2:] - truth[:, :2]) / truth.new_tensor((width, height))
        weight = 2 - sides.prod(dim=1)
        errors = grid_box_errors(model.box_loss, found[:, :4], codes, boxes[index, places], truth)
        sums["box"] = sums["box"] + (weight * errors).sum()
        classes = F.one_hot(target.labels, model.num_classes).to(found.dtype)
        sums["class"] = sums["class"] + F.binary_cross_entropy_with_logits(
            found[:, 5:], classes, reduction="sum"
        )
    return {name: each / len(targets) for name, each in sums.items()}
