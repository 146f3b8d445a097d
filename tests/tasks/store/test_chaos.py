"""kill -9 at every step, two overlapping runs, readers beside: nothing lost, doubled, half seen."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest

from pixelmill.tasks.store import Store, publish
from pixelmill.tasks.store.compact import compact
from pixelmill.tasks.store.log import read_log

SECONDS = 8
NUM_IMAGES, OVERLAP = 45, 20


@pytest.fixture
def prepared(tmp_path, fakes):
    """A nightly run and a backfill of other shards, other date and half the same images."""
    store = Store(tmp_path / "out", create=True)
    nightly = {f"{i:03d}.jpg": f"picture {i}" for i in range(NUM_IMAGES)}
    backfill = {f"{i:03d}.jpg": f"picture {i}" for i in range(OVERLAP, NUM_IMAGES + OVERLAP)} | {
        "copy of 3.jpg": "picture 3",
        "copy of 70.jpg": "picture 70",
    }
    fakes.make_run(store, nightly, run_id="20260102T000000-aaaaaa", date="2026-01-02", per_shard=3)
    fakes.make_run(store, backfill, run_id="20260101T000000-bbbbbb", per_shard=4)
    return store, nightly | backfill


def violations(root, fakes):
    """What three readers that know nothing of the commit folder see wrong at this moment."""
    for _ in range(20):
        try:
            return look(root, fakes)
        except (FileNotFoundError, duckdb.IOException):
            continue  # a folder was exchanged after it was listed
    raise AssertionError("folders are exchanged all the time")


def look(root, fakes):
    model, found = fakes.INSTANCE.key, []
    folder = f"{root}/detections/model={model}"
    frames = {
        "duckdb": duckdb.execute(
            f"select image_id, rank from read_parquet('{folder}/*/*.parquet')"
        ).df(),
        "pandas": pd.read_parquet(f"{root}/detections", columns=["image_id", "rank"]),
        "polars": pl.scan_parquet(f"{root}/detections").select("image_id", "rank").collect(),
    }
    for reader, frame in frames.items():
        counts = Counter(zip(frame["image_id"], frame["rank"], strict=True))
        found += [(reader, "doubled", key) for key, number in counts.items() if number > 1]
        ranks = Counter(image_id for image_id, _ in counts)
        found += [
            (reader, "partial", image_id)
            for image_id, number in ranks.items()
            if number != fakes.num_detections(image_id)
        ]
    if any(Path(root, "images").rglob("*.parquet")):  # a part's folder is there before the part
        images = pd.read_parquet(f"{root}/images", columns=["image_id", "model"])
        found += [("pandas", "doubled image", i) for i in images[images.duplicated()].image_id]
    return found


@pytest.mark.slow
def test_sigkill_at_any_moment_loses_and_doubles_nothing(prepared, fakes):
    store, contents = prepared
    worker = Path(__file__).with_name("chaos_worker.py")
    probes, wrong = 0, []
    with subprocess.Popen(
        [sys.executable, str(worker), store.root, str(SECONDS), "1"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None:
            if any(Path(store.root, "detections").rglob("*.parquet")):
                wrong += violations(store.root, fakes)
                probes += 1
            time.sleep(0.05)  # the workers need the processor too
        output = process.communicate()[0].split("\n")
    assert process.returncode == 0
    assert [line for line in output if line.startswith("ERROR")] == []
    kills = int(output[-2])
    assert kills >= 10, f"only {kills} kills: the test proves little"
    assert probes >= 5
    assert wrong == []

    committed_under_fire = len(store.receipts())
    assert committed_under_fire > 0
    for run in map(store.run, store.runs()):
        for index in set(range(run.num_shards)) - store.committed_shards(run.run_id):
            fakes.score_shard(store, run, index)
    publish(store)
    num_merges = len(read_log(store.backend, store.dataset_id).replacements)
    assert num_merges > 0
    compact(store)

    assert violations(store.root, fakes) == []
    ids = sorted({fakes.image_id_of(content) for content in contents.values()})
    for spec in fakes.MODELS:
        assert sorted(store.images(spec.key).image_id) == ids
    assert sorted(store.captions().image_id) == ids
    assert sorted(store.catalog().path) == sorted(contents)
    expected = [(i, rank) for i in ids for rank in range(fakes.num_detections(i))]
    boxes = store.boxes()
    assert sorted(zip(boxes.image_id, boxes["rank"], strict=True)) == expected
    for image_id in ids:
        np.testing.assert_array_equal(store.semantic_mask(image_id), fakes.semantic_of(image_id))
        if fakes.num_detections(image_id):
            truth = fakes.full_masks(fakes.detections_of(image_id), *fakes.size_of(image_id))
            np.testing.assert_array_equal(store.instances(image_id).masks, truth)
