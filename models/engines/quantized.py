"""Graphs in int8: made once from a user's images, kept in one file, the same for every worker.

The ranges that int8 stands for are found on images, so a worker that calibrated by itself would
score otherwise than the next. The file holds the finished graphs, one a canvas, for any number of
images; its digest is part of the model key.
"""

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pixelmill.models.engines.openvino import hidden_reports, import_openvino, openvino_core
from pixelmill.models.spec import ModelSpec
from pixelmill.models.tensor_files import read_header, read_tensors, save_tensors

__all__ = ["QuantizedFile", "check_quantized", "quantize_graph", "save_quantized"]

_HEADER_KEY = "pixelmill-int8"
# OpenVINO's two files of a graph
_PARTS = ("graph", "weights")

Size = tuple[int, int]


class QuantizedFile:
    """What `save_quantized` wrote.

    Args:
        path: of the file.

    Raises:
        ValueError: it is of another kind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        remedy = "it was not written by `pixelmill models quantize`"
        content = json.loads(read_header(path, _HEADER_KEY, remedy=remedy))
        self.identity: dict[str, Any] = content["identity"]
        self.canvases: tuple[Size, ...] = tuple((h, w) for h, w in content["canvases"])
        self.report: dict[str, Any] = content["report"]

    def graph(self, canvas: Size) -> Any:
        """The `openvino.Model` of a canvas (H, W).

        Raises:
            ValueError: the file has none for it.
        """
        if canvas not in self.canvases:
            raise ValueError(
                f"{str(self._path)!r} has graphs for {_shown(self.canvases)} and none for "
                f"{_shown([canvas])}; quantize the model again"
            )
        names = [_tensor_name(canvas, part) for part in _PARTS]
        tensors = read_tensors(self._path, *names)
        return openvino_core().read_model(*(tensors[name].numpy().tobytes() for name in names))


def check_quantized(file: QuantizedFile, spec: ModelSpec) -> None:
    """Refuse graphs of another model.

    Raises:
        ValueError: they were made from other weights, numbers of the architecture, means or
            canvases; the message says which.
    """
    identity = _plain(spec.graph_identity)
    different = sorted(key for key in identity if identity[key] != file.identity.get(key))
    missing = [canvas for canvas in spec.preprocess.canvases if canvas not in file.canvases]
    if different or missing:
        what = ", ".join([*different, *(["canvases"] if missing else [])])
        raise ValueError(
            f"{spec.name}: the file of int8 graphs was made from a model with other {what}; run "
            "`pixelmill models quantize` again"
        )


def save_quantized(
    path: Path, graphs: Mapping[Size, Any], spec: ModelSpec, report: Mapping[str, Any]
) -> None:
    """Write graphs whole or not at all.

    Args:
        path: ends in .safetensors; an existing file is replaced.
        graphs: `openvino.Model` by canvas.
        spec: of the model.
        report: JSON that goes into the header.
    """
    tensors = {}
    for canvas, graph in graphs.items():
        for part, content in zip(_PARTS, _serialise(graph), strict=True):
            tensors[_tensor_name(canvas, part)] = torch.frombuffer(content, dtype=torch.uint8)
    header = {"identity": _plain(spec.graph_identity), "canvases": list(graphs), "report": report}
    save_tensors(path, tensors, _HEADER_KEY, json.dumps(header))


def quantize_graph(
    graph: Any, samples: Sequence[Any], load: Callable[[Any], NDArray[np.generic]]
) -> Any:
    """A graph whose convolutions and products are int8 where OpenVINO has them.

    Args:
        graph: `openvino.Model` in float32 with one input; its batch stays as free as it is, which
            one that was quantised for a fixed batch never becomes again.
        samples: what the ranges are found on, in a fixed order.
        load: makes the graph's input of a sample.

    Raises:
        ImportError: NNCF is not installed.
    """
    nncf = _import_nncf()
    with _quiet():
        return nncf.quantize(
            graph,
            nncf.Dataset(samples, load),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
        )


def _import_nncf() -> ModuleType:
    """The package, without its reports."""
    import_openvino()
    try:
        with hidden_reports(), _quiet():
            import nncf  # pyright: ignore[reportMissingImports]
    except ImportError as err:
        raise ImportError(
            "int8 graphs are made with NNCF; install it with: pip install 'pixelmill[int8]' "
            "(scoring with them does not need it)"
        ) from err
    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without NNCF's log lines, progress bars, and warnings of what it imports."""
    logger = logging.getLogger("nncf")
    level = logger.level
    with (
        warnings.catch_warnings(),
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _serialise(graph: Any) -> tuple[bytearray, bytearray]:
    """OpenVINO's two files of a graph."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.xml")
        import_openvino().save_model(graph, path, compress_to_fp16=False)
        return bytearray(path.read_bytes()), bytearray(path.with_suffix(".bin").read_bytes())


def _tensor_name(canvas: Size, part: str) -> str:
    return f"{canvas[0]}x{canvas[1]}.{part}"


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def _shown(canvases: Sequence[Size]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in canvases)
