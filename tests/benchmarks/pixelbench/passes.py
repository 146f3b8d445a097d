"""All models in one pass over the images, against a pass for each of them."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pixelbench.contenders import plan_workload
from pixelbench.workloads import Workload, make_workload
from pixelmill.configs.load import load_config
from pixelmill.tasks.engine.score import configure_process, score_shard
from pixelmill.tasks.store import Store

__all__ = ["Passes", "measure_passes"]


@dataclass(frozen=True, slots=True)
class Passes:
    """Seconds in one worker, medians.

    Attributes:
        together_s: all models in one pass.
        apart_s: by model, in a pass of its own.
        ratios: of the sum of the passes over the one pass, round by round.
    """

    title: str
    num_images: int
    together_s: float
    apart_s: dict[str, float]
    ratios: tuple[float, ...]


def measure_passes(
    scratch: Path, *, num_rounds: int = 5, num_images: int = 64, device: str = "cpu"
) -> list[Passes]:
    """The three embedded models, and three that cost nothing, by turns."""
    configure_process()
    scenes = make_workload("instances", scratch / "passes", num_images)
    demo = scenes.config.model_copy(update={"models": load_config("demo").models})
    photos = make_workload("identity", scratch / "passes", 4 * num_images)
    model = photos.config.models[0]
    names = ("identity-a", "identity-b", "identity-c")
    copies = tuple(model.model_copy(update={"name": name}) for name in names)
    nothing = photos.config.model_copy(update={"models": copies})
    return [
        _compare("three embedded models", scenes.with_config(demo), scratch, num_rounds, device),
        _compare(
            "three models that cost nothing", photos.with_config(nothing), scratch, num_rounds,
            device,
        ),
    ]  # fmt: skip


def _compare(title: str, workload: Workload, scratch: Path, num_rounds: int, device: str) -> Passes:
    alone = [
        workload.with_config(workload.config.model_copy(update={"models": (model,)}))
        for model in workload.config.models
    ]
    together: list[float] = []
    apart: dict[str, list[float]] = {each.config.models[0].name: [] for each in alone}
    for number in range(num_rounds + 1):
        seconds = _score(workload, scratch, device)
        others = {each.config.models[0].name: _score(each, scratch, device) for each in alone}
        if number:
            together.append(seconds)
            for name, value in others.items():
                apart[name].append(value)
    return Passes(
        title=title,
        num_images=len(workload.paths),
        together_s=median(together),
        apart_s={name: median(values) for name, values in apart.items()},
        ratios=tuple(
            sum(values) / one
            for one, values in zip(together, zip(*apart.values(), strict=True), strict=True)
        ),
    )


def _score(workload: Workload, scratch: Path, device: str) -> float:
    root = scratch / "passes-store"
    shutil.rmtree(root, ignore_errors=True)
    store = Store(root, create=True)
    run_id, num_shards = plan_workload(store, workload, 1)
    started = time.perf_counter()
    for index in range(num_shards):
        score_shard(store.root, run_id, index, device=device)
    return time.perf_counter() - started
