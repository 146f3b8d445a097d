"""Classification with localisation: one class and one box for an image.

Karen Simonyan, Andrew Zisserman: Very Deep Convolutional Networks for Large-Scale Image
Recognition, ICLR 2015, https://arxiv.org/abs/1409.1556, appendix A: a box shared by all
classes ("single-class regression"), or one for each ("per-class regression").

Differences: class and box are learnt at once, by heads of their own on one backbone, instead of by
two networks; any backbone takes VGG's place, and its features are averaged over a grid of cells, so
that canvases may have any size; boxes are shifts and log ratios of the canvas, learnt by smooth L1,
not squared error; the background is a class, for images that show nothing. Of several objects the
largest is learnt. There is no merging over dense crops.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelmill.models.feature_extractor import build_extractor
from pixelmill.models.interface import BoxOutput, ClassOutput
from pixelmill.models.losses import BoxLoss, box_loss
from pixelmill.models.ops.boxes import box_area, clip_boxes, decode_boxes
from pixelmill.models.spec import ModelSpec
from pixelmill.models.targets import BoxTarget, ClassTarget, Target

__all__ = ["Localiser", "LocaliserOutput", "localiser_loss", "localiser_outputs"]

# Smooth L1 becomes linear here, in shares of the canvas: offsets from a box as large as that are
# small, and squared errors of a tenth of it would hardly move a box
_BETA = 0.02


class LocaliserOutput(NamedTuple):
    """Raw outputs of a batch.

    Attributes:
        class_logits: (B, 1 + K), background first.
        box_deltas: (B, 1 or K, 4), to be decoded with the canvas.
        canvas_xyxy: (4,) the box around the canvas, in pixels.
    """

    class_logits: Tensor
    box_deltas: Tensor
    canvas_xyxy: Tensor


class Localiser(nn.Module):
    """A class and a box for each image.

    Args:
        num_classes: K, without the background.
        backbone: of `feature_extractor.EXTRACTORS`; the paper's is vgg16.
        cells: the box is read from the last features, averaged over cells x cells parts.
        hidden: features between them and the box.
        box_per_class: a box for each class instead of one for all.
        box_loss: "smooth_l1", or another of `losses.box_loss`.
        dropout: before the class.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "vgg16",
        cells: int = 4,
        hidden: int = 256,
        box_per_class: bool = False,
        box_loss: BoxLoss = "smooth_l1",
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.box_loss: BoxLoss = box_loss
        self.backbone = build_extractor(backbone)
        channels = self.backbone.channels[-1]
        self.class_head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels, 1 + num_classes),
        )
        boxes = num_classes if box_per_class else 1
        self.box_head = nn.Sequential(
            nn.AdaptiveAvgPool2d(cells),
            nn.Flatten(),
            nn.Linear(channels * cells**2, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, 4 * boxes),
            nn.Unflatten(1, (boxes, 4)),
        )

    def forward(self, images: Tensor) -> LocaliserOutput:
        """(B, 3, H, W) normalised float -> logits, and offsets from the canvas."""
        features = self.backbone(images)[-1]
        height, width = images.shape[-2:]
        # In float32, whatever the network computes in: these are pixels
        canvas = torch.tensor((0, 0, width, height), dtype=torch.float32, device=images.device)
        return LocaliserOutput(self.class_head(features), self.box_head(features), canvas)


def localiser_outputs(
    module: nn.Module, outputs: LocaliserOutput, spec: ModelSpec, canvas: tuple[int, int]
) -> list[BoxOutput] | list[ClassOutput]:
    """A box and a label per image; of a spec that classifies, the probabilities of the labels.

    The box is that of the most probable class, and its score that probability. Probabilities add up
    to less than 1: the background has the rest.
    """
    probs = outputs.class_logits.float().softmax(dim=1)[:, 1:].cpu()
    if spec.task == "classification":
        return [ClassOutput(each) for each in probs]
    scores, labels = probs.max(dim=1, keepdim=True)
    deltas = _of_class(outputs.box_deltas.float().cpu(), labels[:, 0])
    boxes = clip_boxes(decode_boxes(deltas, outputs.canvas_xyxy.cpu()), canvas)[:, None]
    return [BoxOutput(*each) for each in zip(boxes, scores, labels, strict=True)]


def localiser_loss(
    module: nn.Module, outputs: LocaliserOutput, targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Cross-entropy of the largest object's class, or of the background, and its box's error.

    Args:
        module: the `Localiser` that gave the outputs.
        outputs: of one batch.
        targets: per image a `BoxTarget`, or a `ClassTarget`, which teaches no box.

    Returns:
        Scalars "class", per image, and "box", per image with a box.
    """
    model = cast("Localiser", module)
    logits, deltas = outputs.class_logits.float(), outputs.box_deltas.float()
    wanted = logits.new_zeros(len(targets), dtype=torch.int64)
    boxes_xyxy = logits.new_zeros(len(targets), 4)
    for index, target in enumerate(targets):
        if isinstance(target, ClassTarget):
            wanted[index] = 1 + target.label
        elif len((boxes := cast("BoxTarget", target)).labels):
            largest = box_area(boxes.boxes_xyxy).argmax()
            wanted[index] = 1 + boxes.labels[largest]
            boxes_xyxy[index] = boxes.boxes_xyxy[largest]
    (shown,) = torch.nonzero(box_area(boxes_xyxy), as_tuple=True)
    own = _of_class(deltas[shown], wanted[shown] - 1)
    whole = outputs.canvas_xyxy.expand_as(own)
    errors = box_loss(model.box_loss, own, boxes_xyxy[shown], whole, beta=_BETA)
    return {
        "class": F.cross_entropy(logits, wanted),
        "box": errors.sum() / max(len(shown), 1),
    }


def _of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """(N, 1 or K, 4) -> (N, 4)."""
    if deltas.shape[1] == 1:
        return deltas[:, 0]
    return deltas[torch.arange(len(deltas), device=deltas.device), labels]
