"""One LocalCluster for the file. Shards are closures, which go by value: tests are no package."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pixelmill.flows import dask_pool, submit
from pixelmill.flows.environment import THREAD_VARIABLES
from pixelmill.flows.versions import WrongVersionsError
from pixelmill.tasks.store import ShardRef

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def threads_before():
    return {name: os.environ.get(name) for name in THREAD_VARIABLES}


@pytest.fixture(scope="module")
def pool(threads_before):
    with dask_pool.start_local(2) as pool:
        yield pool


def run_shards(pool, call, indices, **options):
    shards = [ShardRef("20240531T000000-000000", index, 4) for index in indices]
    return submit.run_shards(pool, call, shards, **options)


def scoring(folder: Path) -> Any:
    def score(shard, *, should_stop, on_scored):
        shard_index = shard.index
        assert not should_stop()
        with (folder / f"{shard_index}.txt").open("a") as file:
            file.write("x")
        if shard_index == 3 and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return shard_index

    return score


def committing(folder: Path):
    """Shards 0 and 1, of two workers, are committed when the next two have begun."""

    def score(shard, *, should_stop, on_scored):
        (folder / f"{shard.index}.begun").touch()
        on_scored()
        until = time.monotonic() + 10
        while shard.index < 2 and time.monotonic() < until:
            if (folder / f"{shard.index + 2}.begun").exists():
                break
            time.sleep(0.01)
        assert not should_stop()
        return time.monotonic() < until

    return score


def waiting(folder: Path):
    def wait_until_unwanted(shard, *, should_stop, on_scored):
        shard_index = shard.index
        (folder / f"{shard_index}.txt").touch()
        while not should_stop():
            time.sleep(0.01)
        (folder / f"{shard_index}.stopped").touch()

    return wait_until_unwanted


def reading_threads():
    names = THREAD_VARIABLES

    def read_threads(shard, *, should_stop, on_scored):
        return {name: os.environ.get(name) for name in names}

    return read_threads


def test_threads_are_shared_among_workers_and_not_taken_from_the_driver(pool, threads_before):
    seen = []

    def keep(shard, result):
        seen.append(result)

    run_shards(pool, reading_threads(), range(2), name="threads", on_done=keep)
    expected = str(max(1, dask_pool.count_cores() // 2))
    assert seen == [dict.fromkeys(THREAD_VARIABLES, expected)] * 2
    assert {name: os.environ.get(name) for name in THREAD_VARIABLES} == threads_before


def test_a_killed_worker_costs_one_shard_a_second_start(pool, tmp_path):
    done = []
    submission = run_shards(
        pool,
        scoring(tmp_path),
        range(12),
        name="kill",
        on_done=lambda shard, result: done.append((shard.index, result)),
    )
    assert sorted(done) == [(k, k) for k in range(12)]
    assert submission.failed == []
    starts = {k: len((tmp_path / f"{k}.txt").read_text()) for k in range(12)}
    assert starts[3] == 2
    assert sum(starts.values()) <= 14  # a shard queued behind the killed one may start twice too


def test_the_next_shard_begins_while_one_is_committed(pool, tmp_path):
    done = []
    run_shards(
        pool,
        committing(tmp_path),
        range(4),
        name="commit",
        on_done=lambda shard, result: done.append(result),
    )
    assert done == [True] * 4


def test_a_cancelled_shard_learns_that_it_is_unwanted(pool, tmp_path):
    submission = run_shards(
        pool,
        waiting(tmp_path),
        range(2),
        name="cancel",
        should_stop=lambda: len(list(tmp_path.glob("*.txt"))) == 2,
    )
    assert submission.stopped
    deadline = time.monotonic() + 10
    while len(list(tmp_path.glob("*.stopped"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_workers_are_not_daemons_and_have_no_memory_limit(pool):
    pool.client.wait_for_workers(2, timeout=60)  # one may have been killed just before
    workers = pool.client.scheduler_info(n_workers=-1)["workers"].values()
    assert [worker["nthreads"] for worker in workers] == [1, 1]
    assert all(not worker["memory_limit"] for worker in workers)


def fake_client(worker: Mapping[str, str | None], scheduler: Mapping[str, str | None]) -> Any:
    report = {"workers": {"tcp://a:1": {"packages": worker}}, "scheduler": {"packages": scheduler}}
    return SimpleNamespace(
        get_versions=lambda packages: report, scheduler=SimpleNamespace(address="tcp://s:1")
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pixelmill": None}, "has no pixelmill, this is pixelmill 1: install pixelmill==1 where"),
        ({"pixelmill": "0"}, "has pixelmill 0, this is pixelmill 1: install pixelmill==1 where"),
        ({"torch": "2.9"}, r"has torch 2.9, this is torch 2.15\+cpu: install torch==2.15 where"),
        ({"openvino": None}, "has no openvino, this is openvino 2026: install openvino==2026"),
    ],
)
def test_a_worker_that_would_get_other_results_is_refused_in_one_sentence(change, sentence):
    needs = {"pixelmill": "1", "torch": "2.15+cpu", "openvino": "2026", "distributed": "3"}
    dask_pool.check_versions(fake_client(dict(needs), dict(needs)), needs)
    with pytest.raises(RuntimeError, match=f"^worker tcp://a:1 of tcp://s:1 {sentence}"):
        dask_pool.check_versions(fake_client(needs | change, dict(needs)), needs)


def test_a_scheduler_needs_the_same_dask_and_nothing_else():
    needs = {"pixelmill": "1", "distributed": "3"}
    dask_pool.check_versions(fake_client(needs, {"distributed": "3"}), needs)
    with pytest.raises(RuntimeError, match="the Dask scheduler at tcp://s:1 has distributed 2"):
        dask_pool.check_versions(fake_client(needs, {"distributed": "2"}), needs)


def test_a_worker_that_comes_later_with_other_versions_ends_the_run_unscored(pool, tmp_path):
    strict = dask_pool.DaskPool(pool.client, needs={"numpy": "0.1"})
    shard = ShardRef("20240531T000000-000000", 0, 4)
    future = strict.submit(scoring(tmp_path), shard, "late")
    assert strict.wait_any(20)
    with pytest.raises(WrongVersionsError, match=r"worker tcp://.* has numpy .* this is numpy 0.1"):
        strict.outcome(future)
    assert not list(tmp_path.iterdir())
    with pytest.raises(WrongVersionsError):
        strict.slots()


def test_only_workers_that_have_come_since_are_asked_what_they_have():
    """All would wait for one that is cut off."""
    workers = {"tcp://a:1": {"nthreads": 1, "resources": {}}}
    asked: list[list[str]] = []

    def run(function, *, packages, workers, on_error):
        asked.append(workers)
        return {worker: {"packages": {"numpy": "1"}} for worker in workers}

    client: Any = SimpleNamespace(
        status="running", scheduler_info=lambda n_workers: {"workers": workers}, run=run
    )
    pool = dask_pool.DaskPool(client, needs={"numpy": "1"})
    assert (pool.slots(), pool.slots()) == (1, 1)
    workers["tcp://b:1"] = workers["tcp://a:1"]
    assert pool.slots() == 2
    del workers["tcp://a:1"]
    assert pool.slots() == 1
    workers["tcp://a:1"] = workers["tcp://b:1"]
    assert pool.slots() == 2
    assert asked == [["tcp://a:1"], ["tcp://b:1"], ["tcp://a:1"]]


def test_a_worker_whose_time_is_up_stops_its_shard_and_another_scores_it(pool, tmp_path):
    def leave(shard, *, should_stop, on_scored):
        from distributed import get_worker  # a closure goes by value

        mark = tmp_path / "first"
        if mark.exists():
            return "scored"
        mark.touch()
        worker = get_worker()
        worker.io_loop.add_callback(worker.close_gracefully, restart=True)
        until = time.monotonic() + 10
        while not should_stop() and time.monotonic() < until:
            time.sleep(0.01)
        (tmp_path / "stopped").touch()
        return None

    results = []
    submission = run_shards(
        pool, leave, [0], name="leave", on_done=lambda shard, result: results.append(result)
    )
    assert results == ["scored"]
    assert submission.num_again.total() == 0
    deadline = time.monotonic() + 10
    while not (tmp_path / "stopped").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(dask_pool, "CONNECT_S", 0.5)
    with (
        pytest.raises(ConnectionError, match="no Dask scheduler answers"),
        dask_pool.connect("tcp://127.0.0.1:9"),
    ):
        pass


@pytest.mark.parametrize("info", [{}, {"workers": {}}])
def test_a_scheduler_that_is_gone_is_told_whatever_is_asked_of_it(info):
    client: Any = SimpleNamespace(status="closed", scheduler_info=lambda n_workers: info)
    gone = dask_pool.DaskPool(client)
    for ask in (
        gone.slots,
        lambda: gone.submit(cast("Any", print), ShardRef("run", 0, 4), "ticket"),
    ):
        with pytest.raises(ConnectionError, match="run the same command again"):
            ask()


def test_an_external_scheduler_works_unchanged(pool, tmp_path):
    address = pool.client.scheduler.address
    with dask_pool.connect(address) as foreign:
        submission = run_shards(foreign, scoring(tmp_path), [0, 1], name="foreign")
    assert submission.num_done == 2
    assert foreign.heal() is False
