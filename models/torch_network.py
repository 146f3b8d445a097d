"""Networks that are PyTorch modules, whichever engine runs their trunk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pixelmill.models.engines.cache import cache_folder, digest
from pixelmill.models.engines.compiled import CompiledTrunk
from pixelmill.models.engines.onnxruntime import OnnxTrunk
from pixelmill.models.engines.openvino import OpenVinoTrunk
from pixelmill.models.engines.pixels import PixelTrunk, Trunk
from pixelmill.models.engines.quantized import QuantizedFile
from pixelmill.models.engines.torch_eager import DTYPES, TorchTrunk, fold_module
from pixelmill.models.interface import ViewOutput
from pixelmill.models.network import EngineNetwork
from pixelmill.models.spec import ModelSpec

__all__ = ["TorchNetwork"]

_OF_TORCH = ("torch", "torch-compile")


class TorchNetwork(EngineNetwork):
    """A module ready to score: folded, channels last, in the spec's precision, in its engine.

    Args:
        module: maps normalised (B, 3, H, W) to raw outputs.
        spec: its preprocess, precision and engine are used, the rest goes to `read_out`.
        read_out: (module, raw outputs, spec, canvas (H, W)) -> one output per image.
        device: where it runs.

    Raises:
        ValueError: the engine or the precision does not run on this device.
        ImportError: the engine is not installed.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: ModelSpec,
        read_out: Callable[[nn.Module, Any, ModelSpec, tuple[int, int]], Sequence[ViewOutput]],
        device: str | torch.device = "cpu",
    ) -> None:
        device = torch.device(device)
        _check_device(spec, device)
        folded = fold_module(module, spec.preprocess)
        in_torch = spec.engine in _OF_TORCH
        # The others convert a float32 module on the CPU, and its read-out stays there
        # fp32 is what the key says: cuDNN would round to the 11 bits of TF32 unless told otherwise
        torch.backends.cudnn.allow_tf32 = False
        dtype = DTYPES[spec.precision] if in_torch else torch.float32
        place = device if in_torch else torch.device("cpu")
        folded = folded.to(device=place, dtype=dtype).to(memory_format=torch.channels_last)
        super().__init__(
            _make_trunk(PixelTrunk(folded, spec.preprocess, dtype).to(place), spec, str(device)),
            lambda raw, canvas: read_out(folded, raw, spec, canvas),
            f"{spec.engine} {spec.precision}",
        )


def _check_device(spec: ModelSpec, device: torch.device) -> None:
    if device.type == "cpu" and spec.precision == "fp16":
        raise ValueError(f"{spec.name}: fp16 is for GPUs; set precision: bf16 or fp32")
    if device.type == "cuda" and spec.engine == "openvino":
        raise ValueError(f"{spec.name}: OpenVINO is for CPUs; set engine: torch or torch-compile")


def _make_trunk(pixels: PixelTrunk, spec: ModelSpec, device: str) -> Trunk:
    if spec.quantized_path is not None:
        graphs = QuantizedFile(Path(spec.quantized_path))
        return OpenVinoTrunk(pixels, spec.precision, None, graphs.graph)
    if spec.engine == "openvino":
        return OpenVinoTrunk(pixels, spec.precision, _graph_folder(spec, "openvino"))
    if spec.engine == "onnxruntime":
        return OnnxTrunk(pixels, _graph_folder(spec, "onnx"), device)
    if spec.engine == "torch-compile":
        return CompiledTrunk(pixels)
    return TorchTrunk(pixels)


def _graph_folder(spec: ModelSpec, kind: str) -> Path | None:
    """Where a model's graphs are kept; nowhere if its code is the user's, which may change."""
    if ":" in spec.architecture:
        return None
    return cache_folder() / "graphs" / f"{kind}-{digest(spec.graph_identity)}"
