"""From pixels to what a network was trained on, as the first operation of its trunk."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pixelmill.configs.schema import PreprocessConfig

__all__ = ["PixelTrunk", "Trunk", "normalise"]


class Trunk(Protocol):
    """The part of a network that an engine runs.

    Attributes:
        device: where it wants the images and leaves its outputs.
    """

    device: torch.device

    def __call__(self, images: Tensor) -> Any:
        """(B, H, W, 3) uint8 RGB on `device` -> tree of raw tensors that no later call changes."""
        ...


class PixelTrunk(nn.Module):
    """A module behind the normalisation of its pixels.

    Args:
        module: maps normalised (B, 3, H, W) to raw outputs; in eval mode, on its device.
        preprocess: channel order, mean and standard deviation.
        dtype: of the module's input.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, module: nn.Module, preprocess: PreprocessConfig, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.module = module
        self._bgr = preprocess.channels == "bgr"
        self._dtype = dtype
        # In units of the pixels, so that one subtraction and one division do it. Constants of the
        # graph: made in each call, they would be copied to a GPU each time.
        self.register_buffer("mean", torch.tensor(preprocess.mean) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std) * 255, persistent=False)

    def forward(self, images: Tensor) -> Any:
        """(B, H, W, 3) uint8 RGB -> the module's outputs."""
        images = images.flip(-1) if self._bgr else images
        # permuted, not copied: memory stays channels last
        return self.module(self._normalised(images).permute(0, 3, 1, 2).to(self._dtype))

    def _normalised(self, images: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # into one loop, whatever is written here
            return (images - self.mean) / self.std
        # The same bits 3 times as fast: whole rows at a time instead of three numbers, in place
        mean, std = (each.repeat(images.shape[2]) for each in (self.mean, self.std))
        return images.flatten(2).float().sub_(mean).div_(std).view(images.shape)


def normalise(images: Tensor, preprocess: PreprocessConfig) -> Tensor:
    """(B, H, W, 3) uint8 RGB -> (B, 3, H, W) float32 as the network was trained, channels last."""
    trunk = PixelTrunk(nn.Identity(), preprocess).to(images.device)
    return trunk(images)
