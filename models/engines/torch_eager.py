"""PyTorch as it is: folded, channels last, in the precision that the config names."""

from typing import Any

import torch
from torch import Tensor, nn

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.engines.pixels import PixelTrunk
from pixelmill.models.fold import fold_batch_norm

__all__ = ["DTYPES", "TorchTrunk", "fold_module"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def fold_module(module: nn.Module, preprocess: PreprocessConfig) -> nn.Module:
    """In eval mode, with batch normalisation folded into the convolutions, in float32."""
    height, width = preprocess.canvases[0]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (1, height, width, 3), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        example = PixelTrunk(nn.Identity(), preprocess)(noise)
    return fold_batch_norm(module.eval(), example)


class TorchTrunk:
    """Runs the module where it is.

    Args:
        trunk: on its device, in its precision.

    Attributes:
        pixels: that trunk.
    """

    def __init__(self, trunk: PixelTrunk) -> None:
        self.device = trunk.mean.device
        self.pixels = trunk

    def __call__(self, images: Tensor) -> Any:
        """See `Trunk`."""
        return self.pixels(images)
