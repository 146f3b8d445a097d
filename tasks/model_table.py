"""docs/models.md: every architecture with its size, what it reached, and how fast it is here."""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pixelmill.configs.schema import (
    BoxPostprocess,
    CaptionPostprocess,
    ClassificationPostprocess,
    PreprocessConfig,
    TaskName,
)
from pixelmill.models.captioning import build_vocabulary
from pixelmill.models.catalogue import CATALOGUE, Entry, count_parameters
from pixelmill.models.engines.parity import sample_images
from pixelmill.models.spec import ModelSpec
from pixelmill.models.torch_network import TorchNetwork
from pixelmill.models.zoo import ARCHITECTURES
from pixelmill.tasks.check_model import images_per_s
from pixelmill.tasks.engine.device import processor_name

__all__ = ["measure_speeds", "read_results", "render_table"]

# Left out of the measurement, with the reason
_SLOW = {"rcnn": "2000 runs of VGG16 for one image"}
_POSTPROCESS: Mapping[TaskName, Any] = {
    # Of random weights most candidates have scores of noise, which are not to be suppressed
    "detection": BoxPostprocess(score_threshold=0.3),
    "instance_segmentation": BoxPostprocess(score_threshold=0.3),
    "captioning": CaptionPostprocess(),
    "classification": ClassificationPostprocess(),
    "semantic_segmentation": None,
}
_INTRODUCTION = """# Models

Made by `pixelmill models table --out docs/models.md`; a test compares the numbers of parameters
with the code. The networks of torchvision, timm, segmentation-models-pytorch and Hugging Face are
not in it: `pixelmill models list --all` has their names, and
[bring-your-own-model.md](bring-your-own-model.md) says how each is used.

**Parameters, published**: of the paper or of the reference named below the table. **Reached**: on
the held-out part of a development set, trained from scratch, by a network of so many million
parameters; [training.md](benchmarks/training.md) describes the runs. **Images/s**: per second of
one core's time, whole predictions with random weights, PyTorch in float32, one image at a time, on
the canvas named; two-stage networks with their proposals, captions of 30 words with a beam of 3; no
decoding of files.
"""


def read_results(path: Path) -> list[dict[str, Any]]:
    """The list in a file of what trainings reached; none where there is no file.

    Raises:
        ValueError: it is of another kind.
    """
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    results = content.get("results") if isinstance(content, dict) else content
    if not isinstance(results, list):
        raise ValueError(f"expected a list of results in {str(path)!r}")
    return results


def measure_speeds(seconds: float) -> dict[str, Any]:
    """Images per second of one core's time of each entry of the catalogue, and where that was.

    Args:
        seconds: at least so long each is measured.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the scorers of a CPU
    try:
        rates = {
            entry.name: _measure(entry, seconds)
            for entry in CATALOGUE
            if entry.architecture not in _SLOW
        }
    finally:
        torch.set_num_threads(threads)
    return {"machine": _machine(), "images_per_s": rates}


def render_table(
    results: Sequence[Mapping[str, Any]], speeds: Mapping[str, Any] | None = None
) -> str:
    """The page as Markdown.

    Args:
        results: of trainings: architecture, dataset, metric and value each.
        speeds: of `measure_speeds`; None: that column is left empty.
    """
    head = ("Network", "Paper", "Tasks", "Parameters", "Published", "Reached", "Images/s")
    rates = (speeds or {}).get("images_per_s", {})
    rows = [
        (
            f"{entry.name} (`{entry.architecture}`)",
            f"[{entry.paper}]({entry.url})",
            ", ".join(task.replace("_", " ") for task in entry.tasks),
            f"{count_parameters(entry):,}",
            f"{entry.published:,}" if entry.published else "",
            _reached(entry, results),
            f"{rates[entry.name]:.3g} at {entry.canvas[0]}x{entry.canvas[1]}"
            if entry.name in rates
            else "",
        )
        for entry in CATALOGUE
    ]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]
    machine = f"\nImages/s on {speeds['machine']}.\n" if speeds else ""
    return "\n".join([_INTRODUCTION, *lines]) + "\n" + machine + _notes()


def _notes() -> str:
    """Where published numbers are from, and what is not measured."""
    by_source: dict[str, list[str]] = {}
    for entry in CATALOGUE:
        if entry.source:
            by_source.setdefault(entry.source, []).append(entry.name)
    lines = [f"- {'; '.join(names)}: {source}." for source, names in by_source.items()]
    lines += [f"- Not measured: `{name}` ({reason})." for name, reason in _SLOW.items()]
    others = (
        "Networks without a published number are baselines, smaller than the paper's, or of papers "
        "that give none; the heads of their files say in what they differ."
    )
    return "\n## Where published numbers are from\n\n" + "\n".join(lines) + f"\n\n{others}\n"


def _reached(entry: Entry, results: Sequence[Mapping[str, Any]]) -> str:
    """What trainings of the architecture reached; beside its first network alone."""
    first = next(each for each in CATALOGUE if each.architecture == entry.architecture)
    if first is not entry:
        return ""
    runs: dict[str, list[str]] = {}
    for each in results:
        if each["architecture"] == entry.architecture:
            size = f" ({each['parameters'] / 1e6:.1f} M)" if "parameters" in each else ""
            found = runs.setdefault(f"{each['dataset']}{size}", [])
            found.append(f"{each['metric']} {each['value']:.3f}")
    return "; ".join(f"{dataset}: {', '.join(found)}" for dataset, found in runs.items())


def _measure(entry: Entry, seconds: float) -> float:
    torch.manual_seed(0)
    task = entry.tasks[0]
    arguments = entry.arguments
    words = int(str(arguments.get("vocabulary_size", 0)))
    spec = ModelSpec(
        name="table",
        task=task,
        architecture=entry.architecture,
        arguments=arguments,
        weights_path="",
        weights_sha256="",
        classes=tuple(f"class {index}" for index in range(_num_classes(entry))),
        vocabulary=(*build_vocabulary([]), *(f"word{index}" for index in range(words - 4))),
        preprocess=PreprocessConfig(resize="stretch", canvases=(entry.canvas,)),
        precision="fp32",
        postprocess=_POSTPROCESS[task],
    )
    network = TorchNetwork(entry.build(), spec, ARCHITECTURES[entry.architecture].read_out)
    # not by the wall clock: whatever else the machine does is not in it
    return images_per_s(network, sample_images(entry.canvas)[-1:], seconds, time.process_time)


def _num_classes(entry: Entry) -> int:
    return int(str(entry.arguments.get("num_classes", 0)))


def _machine() -> str:
    """Processor, threads and versions."""
    return (
        f"one core of {processor_name()}, Python {platform.python_version()}, "
        f"torch {torch.__version__.partition('+')[0]}"
    )
