"""Canvases whose sides a network's strides divide."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

__all__ = ["fill_up"]


def fill_up(
    images: Tensor, multiple: int, mode: Literal["constant", "replicate"] = "constant"
) -> Tensor:
    """Pad right and below to the next multiple.

    Args:
        images: (B, C, H, W) float.
        multiple: of both sides afterwards.
        mode: with zeros ("constant"), or by repeating the last row and column ("replicate").

    Returns:
        (B, C, H', W') with less than `multiple` more of each side.
    """
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple), mode)
