"""A trunk as a graph without Python, for one shape of images."""

import copy
import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils._sympy.numbers import int_oo

from pixelmill.models.engines.cache import keep_folder
from pixelmill.models.engines.pixels import PixelTrunk

__all__ = ["OutputPlan", "Shape", "export_trunk", "keep_graph", "plan_outputs", "takes_any_batch"]

# (B, H, W, 3) of a batch. Each canvas has a graph of its own, in which anchors and paddings are
# constants, and each shape its kernels.
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


def export_trunk(trunk: PixelTrunk, shape: Shape, *, any_batch: bool = True) -> ExportedProgram:
    """Trace the trunk for images (B, H, W, 3) uint8 of this shape.

    Args:
        trunk: to be traced.
        shape: of the images.
        any_batch: for any number of images, if the module lets it; `takes_any_batch` tells.

    Raises:
        ValueError: it does something that no graph can hold, such as asking for a tensor's value.
    """
    try:
        if any_batch and shape[0] > 1:  # PyTorch takes sizes of 0 and 1 for constants
            program = _export(trunk, (2, *shape[1:]), {"images": {0: Dim.AUTO}})
            if takes_any_batch(program):
                return program
        return _export(trunk, shape, None)
    except Exception as err:
        raise ValueError(
            f"{type(trunk.module).__name__} cannot be exported as a graph, set engine: torch; "
            f"PyTorch said: {err}"
        ) from err


def takes_any_batch(program: ExportedProgram) -> bool:
    """Whether the first side of the images is free, from 2 on."""
    (name,) = program.graph_signature.user_inputs
    images = next(node for node in program.graph.nodes if node.name == name)
    size = images.meta["val"].shape[0]
    if isinstance(size, int):
        return False
    bounds = program.range_constraints.get(size.node.expr)  # none: a constant was made of it
    return bounds is not None and bounds.lower <= 2 and bounds.upper == int_oo


def _export(trunk: PixelTrunk, shape: Shape, dynamic: Any) -> ExportedProgram:
    images = torch.zeros(shape, dtype=torch.uint8, device=trunk.mean.device)
    with torch.no_grad(), warnings.catch_warnings():
        # torchvision's anchor generators do, and compute the same anchors again each time
        warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")
        return torch.export.export(_copy_code(trunk), (images,), dynamic_shapes=dynamic)


def keep_graph(
    folder: Path, trunk: PixelTrunk, shape: Shape, save: Callable[[ExportedProgram, Path], None]
) -> Path:
    """The folder of a kept graph that takes images of a shape; written if there is none.

    Args:
        folder: of all graphs of the trunk.
        trunk: to be exported.
        shape: of the images.
        save: converts a program and writes it into a folder.
    """
    names = {free: _graph_name(shape, any_batch=free) for free in (shape[0] > 1, False)}
    for name in names.values():
        if (folder / name).is_dir():
            return folder / name
    program = export_trunk(trunk, shape)
    name = names[takes_any_batch(program)]
    return keep_folder(folder / name, lambda scratch: save(program, scratch))


def _graph_name(shape: Shape, *, any_batch: bool) -> str:
    return "x".join(["any" if any_batch else str(shape[0]), *(str(side) for side in shape[1:])])


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
