"""A model in int8: calibrated once on the user's images, and judged on others before it is kept."""

import random
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pixelmill.configs.schema import IngestConfig, ModelConfig
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.engines.files import FileTrunk
from pixelmill.models.engines.openvino import OpenVinoTrunk
from pixelmill.models.engines.parity import compare_outputs
from pixelmill.models.engines.quantized import quantize_graph, save_quantized
from pixelmill.models.interface import Network
from pixelmill.models.network import EngineNetwork
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.box_files import FolderSizes, load_boxes
from pixelmill.tasks.datasets import DataSource
from pixelmill.tasks.engine.decode import DecodeError, decode_image
from pixelmill.tasks.engine.views import Placement, draw_view, plan_views
from pixelmill.tasks.holdout import predict_image, score_predictions
from pixelmill.tasks.names import place_inside
from pixelmill.tasks.truth import load_captions, load_labels, load_semantic, without_suffix

__all__ = ["MAX_DISAGREEMENT", "MAX_LOSS", "QuantizeReport", "quantize_model"]

# Of each main metric, relative to float32: the demo's models lose 0.1 % to 1.6 %
MAX_LOSS = 0.02
# Without truth: an answer that differs need not be worse
MAX_DISAGREEMENT = 0.1

_JUDGED = ("box AP", "mask AP", "mIoU", "CIDEr-D", "top-1")
_SEED = 0

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """How a model in int8 compares with itself in float32.

    Attributes:
        num_calibration: images whose values gave the ranges.
        num_held_out: other images, which all figures are of.
        fp32: metrics against the truth; empty without truth.
        int8: metrics against the truth, or without it the agreement with float32:
            `pixelmill.models.engines.parity` explains these figures.
        loss: the largest of one of the main metrics, relative to float32; without truth the
            largest disagreement, 1 - agreement.
    """

    num_calibration: int
    num_held_out: int
    fp32: dict[str, float]
    int8: dict[str, float]
    loss: float


def quantize_model(
    config: ModelConfig,
    base: Path,
    images: Path,
    out: Path,
    *,
    truth: Path | None = None,
    num_images: int = 300,
    max_loss: float | None = None,
) -> QuantizeReport:
    """Write the file that `quantized:` of a config names, unless too much is lost.

    Args:
        config: of one model; its engine and precision are not used.
        base: folder that relative paths in the config start from.
        images: folder of images like those that will be scored.
        out: the file, .safetensors.
        truth: of some of the images, in any format that training takes; the held-out images are
            of these.
        num_images: to calibrate on, and as many again to judge by; of a smaller folder half each.
        max_loss: see `QuantizeReport.loss`; None: `MAX_LOSS`, without truth `MAX_DISAGREEMENT`.

    Raises:
        ImportError: OpenVINO or NNCF is not installed.
        ValueError: the model cannot be quantized, or more than `max_loss` is lost.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"the file of int8 graphs must end in .safetensors, got {str(out)!r}")
    limit = max_loss if max_loss is not None else MAX_LOSS if truth else MAX_DISAGREEMENT
    spec = _resolve(config, base, {"precision": "fp32", "quantized": None})
    source = None if truth is None else DataSource(images, truth)
    calibration, held_out = _share_out(images, _truth_test(source, spec), num_images)
    network = build_network(spec)
    graphs = _quantize(network, spec, calibration)
    with tempfile.TemporaryDirectory() as scratch:
        trial = Path(scratch, "trial.safetensors")
        save_quantized(trial, graphs, spec, {})
        changes = {"precision": "int8", "quantized": str(trial)}
        quantized = build_network(_resolve(config, base, changes))
        before, after = _judge(network, quantized, spec, held_out, source)
    loss = _largest_loss(before, after) if source else 1 - min(after.values())
    report = QuantizeReport(len(calibration), len(held_out), before, after, loss)
    if not loss <= limit:  # NaN is refused too
        raise ValueError(
            f"{spec.name}: int8 loses {loss:.2%}, more than {limit:.2%}, and nothing was written: "
            f"{_shown(report)}; calibrate on more images, or ones more like those to be scored, "
            "or allow it with --max-loss"
        )
    save_quantized(out, graphs, spec, asdict(report))
    return report


def _resolve(config: ModelConfig, base: Path, changes: Mapping[str, Any]) -> ModelSpec:
    """The spec of a changed config in OpenVINO, and no other engine instead."""
    changed = config.model_copy(update={"engine": "openvino", **changes})
    spec = resolve_model(changed, base, device="cpu")
    if spec.engine_note:
        raise ValueError(f"{spec.name}: {spec.engine_note}")
    return spec


def _share_out(
    images: Path, has_truth: Callable[[str], bool] | None, num_images: int
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Files to calibrate on, and to judge by; the same of the same folder every time."""
    suffixes = IngestConfig().suffixes
    names = sorted(
        path.relative_to(images).as_posix()
        for path in images.rglob("*")
        if path.suffix.lower() in suffixes and path.is_file()
    )
    random.Random(_SEED).shuffle(names)
    judged = [name for name in names if has_truth is None or has_truth(name)]
    held_out = judged[: min(num_images, max(len(names) // 2, 1))]
    kept = set(held_out)
    calibration = [name for name in names if name not in kept][:num_images]
    if not held_out or not calibration:
        raise ValueError(
            "expected images to calibrate on and others"
            f"{' with truth' if has_truth else ''} to judge by, got {len(names)} images in "
            f"{str(images)!r}, {len(judged)} to judge by"
        )
    places = {name: place_inside(images, name) for name in (*calibration, *held_out)}
    return {name: places[name] for name in calibration}, {name: places[name] for name in held_out}


def _truth_test(source: DataSource | None, spec: ModelSpec) -> Callable[[str], bool] | None:
    """Whether an image has truth; None: none is asked for, and all may be judged by."""
    if source is None:
        return None
    if spec.task == "semantic_segmentation":
        maps = load_semantic(source.truth).maps
        return lambda name: without_suffix(name) in maps
    if spec.task == "captioning":
        return frozenset(load_captions(source.truth).file_names).__contains__
    if spec.task == "classification":
        return load_labels(source.truth).labels.__contains__
    boxes = load_boxes(source.truth, FolderSizes(source.images), spec.classes)
    return frozenset(image.file_name for image in boxes.images).__contains__


def _quantize(network: Network, spec: ModelSpec, images: Mapping[str, Path]) -> dict[Size, object]:
    """Graphs by canvas, each calibrated on the views that lie on it.

    A canvas that no image chooses is calibrated on all, laid on it.
    """
    trunk = cast("OpenVinoTrunk | FileTrunk", cast("EngineNetwork", network).trunk)
    sizes = {path: _decode(path).shape[:2] for path in images.values()}

    def load(view: tuple[Path, Placement]) -> NDArray[np.generic]:
        path, placement = view
        return trunk.sample(torch.from_numpy(draw_view(_decode(path), placement, spec.preprocess)))

    graphs: dict[Size, object] = {}
    for canvas in _canvases(spec):
        only = spec.preprocess.model_copy(update={"canvases": (canvas,)})
        alone = spec.model_copy(update={"preprocess": only})
        views = [
            _views_on(canvas, [(path, plan_views(size, each)) for path, size in sizes.items()])
            for each in (spec, alone)
        ]
        graphs[canvas] = quantize_graph(trunk.float_graph(canvas), views[0] or views[1], load)
    return graphs


def _views_on(
    canvas: Size, plans: Sequence[tuple[Path, Sequence[Placement]]]
) -> list[tuple[Path, Placement]]:
    """At most one view of each image."""
    found = []
    for path, placements in plans:
        view = next((each for each in placements if each.canvas == canvas), None)
        if view is not None:
            found.append((path, view))
    return found


def _canvases(spec: ModelSpec) -> list[Size]:
    """All that an image may be laid on, scaled ones too."""
    plans = (plan_views(canvas, spec) for canvas in spec.preprocess.canvases)
    return sorted({placement.canvas for plan in plans for placement in plan})


def _decode(path: Path) -> NDArray[np.uint8]:
    try:
        return decode_image(path.read_bytes(), max_pixels=IngestConfig().max_pixels).pixels
    except DecodeError as err:
        raise ValueError(f"{str(path)!r} cannot be decoded, take it out: {err}") from err


def _judge(
    reference: Network,
    quantized: Network,
    spec: ModelSpec,
    images: Mapping[str, Path],
    source: DataSource | None,
) -> tuple[dict[str, float], dict[str, float]]:
    """`QuantizeReport.fp32` and `.int8`."""
    if source is None:
        return {}, _agreement(quantized, reference, spec, images.values())
    before, after = (
        score_predictions(
            {name: predict_image(network, spec, path) for name, path in images.items()},
            source,
            spec,
        )
        for network in (reference, quantized)
    )
    return before, after


def _agreement(
    quantized: Network, reference: Network, spec: ModelSpec, paths: Iterable[Path]
) -> dict[str, float]:
    """Means over the views of all images."""
    figures: dict[str, list[float]] = {}
    for path in paths:
        pixels = _decode(path)
        height, width = pixels.shape[:2]
        for placement in plan_views((height, width), spec):
            view = torch.from_numpy(draw_view(pixels, placement, spec.preprocess))[None]
            found = compare_outputs(quantized.predict(view), reference.predict(view), spec)
            for figure, value in found.items():
                figures.setdefault(figure, []).append(value)
    return {figure: fmean(values) for figure, values in figures.items()}


def _largest_loss(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    judged = [name for name in _JUDGED if name in before]
    for name in judged:
        if not before[name] > 0:
            raise ValueError(
                f"{name} of the float32 model is {before[name]:.4g} on this truth; is it that of "
                "these images and classes?"
            )
    return max((before[name] - after[name]) / before[name] for name in judged)


def _shown(report: QuantizeReport) -> str:
    return ", ".join(
        f"{name} {value:.4f}" + (f" (float32 {report.fp32[name]:.4f})" if report.fp32 else "")
        for name, value in report.int8.items()
    )
