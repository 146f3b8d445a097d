import errno
import heapq
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from pixelmill.flows import submit
from pixelmill.flows.pool import InlinePool, Outcome
from pixelmill.flows.submit import NoWorkersError, RetryPolicy
from pixelmill.flows.worker import Held
from pixelmill.tasks.store import ShardRef
from pixelmill.tasks.store.claims import Claim
from pixelmill.tasks.transient import is_transient

FAST = RetryPolicy(backoff_s=0.0)


@dataclass(frozen=True)
class Done:
    num_scored: int = 1
    stopped: bool = False


def refs(indices) -> list[ShardRef]:
    return [ShardRef("20240531T000000-000000", index, 10) for index in indices]


def run_shards(pool, call, indices, **options):
    return submit.run_shards(pool, call, refs(indices), **options)


class ScriptedPool:
    """Ends each shard as its script says, then done; remembers what was asked of it."""

    def __init__(self, script: dict[int, list[Outcome]] | None = None, slots: int = 2):
        self.script = script or {}
        self.num_slots = slots
        self.max_workers = slots
        self.started: list[int] = []
        self.tickets: list[str] = []
        self.most_in_flight = 0
        self.held: set[object] = set()
        self.running: list[tuple[int, object]] = []
        self.cancelled: list[object] = []
        self.heals = 0

    def slots(self):
        return self.num_slots

    def submit(self, call, shard, ticket):
        future = (shard.index, ticket)
        self.started.append(shard.index)
        self.tickets.append(ticket)
        self.held.add(future)
        heapq.heappush(self.running, (shard.index, future))
        self.most_in_flight = max(self.most_in_flight, len(self.running))
        return future

    def wait_any(self, timeout_s):
        return [heapq.heappop(self.running)[1]] if self.running and self.num_slots else []

    def outcome(self, future):
        planned = self.script.get(future[0], [])
        return planned.pop(0) if planned else Outcome("done", Done())

    def release(self, future):
        self.held.discard(future)

    def cancel(self, futures: Iterable[object]):
        self.cancelled.extend(futures)

    def heal(self):
        self.heals += 1
        self.num_slots = 1
        return True


def run(pool, shards, **options):
    done = []
    submission = run_shards(
        pool,
        lambda shard, *, should_stop: None,
        shards,
        policy=options.pop("policy", FAST),
        on_done=lambda shard, result: done.append(shard.index),
        **options,
    )
    return submission, done


def test_every_shard_is_done_once_with_a_bounded_number_in_flight():
    pool = ScriptedPool(slots=3)
    submission, done = run(pool, range(50))
    assert sorted(done) == list(range(50))
    assert (submission.num_done, submission.failed, submission.stopped) == (50, [], False)
    assert pool.most_in_flight == 6
    assert not pool.held


def test_killed_and_lost_shards_go_back_under_the_same_number():
    killed, lost = Outcome("killed", error=RuntimeError()), Outcome("lost", error=RuntimeError())
    pool = ScriptedPool({3: [killed, lost, killed]})
    submission, done = run(pool, range(5))
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert pool.started.count(3) == 4
    assert len(set(pool.tickets)) == len(pool.tickets)
    assert submission.num_again == {"killed": 2, "lost": 1}


def test_a_transient_error_is_tried_again_after_a_wait(monkeypatch):
    clock = iter(range(0, 10_000))
    monkeypatch.setattr(submit.time, "monotonic", lambda: float(next(clock)))
    pool = ScriptedPool({0: [Outcome("failed", error=ConnectionError("reset"))]}, slots=1)
    submission, done = run(pool, range(3), policy=RetryPolicy(backoff_s=30.0))
    assert done == [1, 2, 0]
    assert submission.num_again == {"transient": 1}


def test_a_transient_error_that_stays_fails_the_shard_and_the_run_goes_on():
    errors = [Outcome("failed", error=OSError("disk"))] * 3
    submission, done = run(ScriptedPool({1: errors}), range(4), policy=FAST)
    assert sorted(done) == [0, 2, 3]
    assert [failed.shard.index for failed in submission.failed] == [1]
    assert submission.failed[0].error == "OSError: disk"


def test_a_bug_is_not_tried_again():
    pool = ScriptedPool({1: [Outcome("failed", error=KeyError("bug"))]})
    submission, _ = run(pool, range(3))
    assert pool.started.count(1) == 1
    assert [failed.shard.index for failed in submission.failed] == [1]


def test_a_worker_that_stopped_without_being_asked_lost_its_shard():
    pool = ScriptedPool({1: [Outcome("done", Done(stopped=True))]})
    submission, done = run(pool, range(3))
    assert sorted(done) == [0, 1, 2]
    assert submission.num_again == {"lost": 1}


def test_stop_cancels_what_is_in_flight_and_submits_no_more():
    pool = ScriptedPool()
    submission, done = run(pool, range(100), should_stop=lambda: len(pool.started) > 5)
    assert submission.stopped
    assert len(done) < 10
    assert set(pool.cancelled) == pool.held


def test_an_exception_of_the_caller_cancels_what_is_in_flight():
    def explode(submission):
        raise RuntimeError("tick")

    pool = ScriptedPool()
    with pytest.raises(RuntimeError, match="tick"):
        run(pool, range(9), on_tick=explode)
    assert set(pool.cancelled) == pool.held


def test_a_pool_without_workers_is_healed():
    pool = ScriptedPool(slots=0)
    submission, _ = run(pool, range(3), policy=RetryPolicy(no_workers_s=-1))
    assert submission.num_done == 3
    assert pool.heals == 1


def test_no_workers_and_no_healing_is_an_error_that_says_what_to_do(monkeypatch):
    pool = ScriptedPool(slots=0)
    monkeypatch.setattr(pool, "heal", lambda: False)
    with pytest.raises(NoWorkersError, match="start workers and run the same command again"):
        run(pool, range(3), policy=RetryPolicy(no_workers_s=-1))


def test_waiting_for_workers_is_told_once(monkeypatch, caplog):
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr(submit.time, "monotonic", lambda: float(next(clock)))
    pool = ScriptedPool(slots=0)
    monkeypatch.setattr(pool, "heal", lambda: False)
    with pytest.raises(NoWorkersError) as raised:
        run(pool, range(3), policy=RetryPolicy(no_workers_s=60))
    assert [record.getMessage() for record in caplog.records] == [
        "no worker; waiting for one for 60 s"
    ]
    assert not is_transient(raised.value), "the stage would wait again"


def test_inline_pool_scores_in_order_and_reports_errors():
    def score(shard, *, should_stop):
        if shard.index == 2:
            raise ValueError("bad shard")
        return Done()

    pool = InlinePool()
    try:
        submission = run_shards(pool, score, range(5))
    finally:
        pool.close()
    assert submission.num_done == 4
    assert submission.failed[0].error == "ValueError: bad shard"


def test_inline_pool_tells_the_running_shard_to_stop():
    seen = []

    def score(shard, *, should_stop):
        while not should_stop():
            seen.append(shard.index)
        return Done(stopped=True)

    pool = InlinePool()
    submission = run_shards(pool, score, range(5), should_stop=lambda: len(seen) > 10)
    pool.close()
    assert submission.stopped
    assert set(seen) == {0}


class Others:
    """Other runs, which give their shards back after some looks."""

    def __init__(self, looks: int):
        self.looks = looks
        self.noted: list[str] = []

    def note(self, claim):
        self.noted.append(claim.name)

    def is_held(self, shard):
        self.looks -= 1
        return self.looks > 0


def test_a_shard_of_another_run_is_left_alone_and_looked_after(monkeypatch):
    monkeypatch.setattr(submit, "HELD_S", 0.0)
    held = Outcome("done", Held(Claim("name", "other", 0)))
    pool, others = ScriptedPool({1: [held]}), Others(looks=5)
    submission, done = run(pool, range(4), holders=others)
    assert sorted(done) == [0, 1, 2, 3]
    assert (submission.num_held, others.noted, others.looks) == (1, ["name"], 0)
    assert pool.started.count(1) == 2
    assert not submission.num_again, "nothing went wrong"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_store_that_takes_no_more_ends_the_run_at_once(number):
    full = Outcome("failed", error=OSError(number, os.strerror(number)))
    pool = ScriptedPool({3: [full] * 99})
    submission, done = run(pool, range(100))
    assert submission.refused is not None
    assert "run the same command again" in submission.refused
    assert not submission.stopped
    assert pool.started.count(3) == 1
    assert len(pool.started) < 8
    assert set(pool.cancelled) == pool.held
    assert submission.num_left == 100 - len(done)


def test_no_shard_is_started_after_the_first_that_would_end_too_late():
    pool = ScriptedPool(slots=1)
    submission, done = run(
        pool, range(10), may_start=lambda shard, has_to_wait: shard.index + has_to_wait < 4
    )
    assert done == [0, 1, 2, 3], "the last one was not queued, but started when its turn came"
    assert (submission.closed, submission.stopped, submission.num_left) == (True, False, 6)


def test_shards_that_failed_together_do_not_come_together_again(monkeypatch):
    now = 0.0
    monkeypatch.setattr(submit.time, "monotonic", lambda: now)
    reset = ConnectionError("reset")
    pool = ScriptedPool({k: [Outcome("failed", error=reset)] for k in range(8)}, slots=8)
    due = []

    def look(submission):
        nonlocal now
        now += 1.0
        due.append(len(pool.started))

    _, done = run(pool, range(8), policy=RetryPolicy(backoff_s=60.0), on_tick=look)
    assert sorted(done) == list(range(8))
    starts = [after - before for before, after in itertools.pairwise(due)]
    assert sum(1 for number in starts if number) > 3


def test_nothing_is_started_during_a_pause_what_runs_ends_and_then_all_is_done():
    pool = ScriptedPool(slots=2)
    started_in_pause: list[int] = []
    looks = itertools.count()

    def should_pause():
        is_paused = 3 <= next(looks) < 20
        if is_paused:
            started_in_pause.append(len(pool.started))
        return is_paused

    submission, done = run(pool, range(20), should_pause=should_pause)
    assert sorted(done) == list(range(20))
    assert len(set(started_in_pause)) == 1
    assert not submission.paused


def test_a_pause_does_not_outlast_a_stop_nor_the_last_shard():
    submission, done = run(
        ScriptedPool(), range(3), should_pause=lambda: True, should_stop=ticks(9)
    )
    assert (done, submission.stopped, submission.num_left) == ([], True, 3)
    assert run(ScriptedPool(), [], should_pause=lambda: True)[0].num_left == 0


def ticks(number: int):
    """Says no so many times, then yes."""
    left = iter(range(number))
    return lambda: next(left, None) is None
