"""OpenVINO on the CPU: the fastest float32 of ours, and int8.

Sends nothing: OpenVINO's Python package reports each import to its maker unless it is told not to
(`openvino_telemetry`, on by default), so that package is hidden while ours imports it.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from pixelmill.models.engines.export import (
    OutputPlan,
    Shape,
    export_trunk,
    keep_graph,
    plan_outputs,
    takes_any_batch,
)
from pixelmill.models.engines.pixels import PixelTrunk

__all__ = [
    "OpenVinoSession",
    "OpenVinoTrunk",
    "check_precision",
    "hidden_reports",
    "import_openvino",
    "openvino_core",
]

_FILE_NAME = "model.xml"
_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def import_openvino() -> ModuleType:
    """The package, without its reports.

    Raises:
        ImportError: it is not installed.
    """
    try:
        with hidden_reports():
            import openvino
    except ImportError as err:
        raise ImportError(
            "engine: openvino needs OpenVINO; install it with: pip install 'pixelmill[openvino]'"
        ) from err
    return openvino


@functools.cache
def openvino_core() -> Any:
    """The process's one: each loads the plugin of the CPU anew."""
    return import_openvino().Core()


@contextlib.contextmanager
def hidden_reports() -> Iterator[None]:
    """Make `import openvino_telemetry` fail, as where it is not installed."""
    name = "openvino_telemetry"
    known = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # what the import system means by it
    try:
        yield
    finally:
        del sys.modules[name]
        if known is not None:
            sys.modules[name] = known


def check_precision(precision: str) -> None:
    """Refuse a precision that this processor would only imitate.

    Raises:
        ValueError: bf16 without AVX512-BF16 or AMX.
    """
    capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise ValueError(
            "this processor has no bfloat16 arithmetic (AVX512-BF16 or AMX); set precision: fp32"
        )


class OpenVinoSession:
    """A graph compiled for one input shape.

    Args:
        model: an `openvino.Model` with static shapes.
        precision: fp32, bf16, or int8 for a quantised model.
    """

    def __init__(self, model: Any, precision: str) -> None:
        self._openvino = import_openvino()
        settings = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            # One process per core, see the engine: one thread, which may run on any core. Pinned,
            # the threads of all processes would share the first one.
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = openvino_core().compile_model(model, "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self._outputs = [
            (tuple(each.shape), torch.from_numpy(np.empty(0, each.element_type.to_dtype())).dtype)
            for each in self._compiled.outputs
        ]

    def __call__(self, array: NDArray[Any]) -> list[Tensor]:
        """Outputs in new memory that is theirs."""
        shared = self._openvino.Tensor(np.ascontiguousarray(array), shared_memory=True)
        self._request.set_input_tensor(0, shared)
        outputs = [torch.empty(shape, dtype=dtype) for shape, dtype in self._outputs]
        for index, tensor in enumerate(outputs):
            self._request.set_output_tensor(
                index, self._openvino.Tensor(tensor.numpy(), shared_memory=True)
            )
        self._request.infer()
        return outputs


class _Graph(NamedTuple):
    session: OpenVinoSession
    outputs: OutputPlan


class OpenVinoTrunk:
    """A module of ours, converted and compiled for each shape when it first comes.

    Args:
        trunk: in float32 on the CPU.
        precision: fp32 or bf16; int8 with `quantized`.
        folder: where converted graphs are kept for the next process; None: nowhere.
        quantized: (H, W) of a canvas -> its graph, which replaces the module's own.
    """

    def __init__(
        self,
        trunk: PixelTrunk,
        precision: str,
        folder: Path | None = None,
        quantized: Callable[[tuple[int, int]], Any] | None = None,
    ) -> None:
        check_precision(precision)
        self.device = torch.device("cpu")
        self._trunk = trunk
        self._precision = precision
        self._folder = folder
        self._quantized = quantized
        self._graphs: dict[Shape, _Graph] = {}

    def __call__(self, images: Tensor) -> Any:
        """See `Trunk`."""
        shape = tuple(images.shape)
        if shape not in self._graphs:
            self._graphs[shape] = self._compile(shape)
        graph = self._graphs[shape]
        return graph.outputs.arrange(graph.session(images.numpy()))

    def float_graph(self, canvas: tuple[int, int]) -> Any:
        """The `openvino.Model` in float32 of a canvas (H, W), for any number of images.

        Raises:
            ValueError: the module's graph is for one number of images.
        """
        program = export_trunk(self._trunk, (2, *canvas, 3))
        if not takes_any_batch(program):
            raise ValueError(
                f"{type(self._trunk.module).__name__} has another graph for each number of images "
                "and cannot be quantized; keep precision: fp32 or bf16"
            )
        model = import_openvino().convert_model(program)
        model.reshape([-1, *canvas, 3])
        return model

    def sample(self, image: Tensor) -> NDArray[Any]:
        """What the graph takes of a (H, W, 3) uint8 RGB canvas."""
        return image[None].numpy()

    def _compile(self, shape: Shape) -> _Graph:
        if self._quantized is not None:
            height, width = shape[1:3]
            model = self._quantized((height, width))
        elif self._folder is None:
            model = import_openvino().convert_model(export_trunk(self._trunk, shape))
        else:
            kept = keep_graph(self._folder, self._trunk, shape, _save)
            model = openvino_core().read_model(kept / _FILE_NAME)
        # also where the graph takes any batch: for fixed shapes the kernels are better chosen
        model.reshape(list(shape))
        return _Graph(OpenVinoSession(model, self._precision), plan_outputs(self._trunk, shape))


def _save(program: ExportedProgram, folder: Path) -> None:
    openvino = import_openvino()
    openvino.save_model(
        openvino.convert_model(program), folder / _FILE_NAME, compress_to_fp16=False
    )
