"""The architectures of our own that a config may name, and how their outputs are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pixelmill.configs.schema import TaskName
from pixelmill.models.interface import ViewOutput
from pixelmill.models.spec import ModelSpec

__all__ = ["ARCHITECTURES", "Architecture", "ReadOut"]

ReadOut = Callable[[nn.Module, Any, ModelSpec, tuple[int, int]], list[ViewOutput]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a network is built from numbers, and how its raw outputs become predictions.

    Attributes:
        build: keyword arguments -> module in training mode, random weights; the module maps
            normalised float32 images (B, 3, H, W) to raw tensors.
        tasks: what it can do.
        read_out: (module, raw outputs, spec, canvas (H, W)) -> one output per image of the batch.
        trainable: `pixelmill train` knows its targets and loss.
    """

    build: Callable[..., nn.Module]
    tasks: tuple[TaskName, ...]
    read_out: ReadOut
    trainable: bool = True


ARCHITECTURES: Mapping[str, Architecture] = {}
