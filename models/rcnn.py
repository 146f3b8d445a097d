"""R-CNN: each region is cut out, warped to one size and classified by a network of its own run.

Ross Girshick, Jeff Donahue, Trevor Darrell, Jitendra Malik: Rich feature hierarchies for accurate
object detection and semantic segmentation, CVPR 2014, https://arxiv.org/abs/1311.2524, section 2,
appendices A (warping with context), B (softmax against SVMs) and C (box regression).

Differences: network, classifier and regressors are trained at once, the SVMs by their hinge loss
(one against the rest; the weight decay is the optimiser's), instead of three times with cached
features and hard negatives mined; with that, one rule says which region learns which object, where
the paper has one for each training; regressors read the last features, not pool5, and learn by
smooth L1, not ridge regression. An SVM's margin becomes a score by a sigmoid.
VGG16 (the paper's O-Net) is the default; AlexNet in its original form is not in torchvision.
Proposals are made from the canvas in the read-out and in the loss.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops import roi_align

from pixelmill.models.feature_extractor import build_extractor
from pixelmill.models.losses import BoxLoss
from pixelmill.models.ops.boxes import Weights
from pixelmill.models.ops.proposals import PROPOSERS, Proposer
from pixelmill.models.two_stage import (
    BOX_WEIGHTS,
    IMAGES,
    Parts,
    TwoStage,
    make_heads,
    propose_from_pixels,
)

__all__ = ["RCNN", "Warp"]

# Crops in one run of the network while scoring: VGG16's first layers take 26 MB for each
_BLOCK = 16


class Warp(nn.Module):
    """Regions stretched to squares, with some of what is around them.

    Args:
        size: side of the squares, pixels.
        context: pixels of the square, on each side, that lie outside of the region.
    """

    def __init__(self, size: int, context: int) -> None:
        super().__init__()
        self.size, self.context = size, context

    def forward(
        self, features: dict[str, Tensor], regions: list[Tensor], canvases: list[tuple[int, int]]
    ) -> Tensor:
        """Canvases by name and (R, 4) boxes by image -> (sum of R, 3, size, size).

        What lies outside of the canvas is 0, the mean colour.
        """
        share = self.context / (self.size - 2 * self.context)
        widened = []
        for boxes in regions:
            around = share * (boxes[:, 2:] - boxes[:, :2])
            widened.append(torch.cat((boxes[:, :2] - around, boxes[:, 2:] + around), dim=1))
        return cast("Tensor", roi_align(features[IMAGES], widened, self.size, aligned=True))


class _CropNet(nn.Module):
    """The network that sees a crop; while scoring in blocks, so that memory has a bound."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        if backbone == "vgg16":
            net = torchvision.models.vgg16(weights=None)
            self.layers = nn.Sequential(
                net.features, net.avgpool, nn.Flatten(), *list(net.classifier)[:-1]
            )
            self.out_features = 4096
        else:
            extractor = build_extractor(backbone)
            stages = nn.Sequential(*extractor.stages)
            self.layers = nn.Sequential(stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.out_features = extractor.channels[-1]

    def forward(self, crops: Tensor) -> Tensor:
        if self.training:
            return cast("Tensor", self.layers(crops))
        return torch.cat([self.layers(block) for block in crops.split(_BLOCK)])


class _Predictor(nn.Module):
    """Classifiers and box regressors, linear in the features."""

    def __init__(self, in_features: int, num_logits: int) -> None:
        super().__init__()
        self.classify = nn.Linear(in_features, num_logits)
        self.regress = nn.Linear(in_features, 4 * num_logits)
        for layer, std in ((self.classify, 0.01), (self.regress, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.classify(features), self.regress(features)


class RCNN(TwoStage):
    """Boxes of K classes, each region a crop of its own.

    Args:
        num_classes: K, without the background.
        backbone: "vgg16", or another of `feature_extractor.EXTRACTORS`.
        head: "svm", one classifier against the rest for each class, or "softmax", which has the
            background as a class.
        proposals: of `ops.proposals.PROPOSERS`, or a function: (H, W, 3) uint8 -> (P, 4) boxes.
        num_proposals: regions kept of each image, the first ones.
        crop_size: side of the warped crops; the paper's 227 is AlexNet's, 224 VGG16's.
        context: pixels of the crop around the region.
        match_iou: least overlap of a region with the object that it learns.
        background_iou: regions that overlap everything by less are background.
        num_sampled: regions learnt from in each image.
        positive_share: how many of them may be objects.
        box_loss: "smooth_l1", or another of `losses.box_loss`.
        box_weights: factors on the offsets of centre and sides.

    Raises:
        ValueError: no such backbone, or no room for the region in the crop.
        KeyError: no such proposals.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "vgg16",
        head: Literal["svm", "softmax"] = "svm",
        proposals: str | Proposer = "selective_search",
        num_proposals: int = 2000,
        crop_size: int = 224,
        context: int = 16,
        match_iou: float = 0.5,
        background_iou: float = 0.3,
        num_sampled: int = 64,
        positive_share: float = 0.25,
        box_loss: BoxLoss = "smooth_l1",
        box_weights: Weights = BOX_WEIGHTS,
    ) -> None:
        super().__init__()
        if 2 * context >= crop_size:
            raise ValueError(f"expected less context than half of {crop_size}, got {context}")
        self.box_loss, self.head = box_loss, head
        self.proposer = PROPOSERS[proposals] if isinstance(proposals, str) else proposals
        self.num_proposals = num_proposals
        net = _CropNet(backbone)
        first = 1 if head == "softmax" else 0
        self.roi_heads = make_heads(
            Warp(crop_size, context),
            net,
            _Predictor(net.out_features, first + num_classes),
            match_iou=match_iou,
            background_iou=background_iou,
            num_sampled=num_sampled,
            positive_share=positive_share,
            box_weights=box_weights,
        )
        self.assign_outputs(num_classes, first)

    @property
    def parts(self) -> Parts:
        """See `TwoStage`; no engine has anything to run before there are regions."""
        return Parts(nn.Identity(), None, self.roi_heads)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised float -> the same, by name."""
        return {IMAGES: images}

    def propose(self, images: Tensor) -> list[Tensor]:
        """See `TwoStage`."""
        return propose_from_pixels(images, self.proposer, self.num_proposals)

    def class_scores(self, logits: Tensor) -> Tensor:
        """See `TwoStage`; of an SVM the sigmoid of its margin."""
        return super().class_scores(logits) if self.head == "softmax" else logits.sigmoid()

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `TwoStage`; of SVMs the hinge loss of each against the rest, summed over classes."""
        if self.head == "softmax":
            return super().class_loss(logits, labels)
        sides = 2 * F.one_hot(labels, 1 + logits.shape[1])[:, 1:] - 1
        return (1 - sides * logits).clamp(min=0).sum(dim=1).mean()
