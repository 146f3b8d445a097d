"""Two plain networks for semantic segmentation, to measure the others against.

`FullResolutionNet` is a stack of convolutions that never leaves the full resolution: exact edges,
little context. `EncoderDecoder` pools and enlarges again without any copy across: context, coarse
edges. U-Net is the second with copies; FRRN is both at once.

Sources: Jonathan Long, Evan Shelhamer, Trevor Darrell: Fully Convolutional Networks for Semantic
Segmentation, CVPR 2015, https://arxiv.org/abs/1411.4038; Hyeonwoo Noh, Seunghoon Hong, Bohyung Han:
Learning Deconvolution Network for Semantic Segmentation, ICCV 2015,
https://arxiv.org/abs/1505.04366, figure 2.

Differences: neither follows a paper's numbers. Batch normalisation follows each convolution; the
encoder-decoder enlarges by transposed convolutions and has no fully connected middle.
"""

from itertools import pairwise

from torch import Tensor, nn

from pixelmill.models.backbone import conv_bn
from pixelmill.models.padding import fill_up

__all__ = ["EncoderDecoder", "FullResolutionNet"]


class FullResolutionNet(nn.Module):
    """A class for every pixel, from a field of view of 2 * depth + 1 pixels.

    Args:
        num_classes: K.
        width: channels of every layer.
        depth: number of 3x3 convolutions.
    """

    def __init__(self, num_classes: int, width: int = 32, depth: int = 8) -> None:
        super().__init__()
        inputs = [3] + [width] * (depth - 1)
        self.layers = nn.Sequential(
            *(nn.Sequential(conv_bn(each, width), nn.ReLU(inplace=True)) for each in inputs)
        )
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised float -> (B, K, H, W) logits."""
        logits: Tensor = self.classifier(self.layers(images))
        return logits


class EncoderDecoder(nn.Module):
    """A class for every pixel, all of it through the narrowest place.

    Args:
        num_classes: K.
        width: channels at full resolution; doubled at each level below.
        depth: number of times the resolution is halved.
    """

    def __init__(self, num_classes: int, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(depth + 1)]
        layers: list[nn.Module] = [conv_bn(3, width), nn.ReLU(inplace=True)]
        for before, after in pairwise(channels):
            layers += [nn.MaxPool2d(2), conv_bn(before, after), nn.ReLU(inplace=True)]
        for before, after in pairwise(reversed(channels)):
            layers += [
                nn.ConvTranspose2d(before, after, 2, stride=2),
                conv_bn(after, after),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.multiple = 2**depth

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised float -> (B, K, H, W) logits."""
        height, width = images.shape[-2:]
        x = fill_up(images, self.multiple, "replicate")
        logits: Tensor = self.classifier(self.layers(x))
        return logits[..., :height, :width]
