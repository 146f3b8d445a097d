"""Semantic FPN: semantic segmentation from a feature pyramid.

Alexander Kirillov, Ross Girshick, Kaiming He, Piotr Dollar: Panoptic Feature Pyramid Networks,
CVPR 2019, https://arxiv.org/abs/1901.02446, section 3.2 and figure 3. The pyramid: Tsung-Yi Lin et
al.: Feature Pyramid Networks for Object Detection, CVPR 2017, https://arxiv.org/abs/1612.03144.

Differences: none known; channels and backbone are arguments.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from pixelmill.models.feature_extractor import build_extractor

__all__ = ["SemanticFPN"]

_GROUPS = 32


class _Enlarger(nn.Module):
    """Convolutions that bring a level of the pyramid to 1/4 of the canvas, a factor of 2 each.

    The finest level lies there already, and gets one convolution all the same.
    """

    def __init__(self, in_channels: int, channels: int, level: int) -> None:
        super().__init__()
        inputs = [in_channels] + [channels] * (max(level, 1) - 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(each, channels, 3, padding=1, bias=False),
                nn.GroupNorm(_GROUPS, channels),
                nn.ReLU(inplace=True),
            )
            for each in inputs
        )

    def forward(self, x: Tensor, finer: Sequence[torch.Size]) -> Tensor:
        """Enlarge to each of the sizes (H, W) in turn; the finest level has none to go to."""
        for block, size in zip(self.blocks, finer or [x.shape[-2:]], strict=True):
            x = F.interpolate(block(x), size, mode="bilinear")
        return x


class SemanticFPN(nn.Module):
    """A class for every pixel.

    Args:
        num_classes: K.
        backbone: of `feature_extractor.EXTRACTORS`; the paper's are resnet50 and resnet101.
        pyramid_channels: of each level of the pyramid.
        channels: of the merged map, a multiple of 32.
        output_stride: of the backbone; the paper's is 32, with dilation 16 or 8.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        pyramid_channels: int = 256,
        channels: int = 128,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        self.backbone = build_extractor(backbone, output_stride)
        levels = self.backbone.channels[1:]
        self.pyramid = FeaturePyramidNetwork(list(levels), pyramid_channels)
        self.enlargers = nn.ModuleList(
            _Enlarger(pyramid_channels, channels, level) for level in range(len(levels))
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised float -> (B, K, H, W) logits."""
        features = self.backbone(images)[1:]
        pyramid = self.pyramid({str(level): each for level, each in enumerate(features)})
        sizes = [each.shape[-2:] for each in features]
        levels = [
            enlarge(each, sizes[:level][::-1])
            for level, (each, enlarge) in enumerate(
                zip(pyramid.values(), self.enlargers, strict=True)
            )
        ]
        logits = self.classifier(torch.stack(levels).sum(dim=0))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear")
