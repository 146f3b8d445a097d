"""Parts are replaced as one step, whoever dies where, and whoever looks when."""

import itertools
import os
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixelmill.tasks.store import Store, publish, swap
from pixelmill.tasks.store.backend import LocalBackend
from pixelmill.tasks.store.change import Change
from pixelmill.tasks.store.schemas import TABLES, encode_table

RUN_A = "20260101T000000-aaaaaa"


@pytest.fixture
def three_parts(store, fakes):
    """Three publications, so three parts in each partition."""
    contents = {f"{number}.jpg": f"picture {number}" for number in range(3)}
    models = (fakes.INSTANCE,)
    run = fakes.make_run(store, contents, run_id=RUN_A, per_shard=1, models=models)
    for index in range(run.num_shards):
        fakes.score_shard(store, run, index)
        publish(store)
    return store


@pytest.fixture(params=["folders at once", "one by one"])
def way(request, monkeypatch):
    if request.param == "one by one":
        monkeypatch.setattr(swap, "can_exchange_folders", lambda backend: False)
    return request.param


def merge(store, model, names=("images", "detections")):
    """All parts but the last of some tables of one model become one."""
    parts = {name: store.parts(name, model=model)[:-1] for name in names}
    change = Change(store, "compact", [part for found in parts.values() for part in found])
    for name, found in parts.items():
        tables = []
        for part in found:
            with store.backend.open(part.path) as file:
                tables.append(pq.read_table(file))
        order = [(column, "ascending") for column in TABLES[name].sort_by]
        rows = pa.concat_tables(tables).sort_by(order)
        change.add(name, found[0].partitions, found[-1].seq, encode_table(rows))
    return change


def rows_by_store(store):
    return {
        name: sorted(map(repr, store.table(name).to_pylist())) for name in ("images", "detections")
    }


def rows_by_listing(store, name):
    """What one sees who lists the folder and opens what is there; None if that fails."""
    keys = [entry.key for entry in store.backend.list(name) if entry.key.endswith(".parquet")]
    try:
        tables = [pq.read_table(pa.BufferReader(store.backend.get(key))) for key in keys]
    except pa.ArrowInvalid:
        return None
    rows = [row for table in tables for row in table.select(["image_id"]).to_pylist()]
    return Counter(row["image_id"] for row in rows)


def copy_of(store, folder):
    ignored = shutil.ignore_patterns("masks", "staging")  # are not looked at
    return shutil.copytree(store.root, folder, ignore=ignored)


class Steps:
    """Dies before its n-th call of anything that changes the disk."""

    def __init__(self, monkeypatch, survived):
        self.left = survived
        for owner, name in (
            (LocalBackend, "put"),
            (LocalBackend, "create"),
            (LocalBackend, "delete"),
            (os, "link"),
            (os, "replace"),
            (Path, "rename"),
            (Path, "rmdir"),
            (swap, "_exchange"),
        ):
            monkeypatch.setattr(owner, name, self.wrapped(getattr(owner, name)))

    def wrapped(self, call):
        def step(*args, **kwargs):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return call(*args, **kwargs)

        return step


@pytest.mark.parametrize("op", ["merge", "remove"])
def test_a_change_that_dies_anywhere_is_finished_by_the_next(
    tmp_path, three_parts, fakes, monkeypatch, way, op
):
    model = fakes.INSTANCE.key

    def change_of(store):
        if op == "merge":
            return merge(store, model)
        return Change(store, "prune", store.parts("images", model=model))

    before = rows_by_store(three_parts)
    naive = {name: rows_by_listing(three_parts, name) for name in ("images", "detections")}
    done = Store(copy_of(three_parts, tmp_path / "done"))
    assert change_of(done).commit() is not None
    after = rows_by_store(done)
    naive_after = {name: rows_by_listing(done, name) for name in naive}
    assert (before == after) is (op == "merge")
    survived = 0
    for survived in itertools.count():
        root = copy_of(three_parts, tmp_path / str(survived))  # a new one: caches go by path
        store = Store(root)
        with monkeypatch.context() as patch:
            steps = Steps(patch, survived)
            with suppress(KeyboardInterrupt):
                change_of(store).commit()
        assert rows_by_store(store) in (before, after)
        for name, rows in naive.items():
            seen = rows_by_listing(store, name)
            assert seen in (rows, naive_after[name]) or (seen is None and way == "one by one")
        publish(Store(root))  # finishes it, if its record was created
        other = Store(root)
        assert rows_by_store(other) in (before, after)
        assert all(rows_by_listing(other, name) is not None for name in naive)
        if rows_by_store(other) == before and op == "remove":
            assert change_of(other).commit() is not None
        shutil.rmtree(root)
        if steps.left:
            break
    assert survived > 10
