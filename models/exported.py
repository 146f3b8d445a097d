"""Networks that torch.export wrote (.pt2): graphs of tensor operations with their weights.

Opening such a file is no safer than opening a pickle: PyTorch 2.15 evaluates the sizes that the
file writes as Python expressions (by SymPy), and falls back to unpickling anything in it that is
not a plain tensor. So it is one of the programs of `trust.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

__all__ = ["ExportedNetwork"]

Size = tuple[int, int]


class ExportedNetwork(nn.Module):
    """The network of a .pt2 file; one whose batch is fixed gets batches filled up to it.

    Args:
        path: of the file, which is run. Its one input takes (B, 3, H, W) float32.

    Raises:
        ValueError: it is no such file, or has another input.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            program = torch.export.load(str(path))
        except Exception as err:
            # of archives, versions and operators there are as many kinds of errors
            raise ValueError(
                f"expected a file that torch.export.save wrote, got {str(path)!r}: {err}"
            ) from err
        inputs = program.graph_signature.user_inputs
        shape = _input_shape(program) if len(inputs) == 1 else None
        if shape is None or len(shape) != 4 or shape[1] != 3:
            raise ValueError(
                f"{str(path)!r} must have one input (B, 3, H, W), got {len(inputs)}, shape {shape}"
            )
        self._batch, _, self._height, self._width = shape
        self._graph = program.module()

    def train(self, mode: bool = True) -> "ExportedNetwork":
        """Nothing: the mode was fixed when the network was exported."""
        return self

    def check_canvases(self, canvases: Sequence[Size]) -> None:
        """Refuse canvases that the graph does not take.

        Raises:
            ValueError: it was exported for other sizes.
        """
        for height, width in canvases:
            if self._height not in (None, height) or self._width not in (None, width):
                raise ValueError(
                    f"the network was exported for images of {self._height}x{self._width} pixels, "
                    f"the canvases have {height}x{width}; set preprocess: canvases, or export with "
                    "dynamic_shapes"
                )

    def forward(self, images: Tensor) -> Any:
        """(B, 3, H, W) normalised float -> the exported network's outputs."""
        if self._batch in (None, len(images)):
            return self._graph(images)
        parts = []
        for part in images.split(self._batch):
            missing = self._batch - len(part)
            filled = torch.cat((part, part.new_zeros(missing, *part.shape[1:])))
            parts.append((self._graph(filled), len(part)))
        taken = [_first(outputs, count) for outputs, count in parts]
        return tree_map(lambda *leaves: torch.cat(leaves), *taken)


def _first(outputs: Any, count: int) -> Any:
    return tree_map(lambda leaf: leaf[:count] if isinstance(leaf, Tensor) else leaf, outputs)


def _input_shape(program: Any) -> tuple[int | None, ...] | None:
    """Of the one input; None for sides that are free."""
    (name,) = program.graph_signature.user_inputs
    node = next((each for each in program.graph.nodes if each.name == name), None)
    value = node.meta.get("val") if node is not None else None
    if not isinstance(value, Tensor):
        return None
    sides: Any = value.shape  # among its numbers may be symbols
    return tuple(side if isinstance(side, int) else None for side in sides)
