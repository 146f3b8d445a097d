"""Networks that are .onnx files: bring any model that can be exported."""

from pathlib import Path

import numpy as np

from pixelmill.models.engines.files import FileRaw, FileTrunk, OnnxFile, OpenVinoFile
from pixelmill.models.engines.quantized import QuantizedFile
from pixelmill.models.interface import ViewOutput
from pixelmill.models.network import EngineNetwork
from pixelmill.models.spec import ModelSpec
from pixelmill.models.user_decode import load_decode, read_arrays

__all__ = ["OnnxNetwork"]


class OnnxNetwork(EngineNetwork):
    """An .onnx file with one image input (B, 3, H, W) float32, or uint8 (B, H, W, 3) as it is.

    Args:
        spec: weights, preprocess, engine and decode function.
        weights_path: the .onnx file.
        device: "cpu", or "cuda" where onnxruntime-gpu is installed.

    Raises:
        ImportError: the engine is not installed.
        ValueError: the file has not exactly one input.
    """

    def __init__(self, spec: ModelSpec, weights_path: str, device: str = "cpu") -> None:
        path = Path(weights_path)
        try:
            graphs = QuantizedFile(Path(spec.quantized_path)) if spec.quantized_path else None
            file = (
                OpenVinoFile(path, spec.precision, graphs.graph if graphs else None)
                if spec.engine == "openvino"
                else OnnxFile(path, device)
            )
        except ValueError as err:
            raise ValueError(f"{spec.name}: {err}") from err
        decode = load_decode(spec)

        def read(raw: FileRaw, canvas: tuple[int, int]) -> list[ViewOutput]:
            outputs = [
                output
                for part in raw.parts
                for output in read_arrays([np.asarray(each) for each in part], spec, canvas, decode)
            ]
            return outputs[: raw.num_images]

        super().__init__(FileTrunk(file, spec.preprocess), read, f"{spec.engine} {spec.precision}")
