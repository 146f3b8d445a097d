"""A user's .onnx file as a trunk, run by ONNX Runtime or by OpenVINO."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.engines.onnxruntime import OnnxSession
from pixelmill.models.engines.openvino import OpenVinoSession, check_precision, openvino_core
from pixelmill.models.engines.pixels import normalise

__all__ = ["FileRaw", "FileTrunk", "OnnxFile", "OpenVinoFile"]


class FileRaw(NamedTuple):
    """Outputs by part of a batch, the last of which may be filled up with empty images.

    Attributes:
        parts: the file's outputs in its order, batch axis first.
        num_images: of the batch.
    """

    parts: list[list[Tensor]]
    num_images: int


class _File(Protocol):
    """What runs the file.

    Attributes:
        input_dtype: float32 or float16 (B, 3, H, W), or uint8 (B, H, W, 3).
        fixed_batch: images that it takes at once, where that is fixed.
    """

    input_dtype: type[np.generic]
    fixed_batch: int | None

    def __call__(self, array: NDArray[Any]) -> list[Tensor]: ...


class OnnxFile:
    """The file in ONNX Runtime, see `OnnxSession` for what it raises."""

    def __init__(self, path: Path, device: str) -> None:
        self._session = OnnxSession(str(path), device)
        self.fixed_batch = self._session.fixed_batch
        types: dict[str, type[np.generic]] = {
            "tensor(uint8)": np.uint8,
            "tensor(float16)": np.float16,
        }
        self.input_dtype = types.get(self._session.input_type, np.float32)

    def __call__(self, array: NDArray[Any]) -> list[Tensor]:
        """Outputs of one part of a batch."""
        return self._session(array)


class OpenVinoFile:
    """The file in OpenVINO, compiled for each shape when it first comes.

    Args:
        path: of the .onnx file, or of an .xml file of OpenVINO's own.
        precision: fp32 or bf16; int8 with `quantized`.
        quantized: (H, W) of a canvas -> its graph, which replaces the file's own.

    Raises:
        ImportError: OpenVINO is not installed.
        ValueError: the file has not exactly one input.
    """

    def __init__(
        self,
        path: Path,
        precision: str,
        quantized: Callable[[tuple[int, int]], Any] | None = None,
    ) -> None:
        check_precision(precision)
        self._model = openvino_core().read_model(path)
        inputs = self._model.inputs
        if len(inputs) != 1:
            names = ", ".join(each.get_any_name() for each in inputs)
            raise ValueError(f"the network must have one input, got {names}")
        first = inputs[0].partial_shape[0]
        self.fixed_batch = first.get_length() if first.is_static else None
        self.input_dtype: type[np.generic] = inputs[0].element_type.to_dtype().type
        self._precision = precision
        self._quantized = quantized
        self._sessions: dict[tuple[int, ...], OpenVinoSession] = {}

    def __call__(self, array: NDArray[Any]) -> list[Tensor]:
        """Outputs of one part of a batch."""
        if array.shape not in self._sessions:
            canvas = self._canvas(array.shape)
            graph = self._quantized(canvas) if self._quantized else self._model.clone()
            graph.reshape(list(array.shape))
            self._sessions[array.shape] = OpenVinoSession(graph, self._precision)
        return self._sessions[array.shape](array)

    def float_graph(self, canvas: tuple[int, int]) -> Any:
        """The file's `openvino.Model` for a canvas (H, W), as free in its batch as the file."""
        graph = self._model.clone()
        batch = self.fixed_batch or -1
        if self.input_dtype is np.uint8:
            graph.reshape([batch, *canvas, 3])
        else:
            graph.reshape([batch, 3, *canvas])
        return graph

    def _canvas(self, shape: tuple[int, ...]) -> tuple[int, int]:
        height, width = shape[1:3] if self.input_dtype is np.uint8 else shape[2:]
        return height, width


class FileTrunk:
    """Prepares what the file takes: (B, 3, H, W) normalised, or uint8 (B, H, W, 3) as it is."""

    def __init__(self, file: _File, preprocess: PreprocessConfig) -> None:
        # Both take arrays, and ONNX Runtime copies them to a GPU by itself
        self.device = torch.device("cpu")
        self._file = file
        self._preprocess = preprocess

    def __call__(self, images: Tensor) -> FileRaw:
        """See `Trunk`."""
        batch = self._prepare(images)
        step = self._file.fixed_batch or len(batch)
        parts = []
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            missing = step - len(part)
            if missing:
                part = np.concatenate((part, np.zeros((missing, *part.shape[1:]), part.dtype)))
            parts.append(self._file(part))
        return FileRaw(parts, len(batch))

    def float_graph(self, canvas: tuple[int, int]) -> Any:
        """See `OpenVinoFile`.

        Raises:
            TypeError: another engine runs the file.
        """
        if not isinstance(self._file, OpenVinoFile):
            raise TypeError(f"expected a file that OpenVINO runs, got {type(self._file).__name__}")
        return self._file.float_graph(canvas)

    def sample(self, image: Tensor) -> NDArray[Any]:
        """What the file takes of a (H, W, 3) uint8 RGB canvas, repeated if its batch is fixed."""
        return np.repeat(self._prepare(image[None]), self._file.fixed_batch or 1, axis=0)

    def _prepare(self, images: Tensor) -> NDArray[Any]:
        if self._file.input_dtype is np.uint8:
            return images.numpy()
        return normalise(images, self._preprocess).numpy().astype(self._file.input_dtype)
