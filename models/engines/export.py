"""A trunk as a graph without Python, for one shape of images."""

import copy
import itertools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pixelmill.models.engines.pixels import PixelTrunk

__all__ = ["OutputPlan", "Shape", "export_trunk", "plan_outputs"]

# (B, H, W, 3) of a batch; each has a graph of its own, which is what lets anchors and paddings be
# constants and the kernels be chosen for it
Shape = tuple[int, ...]


class OutputPlan(NamedTuple):
    """How output tensors are arranged.

    Attributes:
        structure: of the tree.
        dtypes: of its leaves.
    """

    structure: TreeSpec
    dtypes: list[torch.dtype]

    def arrange(self, outputs: Sequence[Tensor]) -> Any:
        """The tree of the leaves; constants that a converter has made of another type are cast."""
        leaves = [each.to(dtype) for each, dtype in zip(outputs, self.dtypes, strict=True)]
        return tree_unflatten(leaves, self.structure)


def export_trunk(trunk: PixelTrunk, shape: Shape) -> ExportedProgram:
    """Trace the trunk for images (B, H, W, 3) uint8 of this shape.

    Raises:
        ValueError: it does something that no graph can hold, such as asking for a tensor's value.
    """
    images: Tensor = torch.zeros(shape, dtype=torch.uint8, device=trunk.mean.device)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torchvision's anchor generators do, and compute the same anchors again each time
            warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")
            return torch.export.export(_copy_code(trunk), (images,))
    except Exception as err:
        raise ValueError(
            f"{type(trunk.module).__name__} cannot be exported as a graph, set engine: torch; "
            f"PyTorch said: {err}"
        ) from err


def plan_outputs(trunk: PixelTrunk, shape: Shape) -> OutputPlan:
    """What the trunk gives for images of a shape; found without computing it."""
    trunk = _copy_code(trunk)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.zeros(shape, dtype=torch.uint8, device=trunk.mean.device)
        leaves, structure = tree_flatten(trunk(images))
    return OutputPlan(structure, [leaf.dtype for leaf in leaves])


def _copy_code(trunk: PixelTrunk) -> PixelTrunk:
    """A copy with the same weights in the same memory.

    Tracing leaves stand-ins for tensors in modules that keep what they computed.
    """
    weights = itertools.chain(trunk.parameters(), trunk.buffers())
    return copy.deepcopy(trunk, {id(each): each for each in weights})
