import shutil
import threading
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from pixelmill.tasks.store import Store, layout, publish, schemas, swap
from pixelmill.tasks.store import compact as compact_module
from pixelmill.tasks.store.compact import compact

RUN_A, RUN_B = "20260101T000000-aaaaaa", "20260102T000000-bbbbbb"
TABLES = ("images", "detections", "candidates", "captions", "labels", "catalog", "failures")


def rows_of(store):
    return {name: sorted(map(repr, store.table(name).to_pylist())) for name in TABLES}


def publish_one_by_one(store, fakes, run):
    for index in range(run.num_shards):
        fakes.score_shard(store, run, index)
        publish(store)


@pytest.fixture
def nightly(store, fakes, contents):
    """Ten images and a broken one by two models, published in four steps."""
    run = fakes.make_run(store, {**contents, "broken.jpg": "x"}, run_id=RUN_A, per_shard=3)
    publish_one_by_one(store, fakes, run)
    return store


def test_the_same_rows_are_in_one_part_per_partition(nightly, fakes, contents):
    before = rows_of(nightly)
    summary = compact(nightly)
    assert rows_of(nightly) == before
    for name in TABLES:
        for folder in {part.folder for part in nightly.parts(name)}:
            assert len([part for part in nightly.parts(name) if part.folder == folder]) == 1
    entries = [entry for name in TABLES for entry in nightly.backend.list(name)]
    assert summary.num_parts_after == len(entries)
    assert summary.bytes_after == sum(entry.size_bytes for entry in entries)
    assert summary.num_parts_before > 3 * summary.num_parts_after
    assert summary.num_records == 3
    assert compact(nightly).num_records == 0


def test_masks_and_boxes_are_found_in_merged_parts(nightly, fakes, contents):
    compact(nightly)
    for path, content in contents.items():
        image_id = fakes.image_id_of(content)
        np.testing.assert_array_equal(nightly.semantic_mask(path), fakes.semantic_of(image_id))
        if fakes.num_detections(image_id):
            truth = fakes.full_masks(fakes.detections_of(image_id), *fakes.size_of(image_id))
            np.testing.assert_array_equal(nightly.instances(path).masks, truth)


def test_merged_parts_are_sorted_and_described(nightly, fakes):
    compact(nightly)
    (part,) = nightly.parts("detections", model=fakes.INSTANCE.key)
    table = pq.ParquetFile(Path(nightly.root, part.key)).read()
    keys = [("image_id", "ascending"), ("rank", "ascending")]
    assert table.equals(table.sort_by(keys))
    assert table.schema.metadata[b"pixelmill.model_key"] == fakes.INSTANCE.key.encode()
    assert pq.read_metadata(Path(nightly.root, part.key)).row_group(0).column(0).statistics


def test_rows_that_are_merged_in_stretches_are_the_same_in_the_same_order(
    nightly, monkeypatch, tmp_path
):
    whole = Store(shutil.copytree(nightly.root, tmp_path / "whole"))
    compact(whole)
    monkeypatch.setattr(compact_module, "_STRETCH_BYTES", 300)
    monkeypatch.setattr(compact_module, "_SAMPLED_ROWS", 1)
    monkeypatch.setattr(schemas, "ROW_GROUP_ROWS", 3)
    sorted_at_once = []
    monkeypatch.setattr(
        compact_module,
        "_in_order",
        lambda *args, given=compact_module._in_order: (
            sorted_at_once.append(rows.num_rows) or rows for rows in given(*args)
        ),
    )
    compact(nightly)
    assert max(sorted_at_once) < 10 < sum(sorted_at_once)
    for name in TABLES:
        rows = nightly.table(name)
        assert rows.equals(whole.table(name))
        assert rows.num_rows
    (part,) = nightly.parts("images", model=nightly.images().model[0])
    metadata = pq.read_metadata(Path(nightly.root, part.key))
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [3, 3, 3, 1]


def test_readers_of_folders_see_the_same(nightly, fakes):
    def seen():
        folder = f"{nightly.root}/detections"
        frames = (
            duckdb.execute(
                f"select image_id, rank from read_parquet('{folder}/*/*/*.parquet')"
            ).df(),
            pd.read_parquet(folder, columns=["image_id", "rank"]),
            pl.scan_parquet(folder).select("image_id", "rank").collect().to_pandas(),
        )
        return [sorted(map(tuple, frame.to_numpy().tolist())) for frame in frames]

    before = seen()
    compact(nightly)
    assert seen() == before


def test_publishing_goes_on_over_merged_parts(nightly, fakes, contents):
    """What stands already is dropped, what is new comes beside, and is merged the next time."""
    compact(nightly)
    more = {**contents, "new.jpg": "new"}
    fakes.score_run(nightly, fakes.make_run(nightly, more, run_id=RUN_B))
    summary = publish(nightly)
    assert (summary.num_images, summary.num_dropped) == (2, 20)
    assert len(nightly.parts("images", model=fakes.SEMANTIC.key)) == 2
    assert len(Store(nightly.root).published_ids(fakes.SEMANTIC.key)) == 11
    before = rows_of(nightly)
    compact(nightly)
    assert rows_of(nightly) == before
    assert len(nightly.parts("images", model=fakes.SEMANTIC.key)) == 1
    assert len(nightly.instances("a/03.jpg").masks) == fakes.num_detections(
        fakes.image_id_of(contents["a/03.jpg"])
    )


def test_of_a_changed_file_the_newest_is_current_after_merging(store, fakes):
    """Sizes are such that sorting by them would put the first version last."""
    for step, content in enumerate(("long, the first", "short", "middle x")):
        run = fakes.make_run(store, {"a.jpg": content}, run_id=f"2026010{step}T000000-aaaaaa")
        publish_one_by_one(store, fakes, run)
        compact(store)
        newest = fakes.semantic_of(fakes.image_id_of(content))
        np.testing.assert_array_equal(store.semantic_mask("a.jpg"), newest)
    assert len(store.parts("catalog")) == 1


def test_big_parts_are_left_alone(nightly):
    sizes = {entry.key: entry.size_bytes for entry in nightly.backend.list("images")}
    before = rows_of(nightly)
    summary = compact(nightly, target_bytes=max(sizes.values()))
    assert summary.num_records == 1  # failures and small tables are their partition's largest
    assert {entry.key for entry in nightly.backend.list("images")} == sizes.keys()
    assert rows_of(nightly) == before


def test_only_one_model(nightly, fakes):
    before = [part.key for part in nightly.parts("images", model=fakes.SEMANTIC.key)]
    compact(nightly, model=fakes.INSTANCE.key)
    assert [part.key for part in nightly.parts("images", model=fakes.SEMANTIC.key)] == before
    assert len(nightly.parts("images", model=fakes.INSTANCE.key)) == 1
    assert len(nightly.parts("catalog")) > 1


def test_damage_is_not_merged(nightly, fakes):
    part = nightly.parts("detections")[0]
    data = nightly.backend.get(part.key)
    nightly.backend.put(part.key, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"part-00000000.*audit --repair"):
        compact(nightly)
    assert len(nightly.parts("images", model=fakes.INSTANCE.key)) == 4


def test_young_parts_stay_where_folders_cannot_be_exchanged(nightly, monkeypatch):
    monkeypatch.setattr(swap, "can_exchange_folders", lambda backend: False)
    monkeypatch.setattr(compact_module, "can_exchange_folders", lambda backend: False)
    summary = compact(nightly)
    assert summary.num_records == 0
    assert summary.num_young == summary.num_parts_before == summary.num_parts_after
    monkeypatch.setattr(compact_module, "_SETTLED_S", -60.0)
    before = rows_of(nightly)
    assert compact(nightly).num_records == 3
    assert rows_of(nightly) == before
    assert not any(layout.is_changing(entry.key) for entry in nightly.backend.list("images"))


@pytest.mark.slow
def test_scoring_publishing_compacting_and_reading_at_once(store, fakes):
    """Two publishers, two compactors, and readers who go by the log or by the folders."""
    contents = {f"{i:02d}.jpg": f"picture {i}" for i in range(16)}
    runs = [
        fakes.make_run(store, contents, run_id=RUN_A, per_shard=2),
        fakes.make_run(store, contents, run_id=RUN_B, per_shard=3),
    ]
    ids = {fakes.image_id_of(content) for content in contents.values()}
    done, wrong, looks = threading.Event(), [], Counter()

    def guarded(work):
        def run(*args):
            try:
                work(*args)
            except BaseException as err:
                wrong.append(repr(err))

        return run

    def keep_compacting():
        while not done.is_set():
            compact(Store(store.root))

    def look():
        reader, seen = Store(store.root), set()
        while not done.is_set():
            images = reader.table("images", model=fakes.INSTANCE.key, columns=["image_id"])
            now = images["image_id"].to_pylist()
            if len(now) != len(set(now)) or not seen <= set(now):
                wrong.append(("store", len(now), len(seen)))
            seen = set(now)
            looks["store"] += 1

    def list_and_open():
        seen = set()
        folder = Path(store.root, "images", f"model={fakes.INSTANCE.key}")
        while not done.is_set():
            try:
                tables = [
                    pq.ParquetFile(path).read(columns=["image_id"])
                    for path in sorted(folder.rglob("*.parquet"))
                ]
            except FileNotFoundError:
                looks["folder was exchanged"] += 1
                continue
            now = [row for table in tables for row in table["image_id"].to_pylist()]
            if len(now) != len(set(now)) or not seen <= set(now):
                wrong.append(("folder", len(now), len(seen)))
            seen = set(now)
            looks["folder"] += 1

    helpers = [
        threading.Thread(target=guarded(work))
        for work in (keep_compacting, keep_compacting, look, list_and_open)
    ]
    for helper in helpers:
        helper.start()
    publishers = [
        threading.Thread(target=guarded(publish_one_by_one), args=(Store(store.root), fakes, run))
        for run in runs
    ]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join()
    done.set()
    for helper in helpers:
        helper.join()
    assert wrong == []
    assert min(looks["store"], looks["folder"]) > 2
    publish(store)
    compact(store)
    images = store.images()
    assert set(images.image_id) == ids
    assert not images[["image_id", "model"]].duplicated().any()
    expected = [(i, rank) for i in sorted(ids) for rank in range(fakes.num_detections(i))]
    boxes = store.boxes()
    assert sorted(zip(boxes.image_id, boxes["rank"], strict=True)) == expected
