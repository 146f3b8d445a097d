"""GCN: semantic segmentation by large kernels, that classify and localise at the same time.

Chao Peng, Xiangyu Zhang, Gang Yu, Guiming Luo, Jian Sun: Large Kernel Matters - Improve Semantic
Segmentation by Global Convolutional Network, CVPR 2017, https://arxiv.org/abs/1703.02719, figures
2 and 3.

Differences: scores are enlarged bilinearly, not by a transposed convolution; the backbone is
torchvision's; the kernel's side is an argument (the paper's best is 15 for inputs of 512).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from pixelmill.models.feature_extractor import build_extractor

__all__ = ["GCN"]


class _GlobalConv(nn.Module):
    """A k x k kernel of two separable halves: k x 1 then 1 x k, plus 1 x k then k x 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        half = kernel // 2
        self.left = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, (kernel, 1), padding=(half, 0)),
            nn.Conv2d(out_channels, out_channels, (1, kernel), padding=(0, half)),
        )
        self.right = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, (1, kernel), padding=(0, half)),
            nn.Conv2d(out_channels, out_channels, (kernel, 1), padding=(half, 0)),
        )

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.left(x) + self.right(x)
        return total


class _BoundaryRefinement(nn.Module):
    """A residual block on the score maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        refined: Tensor = x + self.residual(x)
        return refined


class GCN(nn.Module):
    """A class for every pixel.

    Args:
        num_classes: K.
        backbone: of `feature_extractor.EXTRACTORS`; the paper's is resnet152.
        kernel: odd side k of the large kernels.
        output_stride: of the backbone; the paper's is 32.

    Raises:
        ValueError: `kernel` is even.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet152",
        kernel: int = 15,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"expected an odd kernel, got {kernel}")
        self.backbone = build_extractor(backbone, output_stride)
        channels = self.backbone.channels[1:]
        self.global_convs = nn.ModuleList(
            _GlobalConv(each, num_classes, kernel) for each in channels
        )
        self.refine_features = nn.ModuleList(_BoundaryRefinement(num_classes) for _ in channels)
        self.refine_sums = nn.ModuleList(_BoundaryRefinement(num_classes) for _ in channels)
        self.refine_output = _BoundaryRefinement(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised float -> (B, K, H, W) logits."""
        features = self.backbone(images)
        scores = [
            refine(conv(each))
            for refine, conv, each in zip(
                self.refine_features, self.global_convs, features[1:], strict=True
            )
        ]
        total = scores.pop()
        for refine, finer in zip(self.refine_sums[:-1], reversed(scores), strict=True):
            total = refine(finer + F.interpolate(total, finer.shape[-2:], mode="bilinear"))
        total = F.interpolate(total, features[0].shape[-2:], mode="bilinear")
        total = F.interpolate(self.refine_sums[-1](total), images.shape[-2:], mode="bilinear")
        refined: Tensor = self.refine_output(total)
        return refined
