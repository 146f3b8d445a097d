"""Compaction, pruning, garbage and audit, one after the other, on every kind of place."""

import io
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixelmill.tasks.store import Store, layout, publish, swap
from pixelmill.tasks.store import compact as compact_module
from pixelmill.tasks.store.audit import audit_store
from pixelmill.tasks.store.backend import LocalBackend, ObjectBackend
from pixelmill.tasks.store.compact import compact
from pixelmill.tasks.store.garbage import collect_garbage
from pixelmill.tasks.store.prune import prune

RUN_A, RUN_B = "20260101T000000-aaaaaa", "20260102T000000-bbbbbb"


@pytest.fixture(params=["local", "memory", "s3"])
def nightly(request, tmp_path, fakes, contents):
    """A run of ten images and a broken one by two models, published shard by shard."""
    if request.param == "s3":
        root = request.getfixturevalue("s3_root")
    else:
        root = {"local": str(tmp_path / "out"), "memory": f"memory://{tmp_path}"}[request.param]
    store = Store(root, create=True)
    run = fakes.make_run(store, {**contents, "broken.jpg": "x"}, run_id=RUN_A)
    for index in range(run.num_shards):
        fakes.score_shard(store, run, index)
        publish(store)
    return store


def rows_by_listing(store, name):
    """What one sees who lists the folder and opens what is there; None if that fails."""
    keys = [entry.key for entry in store.backend.list(name) if entry.key.endswith(".parquet")]
    try:
        tables = [pq.read_table(io.BytesIO(store.backend.get(key))) for key in keys]
    except (pa.ArrowInvalid, FileNotFoundError):
        return None
    return Counter(image_id for table in tables for image_id in table["image_id"].to_pylist())


def test_a_store_is_sound_through_its_life(nightly, fakes, contents, monkeypatch):
    monkeypatch.setattr(compact_module, "_SETTLED_S", -60.0)
    before = nightly.boxes()
    assert compact(nightly).num_records == 3
    assert audit_store(nightly).of("damage") == ()
    assert sorted(nightly.boxes().image_id) == sorted(before.image_id)
    collect_garbage(nightly, grace_s=-60)
    assert audit_store(nightly).findings == ()
    (pruned,) = prune(nightly, model=fakes.SEMANTIC.key)
    assert pruned.num_images == 10
    assert audit_store(nightly).of("damage") == ()
    collect_garbage(nightly, grace_s=-60)
    assert audit_store(nightly).of("damage") == ()

    run = fakes.make_run(nightly, contents, run_id=RUN_B)
    fakes.score_run(nightly, run)
    summary = publish(nightly)
    assert (summary.num_images, summary.num_dropped) == (10, 10)
    reader = Store(nightly.root)
    for path, content in contents.items():
        image_id = fakes.image_id_of(content)
        np.testing.assert_array_equal(reader.semantic_mask(path), fakes.semantic_of(image_id))
        if fakes.num_detections(image_id):
            truth = fakes.full_masks(fakes.detections_of(image_id), *fakes.size_of(image_id))
            np.testing.assert_array_equal(reader.instances(path).masks, truth)


def test_on_an_object_store_a_folder_is_read_right_or_not_at_all(
    tmp_path, fakes, contents, monkeypatch
):
    """Before and after every request of a compaction."""
    monkeypatch.setattr(compact_module, "_SETTLED_S", -60.0)
    store = Store(f"memory://{tmp_path}", create=True)
    run = fakes.make_run(store, contents, run_id=RUN_A)
    for index in range(run.num_shards):
        fakes.score_shard(store, run, index)
        publish(store)
    names = ("images", "detections", "catalog")
    before = {name: rows_by_listing(store, name) for name in names}
    seen = Counter()

    def look():
        for name in names:
            found = rows_by_listing(store, name)
            seen["failed" if found is None else "right"] += 1
            assert found in (None, before[name])
            assert Counter(store.table(name)["image_id"].to_pylist()) == before[name]

    def watched(call):
        def step(self, *args):
            look()
            result = call(self, *args)
            look()
            return result

        return step

    with monkeypatch.context() as patch:
        for name in ("put", "create", "delete"):
            patch.setattr(ObjectBackend, name, watched(getattr(ObjectBackend, name)))
        assert compact(store).num_records == 3
    assert {name: rows_by_listing(store, name) for name in names} == before
    assert seen["failed"] > 0
    assert seen["right"] > seen["failed"]


# Processes that sleep at the worst moment


@pytest.fixture
def local(tmp_path, fakes, contents):
    store = Store(tmp_path / "sleepy", create=True)
    run = fakes.make_run(store, contents, run_id=RUN_A)
    for index in range(run.num_shards):
        fakes.score_shard(store, run, index)
        publish(store)
    return store


def score_more(store, fakes):
    fakes.score_run(store, fakes.make_run(store, {"new.jpg": "new"}, run_id=RUN_B))


def test_a_publisher_that_sleeps_through_a_compaction_puts_nothing_back(local, fakes, monkeypatch):
    """It has looked for the mark of its record, and sleeps before it renames its part."""
    score_more(local, fakes)
    real, slept = LocalBackend.exists, []

    def exists(self, key):
        found = real(self, key)
        if key == layout.done_key(3) and not slept:
            slept.append(key)
            publish(Store(local.root))
            assert compact(Store(local.root)).num_records == 3
        return found

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "exists", exists)
        publish(local)
    assert slept
    for name in ("images", "catalog", "detections"):
        found = rows_by_listing(local, name)
        expected = Counter(local.table(name)["image_id"].to_pylist())
        assert found == expected
    assert len(local.parts("images", model=fakes.SEMANTIC.key)) == 1
    assert audit_store(local).of("damage") == ()


@pytest.mark.parametrize("moment", ["before it takes the folder", "before it exchanges it"])
def test_a_compactor_that_sleeps_takes_nothing_away_when_it_wakes(
    local, fakes, monkeypatch, moment
):
    """Meanwhile another has finished its change, and new rows were published into the folder."""
    from pathlib import Path

    real = {"rename": Path.rename, "exchange": swap._exchange}
    slept = []

    def others_go_on():
        if not slept:
            slept.append(True)
            publish(Store(local.root))  # finishes the change
            score_more(local, fakes)
            assert publish(Store(local.root)).num_images == 2

    def rename(self, target):
        if moment.startswith("before it takes"):
            others_go_on()
        return real["rename"](self, target)

    def exchange(one, other):
        if moment.startswith("before it exchanges") and "folders" in str(one):
            others_go_on()
        return real["exchange"](one, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        patch.setattr(swap, "_exchange", exchange)
        compact(local)
    assert slept
    assert len(local.images(fakes.SEMANTIC.key)) == 11
    for name in ("images", "catalog", "detections"):
        expected = Counter(local.table(name)["image_id"].to_pylist())
        assert rows_by_listing(local, name) == expected
    assert audit_store(local).of("damage") == ()
