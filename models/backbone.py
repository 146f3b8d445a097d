"""The feature extractor that our detector and captioner share.

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun: Deep Residual Learning for Image Recognition,
CVPR 2016, https://arxiv.org/abs/1512.03385, basic blocks as in figure 5 (left).

Differences: one 3x3 convolution of stride 2 as the stem instead of 7x7 and max-pooling (there is
little to lose at 320 pixels); every stage, the first one too, starts with stride 2; the number of
channels stops growing after the third stage, because most objects of a small canvas are decided
before stride 32.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResidualBackbone", "conv_bn"]


def conv_bn(in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A convolution that keeps the size (before its stride), and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(in_channels, out_channels, stride=stride)
        self.second = conv_bn(out_channels, out_channels)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else conv_bn(in_channels, out_channels, kernel=1, stride=stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.second(F.relu(self.first(x)))
        return F.relu(self.shortcut(x) + residual)


class ResidualBackbone(nn.Module):
    """Features at strides 4, 8, 16, ...

    Args:
        width: channels of the first stage; then twice, four and four times as many.
        depths: blocks per stage, at least one each.
    """

    def __init__(self, width: int = 32, depths: Sequence[int] = (1, 2, 2, 1)) -> None:
        super().__init__()
        self.channels = tuple(width * min(2**stage, 4) for stage in range(len(depths)))
        self.strides = tuple(2 ** (stage + 2) for stage in range(len(depths)))
        self.stem = conv_bn(3, width // 2, stride=2)
        inputs = (width // 2, *self.channels[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                _BasicBlock(before, after, stride=2),
                *(_BasicBlock(after, after, stride=1) for _ in range(depth - 1)),
            )
            for before, after, depth in zip(inputs, self.channels, depths, strict=True)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> by stage (B, channels, ceil(H / stride), ceil(W / stride))."""
        x = F.relu(self.stem(images))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(features)
