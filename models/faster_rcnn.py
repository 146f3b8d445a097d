"""Faster R-CNN: regions proposed by a network that shares its features with the detector.

Shaoqing Ren, Kaiming He, Ross Girshick, Jian Sun: Faster R-CNN: Towards Real-Time Object Detection
with Region Proposal Networks, NIPS 2015, https://arxiv.org/abs/1506.01497, sections 3 and 4.1.
The option of a pyramid: Tsung-Yi Lin, Piotr Dollár, Ross Girshick, Kaiming He, Bharath Hariharan,
Serge Belongie: Feature Pyramid Networks for Object Detection, CVPR 2017,
https://arxiv.org/abs/1612.03144, sections 4.1 and 4.2.

Differences: both stages are trained at once, the paper's "approximate joint training", instead of
in four steps; anchors that cross the border are learnt from, too; background regions may overlap
nothing at all (the paper's code asks for an overlap of 0.1); VGG16's first layers are trained. A
canvas is filled up to whole cells with zeros. Any padded torchvision backbone may take VGG16's
place: its features of stride 16 with two fully connected layers, or a pyramid of strides 4 to 64.
"""

from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from pixelmill.models.feature_extractor import build_extractor, check_padded
from pixelmill.models.losses import BoxLoss
from pixelmill.models.ops.boxes import Weights
from pixelmill.models.two_stage import (
    BOX_WEIGHTS,
    Parts,
    RoIMaxPool,
    TwoStage,
    fully_connected,
    make_heads,
)

__all__ = ["FasterRCNN", "PyramidFeatures", "SingleScaleFeatures"]

RATIOS = (0.5, 1.0, 2.0)
# Section 3.3; by level in a pyramid: Feature Pyramid Networks, section 4.1
SIZES = (128, 256, 512)
PYRAMID_SIZES = (32, 64, 128, 256, 512)
# Cells of a pooled region along a side: VGG16's fc6 reads 7 x 7
POOLED = 7
# Proposals before suppression, trained with and tested with: the paper's code; by pyramid level
_BEFORE_NMS = {"training": 12000, "testing": 6000}
_BEFORE_NMS_PER_LEVEL = {"training": 2000, "testing": 1000}


class SingleScaleFeatures(nn.Module):
    """A backbone's features at stride 16; of VGG16 those of conv5_3.

    Args:
        backbone: of `feature_extractor.EXTRACTORS`.

    Raises:
        ValueError: no such backbone, or its convolutions are not padded.
    """

    stride = 16

    def __init__(self, backbone: str) -> None:
        super().__init__()
        check_padded(backbone)
        self.extractor = build_extractor(backbone)
        self.extractor.stages = self.extractor.stages[:4]
        self.out_channels = self.extractor.channels[3]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), sides multiples of 16 -> "0": (B, C, H / 16, W / 16)."""
        return {"0": self.extractor(images)[-1]}


class PyramidFeatures(nn.Module):
    """P2 to P6: features of strides 4 to 64, deep ones added to shallow ones.

    Args:
        backbone: of `feature_extractor.EXTRACTORS`.
        channels: of each level.

    Raises:
        ValueError: no such backbone, or its convolutions are not padded.
    """

    stride = 4

    def __init__(self, backbone: str, channels: int) -> None:
        super().__init__()
        check_padded(backbone)
        self.extractor = build_extractor(backbone)
        self.out_channels = channels
        self.pyramid = FeaturePyramidNetwork(
            list(self.extractor.channels[1:]), channels, LastLevelMaxPool()
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), sides multiples of 32 -> "0" to "3" and "pool", finest first."""
        levels = self.extractor(images)[1:]
        named = {str(index): level for index, level in enumerate(levels)}
        return cast("dict[str, Tensor]", self.pyramid(named))


class _TwoLogitHead(nn.Module):
    """The paper's RPN head: object and background each have a logit.

    A softmax over two is the sigmoid of their difference, which is what is returned.
    """

    def __init__(self, channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.cls_logits = nn.Conv2d(channels, 2 * num_anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * num_anchors, 1)
        for layer in (self.conv, self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(cast("Tensor", layer.bias))

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """(B, C, h, w) by level -> (B, A, h, w) objectness and (B, 4 A, h, w) offsets by level."""
        objectness, deltas = [], []
        for level in levels:
            x = self.conv(level).relu()
            background, thing = self.cls_logits(x).chunk(2, dim=1)
            objectness.append(thing - background)
            deltas.append(self.bbox_pred(x))
        return objectness, deltas


class FasterRCNN(TwoStage):
    """Boxes of K classes, from regions that a network proposes.

    Args:
        num_classes: K, without the background.
        backbone: "vgg16", or another of `feature_extractor.EXTRACTORS` but Inception-v3.
        fpn: regions are proposed on and pooled from a pyramid instead of stride 16.
        fpn_channels: of each level of the pyramid.
        anchor_sizes: square roots of the anchors' areas, pixels: of each cell, or of each of the
            pyramid's five levels; None: those of the paper.
        anchor_ratios: height over width.
        num_proposals: regions kept of each image.
        num_proposals_training: the same while training.
        rpn_nms_iou: proposals that overlap a better one by more are dropped.
        rpn_match_iou: anchors that overlap an object by less than the first are background, by at
            least the second learn the object; each object has its best anchor besides.
        match_iou: least overlap of a proposal with the object that it learns.
        num_sampled: proposals learnt from in each image; the paper's 128, a pyramid's 512.
        positive_share: how many of them may be objects.
        box_loss: of both stages, "smooth_l1" (the paper's) or another of `losses.box_loss`.
        box_weights: factors on the second stage's offsets of centre and sides.
        pooling: "max" (RoI pooling, the paper's) or "align"; a pyramid is always aligned.
        hidden: features of the fully connected layers; None: 4096, with a pyramid 1024.
        dropout: between them; a pyramid's have none.

    Raises:
        ValueError: the backbone does not fit, or a pyramid's levels have not a size each.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "vgg16",
        fpn: bool = False,
        fpn_channels: int = 256,
        anchor_sizes: Sequence[int] | None = None,
        anchor_ratios: Sequence[float] = RATIOS,
        num_proposals: int = 300,
        num_proposals_training: int = 2000,
        rpn_nms_iou: float = 0.7,
        rpn_match_iou: tuple[float, float] = (0.3, 0.7),
        match_iou: float = 0.5,
        num_sampled: int = 128,
        positive_share: float = 0.25,
        box_loss: BoxLoss = "smooth_l1",
        box_weights: Weights = BOX_WEIGHTS,
        pooling: Literal["max", "align"] = "max",
        hidden: int | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.box_loss = box_loss
        sizes = tuple(anchor_sizes or (PYRAMID_SIZES if fpn else SIZES))
        if fpn and len(sizes) != len(PYRAMID_SIZES):
            raise ValueError(f"expected an anchor size for each of five levels, got {sizes}")
        self.backbone = (
            PyramidFeatures(backbone, fpn_channels) if fpn else SingleScaleFeatures(backbone)
        )
        self.stride = self.backbone.stride
        self.multiple = 32 if fpn else 16
        channels = self.backbone.out_channels
        by_level = tuple((size,) for size in sizes) if fpn else (sizes,)
        anchors = AnchorGenerator(by_level, (tuple(anchor_ratios),) * len(by_level))
        per_cell = anchors.num_anchors_per_location()[0]
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(channels, per_cell) if fpn else _TwoLogitHead(channels, per_cell),
            fg_iou_thresh=rpn_match_iou[1],
            bg_iou_thresh=rpn_match_iou[0],
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=_BEFORE_NMS_PER_LEVEL if fpn else _BEFORE_NMS,
            post_nms_top_n={"training": num_proposals_training, "testing": num_proposals},
            nms_thresh=rpn_nms_iou,
        )
        pooled = channels * POOLED**2
        if fpn:
            hidden = hidden or 1024
            pool: nn.Module = MultiScaleRoIAlign(["0", "1", "2", "3"], POOLED, 2)
            head: nn.Module = TwoMLPHead(pooled, hidden)
        else:
            hidden = hidden or 4096
            aligned = MultiScaleRoIAlign(["0"], POOLED, 2)
            pool = RoIMaxPool(POOLED, self.stride) if pooling == "max" else aligned
            head = fully_connected(pooled, hidden, dropout)
        self.roi_heads = make_heads(
            pool,
            head,
            FastRCNNPredictor(hidden, 1 + num_classes),
            match_iou=match_iou,
            num_sampled=num_sampled,
            positive_share=positive_share,
            box_weights=box_weights,
        )
        self.assign_outputs(num_classes)

    @property
    def parts(self) -> Parts:
        """See `TwoStage`."""
        return Parts(self.backbone, self.rpn, self.roi_heads)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised float -> features by name."""
        return cast("dict[str, Tensor]", self.backbone(self.filled_up(images)))
