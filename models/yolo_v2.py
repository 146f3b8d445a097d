"""YOLOv2: detection by anchors found by clustering, on Darknet-19.

Joseph Redmon, Ali Farhadi: YOLO9000: Better, Faster, Stronger, CVPR 2017,
https://arxiv.org/abs/1612.08242, section 2 and figure 3 (box coding). The loss follows the
published implementation where the paper is silent.

Differences: classes learn by cross-entropy, not squared error; no pull of every box to its anchor
in the first 12,800 images; anchors are given, not clustered here.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelmill.models.darknet import Darknet19, TinyDarknet, conv_leaky
from pixelmill.models.dense import dense_outputs
from pixelmill.models.interface import BoxOutput
from pixelmill.models.losses import giou_loss
from pixelmill.models.ops.boxes import box_iou, box_iou_pairs
from pixelmill.models.ops.grid import decode_grid, encode_grid, match_shapes
from pixelmill.models.padding import fill_up
from pixelmill.models.spec import ModelSpec
from pixelmill.models.targets import BoxTarget, Target

__all__ = ["GridLoss", "YOLOv2", "grid_box_errors", "yolo_v2_loss", "yolo_v2_outputs"]

STRIDE = 32
# Of the published COCO configuration, times the stride: pixels of a 416 canvas
ANCHORS = (18.3, 21.7, 60.0, 66.0, 106.9, 175.2, 252.3, 112.9, 312.7, 293.4)
OBJECT_WEIGHT = 5.0

GridLoss = Literal["squared", "iou", "giou"]


class _Reorganise(nn.Module):
    """Halve the resolution; the four neighbours become channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


class YOLOv2(nn.Module):
    """Boxes and classes from the anchors of a grid's cells.

    Args:
        num_classes: K.
        anchors: width, height, width, height, ... in canvas pixels.
        variant: "full" on Darknet-19 with the finer features passed through, or "tiny".
        width: channels of the first convolution; 32, or 16 for the tiny one, if left out.
        head_width: channels of the tiny one's last but one convolution; the published one has 512
            for COCO and 1024 for VOC.
        ignore_iou: boxes that overlap an object this much are no background; the published
            configuration's is 0.6.
        box_loss: "squared" (the paper's) or another of `grid_box_errors`.
    """

    def __init__(
        self,
        num_classes: int,
        anchors: Sequence[float] = ANCHORS,
        variant: Literal["full", "tiny"] = "full",
        width: int | None = None,
        head_width: int = 512,
        ignore_iou: float = 0.6,
        box_loss: GridLoss = "squared",
    ) -> None:
        super().__init__()
        self.ignore_iou = ignore_iou
        self.box_loss: GridLoss = box_loss
        self.num_classes = num_classes
        self.register_buffer(
            "anchors", torch.tensor(anchors, dtype=torch.float32).view(-1, 2), persistent=False
        )
        outputs = len(anchors) // 2 * (5 + num_classes)
        self.passthrough: nn.Module | None = None
        if variant == "tiny":
            tiny = TinyDarknet(width or 16)
            self.backbone: nn.Module = tiny
            self.head = nn.Sequential(
                conv_leaky(tiny.channels[1], head_width), nn.Conv2d(head_width, outputs, 1)
            )
            return
        full = Darknet19(width or 32)
        shallow, deep = full.channels
        self.backbone = full
        self.deepen = nn.Sequential(conv_leaky(deep, deep), conv_leaky(deep, deep))
        self.passthrough = nn.Sequential(conv_leaky(shallow, deep // 16, 1), _Reorganise())
        self.head = nn.Sequential(conv_leaky(deep + deep // 4, deep), nn.Conv2d(deep, outputs, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised float -> (B, H / 32, W / 32, anchors, 5 + K) raw."""
        shallow, deep = self.backbone(fill_up(images, STRIDE))
        if self.passthrough is not None:
            deep = torch.cat((self.passthrough(shallow), self.deepen(deep)), dim=1)
        raw: Tensor = self.head(deep)
        return raw.permute(0, 2, 3, 1).unflatten(-1, (-1, 5 + self.num_classes))


def yolo_v2_outputs(
    module: nn.Module, outputs: Tensor, spec: ModelSpec, canvas: tuple[int, int]
) -> list[BoxOutput]:
    """Boxes whose class probability times objectness is over the threshold."""
    raw = outputs.float()
    boxes = decode_grid(raw[..., :4], cast("Tensor", module.anchors), STRIDE)
    scores = raw[..., 4:5].sigmoid() * raw[..., 5:].softmax(dim=-1)
    return dense_outputs(boxes.flatten(1, 3), scores.flatten(1, 3), spec, canvas)


def grid_box_errors(
    kind: GridLoss, raw: Tensor, codes: Tensor, predicted_xyxy: Tensor, truth_xyxy: Tensor
) -> Tensor:
    """How far boxes of a grid are from their truth.

    Args:
        kind: "squared" error of the codes, summed over the four; 1 - "iou" or 1 - "giou".
        raw: (N, 4) predicted, as `decode_grid` takes it.
        codes: (N, 4) wanted, as `encode_grid` gives them.
        predicted_xyxy: (N, 4) decoded.
        truth_xyxy: (N, 4).

    Returns:
        (N,).

    Raises:
        ValueError: no such kind.
    """
    if kind == "squared":
        found = torch.cat((raw[:, :2].sigmoid(), raw[:, 2:]), dim=1)
        return ((found - codes) ** 2).sum(dim=1)
    if kind == "giou":
        return giou_loss(predicted_xyxy, truth_xyxy)
    if kind == "iou":
        return 1 - box_iou_pairs(predicted_xyxy, truth_xyxy)
    raise ValueError(f"expected a box loss of squared, iou or giou, got {kind!r}")


def yolo_v2_loss(
    module: nn.Module, outputs: Tensor, targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Squared errors of box codes and objectness, cross-entropy of the classes, per image.

    The anchor of an object's cell whose shape is nearest is responsible for it; its objectness
    learns the overlap that it reaches.

    Args:
        module: the `YOLOv2` that gave the outputs.
        outputs: of one batch.
        targets: `BoxTarget` per image.

    Returns:
        Scalars "box", "object", "no_object" and "class".
    """
    model = cast("YOLOv2", module)
    anchors = cast("Tensor", model.anchors)
    raw = outputs.float()
    boxes = decode_grid(raw[..., :4], anchors, STRIDE)
    names = ("box", "object", "no_object", "class")
    sums = {name: raw.new_zeros(()) for name in names}
    for index, target in enumerate(cast("Sequence[BoxTarget]", targets)):
        truth = target.boxes_xyxy
        height, width = raw.shape[1:3]
        best = match_shapes(truth, anchors)
        rows, columns, codes = encode_grid(truth, anchors[best], STRIDE, (height, width))
        objectness = raw[index, ..., 4].sigmoid()
        decoded = boxes[index].detach()
        overlap = box_iou(decoded.reshape(-1, 4), truth).amax(dim=1) if len(truth) else None
        background = torch.ones_like(objectness, dtype=torch.bool)
        if overlap is not None:
            background = overlap.view_as(objectness) < model.ignore_iou
        background[rows, columns, best] = False
        sums["no_object"] = sums["no_object"] + (objectness[background] ** 2).sum()
        here = raw[index, rows, columns, best]
        reached = box_iou_pairs(decoded[rows, columns, best], truth)
        sums["object"] = (
            sums["object"]
            + (OBJECT_WEIGHT * (objectness[rows, columns, best] - reached) ** 2).sum()
        )
        # Small boxes count for more: the published implementation's rescaled coordinate loss
        sides = (truth[:, 2:] - truth[:, :2]) / truth.new_tensor((width, height)) / STRIDE
        weight = 2 - sides.prod(dim=1)
        errors = grid_box_errors(
            model.box_loss, here[:, :4], codes, boxes[index, rows, columns, best], truth
        )
        sums["box"] = sums["box"] + (weight * errors).sum()
        sums["class"] = sums["class"] + F.cross_entropy(here[:, 5:], target.labels, reduction="sum")
    return {name: each / len(targets) for name, each in sums.items()}
