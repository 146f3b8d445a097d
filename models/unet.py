"""U-Net: semantic segmentation by an encoder-decoder with copies across.

Olaf Ronneberger, Philipp Fischer, Thomas Brox: U-Net: Convolutional Networks for Biomedical Image
Segmentation, MICCAI 2015, https://arxiv.org/abs/1505.04597, figure 1.

Differences: convolutions are padded, so that the output is as large as the input and nothing is
cropped; batch normalisation follows each convolution; no dropout; the number of channels is an
argument (the paper's width is 64); no weight map for touching cells. An input whose sides are no
multiple of 2 ** depth is padded by repeating its border, and the output is cropped.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelmill.models.backbone import conv_bn
from pixelmill.models.padding import fill_up

__all__ = ["UNet"]


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        conv_bn(in_channels, out_channels),
        nn.ReLU(inplace=True),
        conv_bn(out_channels, out_channels),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """A class for every pixel.

    Args:
        num_classes: K.
        width: channels at full resolution; doubled at each level below.
        depth: number of times the resolution is halved.
    """

    def __init__(self, num_classes: int, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(depth + 1)]
        self.encoders = nn.ModuleList(
            _double_conv(before, after)
            for before, after in zip([3, *channels[:-1]], channels, strict=True)
        )
        self.upsamplers = nn.ModuleList(
            nn.ConvTranspose2d(channels[level + 1], channels[level], 2, stride=2)
            for level in reversed(range(depth))
        )
        self.decoders = nn.ModuleList(
            _double_conv(2 * channels[level], channels[level]) for level in reversed(range(depth))
        )
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.multiple = 2**depth

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised float -> (B, K, H, W) logits."""
        height, width = images.shape[-2:]
        x = fill_up(images, self.multiple, "replicate")
        copies = []
        for index, encoder in enumerate(self.encoders):
            if index > 0:
                copies.append(x)
                x = F.max_pool2d(x, 2)
            x = encoder(x)
        for upsampler, decoder in zip(self.upsamplers, self.decoders, strict=True):
            x = decoder(torch.cat((copies.pop(), upsampler(x)), dim=1))
        return cast("Tensor", self.classifier(x)[..., :height, :width])
