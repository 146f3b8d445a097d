"""The submit loop: every shard is scored once, whatever dies on the way.

A shard keeps its number through every retry, so that its breadcrumbs and its receipt are found
again: a shard that was finished by a worker that died is not scored twice, and an image that kills
its worker is found by the third death.
"""

import heapq
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pixelmill.flows.pool import Future, Outcome, Pool, ShardCall
from pixelmill.tasks.transient import is_transient

__all__ = [
    "FailedShard",
    "NoWorkersError",
    "RetryPolicy",
    "Submission",
    "run_shards",
]

logger = logging.getLogger(__name__)

SLOTS_EVERY_S = 2.0
WAIT_S = 0.5
TELL_S = 10.0


class NoWorkersError(RuntimeError):
    """No worker has been there for too long, and the pool cannot start one.

    No ConnectionError: the stage would be tried again, and wait as long again.
    """


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often the same shard may go wrong before it is recorded as failed.

    Attributes:
        transient: tries again after a storage or network error.
        killed: after Dask gave it up because its workers died; breadcrumbs quarantine the image
            that kills long before.
        lost: after the cluster forgot it, which is nobody's fault.
        backoff_s: wait before the first try again; doubles with each.
        no_workers_s: wait for a first worker before the pool must heal.
    """

    transient: int = 2
    killed: int = 8
    lost: int = 20
    backoff_s: float = 2.0
    no_workers_s: float = 120.0


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard that was given up; its images stay missing, so the next run plans them again."""

    shard_index: int
    error: str


@dataclass(slots=True)
class Submission:
    """What came of the shards so far."""

    num_shards: int
    num_done: int = 0
    num_in_flight: int = 0
    num_again: Counter[str] = field(default_factory=Counter)
    failed: list[FailedShard] = field(default_factory=list)
    stopped: bool = False


def run_shards(
    pool: Pool,
    call: ShardCall,
    shards: Iterable[int],
    *,
    name: str = "shard",
    policy: RetryPolicy | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_done: Callable[[int, Any], None] = lambda index, result: None,
    on_tick: Callable[[Submission], None] = lambda submission: None,
) -> Submission:
    """Score shards on a pool, a bounded number at a time.

    Args:
        pool: where.
        call: scores the shard of a given number; goes to the worker by reference.
        shards: their numbers.
        name: of the run; names the tasks in Dask's dashboard.
        policy: what is tried again, and how often; left out: the defaults of `RetryPolicy`.
        should_stop: asked at least every half second; then what runs is told to stop.
        on_done: called with each shard's number and result, in the caller's thread.
        on_tick: called at least every half second.

    Returns:
        The final counts; `stopped` if it was told to stop before the end.

    Raises:
        NoWorkersError: there is nobody to work.
    """
    loop = _Loop(
        pool, call, list(shards), name, policy or RetryPolicy(), should_stop, on_done, on_tick
    )
    return loop.run()


@dataclass(eq=False)
class _Loop:
    """The loop's state: what is to do, what is under way, what waits for another try."""

    pool: Pool
    call: ShardCall
    shards: list[int]
    name: str
    policy: RetryPolicy
    should_stop: Callable[[], bool]
    on_done: Callable[[int, Any], None]
    on_tick: Callable[[Submission], None]

    def __post_init__(self) -> None:
        self.submission = Submission(num_shards=len(self.shards))
        self.todo = iter(self.shards)
        self.live: dict[Future, int] = {}
        self.again: list[tuple[float, int, int]] = []
        self.tries: dict[int, Counter[str]] = {}
        self.tickets = itertools.count()
        self.slots, self.slots_at = 0, -math.inf
        self.alive_at = time.monotonic()
        self.has_told = False

    def run(self) -> Submission:
        try:
            while not self.should_stop():
                self._fill()
                if not self.live and not self.again:
                    return self.submission
                for future in self.pool.wait_any(WAIT_S):
                    if future in self.live:
                        self._settle(self.live.pop(future), self._collect(future))
                self.submission.num_in_flight = len(self.live)
                self.on_tick(self.submission)
        except BaseException:
            self.pool.cancel(list(self.live))
            raise
        self.submission.stopped = True
        self.pool.cancel(list(self.live))
        return self.submission

    def _fill(self) -> None:
        # More in flight than there are slots would be handed to workers that may die with them;
        # fewer would starve an adaptive cluster, which grows by what waits.
        for _ in range(max(self._count_slots(), self.pool.max_workers) + 1 - len(self.live)):
            shard_index = self._next()
            if shard_index is None:
                return
            ticket = f"{self.name}-{shard_index:06d}-{next(self.tickets)}"
            self.live[self.pool.submit(self.call, shard_index, ticket)] = shard_index

    def _next(self) -> int | None:
        if self.again and self.again[0][0] <= time.monotonic():
            return heapq.heappop(self.again)[2]
        return next(self.todo, None)

    def _count_slots(self) -> int:
        now = time.monotonic()
        if now - self.slots_at >= SLOTS_EVERY_S:
            self.slots, self.slots_at = self.pool.slots(), now
        idle_s = now - self.alive_at
        if self.slots:
            self.alive_at, self.has_told = now, False
        elif idle_s > self.policy.no_workers_s:
            if not self.pool.heal():
                raise NoWorkersError(
                    f"no worker for {self.policy.no_workers_s:.0f} s with "
                    f"{self.submission.num_shards - self.submission.num_done} shards to score; "
                    "start workers and run the same command again"
                )
            self.alive_at, self.slots_at = now, -math.inf
        elif idle_s > TELL_S and not self.has_told:
            logger.warning("no worker; waiting for one for %.0f s", self.policy.no_workers_s)
            self.has_told = True
        return self.slots

    def _collect(self, future: Future) -> Outcome:
        # Released at once: Dask computes a held result again when the worker that has it dies.
        try:
            return self.pool.outcome(future)
        finally:
            self.pool.release(future)

    def _settle(self, shard_index: int, outcome: Outcome) -> None:
        result = outcome.result
        if outcome.fate == "done" and getattr(result, "stopped", False):
            # Its worker believed itself unwanted, but we are not stopping: a twin was cancelled.
            outcome = Outcome("lost", error=RuntimeError("its worker was told to stop"))
        if outcome.fate == "done":
            self.submission.num_done += 1
            self.on_done(shard_index, result)
            return
        error = outcome.error or RuntimeError("no result")
        kind = "transient" if outcome.fate == "failed" and is_transient(error) else outcome.fate
        tries = self.tries.setdefault(shard_index, Counter())
        tries[kind] += 1
        if tries[kind] > self._limit(kind):
            reason = f"{type(error).__name__}: {error}"
            self.submission.failed.append(FailedShard(shard_index, reason))
            logger.error("shard %d of %s failed: %s", shard_index, self.name, reason)
            return
        self.submission.num_again[kind] += 1
        delay = self.policy.backoff_s * 2 ** (tries[kind] - 1) if kind == "transient" else 0.0
        due = time.monotonic() + delay
        heapq.heappush(self.again, (due, next(self.tickets), shard_index))
        logger.warning("shard %d of %s goes back (%s): %s", shard_index, self.name, kind, error)

    def _limit(self, kind: str) -> int:
        return {
            "transient": self.policy.transient,
            "killed": self.policy.killed,
            "lost": self.policy.lost,
        }.get(kind, 0)
