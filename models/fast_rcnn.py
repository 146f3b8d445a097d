"""Fast R-CNN: features of the whole image, pooled in regions that come from its pixels.

Ross Girshick: Fast R-CNN, ICCV 2015, https://arxiv.org/abs/1504.08083, section 2, on VGG16 (the
paper's model L).

Differences: background regions may overlap nothing at all (the paper asks for an overlap of 0.1);
VGG16's first layers are trained; the fully connected layers are not truncated by an SVD. Proposals
are made in the read-out and in the loss, from the canvas as the network sees it: their time is part
of scoring, no file of them is needed, and they fit every augmentation. A canvas is filled up to
whole cells with zeros. Any padded torchvision backbone may take VGG16's place.
"""

from typing import cast

from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from pixelmill.models.faster_rcnn import POOLED, SingleScaleFeatures
from pixelmill.models.losses import BoxLoss
from pixelmill.models.ops.boxes import Weights
from pixelmill.models.ops.proposals import PROPOSERS, Proposer
from pixelmill.models.two_stage import (
    BOX_WEIGHTS,
    IMAGES,
    Parts,
    RoIMaxPool,
    TwoStage,
    fully_connected,
    make_heads,
    propose_from_pixels,
)

__all__ = ["FastRCNN"]


class FastRCNN(TwoStage):
    """Boxes of K classes, from regions that need no learning.

    Args:
        num_classes: K, without the background.
        backbone: "vgg16", or another of `feature_extractor.EXTRACTORS` but Inception-v3.
        proposals: of `ops.proposals.PROPOSERS`, or a function: (H, W, 3) uint8 -> (P, 4) boxes.
        num_proposals: regions kept of each image, the first ones.
        match_iou: least overlap of a region with the object that it learns.
        num_sampled: regions learnt from in each image.
        positive_share: how many of them may be objects.
        box_loss: "smooth_l1" (the paper's), or another of `losses.box_loss`.
        box_weights: factors on the offsets of centre and sides.
        hidden: features of the fully connected layers.
        dropout: between them.

    Raises:
        ValueError: no such backbone, or it does not fit.
        KeyError: no such proposals.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "vgg16",
        proposals: str | Proposer = "selective_search",
        num_proposals: int = 2000,
        match_iou: float = 0.5,
        num_sampled: int = 64,
        positive_share: float = 0.25,
        box_loss: BoxLoss = "smooth_l1",
        box_weights: Weights = BOX_WEIGHTS,
        hidden: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.box_loss = box_loss
        self.proposer = PROPOSERS[proposals] if isinstance(proposals, str) else proposals
        self.num_proposals = num_proposals
        self.backbone = SingleScaleFeatures(backbone)
        self.stride = self.multiple = self.backbone.stride
        self.roi_heads = make_heads(
            RoIMaxPool(POOLED, self.stride),
            fully_connected(self.backbone.out_channels * POOLED**2, hidden, dropout),
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
        return Parts(self.backbone, None, self.roi_heads)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised float -> features, and the canvas that regions are found in."""
        features = cast("dict[str, Tensor]", self.backbone(self.filled_up(images)))
        return features | {IMAGES: images}

    def propose(self, images: Tensor) -> list[Tensor]:
        """See `TwoStage`."""
        return propose_from_pixels(images, self.proposer, self.num_proposals)
