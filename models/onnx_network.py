"""Networks that ONNX Runtime runs: bring any model that can be exported."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelmill.models.interface import ViewOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.models.torch_network import normalise
from pixelmill.models.user_decode import load_decode, read_arrays

__all__ = ["OnnxNetwork"]


class _Raw(NamedTuple):
    """Output arrays by part of the batch, the last of which may be filled up with empty images."""

    parts: list[list[NDArray[Any]]]
    num_images: int


class OnnxNetwork:
    """An .onnx file with one image input (B, 3, H, W) float32, or uint8 (B, H, W, 3) as it is.

    Args:
        spec: weights, preprocess and decode function.
        weights_path: the .onnx file.
        device: "cpu", or "cuda" where onnxruntime-gpu is installed.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file has not exactly one input.
    """

    def __init__(self, spec: ModelSpec, weights_path: str, device: str = "cpu") -> None:
        try:
            import onnxruntime
        except ImportError as err:
            raise ImportError(
                "an .onnx model needs onnxruntime; install it with: pip install 'pixelmill[onnx]'"
            ) from err
        options = onnxruntime.SessionOptions()
        # One process per core scores faster than one process with many threads, and one thread
        # adds up in one order
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        on_gpu = device.startswith("cuda")
        providers = ["CUDAExecutionProvider"] * on_gpu + ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(weights_path, options, providers=providers)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ValueError(
                f"{spec.name}: the network must have one input, got "
                f"{', '.join(each.name for each in inputs)}"
            )
        # ONNX Runtime takes arrays and copies them to a GPU by itself
        self.device = torch.device("cpu")
        self._input = inputs[0]
        self._spec = spec
        self._decode = load_decode(spec)

    def forward(self, images: Tensor) -> _Raw:
        """Outputs of each part of the batch that the network takes at once; see `Network`."""
        batch = self._prepare(images)
        fixed = self._input.shape[0]
        step = fixed if isinstance(fixed, int) else len(batch)
        parts: list[Any] = []
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            missing = step - len(part)
            if missing:
                part = np.concatenate((part, np.zeros((missing, *part.shape[1:]), part.dtype)))
            parts.append(self._session.run(None, {self._input.name: part}))
        return _Raw(parts, len(batch))

    def read_out(self, raw: _Raw, canvas: tuple[int, int]) -> list[ViewOutput]:
        """Predictions of what `forward` gave; see `Network`."""
        outputs = [
            output
            for part in raw.parts
            for output in read_arrays(part, self._spec, canvas, self._decode)
        ]
        return outputs[: raw.num_images]

    def predict(self, images: Tensor) -> list[ViewOutput]:
        """Score (B, H, W, 3) uint8 RGB canvases; see `Network`."""
        height, width = images.shape[1:3]
        return self.read_out(self.forward(images), (height, width))

    def _prepare(self, images: Tensor) -> NDArray[Any]:
        if self._input.type == "tensor(uint8)":
            return images.cpu().numpy()
        batch = np.ascontiguousarray(normalise(images.cpu(), self._spec.preprocess).numpy())
        return batch.astype(np.float16) if self._input.type == "tensor(float16)" else batch
