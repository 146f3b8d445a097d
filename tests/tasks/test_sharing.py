"""Which shards of other runs are taken part in; runs are plan tables written by hand."""

import numpy as np
import pyarrow as pa
import pytest

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.ingest import LISTING_SCHEMA
from pixelmill.tasks.sharing import OpenRun, Wanted, adopt_shards
from pixelmill.tasks.store import PLAN, RunRecord, ShardWriter, Store, new_run_id

CONFIG = {"ingest": {"max_pixels": 7}, "compute": {"cluster": "local", "memory": 9}}
DATE = "2026-01-31"


def make_spec(name: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="classification",
        architecture="fake",
        arguments={},
        weights_path="fake.safetensors",
        weights_sha256=name * 8,
        classes=("cat", "dog"),
        preprocess=PreprocessConfig(canvases=((64, 64),)),
        precision="fp32",
    )


FIRST, SECOND = make_spec("first"), make_spec("second")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", create=True)


def file(path: str, modified: str = "1") -> dict[str, object]:
    uri = f"/images/{path}"
    return {"path": path, "source_uri": uri, "size_bytes": 9, "modified": modified}


def begin(store, shards: list[list[str]], specs=(FIRST,), **changes) -> RunRecord:
    """A run of those paths, by all its models."""
    rows = [
        {"shard": index, "model_mask": 2 ** len(specs) - 1} | file(path)
        for index, paths in enumerate(shards)
        for path in paths
    ]
    fields = {
        "run_id": new_run_id(),
        "date": DATE,
        "collection": "night",
        "source": "/images",
        "created_at": "2026-01-31T00:00:00+00:00",
        "config": CONFIG,
        "models": specs,
        "num_images": len(rows),
        "num_shards": len(shards),
    }
    record = RunRecord(**(fields | changes))
    store.create_run(record, pa.Table.from_pylist(rows, schema=PLAN))
    return record


def want(paths: str, models=(FIRST,), masks=None, **modified: str) -> Wanted:
    rows = [file(path, modified.get(path, "1")) for path in paths]
    images = pa.Table.from_pylist(rows, schema=LISTING_SCHEMA)
    every = np.full(len(paths), 2 ** len(models) - 1, np.int64)
    mask = every if masks is None else np.array(masks, np.int64)
    return Wanted(images, mask, tuple(models), "night", DATE, CONFIG)


def adopt(store, wanted, *runs: OpenRun) -> tuple[list[int], list[int]]:
    """Indices of the adopted shards, and what they bring."""
    shards, brought = adopt_shards(store, runs, wanted)
    return [shard.index for shard in shards], brought.tolist()


def test_a_living_runs_shards_are_shared_from_their_end(store):
    run = OpenRun(begin(store, [["a", "b"], ["c"], ["x"]]), is_dead=False)
    assert adopt(store, want("abcd"), run) == ([1, 0], [1, 1, 1, 0])


def test_a_living_run_is_joined_even_for_a_part_of_a_shard_and_under_another_date(store):
    record = begin(store, [["a", "x"]], (SECOND, FIRST), date="2020-01-01", config={})
    assert adopt(store, want("ab"), OpenRun(record, is_dead=False)) == ([0], [1, 0])


def test_what_a_living_run_does_not_bring_is_left_to_be_planned(store):
    run = OpenRun(begin(store, [["a", "b"]]), is_dead=False)
    wanted = want("ab", (FIRST, SECOND))
    assert adopt(store, wanted, run) == ([0], [1, 1]), "SECOND is the second bit"
    assert wanted.model_mask.tolist() == [3, 3]


def test_a_dead_runs_shards_are_finished_in_their_order(store):
    run = OpenRun(begin(store, [["a", "b"], ["c"]]), is_dead=True)
    assert adopt(store, want("abcd"), run) == ([0, 1], [1, 1, 1, 0])


def test_committed_shards_are_nobodys(store):
    record = begin(store, [["a"], ["b"]])
    ShardWriter(store, record, 0).commit()
    assert adopt(store, want("ab"), OpenRun(record, is_dead=True)) == ([1], [0, 1])
    assert adopt(store, want("ab"), OpenRun(record, is_dead=False)) == ([1], [0, 1])


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (want("ac"), "b is gone"),
        (want("abc", b="2"), "b has changed"),
        (want("abc", masks=[1, 0, 1]), "b is scored since, or failed for good"),
    ],
)
def test_a_dead_runs_shard_is_left_if_it_is_not_what_would_be_planned_now(store, wanted, why):
    run = OpenRun(begin(store, [["a", "b"], ["c"]]), is_dead=True)
    shards, brought = adopt(store, wanted, run)
    assert shards == [1], why
    assert brought[0] == 0, why


@pytest.mark.parametrize(
    "changes",
    [
        {"date": "2020-01-01"},
        {"config": CONFIG | {"ingest": {"max_pixels": 8}}},
        {"config": CONFIG | {"compute": {"memory": 10}}},
        {"collection": "other"},
        {"models": (FIRST.model_copy(update={"weights_path": "/elsewhere"}),)},
    ],
)
def test_a_dead_run_of_another_kind_is_left(store, changes):
    run = OpenRun(begin(store, [["a"]], **changes), is_dead=True)
    assert adopt(store, want("a"), run) == ([], [0])


def test_a_dead_run_on_another_cluster_is_finished(store):
    config = CONFIG | {"compute": {"cluster": "tcp://somewhere:1", "memory": 9}}
    run = OpenRun(begin(store, [["a"]], config=config), is_dead=True)
    assert adopt(store, want("a"), run) == ([0], [1])


def test_a_dead_run_with_a_model_that_is_not_wanted_is_left(store):
    run = OpenRun(begin(store, [["a"]], (FIRST, SECOND)), is_dead=True)
    assert adopt(store, want("a"), run) == ([], [0])
    assert adopt(store, want("a", (SECOND, FIRST)), run) == ([0], [3])


def test_two_runs_with_the_same_work_are_not_both_joined(store):
    dead = OpenRun(begin(store, [["a"], ["b"]]), is_dead=True)
    alive = OpenRun(begin(store, [["b"]]), is_dead=False)
    shards, brought = adopt_shards(store, [dead, alive], want("ab"))
    assert [(shard.run_id, shard.index, shard.num_images) for shard in shards] == [
        (alive.record.run_id, 0, 1),
        (dead.record.run_id, 0, 1),
    ]
    assert brought.tolist() == [1, 1]
