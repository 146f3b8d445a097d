"""Rounds of scoring by the engine and by a naive loop; test_bench_score.py calls it.

A process of its own, so that its peak memory is that of scoring and nothing else. Prints JSON.
"""

import json
import re
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import nn

from pixelmill.configs.load import load_config
from pixelmill.configs.schema import RunConfig
from pixelmill.models.build import locate_weights, resolve_model
from pixelmill.models.checkpoint import load_state
from pixelmill.models.engines.pixels import normalise
from pixelmill.models.spec import ModelSpec
from pixelmill.models.zoo import ARCHITECTURES
from pixelmill.tasks.engine.merge import merge_views
from pixelmill.tasks.engine.score import configure_process, score_shard
from pixelmill.tasks.engine.views import draw_view, place_whole
from pixelmill.tasks.ingest import KNOWN_COLUMNS, ingest
from pixelmill.tasks.plan import plan_run, save_plan
from pixelmill.tasks.store import Store, publish

NUM_ROUNDS = 3

Figures = dict[str, float]


def main(images: Path, scratch: Path) -> None:
    """Engine and loop by turns, after one round that is not counted."""
    configure_process()
    config = load_config("demo")
    specs = [resolve_model(model, scratch) for model in config.models]
    modules = [_plain_module(spec) for spec in specs]
    paths = sorted(images.iterdir())
    _run_engine(images, scratch / "warm", config, specs)
    peak_of_engine = _peak_MB()
    _run_loop(paths[:2], specs, modules)
    rounds: dict[str, list[Figures]] = {"engine": [], "loop": []}
    for number in range(NUM_ROUNDS):
        rounds["engine"].append(_run_engine(images, scratch / f"{number}", config, specs))
        rounds["loop"].append(_run_loop(paths, specs, modules))
    print(
        json.dumps(
            {
                name: {key: round(median(each[key] for each in figures), 4) for key in figures[0]}
                for name, figures in rounds.items()
            }
            | {"num_rounds": NUM_ROUNDS, "engine_peak_MB": peak_of_engine}
        )
    )


def _run_engine(images: Path, root: Path, config: RunConfig, specs: list[ModelSpec]) -> Figures:
    """Score a folder into a new store; what is timed is the one shard, from bytes to receipt."""
    store = Store(root, create=True)
    listing = ingest(str(images), config.ingest, store.table("catalog", columns=KNOWN_COLUMNS))
    plan = plan_run(
        store,
        listing,
        specs,
        config,
        collection="scenes",
        source=str(images),
        date="2026-01-31",
    )
    run = save_plan(store, plan)
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = score_shard(store.root, run.run_id, 0, device="cpu")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    publish(store)
    stages = {
        name.rpartition("-")[0] if "/" in name else name: value
        for name, value in outcome.stats.items()
        if "_s" in name and isinstance(value, float) and name not in ("wall_s", "images_per_s")
    }
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "num_predictions": sum(outcome.num_scored.values()),
        "num_boxes": len(store.boxes()),
        **stages,
    }


def _plain_module(spec: ModelSpec) -> nn.Module:
    module = ARCHITECTURES[spec.architecture].build(**spec.arguments)
    module.load_state_dict(load_state(locate_weights(spec.weights_path)))
    return module.eval()


def _run_loop(paths: list[Path], specs: list[ModelSpec], modules: list[nn.Module]) -> Figures:
    """One image at a time, decoded by Pillow, networks as they were trained; nothing is stored."""
    wall, cpu = time.perf_counter(), time.process_time()
    predictions = []
    for path in paths:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
        size = (pixels.shape[0], pixels.shape[1])
        for spec, module in zip(specs, modules, strict=True):
            placement = place_whole(size, spec.preprocess)
            canvas = torch.from_numpy(draw_view(pixels, placement, spec.preprocess))
            with torch.inference_mode():
                outputs = ARCHITECTURES[spec.architecture].read_out(
                    module,
                    module(normalise(canvas[None], spec.preprocess)),
                    spec,
                    placement.canvas,
                )
            predictions.append(merge_views(outputs, [placement], spec, size))
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "num_predictions": len(predictions),
        "num_boxes": sum(len(each.detections.scores) for each in predictions if each.detections),
    }


def _peak_MB() -> int:
    # ru_maxrss would do, but Linux starts it with the peak of the process that called exec
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) // 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
