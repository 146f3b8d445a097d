"""What a run costs besides its models: per image at several sizes, and in memory over time.

With the identity model and small files, listing, planning, scoring and publishing are all there is.
Each size is a process of its own, whose memory is sampled while it works.
"""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from PIL import Image

from pixelbench.workloads import make_workload, number_files
from pixelmill.configs.schema import ShardConfig
from pixelmill.tasks.engine.score import configure_process, score_shard
from pixelmill.tasks.ingest import KNOWN_COLUMNS, ingest
from pixelmill.tasks.plan import plan_run, save_plan
from pixelmill.tasks.store import Store, publish

__all__ = ["RunCost", "draw_memory", "measure_run"]

SIDE = 96  # pixels: what is left is the cost of the run
SAMPLE_S = 0.2
SAMPLES = 200


@dataclass(frozen=True, slots=True)
class RunCost:
    """A run over small images with the identity model, in one process.

    Attributes:
        seconds: of each step.
        store_bytes: on disk afterwards.
        memory_MB: resident set size, sampled evenly while shards were scored.
    """

    num_images: int
    num_shards: int
    seconds: dict[str, float]
    store_bytes: int
    store_files: int
    memory_MB: list[int]

    @property
    def ms_per_image(self) -> dict[str, float]:
        """Of each step."""
        return {step: 1e3 * value / self.num_images for step, value in self.seconds.items()}

    @property
    def growth_MB(self) -> float:
        """Of the memory: mean of the last tenth over mean of the second tenth."""
        tenth = max(1, len(self.memory_MB) // 10)
        early, late = self.memory_MB[tenth : 2 * tenth], self.memory_MB[-tenth:]
        return sum(late) / len(late) - sum(early) / len(early)


def measure_run(num_images: int, scratch: Path) -> RunCost:
    """Score `num_images` small files in a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pixelbench.costs", str(num_images), str(scratch)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return RunCost(**json.loads(done.stdout))


def draw_memory(cost: RunCost) -> str:
    """An SVG of memory over the images scored."""
    width, height, left, bottom = 720, 260, 60, 40
    top_MB = 100 * (max(cost.memory_MB) // 100 + 1)
    last = max(1, len(cost.memory_MB) - 1)
    points = " ".join(
        f"{left + (width - left - 20) * index / last:.1f},"
        f"{20 + (height - bottom - 20) * (1 - value / top_MB):.1f}"
        for index, value in enumerate(cost.memory_MB)
    )
    ticks = [
        (value, 20 + (height - bottom - 20) * (1 - value / top_MB))
        for value in range(0, top_MB + 1, max(100, top_MB // 500 * 100))
    ]
    lines = "".join(
        f'<line x1="{left}" x2="{width - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>'
        for value, y in ticks
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12" fill="#444">'
        f'<rect width="{width}" height="{height}" fill="white"/>{lines}'
        f'<polyline points="{points}" fill="none" stroke="#2a6fdb" stroke-width="2"/>'
        f'<text x="{left}" y="{height - 12}">0 images</text>'
        f'<text x="{width - 20}" y="{height - 12}" text-anchor="end">'
        f"{cost.num_images:,} images</text>"
        f'<text x="{width // 2}" y="{height - 12}" text-anchor="middle">'
        "resident memory of the worker, MB</text></svg>\n"
    )


def _small_images(scratch: Path, count: int) -> Path:
    """A folder of `count` small JPEGs, no two the same, in folders of 10,000."""
    source = scratch / "small.jpg"
    Image.effect_noise((SIDE, SIDE), 40).convert("RGB").save(source, quality=80)
    folder = scratch / f"small-{count}"
    for part in range(0, count, 10_000):
        inner = folder / f"{part:07d}"
        inner.mkdir(parents=True, exist_ok=True)
        number_files([source], inner, min(10_000, count - part), first=part)
    return folder


def _run(num_images: int, scratch: Path) -> RunCost:
    configure_process()
    workload = make_workload("identity", scratch, 8)
    config = workload.config.model_copy(update={"shard": ShardConfig()})
    folder = _small_images(scratch, num_images)
    root = scratch / f"costs-{num_images}"
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal started
        now = time.perf_counter()
        seconds[step] = now - started
        started = now

    store = Store(root, create=True)
    known = store.table("catalog", columns=KNOWN_COLUMNS)
    started = time.perf_counter()
    listing = ingest(str(folder), config.ingest, known)
    lap("list")
    plan = plan_run(
        store, listing, workload.specs, config,
        collection="small", source=str(folder), date="2026-01-31",
    )  # fmt: skip
    record = save_plan(store, plan)
    lap("plan")
    with _Sampled() as sampled:
        for index in range(plan.num_shards):
            score_shard(store.root, record.run_id, index, device="cpu")
    lap("score")
    publish(store)
    lap("publish")
    files = [path for path in root.rglob("*") if path.is_file()]
    scored = store.table("images", model=workload.specs[0].key, columns=["image_id"]).num_rows
    if scored != num_images:
        raise RuntimeError(f"{scored} of {num_images} images are in the store")
    return RunCost(
        num_images=num_images,
        num_shards=plan.num_shards,
        seconds={step: round(value, 4) for step, value in seconds.items()},
        store_bytes=sum(path.stat().st_size for path in files),
        store_files=len(files),
        memory_MB=_thin(sampled.memory_MB),
    )


def _thin(values: Sequence[int]) -> list[int]:
    return list(itertools.islice(values, 0, None, max(1, len(values) // SAMPLES)))


class _Sampled:
    """Samples this process's memory while the body runs."""

    def __init__(self) -> None:
        self.memory_MB: list[int] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "_Sampled":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._end.is_set():
            self.memory_MB.append(process.memory_info().rss // 2**20)
            self._end.wait(SAMPLE_S)


if __name__ == "__main__":
    print(json.dumps(asdict(_run(int(sys.argv[1]), Path(sys.argv[2])))))
