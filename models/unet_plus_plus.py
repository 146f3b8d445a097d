"""U-Net++: semantic segmentation by a U-Net whose skip connections are filled with convolutions.

Zongwei Zhou, Md Mahfuzur Rahman Siddiquee, Nima Tajbakhsh, Jianming Liang: UNet++: A Nested U-Net
Architecture for Medical Image Segmentation, DLMIA 2018, https://arxiv.org/abs/1807.10165, figure 1
and section 3.

Differences: batch normalisation follows each convolution; upsampling is bilinear, not a transposed
convolution; the number of channels and the depth are arguments (the paper's are 32 and 4). An
input whose sides are no multiple of 2 ** depth is padded by repeating its border, and the output
is cropped.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelmill.models.padding import fill_up

__all__ = ["UNetPlusPlus"]


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class UNetPlusPlus(nn.Module):
    """A class for every pixel.

    Args:
        num_classes: K.
        width: channels at full resolution; doubled at each level below.
        depth: number of times the resolution is halved.
        deep_supervision: classify the nodes of all depths: each is trained, and the mean of their
            logits is the prediction (the paper's accurate mode).
    """

    def __init__(
        self,
        num_classes: int,
        width: int = 32,
        depth: int = 4,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        channels = [width * 2**level for level in range(depth + 1)]
        # nodes[j][i] is the paper's X^{i,j}: level i, j convolutions to the right of the encoder
        encoder = [
            _double_conv(before, after)
            for before, after in zip([3, *channels[:-1]], channels, strict=True)
        ]
        columns = [nn.ModuleList(encoder)]
        for column in range(1, depth + 1):
            columns.append(
                nn.ModuleList(
                    _double_conv(channels[level] * column + channels[level + 1], channels[level])
                    for level in range(depth + 1 - column)
                )
            )
        self.nodes = nn.ModuleList(columns)
        self.classifiers = nn.ModuleList(
            nn.Conv2d(width, num_classes, 1) for _ in range(depth if deep_supervision else 1)
        )
        self.multiple = 2**depth

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, 3, H, W) normalised float -> (B, K, H, W) logits.

        With deep supervision, in training: one such tensor per depth, the deepest first.
        """
        height, width = images.shape[-2:]
        x = fill_up(images, self.multiple, "replicate")
        rows: list[list[Tensor]] = []
        encoder, *columns = (cast("nn.ModuleList", column) for column in self.nodes)
        for level, node in enumerate(encoder):
            x = node(x if level == 0 else F.max_pool2d(x, 2))
            rows.append([x])
        for column in columns:
            for level, node in enumerate(column):
                below = F.interpolate(rows[level + 1][-1], scale_factor=2, mode="bilinear")
                rows[level].append(node(torch.cat((*rows[level], below), dim=1)))
            rows.pop()
        outputs = rows[0][1:][::-1]
        logits = tuple(
            classifier(features)[..., :height, :width]
            for classifier, features in zip(self.classifiers, outputs, strict=False)
        )
        if len(logits) == 1:
            return logits[0]
        return logits if self.training else torch.stack(logits).mean(dim=0)
