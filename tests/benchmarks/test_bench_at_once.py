"""Two runs on one store at the same time: work done twice, and their throughput against one run's.

    pytest -m benchmark -s tests/benchmarks/test_bench_at_once.py

The commands are started together: the same nightly run twice, and a nightly run beside a backfill
of the same folder. All have two workers between them, as the single run has. Decodes are counted
in the workers, by a decoder that stands before the real one on their path. Prints a JSON line each.
"""

import json
import os
import resource
import runpy
import time
from pathlib import Path

import pytest

from pixelmill.tasks.store import Store
from pixelmill.tasks.store.audit import audit_store

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

NUM_IMAGES = int(os.environ.get("AT_ONCE_IMAGES", "240"))
NUM_SHARDS = 24
NUM_ROUNDS = int(os.environ.get("AT_ONCE_ROUNDS", "3"))
FLOWS = Path(__file__).parents[1] / "flows"
FAMILIES = {
    "one": (("score", "local:2"),),
    "twice the same": (("score", "local:1"), ("score", "local:1")),
    "nightly and backfill": (("score", "local:1"), ("backfill", "local:1")),
}


@pytest.fixture
def harness(tmp_path):
    chaos = runpy.run_path(str(FLOWS / "chaos.py"))
    harness = chaos["Harness"](tmp_path / "chaos", NUM_IMAGES, NUM_SHARDS, 1)
    for index, path in enumerate(sorted(harness.images.iterdir())):
        part = harness.images / f"part-{index % 4}"
        part.mkdir(exist_ok=True)
        path.rename(part / path.name)
    with harness.server():
        yield harness


@pytest.fixture
def counted(tmp_path) -> dict[str, str]:
    """Environment of workers that count what they decode."""
    (tmp_path / "planted" / "simplejpeg").mkdir(parents=True)
    planted = runpy.run_path(str(FLOWS / "hostile.py"))["PLANTED_DECODER"]
    (tmp_path / "planted" / "simplejpeg" / "__init__.py").write_text(planted)
    paths = [str(tmp_path / "planted"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def cpu_s() -> float:
    """Of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_two_runs_share_their_work(harness, counted, tmp_path):
    for number in range(NUM_ROUNDS):
        for name, commands in FAMILIES.items():
            store, log = tmp_path / f"{name}-{number}", tmp_path / f"{name}-{number}.log"
            log.touch()
            environment = counted | {"DECODED_LOG": str(log)}
            started, cpu = time.perf_counter(), cpu_s()
            running = [
                harness.launch(
                    kind, "pixelmill.flows.cli", kind, harness.images, "--config", harness.config,
                    "--out", store, "--cluster", cluster,
                    *(("--no-report",) if kind == "score" else ("--by", "folder")),
                    PREFECT_API_URL=harness.api, **environment,
                )
                for kind, cluster in commands
            ]  # fmt: skip
            codes = [each.wait() for each in running]
            wall_s = time.perf_counter() - started
            assert codes == [0] * len(codes), [each.log for each in running]
            rows = Store(store).images()
            doubled = int(rows.duplicated(["model", "image_id"]).sum())
            decoded = log.stat().st_size
            measured = {
                "what": name,
                "images": NUM_IMAGES,
                "wall_s": round(wall_s, 1),
                "images_per_s": round(NUM_IMAGES / wall_s, 2),
                "cpu_s": round(cpu_s() - cpu, 1),
                "decoded_twice": decoded - NUM_IMAGES,
                "rows": len(rows),
                "doubled_rows": doubled,
                "load": round(os.getloadavg()[0], 1),
            }
            print(json.dumps(measured), flush=True)
            assert doubled == 0
            assert len(rows) == 2 * NUM_IMAGES
            assert decoded - NUM_IMAGES < 0.05 * NUM_IMAGES
            assert not audit_store(Store(store)).of("damage")
