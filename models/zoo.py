"""The architectures of our own that a config may name, and how their outputs are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pixelmill.configs.schema import TaskName
from pixelmill.models.interface import ViewOutput
from pixelmill.models.retinamask import RetinaMask, detection_loss, detection_outputs
from pixelmill.models.show_attend_tell import ShowAttendTell, caption_loss, caption_outputs
from pixelmill.models.spec import ModelSpec
from pixelmill.models.targets import Target
from pixelmill.models.unet import UNet, semantic_loss, semantic_outputs

__all__ = ["ARCHITECTURES", "Architecture", "Loss", "ReadOut"]

ReadOut = Callable[[nn.Module, Any, ModelSpec, tuple[int, int]], Sequence[ViewOutput]]
Loss = Callable[[nn.Module, Any, Sequence[Target]], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a network is built from numbers, and how its raw outputs become predictions.

    Attributes:
        build: keyword arguments -> module in training mode, random weights; the module maps
            normalised float32 images (B, 3, H, W) to raw tensors.
        tasks: what it can do.
        read_out: (module, raw outputs, spec, canvas (H, W)) -> one output per image of the batch.
        loss: (module, raw outputs, one target per image) -> scalar terms whose sum is minimised;
            None where we have no training for it.
    """

    build: Callable[..., nn.Module]
    tasks: tuple[TaskName, ...]
    read_out: ReadOut
    loss: Loss | None = None

    @property
    def trainable(self) -> bool:
        """Whether `pixelmill train` takes it."""
        return self.loss is not None


ARCHITECTURES: Mapping[str, Architecture] = {
    "retinamask": Architecture(
        build=RetinaMask,
        tasks=("detection", "instance_segmentation"),
        read_out=detection_outputs,
        loss=detection_loss,
    ),
    "unet": Architecture(
        build=UNet,
        tasks=("semantic_segmentation",),
        read_out=semantic_outputs,
        loss=semantic_loss,
    ),
    "show_attend_tell": Architecture(
        build=ShowAttendTell,
        tasks=("captioning",),
        read_out=caption_outputs,
        loss=caption_loss,
    ),
}
