"""Planning a night: 1,000,000 catalogued images, 1,000 new ones, two models.

`pytest -m benchmark -s tests/benchmarks/test_bench_plan.py` prints one line of JSON. The store is
made directly of published parts, as a hundred nights of 10,000 images leave it; the plan runs in a
fresh process, whose peak memory is that of planning and nothing else. The listing of the disk is
given (the second benchmark times that); all the rest is what `pixelmill score` does.
"""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pixelmill.configs.schema import IngestConfig
from pixelmill.tasks.sources import IMAGES_SCHEMA, list_images
from pixelmill.tasks.store import TABLES, Store, layout
from pixelmill.tasks.store.schemas import encode_table

pytestmark = pytest.mark.benchmark

NUM_KNOWN = 1_000_000
NUM_NEW = 1_000
NUM_NIGHTS = 100
PACKAGES = ("pyarrow", "numpy", "fsspec")

MODELS = """
from pixelmill.configs.schema import ClassificationModel, PreprocessConfig, RunConfig
from pixelmill.models.spec import ModelSpec
preprocess = PreprocessConfig(canvases=((480, 640), (640, 480)))
specs = [
    ModelSpec(name=name, task="classification", architecture="fake", arguments={},
              weights_path="w", weights_sha256="0" * 64, classes=("cat",),
              preprocess=preprocess, precision="fp32")
    for name in ("one", "two")
]
"""
PLAN_ONE_NIGHT = """
import json, re, sys, time
import pyarrow as pa
from pixelmill.tasks import ingest as ingest_module
from pixelmill.tasks.ingest import KNOWN_COLUMNS, ingest
from pixelmill.tasks.plan import plan_run, save_plan
from pixelmill.tasks.sources import PROBLEMS_SCHEMA, SourceListing
from pixelmill.tasks.store import Store, publish

root, listing_file = sys.argv[1:]
with pa.OSFile(listing_file) as file:
    images = pa.ipc.open_file(file).read_all()
ingest_module.list_images = lambda *_: SourceListing(images, PROBLEMS_SCHEMA.empty_table())
config = RunConfig(name="b", models=(ClassificationModel(name="one", weights="w"),))

def peak_MB():
    # ru_maxrss would do, but Linux starts it with the peak of the process that called exec
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024

measured = {"before_MB": peak_MB()}
begin = start = time.perf_counter()
cpu = time.process_time()

def lap(name):
    global start
    now = time.perf_counter()
    measured[name + "_s"] = round(now - start, 2)
    measured[name + "_MB"] = peak_MB()
    start = now

store = Store(root)
publish(store)
lap("publish")
known = store.table("catalog", columns=KNOWN_COLUMNS, filters=[("collection", "=", "night")])
lap("read_catalog")
listing = ingest("given", config.ingest, known)
lap("join_and_probe")
plan = plan_run(store, listing, specs, config, collection="night", source="given",
                date="2026-01-31", num_workers=2)
lap("plan")
save_plan(store, plan)
lap("save")
print(json.dumps(measured | {
    "total_s": round(start - begin, 2), "cpu_s": round(time.process_time() - cpu, 2),
    "num_listed": plan.num_listed, "num_new": plan.num_new, "num_shards": plan.num_shards,
    "num_missing": sorted(plan.num_missing.values()),
    "num_reused": sorted(plan.num_reused.values()),
}))
"""


def fill(table: pa.Table, name: str) -> pa.Table:
    """The columns of a published table that planning does not look at."""
    constants = {"status": "ok", "scored_at": datetime(2026, 1, 1, tzinfo=UTC), "run_id": "r"}
    constants |= {"shard_id": "s", "collection": "night", "n_detections": 0, "n_captions": 0}
    columns = {}
    for field in TABLES[name].schema:
        if field.name in table.column_names:
            columns[field.name] = table[field.name]
        else:
            value = pa.scalar(constants.get(field.name), field.type)
            columns[field.name] = pa.repeat(value, table.num_rows)
    return pa.table(columns, schema=TABLES[name].schema)


def publish_parts(store: Store, night: int, images: pa.Table, model_keys: list[str]) -> None:
    parts = [("catalog", {"collection": "night"})]
    parts += [("images", {"model": key, "date": f"2025-{1 + night // 28:02d}-{1 + night % 28:02d}"})
              for key in model_keys]  # fmt: skip
    for name, partitions in parts:
        order = [(column, "ascending") for column in TABLES[name].sort_by]
        data = encode_table(fill(images, name).sort_by(order))
        store.backend.put(layout.part_key(name, partitions, night), data)
    store.backend.put(layout.done_key(night), b"")


def known_images(photo: Path) -> pa.Table:
    number = np.arange(NUM_KNOWN)
    rng = np.random.default_rng(0)
    raw = rng.bytes(16 * NUM_KNOWN).hex()
    return pa.table(
        {
            "path": [
                f"2025/night-{n // 10_000:03d}/camera-{n % 7}/IMG_{n:07d}.jpg" for n in number
            ],
            "source_uri": pa.repeat(str(photo), NUM_KNOWN),
            "size_bytes": rng.integers(100_000, 5_000_000, NUM_KNOWN),
            "modified": pa.array(1_700_000_000_123_456_789 + number * 1_000_003).cast(pa.string()),
            "image_id": [raw[i : i + 32] for i in range(0, len(raw), 32)],
            "width": pa.array(np.where(number % 3, 640, 480), pa.int32()),
            "height": pa.array(np.where(number % 3, 480, 640), pa.int32()),
        }
    )


def test_plan_of_a_thousand_new_among_a_million_known(tmp_path, machine):
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (640, 480)).save(photo)
    model_keys = subprocess.run(
        [sys.executable, "-P", "-c", MODELS + "print(*(spec.key for spec in specs))"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    store = Store(tmp_path / "out", create=True)
    known = known_images(photo)
    per_night = NUM_KNOWN // NUM_NIGHTS
    for night in range(NUM_NIGHTS):
        publish_parts(store, night, known.slice(night * per_night, per_night), model_keys)
    new = known.slice(0, NUM_NEW)
    names = pa.array([f"2026/night-000/IMG_{n:07d}.jpg" for n in range(NUM_NEW)])
    new = new.set_column(0, "path", names)
    listing = pa.concat_tables([known, new]).select(IMAGES_SCHEMA.names).cast(IMAGES_SCHEMA)
    with (
        pa.OSFile(str(tmp_path / "listing.arrow"), "wb") as file,
        pa.ipc.new_file(file, listing.schema) as writer,
    ):
        writer.write_table(listing)
    result = subprocess.run(
        [sys.executable, "-P", "-c", MODELS + PLAN_ONE_NIGHT, store.root,
         str(tmp_path / "listing.arrow")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    print(json.dumps({"benchmark": "plan_1e6_known_1e3_new"} | measured | machine(*PACKAGES)))
    assert measured["num_listed"] == NUM_KNOWN + NUM_NEW
    assert measured["num_new"] == NUM_NEW
    assert measured["num_missing"] == [NUM_NEW, NUM_NEW]
    assert measured["num_reused"] == [NUM_KNOWN, NUM_KNOWN]


def test_listing_of_a_hundred_thousand_files(tmp_path, machine):
    for folder in range(100):
        (tmp_path / str(folder)).mkdir()
        for number in range(1000):
            (tmp_path / str(folder) / f"{number}.jpg").touch()
    start = time.perf_counter()
    listing = list_images(str(tmp_path), IngestConfig())
    seconds = round(time.perf_counter() - start, 3)
    measured = {"benchmark": "list_1e5_local_files", "seconds": seconds}
    print(json.dumps(measured | machine(*PACKAGES)))
    assert listing.images.num_rows == 100_000
    assert listing.problems.num_rows == 0
