"""Throughput by number of worker processes: growth while there are cores, then oversubscription.

python -m pixelbench.speedup WORKLOAD WORKERS SCRATCH     # one round, in a process of its own
"""

import functools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from pixelbench.contenders import plan_workload, score_part
from pixelbench.machine import cpu_seconds, machine_busy_s
from pixelbench.workloads import Workload, make_workload
from pixelmill.configs.schema import ShardConfig
from pixelmill.flows.pool import open_pool
from pixelmill.flows.submit import run_shards
from pixelmill.tasks.store import ShardRef, Store

__all__ = ["Pace", "Speedup", "measure_speedup"]

WORKERS = (1, 2, 3, 4)
NUM_IMAGES = 288
# Twelve can be shared by one to four alike
NUM_SHARDS = 12


@dataclass(frozen=True, slots=True)
class Pace:
    """One round of one number of workers.

    Attributes:
        cpu_s_per_image: of workers, scheduler and driver together.
        foreign: busy share of the machine's cores that was none of theirs.
    """

    images_per_s: float
    cpu_s_per_image: float
    foreign: float


@dataclass(frozen=True, slots=True)
class Speedup:
    """Images per second by number of worker processes, each of one thread.

    Attributes:
        num_cores: of the machine.
        rounds: by number of workers; those of one index were played one after the other.
    """

    title: str
    num_images: int
    num_shards: int
    num_cores: int
    rounds: dict[int, list[Pace]]

    def images_per_s(self, workers: int) -> float:
        """The median."""
        return statistics.median(each.images_per_s for each in self.rounds[workers])

    def ratios(self, workers: int) -> list[float]:
        """To one worker, round by round, smallest first."""
        pairs = zip(self.rounds[workers], self.rounds[1], strict=True)
        return sorted(many.images_per_s / one.images_per_s for many, one in pairs)


def measure_speedup(
    scratch: Path, *, num_rounds: int = 5, num_images: int | None = None
) -> Speedup:
    """Score the same images in the same shards by one worker, two and so on, by turns.

    A run of N workers has N cores, or all there are, for its workers, its scheduler and its driver
    together; it is the pool and the submit loop of the command.
    """
    num_images = num_images or NUM_IMAGES
    workload = make_workload("instances", scratch / "speedup", num_images)
    path = workload.save(scratch / "speedup.pickle")
    rounds: dict[int, list[Pace]] = {count: [] for count in WORKERS}
    for number in range(num_rounds):
        for count in WORKERS if number % 2 else WORKERS[::-1]:
            rounds[count].append(_play_apart(path, count, scratch))
    return Speedup(workload.title, num_images, NUM_SHARDS, os.cpu_count() or 1, rounds)


def _play_apart(workload: Path, num_workers: int, scratch: Path) -> Pace:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pixelbench.speedup",
         str(workload), str(num_workers), str(scratch)],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return Pace(**json.loads(done.stdout))


def _play(workload: Workload, num_workers: int, scratch: Path) -> Pace:
    """Time the whole workload on workers that have started and loaded the model."""
    with open_pool(f"local:{num_workers}", num_workers) as pool:
        first = workload.paths[: 2 * num_workers]
        _score(workload, first, num_workers, pool, scratch)
        return _score(workload, workload.paths, NUM_SHARDS, pool, scratch)


def _score(
    workload: Workload, paths: Sequence[Path], num_shards: int, pool: Any, scratch: Path
) -> Pace:
    root = scratch / "speedup-store"
    shutil.rmtree(root, ignore_errors=True)
    store = Store(root, create=True)
    limits = ShardConfig(max_images=math.ceil(len(paths) / num_shards), max_pixels=10**12)
    limited = workload.with_config(workload.config.model_copy(update={"shard": limits}))
    run_id, planned = plan_workload(store, limited, 1, paths)
    shards = [ShardRef(run_id, index, 0) for index in range(planned)]
    tree = [psutil.Process()]
    cpu_before, busy_before = cpu_seconds(tree), machine_busy_s()
    started = time.perf_counter()
    done = run_shards(pool, functools.partial(score_part, store.root), shards)
    elapsed = time.perf_counter() - started
    cpu_s, busy_s = cpu_seconds(tree) - cpu_before, machine_busy_s() - busy_before
    if done.num_done != num_shards:
        raise RuntimeError(f"{done.num_done} of {num_shards} shards were done: {done.failed}")
    return Pace(
        images_per_s=len(paths) / elapsed,
        cpu_s_per_image=cpu_s / len(paths),
        foreign=max(0.0, busy_s - cpu_s) / (elapsed * (os.cpu_count() or 1)),
    )


def main(workload: str, num_workers: str, scratch: str) -> None:
    """Play one round, on as many cores as there are workers."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: int(num_workers)])
    pace = _play(Workload.load(Path(workload)), int(num_workers), Path(scratch))
    print(json.dumps(asdict(pace)))


if __name__ == "__main__":
    main(*sys.argv[1:])
