"""FRRN: semantic segmentation by two streams, one of which never leaves the full resolution.

Tobias Pohlen, Alexander Hermans, Markus Mathias, Bastian Leibe: Full-Resolution Residual Networks
for Semantic Segmentation in Street Scenes, CVPR 2017, https://arxiv.org/abs/1611.08323, figure 3
and table 1.

Differences: the loss is not bootstrapped. An input whose sides are no multiple of the deepest
pooling is padded by repeating its border, and the output is cropped. The paper feeds half-size
Cityscapes frames and enlarges the result; here the canvas does that.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelmill.models.padding import fill_up

__all__ = ["FRRN"]

RESIDUAL_CHANNELS = 32

# Table 1: (number of units, channels of the pooling stream relative to the first, its stride)
_ENCODERS = {
    "A": ((3, 2, 2), (4, 4, 4), (2, 8, 8), (2, 8, 16)),
    "B": ((3, 2, 2), (4, 4, 4), (2, 8, 8), (2, 8, 16), (2, 8, 32)),
}
_DECODERS = {
    "A": ((2, 4, 8), (2, 4, 4), (2, 2, 2)),
    "B": ((2, 4, 16), (2, 4, 8), (2, 4, 4), (2, 2, 2)),
}


def _conv_bn_relu(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class _ResidualUnit(nn.Module):
    """RU: a residual block at full resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv_bn_relu(channels, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.residual(x)
        return total


class _FullResolutionResidualUnit(nn.Module):
    """FRRU: reads both streams, replaces the pooling one, adds to the residual one."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.pooling = nn.Sequential(
            _conv_bn_relu(in_channels + RESIDUAL_CHANNELS, out_channels),
            _conv_bn_relu(out_channels, out_channels),
        )
        self.to_residual = nn.Conv2d(out_channels, RESIDUAL_CHANNELS, 1)

    def forward(self, pooled: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        seen = F.max_pool2d(residual, self.stride)
        pooled = self.pooling(torch.cat((pooled, seen), dim=1))
        added = F.interpolate(self.to_residual(pooled), scale_factor=float(self.stride))
        return pooled, residual + added


class _Stage(nn.Module):
    """FRRUs at one resolution of the pooling stream."""

    def __init__(self, number: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (number - 1)
        self.units = nn.ModuleList(
            _FullResolutionResidualUnit(each, out_channels, stride) for each in inputs
        )

    def forward(self, pooled: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        for unit in self.units:
            pooled, residual = unit(pooled, residual)
        return pooled, residual


class FRRN(nn.Module):
    """A class for every pixel.

    Args:
        num_classes: K.
        variant: "A" pools down to 1/16, "B" to 1/32.
        width: channels of the first convolution; the paper's is 48.
    """

    def __init__(self, num_classes: int, variant: Literal["A", "B"] = "A", width: int = 48) -> None:
        super().__init__()
        self.stem = _conv_bn_relu(3, width, kernel=5)
        self.before = nn.Sequential(*(_ResidualUnit(width) for _ in range(3)))
        self.split = nn.Conv2d(width, RESIDUAL_CHANNELS, 1)
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        channels = width
        for stages, rows in (
            (self.encoder, _ENCODERS[variant]),
            (self.decoder, _DECODERS[variant]),
        ):
            for number, factor, stride in rows:
                stages.append(_Stage(number, channels, width * factor, stride))
                channels = width * factor
        self.join = nn.Conv2d(channels + RESIDUAL_CHANNELS, width, 1)
        self.after = nn.Sequential(*(_ResidualUnit(width) for _ in range(3)))
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.multiple = max(stride for _, _, stride in _ENCODERS[variant])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised float -> (B, K, H, W) logits."""
        height, width = images.shape[-2:]
        x = fill_up(images, self.multiple, "replicate")
        pooled = self.before(self.stem(x))
        residual = self.split(pooled)
        for stage in self.encoder:
            pooled, residual = stage(F.max_pool2d(pooled, 2), residual)
        for stage in self.decoder:
            pooled, residual = stage(F.interpolate(pooled, scale_factor=2.0), residual)
        pooled = F.interpolate(pooled, scale_factor=2.0)
        x = self.after(self.join(torch.cat((pooled, residual), dim=1)))
        logits: Tensor = self.classifier(x)
        return logits[..., :height, :width]
