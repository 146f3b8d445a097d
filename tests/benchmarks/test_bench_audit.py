"""Audit of a store of 1,000,000 images and 5,000,000 boxes, as a hundred nights leave it.

`pytest -m benchmark -s tests/benchmarks/test_bench_audit.py` prints one line of JSON each. The
store is made directly of published parts, with their log, receipts, catalog and a hundred ended
runs; each audit runs in a fresh process, whose peak memory is that of auditing and nothing else.
"""

import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.store import (
    PLAN,
    TABLES,
    ModelCounts,
    Receipt,
    RunEnd,
    RunRecord,
    Store,
    layout,
    shard_id,
)
from pixelmill.tasks.store.log import PartSum, PublishMark, PublishRecord
from pixelmill.tasks.store.schemas import encode_table, table_metadata

pytestmark = pytest.mark.benchmark

NUM_IMAGES = 1_000_000
NUM_NIGHTS = 100
PER_NIGHT = NUM_IMAGES // NUM_NIGHTS
PER_SHARD = 1_000
MODEL = "detector-00000000"
PACKAGES = ("pyarrow", "numpy")

AUDIT = """
import json, re, sys, time
from pixelmill.tasks.store import Store
from pixelmill.tasks.store.audit import audit_store

def peak_MB():
    # ru_maxrss would do, but Linux starts it with the peak of the process that called exec
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024

root, mode = sys.argv[1:]
measured = {"before_MB": peak_MB()}
cpu = time.process_time()
audit = audit_store(Store(root), full=mode == "full")
print(json.dumps(measured | {
    "mode": mode, "seconds": round(audit.seconds, 2), "cpu_s": round(time.process_time() - cpu, 2),
    "peak_MB": peak_MB(), "num_rows": audit.num_rows, "num_parts": audit.num_parts,
    "num_receipts": audit.num_receipts, "findings": [f.kind for f in audit.findings],
}))
"""
LEDGER = """
import json, re, sys, time
from pixelmill.tasks.store import Store, run_ledger

def peak_MB():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024

begin = time.perf_counter()
ledger = run_ledger(Store(sys.argv[1]), sys.argv[2])
(counts,) = ledger.counts.values()
print(json.dumps({
    "seconds": round(time.perf_counter() - begin, 2), "peak_MB": peak_MB(),
    "complete": ledger.is_complete, "listed": counts.listed,
    "scored": counts.scored + counts.scored_empty,
}))
"""


def table_of(name: str, columns: dict[str, object], num_rows: int) -> pa.Table:
    """Columns that are given, and something for the others."""
    constants = {"status": "ok", "scored_at": datetime(2026, 1, 1, tzinfo=UTC)}
    constants |= {"collection": "night", "n_captions": 0, "width": 640, "height": 480}
    constants |= {"source_uri": "/data", "modified": "1700000000123456789", "class_id": 3}
    constants |= {"class_name": "car"}
    filled = {
        field.name: columns[field.name]
        if field.name in columns
        else pa.repeat(pa.scalar(constants.get(field.name), field.type), num_rows)
        for field in TABLES[name].schema
    }
    table = pa.table(filled, schema=TABLES[name].schema)
    model = None if name == "catalog" else MODEL
    return table.replace_schema_metadata(table_metadata(name, model, ("car",)))


def run_id_of(night: int) -> str:
    return f"202601{1 + night % 28:02d}T{night // 28:02d}0000-{night:06x}"


def make_night(store: Store, night: int, rng: np.random.Generator) -> None:
    """A run of ten shards, published and ended."""
    run_id, date = run_id_of(night), f"2025-{1 + night // 28:02d}-{1 + night % 28:02d}"
    raw = rng.bytes(16 * PER_NIGHT).hex()
    ids = np.array(sorted(raw[i : i + 32] for i in range(0, len(raw), 32)), object)
    numbers = rng.poisson(5, PER_NIGHT).astype(np.int32)
    rank = np.arange(numbers.sum()) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    shards = [shard_id(run_id, k) for k in range(PER_NIGHT // PER_SHARD)]
    paths = np.array([f"night-{night:03d}/IMG_{n:07d}.jpg" for n in range(PER_NIGHT)], object)
    sizes = rng.integers(100_000, 5_000_000, PER_NIGHT)
    boxes = rng.random((4, len(rank)), np.float32)
    tables = {
        "images": {
            "image_id": ids,
            "path": paths,
            "size_bytes": sizes,
            "n_detections": numbers,
            "shard_id": np.repeat(np.array(shards, object), PER_SHARD),
            "run_id": pa.repeat(run_id, PER_NIGHT),
        },
        "detections": {
            "image_id": np.repeat(ids, numbers),
            "rank": rank.astype(np.int32),
            "score": rng.random(len(rank), np.float32),
            **dict(zip(("x_min", "y_min", "x_max", "y_max"), boxes, strict=True)),
        },
        "catalog": {
            "path": paths,
            "size_bytes": sizes,
            "image_id": ids,
            "run_id": pa.repeat(run_id, PER_NIGHT),
        },
    }
    parts = {}
    for name, columns in tables.items():
        rows = len(rank) if name == "detections" else PER_NIGHT
        key = layout.part_key(name, {"model": MODEL, "date": date, "collection": "night"}, night)
        data = encode_table(table_of(name, columns, rows))
        store.backend.put(key, data)
        digest = hashlib.sha256(data).hexdigest()
        parts[key] = PartSum(num_rows=rows, size_bytes=len(data), sha256=digest)
    record = PublishRecord(seq=night, shards=tuple(shards), drop={}, nonce="0")
    mark = PublishMark(record=record, parts=parts)
    store.backend.put(layout.log_key(night), record.model_dump_json().encode())
    store.backend.put(layout.done_key(night), mark.model_dump_json().encode())
    for index, shard in enumerate(shards):
        receipt = Receipt(
            shard_id=shard, attempt="0" * 8, run_id=run_id, shard_index=index, date=date,
            collection="night", committed_at="2026-01-01T00:00:00+00:00", num_inputs=PER_SHARD,
            num_scored={MODEL: PER_SHARD}, num_failed=0, files=(),
        )  # fmt: skip
        key = layout.receipt_key(run_id, shard)
        store.backend.put(key, receipt.model_dump_json().encode())
    counts = ModelCounts(listed=PER_NIGHT, scored=PER_NIGHT, scored_empty=0, retryable=0)
    end = RunEnd(run_id=run_id, ended_at="", state="complete", ledger={MODEL: counts})
    store.backend.put(layout.end_key(run_id), end.model_dump_json().encode())


@pytest.fixture(scope="module")
def million(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("audit") / "out", create=True)
    rng = np.random.default_rng(0)
    for night in range(NUM_NIGHTS):
        make_night(store, night, rng)
    return store


def measure(code: str, *arguments: str) -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_audit_of_a_million_images(million, machine, mode):
    measured = measure(AUDIT, million.root, mode)
    print(json.dumps({"benchmark": "audit_1e6_images"} | measured | machine(*PACKAGES)))
    assert measured["findings"] == []
    assert measured["num_rows"]["images"] == NUM_IMAGES
    assert measured["num_rows"]["detections"] > 4.9 * NUM_IMAGES


def test_ledger_of_a_run_of_a_million_images(tmp_path, machine):
    """One run that planned a million images for one model and scored all of them."""
    store = Store(tmp_path / "out", create=True)
    spec = ModelSpec(
        name="detector", task="detection", architecture="fake", arguments={}, weights_path="w",
        weights_sha256="0" * 64, classes=("car",), precision="fp32",
        preprocess=PreprocessConfig(canvases=((64, 64),)),
    )  # fmt: skip
    run_id = run_id_of(0)
    number = np.arange(NUM_IMAGES)
    raw = np.random.default_rng(0).bytes(16 * NUM_IMAGES).hex()
    ids = np.array(sorted(raw[i : i + 32] for i in range(0, len(raw), 32)), object)
    paths = np.array([f"night/camera-{n % 7}/IMG_{n:07d}.jpg" for n in number], object)
    plan = {
        "shard": (number // PER_SHARD).astype(np.int32),
        "path": paths,
        "source_uri": paths,
        "size_bytes": number,
        "modified": pa.repeat("1700000000123456789", NUM_IMAGES),
        "width": pa.nulls(NUM_IMAGES, pa.int32()),
        "height": pa.nulls(NUM_IMAGES, pa.int32()),
        "image_id": pa.nulls(NUM_IMAGES, pa.string()),
        "model_mask": np.ones(NUM_IMAGES, np.int64),
    }
    num_shards = NUM_IMAGES // PER_SHARD
    record = RunRecord(
        run_id=run_id, date="2026-01-01", collection="night", source="/data",
        created_at="2025-01-01T00:00:00+00:00", config={}, models=(spec,), num_images=NUM_IMAGES,
        num_shards=num_shards,
    )  # fmt: skip
    store.create_run(record, pa.table(plan, schema=PLAN))
    shards = [shard_id(run_id, k) for k in range(num_shards)]
    columns = {
        "image_id": ids,
        "path": paths,
        "size_bytes": number,
        "n_detections": np.ones(NUM_IMAGES, np.int32),
        "shard_id": np.repeat(np.array(shards, object), PER_SHARD),
        "run_id": pa.repeat(run_id, NUM_IMAGES),
    }
    images = table_of("images", columns, NUM_IMAGES)
    catalog = table_of("catalog", columns, NUM_IMAGES)
    for seq in range(4):
        place = {"model": spec.key, "date": record.date, "collection": "night"}
        for name, table in (("images", images), ("catalog", catalog)):
            rows = table.slice(seq * NUM_IMAGES // 4, NUM_IMAGES // 4)
            store.backend.put(layout.part_key(name, place, seq), encode_table(rows))
        of_record = tuple(shards[seq * num_shards // 4 : (seq + 1) * num_shards // 4])
        published = PublishRecord(seq=seq, shards=of_record, drop={}, nonce="0")
        mark = PublishMark(record=published, parts={})
        store.backend.put(layout.log_key(seq), published.model_dump_json().encode())
        store.backend.put(layout.done_key(seq), mark.model_dump_json().encode())
    for shard in shards:
        store.backend.put(layout.receipt_key(run_id, shard), b"{}")
    measured = measure(LEDGER, store.root, run_id)
    print(json.dumps({"benchmark": "ledger_1e6_inputs"} | measured | machine(*PACKAGES)))
    assert measured["complete"]
    assert measured["scored"] == NUM_IMAGES
