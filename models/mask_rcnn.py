"""Mask R-CNN: Faster R-CNN with a branch for the mask of each region.

Kaiming He, Georgia Gkioxari, Piotr Dollár, Ross Girshick: Mask R-CNN, ICCV 2017,
https://arxiv.org/abs/1703.06870, section 3, figure 4 (right: the head on a pyramid).

Differences: those of `faster_rcnn.py`; batch normalisation is trained, where the paper keeps that
of weights learnt before.
"""

from typing import Any

from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from pixelmill.models.faster_rcnn import FasterRCNN

__all__ = ["MaskRCNN"]


class MaskRCNN(FasterRCNN):
    """Boxes and 28 x 28 masks of K classes.

    Args:
        num_classes: K, without the background.
        backbone: of `feature_extractor.EXTRACTORS` but Inception-v3.
        fpn_channels: of each level of the pyramid.
        mask_channels: of the mask head's five layers.
        num_proposals: regions kept of each image.
        num_sampled: proposals learnt from in each image.
        others: of `FasterRCNN`, but `fpn`, which is on.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        fpn_channels: int = 256,
        mask_channels: int = 256,
        num_proposals: int = 1000,
        num_sampled: int = 512,
        **others: Any,
    ) -> None:
        super().__init__(
            num_classes,
            backbone,
            fpn=True,
            fpn_channels=fpn_channels,
            num_proposals=num_proposals,
            num_sampled=num_sampled,
            **others,
        )
        heads: Any = self.roi_heads
        heads.mask_roi_pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2)
        heads.mask_head = MaskRCNNHeads(fpn_channels, (mask_channels,) * 4, 1)
        heads.mask_predictor = MaskRCNNPredictor(mask_channels, mask_channels, 1 + num_classes)
