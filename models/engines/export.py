"""A trunk as a graph without Python, for one shape of images."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils._pytree import TreeSpec, tree_structure

from pixelmill.models.engines.pixels import PixelTrunk

__all__ = ["Shape", "export_trunk", "output_structure"]

# (B, H, W, 3) of a batch; each has a graph of its own, which is what lets anchors and paddings be
# constants and the kernels be chosen for it
Shape = tuple[int, ...]


def export_trunk(trunk: PixelTrunk, shape: Shape) -> ExportedProgram:
    """Trace the trunk for images (B, H, W, 3) uint8 of this shape.

    Raises:
        ValueError: it does something that no graph can hold, such as asking for a tensor's value.
    """
    images: Tensor = torch.zeros(shape, dtype=torch.uint8, device=trunk.mean.device)
    try:
        with torch.no_grad():
            return torch.export.export(trunk, (images,))
    except Exception as err:
        raise ValueError(
            f"{type(trunk.module).__name__} cannot be exported as a graph, set engine: torch; "
            f"PyTorch said: {err}"
        ) from err


def output_structure(trunk: PixelTrunk, shape: Shape) -> TreeSpec:
    """How the trunk's output tensors are arranged; found without computing them."""
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.zeros(shape, dtype=torch.uint8, device=trunk.mean.device)
        return tree_structure(trunk(images))
