"""What one shard costs the run besides its work, and what that means for many workers.

Measured on local disk, each in its own terms: handing a shard to a worker and back, its receipt,
reading its part of a plan of a million images, listing receipts, publishing. `cluster_model` makes
fleets of these.
"""

import hashlib
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pixelbench.cluster_model import Costs, Fleet, Outcome, simulate
from pixelbench.workloads import make_workload
from pixelmill.flows.pool import open_pool
from pixelmill.flows.submit import run_shards
from pixelmill.tasks.ingest import KNOWN_COLUMNS, ingest
from pixelmill.tasks.plan import plan_run
from pixelmill.tasks.predictions import ImagePrediction, Label
from pixelmill.tasks.store import (
    PLAN,
    CatalogRow,
    ImageRow,
    RunRecord,
    ShardRef,
    ShardWriter,
    Store,
    publish,
)

__all__ = ["FLEETS", "ShardCosts", "measure_shard_costs", "predict"]

NUM_WORKERS = 2
FLEETS = (1, 2, 8, 64, 256, 1000)
SHARD_IMAGES = 256


@dataclass(frozen=True, slots=True)
class ShardCosts:
    """Milliseconds; medians where there are several.

    Attributes:
        driver_ms: of the driver for each shard that does nothing, with two workers; the whole
            loop, scheduler and workers share two cores with it.
        read_plan_ms: reading a shard's rows, by images in the plan.
        plan_bytes: of the stored plan, by images in it.
        receipt_ms: committing a shard of 256 images with 3 labels each: files, then the receipt.
        list_receipts_ms: which shards of a run are committed, by receipts.
        publish_ms: of a publication of 64 receipts, by shards published before it.
    """

    driver_ms: float
    read_plan_ms: dict[int, float]
    plan_bytes: dict[int, int]
    receipt_ms: float
    list_receipts_ms: dict[int, float]
    publish_ms: dict[int, float]

    def model(self) -> Costs:
        """As the simulation wants them; publishing as slow as it has become at the end."""
        publish_s = 1e-3 * self.publish_ms[max(self.publish_ms)]
        return Costs(
            driver_s=1e-3 * self.driver_ms,
            hand_over_s=1e-3 * self.read_plan_ms[max(self.read_plan_ms)],
            publish_s=publish_s,
        )


def nothing(
    shard: ShardRef,
    /,
    *,
    should_stop: Callable[[], bool],
    on_scored: Callable[[], None] | None = None,
) -> int:
    """A shard that is done at once."""
    del should_stop, on_scored
    return shard.index


def measure_shard_costs(scratch: Path, *, scale: float = 1.0) -> ShardCosts:
    """Measure all of them; `scale` < 1 for a quick look."""
    plans = [max(1000, int(scale * size)) for size in (10_000, 1_000_000)]
    counts = [max(64, int(scale * count) // 64 * 64) for count in (256, 1024)]
    read_plan_ms, plan_bytes = {}, {}
    for num_images in plans:
        read_plan_ms[num_images], plan_bytes[num_images] = _time_plan(scratch, num_images)
    receipt_ms, list_ms, publish_ms = _time_commits(scratch, counts)
    return ShardCosts(
        driver_ms=1e3 * _time_driver(max(50, int(2000 * scale))),
        read_plan_ms=read_plan_ms,
        plan_bytes=plan_bytes,
        receipt_ms=receipt_ms,
        list_receipts_ms=list_ms,
        publish_ms=publish_ms,
    )


def predict(
    costs: Costs, *, shard_s: float, num_shards: int, workers: Sequence[int] = FLEETS
) -> dict[int, Outcome]:
    """What fleets would do with a run of `num_shards` shards of `shard_s` seconds."""
    return {
        count: simulate(num_shards, Fleet(count, shard_s, spread=0.2, start_s=10.0), costs)
        for count in workers
    }


def _time_driver(num_shards: int) -> float:
    """Seconds per shard of a run whose shards do nothing."""
    shards = [
        ShardRef("20260131T000000-000000", index, SHARD_IMAGES) for index in range(num_shards)
    ]
    with open_pool(f"local:{NUM_WORKERS}", num_shards) as pool:
        run_shards(pool, nothing, shards[:20])
        started = time.perf_counter()
        done = run_shards(pool, nothing, shards)
        elapsed = time.perf_counter() - started
    if done.num_done != num_shards:
        raise RuntimeError(f"{done.num_done} of {num_shards} shards were done")
    return elapsed / num_shards


def _time_plan(scratch: Path, num_images: int) -> tuple[float, int]:
    """Milliseconds to read a shard's rows of a stored plan, and the plan's bytes."""
    store = _fresh_store(scratch)
    run_id = _store_plan(store, scratch, num_images)
    num_shards = num_images // SHARD_IMAGES
    times = []
    for index in np.linspace(0, num_shards - 1, 9).astype(int):
        started = time.perf_counter()
        rows = Store(store.root).shard_rows(run_id, int(index))
        times.append(time.perf_counter() - started)
        if rows.num_rows != SHARD_IMAGES:
            raise RuntimeError(f"shard {index} has {rows.num_rows} rows")
    plan = next(Path(store.root).rglob(f"{run_id}.parquet"))
    return 1e3 * statistics.median(times), plan.stat().st_size


def _time_commits(
    scratch: Path, counts: Sequence[int]
) -> tuple[float, dict[int, float], dict[int, float]]:
    """Milliseconds of a commit, of listing commits, and of publishing 64 of them."""
    store = _fresh_store(scratch)
    run_id = _store_plan(store, scratch, counts[-1] * SHARD_IMAGES)
    commits: list[float] = []
    list_ms: dict[int, float] = {}
    publish_ms: dict[int, float] = {}
    run = store.run(run_id)
    for index in range(counts[-1]):
        writer = _filled_writer(store, run, index)
        started = time.perf_counter()
        writer.commit({"wall_s": 10.0})
        commits.append(time.perf_counter() - started)
        if (index + 1) % 64:
            continue
        started = time.perf_counter()
        publish(store)
        seconds = time.perf_counter() - started
        if index + 1 in counts:
            publish_ms[index + 1] = 1e3 * seconds
            started = time.perf_counter()
            found = len(store.committed_shards(run_id))
            list_ms[index + 1] = 1e3 * (time.perf_counter() - started)
            if found != index + 1:
                raise RuntimeError(f"{found} of {index + 1} receipts were listed")
    return 1e3 * statistics.median(commits), list_ms, publish_ms


def _filled_writer(store: Store, run: RunRecord, shard_index: int) -> ShardWriter:
    """A shard's writer with a classifier's results in it."""
    writer = ShardWriter(store, run, shard_index)
    prediction = ImagePrediction(labels=tuple(Label(number, 0.3) for number in range(3)))
    for number in range(shard_index * SHARD_IMAGES, (shard_index + 1) * SHARD_IMAGES):
        path = f"2026/01/31/camera-7/IMG_{number:08d}.jpg"
        known = ("costs", path, f"/nowhere/{path}")
        image_id = hashlib.sha256(path.encode()).hexdigest()[:32]
        writer.add_catalog(CatalogRow(*known, 200_000, str(number), image_id, 640, 480))
        image = ImageRow(image_id, *known, 640, 480, 200_000, str(number))
        writer.add_image(image, run.models[0].key, prediction)
    return writer


def _fresh_store(scratch: Path) -> Store:
    root = scratch / "shard-costs"
    shutil.rmtree(root, ignore_errors=True)
    return Store(root, create=True)


def _store_plan(store: Store, scratch: Path, num_images: int) -> str:
    """A run over files that are nowhere; only its plan matters."""
    workload = make_workload("identity", scratch, 8)
    listing = ingest(
        str(workload.folder), workload.config.ingest, store.table("catalog", columns=KNOWN_COLUMNS)
    )
    plan = plan_run(
        store, listing, workload.specs, workload.config,
        collection="costs", source=str(workload.folder), date="2026-01-31",
    )  # fmt: skip
    if plan.record is None:
        raise RuntimeError("nothing to plan")
    numbers = np.arange(num_images)
    columns: dict[str, Any] = {
        "shard": numbers // SHARD_IMAGES,
        "path": [f"2026/01/31/camera-7/IMG_{number:08d}.jpg" for number in numbers],
        "source_uri": [f"/nowhere/2026/01/31/camera-7/IMG_{number:08d}.jpg" for number in numbers],
        "size_bytes": numbers % 1_000_000 + 100_000,
        "modified": (1_700_000_000_123_456_789 + numbers * 1_000_003).astype(str),
        "width": np.full(num_images, 640),
        "height": np.full(num_images, 480),
        "image_id": pa.nulls(num_images, pa.string()),
        "model_mask": np.ones(num_images, int),
    }
    rows = pa.table({name: columns[name] for name in PLAN.names}).cast(PLAN)
    record = plan.record.model_copy(
        update={"num_images": num_images, "num_shards": num_images // SHARD_IMAGES}
    )
    store.create_run(record, rows)
    return record.run_id
