"""Forward passes of every engine on one core and one thread, beside eager float32.

    python tests/benchmarks/bench_engines.py [--rounds 5] [--models demo-detector,...]

prints one line of JSON for each (model, engine): images per CPU second (medians of interleaved
rounds; CPU seconds, which other load on the machine shifts less), seconds until the first batch is
done, with an empty cache and with a kept one, and what the parity gate found. torchvision's
networks have random weights: their speed is that of trained ones, their parity is not.
docs/benchmarks/engines.md explains the figures.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torchvision.models import get_model

from pixelmill.configs.load import load_config
from pixelmill.configs.schema import DetectionModel, ModelConfig, SemanticModel
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.engines.parity import check_parity, sample_images
from pixelmill.models.interface import Network
from pixelmill.models.spec import ModelSpec

BATCH = {"retinanet_resnet50_fpn": 1, "deeplabv3_resnet50": 1}
CANVAS = {"retinanet_resnet50_fpn": (800, 1088), "deeplabv3_resnet50": (520, 520)}
WAYS = (
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("onnxruntime", "fp32"),
    ("torch-compile", "fp32"),
    ("torch-compile", "bf16"),
)
NAMES = (
    "demo-detector", "demo-segmenter", "demo-captioner", "fastestdet",
    "retinanet_resnet50_fpn", "deeplabv3_resnet50",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default=",".join(NAMES))
    parser.add_argument("--engines", default=",".join(f"{e}/{p}" for e, p in WAYS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [tuple(each.split("/")) for each in arguments.engines.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["PIXELMILL_CACHE"] = str(Path(scratch, "cache"))
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(scratch, "inductor"))
        for name in arguments.models.split(","):
            spec = _spec(name, Path(scratch))
            if spec is None:
                continue
            for figures in _measure(spec, wanted, arguments.rounds):
                print(json.dumps({"benchmark": "engines", **figures, **_machine()}), flush=True)


def _spec(name: str, scratch: Path) -> ModelSpec | None:
    """None where the model's weights are not here."""
    if name.startswith("demo-"):
        models = {model.name: model for model in load_config("demo").models}
        return resolve_model(models[name], scratch)
    repository = Path(__file__).parents[2]
    if name == "fastestdet":
        if not (repository.parent / "shared/data/weights/fastestdet").is_dir():
            return None
        return resolve_model(load_config("fastestdet").models[0], repository)
    torch.manual_seed(0)
    extra: dict[str, Any] = {"aux_loss": True} if name.startswith("deeplab") else {}
    torch.save(
        get_model(name, weights=None, weights_backbone=None, **extra).state_dict(),
        scratch / f"{name}.pt",
    )
    kind = DetectionModel if name.startswith("retinanet") else SemanticModel
    config: ModelConfig = kind.model_validate(
        {"name": name, "architecture": f"torchvision/{name}", "weights": f"{name}.pt"}
    )
    spec = resolve_model(config, scratch)
    canvas = spec.preprocess.model_copy(update={"canvases": (CANVAS[name],)})
    return spec.model_copy(update={"preprocess": canvas})


def _measure(spec: ModelSpec, ways: list[Any], num_rounds: int) -> Iterator[dict[str, Any]]:
    canvas = spec.preprocess.canvases[0]
    batch_size = BATCH.get(spec.name, 8)
    batch = sample_images(canvas)[:batch_size]
    spec = spec.model_copy(update={"batch_size": batch_size})
    reference = build_network(spec)
    networks: dict[tuple[str, str], Network] = {}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for engine, precision in ways:
        way = (engine, precision)
        changed = spec.model_copy(update={"engine": engine, "precision": precision})
        if spec.architecture == "onnx" and (engine.startswith("torch") or precision == "bf16"):
            continue
        try:
            found[way] = {"first_batch_s": _first_batch(changed, batch)[1]}
            networks[way], found[way]["first_batch_again_s"] = _first_batch(changed, batch)
            report = check_parity(networks[way], reference, changed)
        except Exception as err:  # a figure too: the engine cannot do this model here
            yield {"model": spec.name, "engine": engine, "precision": precision, "error": str(err)}
            networks.pop(way, None)
            continue
        found[way] |= {"parity": dict(report.figures), "gate_passed": report.passed}
    seconds: dict[tuple[str, str], list[float]] = {way: [] for way in networks}
    for _ in range(num_rounds):
        for way, network in networks.items():
            network.forward(batch)
            started = time.process_time()
            network.forward(batch)
            seconds[way].append(time.process_time() - started)
    for way in networks:
        yield {
            "model": spec.name,
            "canvas": canvas,
            "batch_size": batch_size,
            "engine": way[0],
            "precision": way[1],
            "images_per_cpu_s": round(batch_size / median(seconds[way]), 2),
            "rounds": num_rounds,
            **found[way],
        }


def _first_batch(spec: ModelSpec, batch: torch.Tensor) -> tuple[Network, float]:
    """A network and the seconds until its first batch is done, its weights read."""
    torch.compiler.reset()
    started = time.perf_counter()
    network = build_network(spec)
    network.forward(batch)
    return network, round(time.perf_counter() - started, 2)


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(line for line in lines if line.startswith("flags")).split()
    wanted = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
    return {
        "cpu_flags": [flag for flag in wanted if flag in flags],
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "openvino", "onnxruntime")},
    }


if __name__ == "__main__":
    sys.exit(main())
