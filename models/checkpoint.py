"""One file per trained model: safetensors with the model's description in its header."""

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from pixelmill.configs.schema import PreprocessConfig, TaskName
from pixelmill.models.spec import Arguments
from pixelmill.models.tensor_files import read_header, read_tensors, save_tensors

__all__ = ["CheckpointMeta", "load_matching", "load_state", "read_metadata", "save_checkpoint"]

_HEADER_KEY = "pixelmill"


class CheckpointMeta(BaseModel):
    """What is needed to rebuild a trained model and to use it as it was trained.

    Attributes:
        name: slug of the model.
        architecture: key of `pixelmill.models.zoo.ARCHITECTURES`.
        arguments: keyword arguments of the architecture's builder, all of them numbers or names.
        classes: names by index; empty for a captioner.
        vocabulary: tokens by index, of a captioner; else empty.
        training: where the weights come from: data, seed, epochs; changes no result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    task: TaskName
    architecture: str
    arguments: Arguments
    classes: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    preprocess: PreprocessConfig
    training: dict[str, Any] = {}


def save_checkpoint(
    path: Path, module: nn.Module, metadata: CheckpointMeta, *, half: bool = True
) -> None:
    """Write the parameters and buffers of `module`, whole or not at all.

    Args:
        path: ends in .safetensors; an existing file is replaced.
        module: what is saved.
        metadata: goes into the header.
        half: store matrices and kernels as float16, which halves the file; vectors (biases,
            normalisation statistics, whose range is wide) stay float32.
    """
    state = {
        key: _compact(tensor) if half else tensor.detach().contiguous().cpu()
        for key, tensor in module.state_dict().items()
    }
    save_tensors(path, state, _HEADER_KEY, metadata.model_dump_json())


def _compact(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().contiguous().cpu()
    return tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor


def read_metadata(path: Path) -> CheckpointMeta:
    """Read the description in a checkpoint's header, without its tensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or not one of ours.
    """
    remedy = (
        "it was not written by `pixelmill train`: name architecture, classes and preprocess in the "
        "config instead"
    )
    content = read_header(path, _HEADER_KEY, remedy=remedy)
    try:
        return CheckpointMeta.model_validate_json(content)
    except ValidationError as err:
        raise ValueError(f"the header of {str(path)!r} is not of this version: {err}") from err


def load_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file onto the CPU, floating-point ones as float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file.
    """
    return {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in read_tensors(path).items()
    }


def load_matching(module: nn.Module, state: dict[str, Tensor]) -> int:
    """Copy the tensors whose name and shape agree; the start of training from another model.

    Returns:
        Number of tensors copied.
    """
    own = module.state_dict()
    matching = {
        key: tensor
        for key, tensor in state.items()
        if key in own and own[key].shape == tensor.shape
    }
    with torch.no_grad():
        for key, tensor in matching.items():
            own[key].copy_(tensor)
    return len(matching)
