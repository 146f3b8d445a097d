"""ONNX Runtime: for processors and systems that OpenVINO does not know, and .onnx files."""

import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from pixelmill.models.engines.export import OutputPlan, Shape, keep_graph, plan_outputs
from pixelmill.models.engines.pixels import PixelTrunk

__all__ = ["OnnxSession", "OnnxTrunk", "import_onnxruntime"]

_FILE_NAME = "model.onnx"


def import_onnxruntime() -> ModuleType:
    """The package.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as err:
        raise ImportError(
            "an .onnx model and engine: onnxruntime need onnxruntime; install it with: pip install "
            "'pixelmill[onnx]'"
        ) from err
    return onnxruntime


class OnnxSession:
    """An .onnx file, ready to run.

    Args:
        path: of the file.
        device: "cpu", or "cuda" where onnxruntime-gpu is installed.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file has not exactly one input.
    """

    def __init__(self, path: str, device: str = "cpu") -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        # One process per core scores faster than one process with many threads, and one thread
        # adds up in one order
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CUDAExecutionProvider"] * device.startswith("cuda") + ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ValueError(
                f"the network must have one input, got {', '.join(each.name for each in inputs)}"
            )
        self._input = inputs[0]

    @property
    def input_type(self) -> str:
        """Such as tensor(float)."""
        return str(self._input.type)

    @property
    def fixed_batch(self) -> int | None:
        """Images that it takes at once, where that is fixed."""
        size = self._input.shape[0]
        return size if isinstance(size, int) else None

    def __call__(self, array: NDArray[Any]) -> list[Tensor]:
        """All outputs, in the file's order."""
        outputs = self._session.run(None, {self._input.name: np.ascontiguousarray(array)})
        return [torch.from_numpy(output) for output in outputs]


class _Graph(NamedTuple):
    session: OnnxSession
    outputs: OutputPlan


class OnnxTrunk:
    """A module of ours, exported for each shape when it first comes.

    Args:
        trunk: in float32 on the CPU.
        folder: where exported files are kept for the next process; None: nowhere.
        device: where ONNX Runtime computes; images and outputs are on the CPU.
    """

    def __init__(self, trunk: PixelTrunk, folder: Path | None, device: str = "cpu") -> None:
        import_onnxruntime()
        # ONNX Runtime takes arrays and copies them to a GPU by itself
        self.device = torch.device("cpu")
        self._trunk = trunk
        self._folder = folder
        self._where = device
        self._graphs: dict[Shape, _Graph] = {}
        self._sessions: dict[Path, OnnxSession] = {}

    def __call__(self, images: Tensor) -> Any:
        """See `Trunk`."""
        shape = tuple(images.shape)
        if shape not in self._graphs:
            self._graphs[shape] = self._load(shape)
        graph = self._graphs[shape]
        return graph.outputs.arrange(graph.session(images.numpy()))

    def _load(self, shape: Shape) -> _Graph:
        if self._folder is None:
            with tempfile.TemporaryDirectory() as scratch:
                session = self._open(keep_graph(Path(scratch), self._trunk, shape, _save))
        else:
            session = self._open(keep_graph(self._folder, self._trunk, shape, _save))
        return _Graph(session, plan_outputs(self._trunk, shape))

    def _open(self, kept: Path) -> OnnxSession:
        """One session for all the shapes that a graph takes."""
        if kept not in self._sessions:
            self._sessions[kept] = OnnxSession(str(kept / _FILE_NAME), self._where)
        return self._sessions[kept]


def _save(program: ExportedProgram, folder: Path) -> None:
    try:
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
    except ImportError as err:
        raise ImportError(
            "engine: onnxruntime exports the network with onnxscript; install it with: pip "
            "install 'pixelmill[onnx]'"
        ) from err
    assert exported is not None  # it is None for the older exporter only
    exported.save(folder / _FILE_NAME)
