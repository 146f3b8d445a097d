"""The convolutional networks that YOLO is built on.

Joseph Redmon, Ali Farhadi: YOLO9000: Better, Faster, Stronger, CVPR 2017,
https://arxiv.org/abs/1612.08242, table 6 (Darknet-19); YOLOv3: An Incremental Improvement, 2018,
https://arxiv.org/abs/1804.02767, table 1 (Darknet-53). The tiny one follows their published
configurations.

Differences: none known.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Darknet19", "Darknet53", "TinyDarknet", "conv_leaky"]


def conv_leaky(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1
) -> nn.Sequential:
    """Convolution that keeps the size (before its stride), batch normalisation, leaky ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.1, inplace=True),
    )


def _bottlenecks(channels: int, number: int) -> list[nn.Module]:
    """Odd-numbered 3x3 convolutions with 1x1 ones of half the channels between them."""
    layers: list[nn.Module] = []
    for _ in range(number):
        layers += [conv_leaky(2 * channels, channels, 1), conv_leaky(channels, 2 * channels)]
    return layers


class Darknet19(nn.Module):
    """18 of the 19 convolutions: the last one classifies.

    Args:
        width: channels of the first convolution; the paper's is 32.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width
        self.channels = (16 * w, 32 * w)
        self.strides = (16, 32)
        self.shallow = nn.Sequential(
            conv_leaky(3, w),
            nn.MaxPool2d(2),
            conv_leaky(w, 2 * w),
            nn.MaxPool2d(2),
            conv_leaky(2 * w, 4 * w),
            *_bottlenecks(2 * w, 1),
            nn.MaxPool2d(2),
            conv_leaky(4 * w, 8 * w),
            *_bottlenecks(4 * w, 1),
            nn.MaxPool2d(2),
            conv_leaky(8 * w, 16 * w),
            *_bottlenecks(8 * w, 2),
        )
        self.deep = nn.Sequential(
            nn.MaxPool2d(2), conv_leaky(16 * w, 32 * w), *_bottlenecks(16 * w, 2)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> features at strides 16 and 32."""
        shallow = self.shallow(images)
        return shallow, self.deep(shallow)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_leaky(channels, channels // 2, 1), conv_leaky(channels // 2, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.layers(x)
        return total


class Darknet53(nn.Module):
    """52 of the 53 convolutions: the last one classifies.

    Args:
        width: channels of the first convolution; the paper's is 32.
        depths: residual blocks at strides 2, 4, 8, 16, 32; the paper's are 1, 2, 8, 8, 4.
    """

    def __init__(self, width: int = 32, depths: Sequence[int] = (1, 2, 8, 8, 4)) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(6)]
        self.channels = tuple(channels[3:])
        self.strides = (8, 16, 32)
        self.stem = conv_leaky(3, width)
        self.stages = nn.ModuleList(
            nn.Sequential(
                conv_leaky(channels[level], channels[level + 1], stride=2),
                *(_Residual(channels[level + 1]) for _ in range(depth)),
            )
            for level, depth in enumerate(depths)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> features at strides 8, 16 and 32."""
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(features[2:])


class _PoolInPlace(nn.Module):
    """Maximum of each pixel and its right and lower neighbours: a 2x2 pool of stride 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 2, stride=1)


class TinyDarknet(nn.Module):
    """Seven convolutions, pooled after each of the first six.

    Args:
        width: channels of the first convolution; the published one is 16.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(7)]
        self.channels = (channels[4], channels[6])
        self.strides = (16, 32)
        layers: list[nn.Module] = [conv_leaky(3, width)]
        for before, after in pairwise(channels[:5]):
            layers += [nn.MaxPool2d(2), conv_leaky(before, after)]
        self.shallow = nn.Sequential(*layers)
        self.deep = nn.Sequential(
            nn.MaxPool2d(2),
            conv_leaky(channels[4], channels[5]),
            _PoolInPlace(),
            conv_leaky(channels[5], channels[6]),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> features at strides 16 and 32."""
        shallow = self.shallow(images)
        return shallow, self.deep(shallow)
