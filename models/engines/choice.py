"""Which engine a model's key names: what the config asks for, if it passes the parity gate.

Results of two engines may never stand under one key. So it is settled where the key is made, once
for a run: an engine that fails its gate there is replaced by the reference, and the spec says why.
A worker never replaces one; a gate that fails on a worker is an error that says what to do.
"""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

import torch

from pixelmill.configs.schema import EngineName
from pixelmill.models.engines.cache import cache_folder, digest, keep_json, machine, read_json
from pixelmill.models.engines.compiled import compile_pays
from pixelmill.models.engines.openvino import import_openvino
from pixelmill.models.engines.parity import NUM_IMAGES, check_parity, sample_images
from pixelmill.models.interface import GateReport, Network
from pixelmill.models.spec import ModelSpec, default_engine

__all__ = ["best_device", "choose_engine", "is_reference", "pass_gate", "settle_engine"]

# (spec, device) -> network
Builder = Callable[[ModelSpec, str], Network]

logger = logging.getLogger(__name__)

# Measured for our networks and public for large ones on GPUs; only orders of magnitude matter
_COMPILE_S = 60.0
_COMPILE_SPEEDUP = 1.25


def best_device() -> str:
    """A GPU if this process sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_engine(
    reference: ModelSpec, build: Builder, *, device: str, num_images: int | None
) -> EngineName:
    """What `engine: auto` means for a model.

    On a CPU OpenVINO, if it is installed. Else, for a module, torch-compile if the images planned
    repay its compilation. Decided once for a model and kind of device, and remembered: a key that
    changed with the size of tonight's batch would have everything scored again.

    Args:
        reference: the model with its default engine.
        build: makes a network.
        device: that will score.
        num_images: planned for each process; None: not known, and nothing is compiled.
    """
    # Not by versions or code as in a gate's name: the decision is to outlive them
    kept = cache_folder() / "choices" / f"{reference.key}-{device.partition(':')[0]}.json"
    known = (read_json(kept) or {}).get("engine")
    if known in get_args(EngineName):
        return cast("EngineName", known)
    chosen = default_engine(reference.architecture)
    if device == "cpu" and _has_openvino():
        chosen = "openvino"
    elif chosen == "torch" and num_images and _can_compile(device):
        seconds = _seconds_per_image(build(reference, device), reference)
        compile_s = _COMPILE_S * len(reference.preprocess.canvases)
        if compile_pays(num_images, eager_s=seconds, speedup=_COMPILE_SPEEDUP, compile_s=compile_s):
            chosen = "torch-compile"
    keep_json(kept, {"engine": chosen, "model": reference.name})
    return chosen


def settle_engine(spec: ModelSpec, build: Builder, *, device: str) -> ModelSpec:
    """The spec with an engine that answers as the reference does.

    Args:
        spec: with the engine and precision that are asked for.
        build: makes a network.
        device: that will score.

    Returns:
        The spec itself; or, where its engine fails, with the default engine in float32 and a note.

    Raises:
        ImportError: the engine is not installed.
    """
    if is_reference(spec) or (spec.precision == "fp16" and device == "cpu"):
        return spec  # a machine without a GPU cannot tell; the workers will
    try:
        report = pass_gate(spec, build, device=device)
        faults = report.faults
    except ImportError:
        raise
    except Exception as err:
        # of conversion and compilation there are as many kinds of errors as there are engines
        faults = (f"{type(err).__name__}: {err}",)
    if not faults:
        return spec
    reference = _reference(spec)
    note = (
        f"{spec.engine} {spec.precision} was asked for and is not used, since it does not answer "
        f"as {reference.engine} fp32 does: {'; '.join(faults)}"
    )
    logger.warning("%s: %s", spec.name, note)
    return reference.model_copy(update={"engine_note": note})


def pass_gate(
    spec: ModelSpec, build: Builder, *, device: str, network: Network | None = None
) -> GateReport:
    """How the spec's engine compares with the reference on this machine; remembered.

    Args:
        spec: not that of the reference.
        build: makes a network.
        device: where.
        network: built from the spec, if it is there already.
    """
    kept = _gate_file(spec, device)
    known = read_json(kept) if kept else None
    if known is not None:
        return GateReport(known["figures"], tuple(known["faults"]))
    reference = build(_reference(spec), device)
    report = check_parity(network or build(spec, device), reference, spec)
    logger.info("%s: %s %s: %s", spec.name, spec.engine, spec.precision, report)
    if kept:
        keep_json(kept, {"figures": dict(report.figures), "faults": report.faults})
    return report


def is_reference(spec: ModelSpec) -> bool:
    """Whether the engine is what others are compared with."""
    return spec.engine == default_engine(spec.architecture) and spec.precision == "fp32"


def _gate_file(spec: ModelSpec, device: str) -> Path | None:
    """None for the user's own code, which may be another tomorrow."""
    if ":" in spec.architecture:
        return None
    identity = {"key": spec.key, "weights": spec.weights_sha256, "machine": machine(device)}
    return cache_folder() / "gates" / f"{digest(identity)}.json"


def _has_openvino() -> bool:
    try:
        import_openvino()
    except ImportError:
        return False
    return True


def _can_compile(device: str) -> bool:
    """Inductor writes C++ for a CPU, and for GPUs what Triton compiles by itself."""
    return device.startswith("cuda") or shutil.which("g++") is not None


def _seconds_per_image(network: Network, spec: ModelSpec) -> float:
    """After a batch that is not counted; reading the outputs waits for a GPU."""
    images = sample_images(spec.preprocess.canvases[0]).to(network.device)
    elapsed = 0.0
    for _ in range(2):
        started = time.perf_counter()
        network.read_out(network.forward(images), spec.preprocess.canvases[0])
        elapsed = time.perf_counter() - started
    return elapsed / NUM_IMAGES


def _reference(spec: ModelSpec) -> ModelSpec:
    return spec.model_copy(
        update={
            "engine": default_engine(spec.architecture),
            "precision": "fp32",
            "quantized_path": None,
            "quantized_sha256": None,
        }
    )
