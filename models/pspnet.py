"""PSPNet: semantic segmentation with the scene's context pooled at several scales.

Hengshuang Zhao, Jianping Shi, Xiaojuan Qi, Xiaogang Wang, Jiaya Jia: Pyramid Scene Parsing Network,
CVPR 2017, https://arxiv.org/abs/1612.01105, figure 3 and sections 3.2 and 3.3.

Differences: the backbone's first convolution is ResNet's 7x7, not three of 3x3; the auxiliary
classifier is a single 1x1 convolution on the fourth stage.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelmill.models.feature_extractor import build_extractor

__all__ = ["PSPNet"]


class PSPNet(nn.Module):
    """A class for every pixel.

    Args:
        num_classes: K.
        backbone: of `feature_extractor.EXTRACTORS`; the paper's is resnet101.
        output_stride: of the backbone; the paper's is 8.
        bins: sides of the pooled grids; sides of the canvas divided by the output stride should be
            no smaller than the largest.
        pool_channels: of each pooled grid, and of the last but one layer.
        dropout: before the classifier.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet101",
        output_stride: int = 8,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        pool_channels: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone = build_extractor(backbone, output_stride)
        *_, before, last = self.backbone.channels
        self.pyramid = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(side),
                nn.Conv2d(last, pool_channels, 1, bias=False),
                nn.BatchNorm2d(pool_channels),
                nn.ReLU(inplace=True),
            )
            for side in bins
        )
        self.classifier = nn.Sequential(
            nn.Conv2d(last + len(bins) * pool_channels, pool_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(pool_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(pool_channels, num_classes, 1),
        )
        self.auxiliary = nn.Conv2d(before, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised float -> (B, K, H, W) logits.

        In training: the same, and those of the auxiliary classifier.
        """
        *_, before, last = self.backbone(images)
        context = [
            F.interpolate(pool(last), last.shape[-2:], mode="bilinear") for pool in self.pyramid
        ]
        logits = self.classifier(torch.cat((last, *context), dim=1))
        logits = F.interpolate(logits, images.shape[-2:], mode="bilinear")
        if not self.training:
            return logits
        return logits, F.interpolate(self.auxiliary(before), images.shape[-2:], mode="bilinear")
