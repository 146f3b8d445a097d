"""The submit loop: every shard is scored once, whatever dies on the way.

A shard keeps its name through every retry, so that its breadcrumbs and its receipt are found
again: a shard that was finished by a worker that died is not scored twice, and an image that kills
its worker is found by the third death.
"""

import heapq
import itertools
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pixelmill.flows.pool import Future, Outcome, Pool, ShardCall
from pixelmill.flows.worker import Held
from pixelmill.tasks.store import ShardRef
from pixelmill.tasks.store.claims import Claim
from pixelmill.tasks.transient import explain_refusal, is_transient

__all__ = [
    "FailedShard",
    "Holders",
    "NoWorkersError",
    "RetryPolicy",
    "Submission",
    "run_shards",
]

logger = logging.getLogger(__name__)

SLOTS_EVERY_S = 2.0
WAIT_S = 0.5
TELL_S = 10.0
HELD_S = 2.0


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
        backoff_s: wait before the first try again, more or less; doubles with each.
        no_workers_s: wait for a first worker before the pool must heal.
    """

    transient: int = 2
    killed: int = 8
    lost: int = 20
    backoff_s: float = 2.0
    no_workers_s: float = 120.0


class Holders(Protocol):
    """Knows which shards workers of other runs have."""

    def note(self, claim: Claim, /) -> None:
        """One of our workers found a shard claimed."""
        ...

    def is_held(self, shard: ShardRef, /) -> bool:
        """Whether a shard that was found claimed still is; False hands it to us."""
        ...


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard that was given up; its images stay missing, so the next run plans them again."""

    shard: ShardRef
    error: str


@dataclass(slots=True)
class Submission:
    """What came of the shards so far.

    Attributes:
        num_again: tries again, by why.
        num_held: shards that were left to another run's workers at least once.
        stopped: it was told to stop.
        closed: a shard was not started, because it may not have ended in time.
        paused: none is started for now, because others go first.
        refused: why the store takes no more writes, and what to do about it.
    """

    num_shards: int
    num_done: int = 0
    num_in_flight: int = 0
    num_again: Counter[str] = field(default_factory=Counter)
    num_held: int = 0
    failed: list[FailedShard] = field(default_factory=list)
    stopped: bool = False
    closed: bool = False
    paused: bool = False
    refused: str | None = None

    @property
    def num_left(self) -> int:
        """Shards that are neither done nor given up."""
        return self.num_shards - self.num_done - len(self.failed)


def run_shards(
    pool: Pool,
    call: ShardCall,
    shards: Sequence[ShardRef],
    *,
    name: str = "shard",
    policy: RetryPolicy | None = None,
    holders: Holders | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    should_pause: Callable[[], bool] = lambda: False,
    may_start: Callable[[ShardRef, bool], bool] = lambda shard, has_to_wait: True,
    on_done: Callable[[ShardRef, Any], None] = lambda shard, result: None,
    on_tick: Callable[[Submission], None] = lambda submission: None,
) -> Submission:
    """Score shards on a pool, a bounded number at a time.

    Args:
        pool: where.
        call: scores a shard; goes to the worker by reference.
        shards: in this order.
        name: of the run; names the tasks in Dask's dashboard.
        policy: what is tried again, and how often; left out: the defaults of `RetryPolicy`.
        holders: where other runs may have some of the shards, who has them.
        should_stop: asked at least every half second; then what runs is told to stop.
        should_pause: asked as often; while it says so, no shard is started, and what runs goes on.
        may_start: asked before a shard is submitted, and told whether it will have to wait for a
            worker. After a no for one that does not, none is, and what runs is waited for.
        on_done: called with each shard and its result, in the caller's thread.
        on_tick: called at least every half second.

    Returns:
        The final counts.

    Raises:
        NoWorkersError: there is nobody to work.
    """
    loop = _Loop(
        pool,
        call,
        shards,
        name,
        policy or RetryPolicy(),
        holders,
        should_stop,
        should_pause,
        may_start,
        on_done,
        on_tick,
    )
    return loop.run()


@dataclass(eq=False)
class _Loop:
    """The loop's state: what is to do, what is under way, what waits for another try."""

    pool: Pool
    call: ShardCall
    shards: Sequence[ShardRef]
    name: str
    policy: RetryPolicy
    holders: Holders | None
    should_stop: Callable[[], bool]
    should_pause: Callable[[], bool]
    may_start: Callable[[ShardRef, bool], bool]
    on_done: Callable[[ShardRef, Any], None]
    on_tick: Callable[[Submission], None]

    def __post_init__(self) -> None:
        self.submission = Submission(num_shards=len(self.shards))
        self.todo = iter(self.shards)
        self.live: dict[Future, ShardRef] = {}
        self.again: list[tuple[float, int, ShardRef]] = []
        self.tries: dict[ShardRef, Counter[str]] = {}
        self.tickets = itertools.count()
        self.slots, self.slots_at = 0, -math.inf
        self.alive_at = time.monotonic()
        self.has_told = False

    def run(self) -> Submission:
        submission = self.submission
        try:
            while submission.refused is None and not self.should_stop():
                submission.paused = submission.num_left > len(self.live) and self.should_pause()
                if submission.paused:
                    self.alive_at = time.monotonic()  # nobody looks for workers meanwhile
                else:
                    self._fill()
                is_over = submission.closed or not (self.again or submission.paused)
                if not self.live and is_over:
                    return submission
                for future in self.pool.wait_any(WAIT_S):
                    if future in self.live:
                        self._settle(self.live.pop(future), self._collect(future))
                submission.num_in_flight = len(self.live)
                self.on_tick(submission)
        except BaseException:
            self.pool.cancel(list(self.live))
            raise
        submission.stopped = submission.refused is None
        self.pool.cancel(list(self.live))
        return submission

    def _fill(self) -> None:
        # Of each worker one that it scores, and one that it commits meanwhile or that waits for it.
        # More would be handed to workers that may die with them; fewer would starve an adaptive
        # cluster, which grows by what waits.
        most = 2 * max(1, self._count_slots(), self.pool.max_workers)
        for _ in range(most - len(self.live)):
            shard = None if self.submission.closed else self._next()
            if shard is None:
                return
            has_to_wait = len(self.live) >= self.slots
            if not self.may_start(shard, has_to_wait):
                self._push(shard, 0.0)
                self.submission.closed = not has_to_wait
                return
            ticket = f"{self.name}-{shard.index:06d}-{next(self.tickets)}"
            self.live[self.pool.submit(self.call, shard, ticket)] = shard

    def _next(self) -> ShardRef | None:
        while self.again and self.again[0][0] <= time.monotonic():
            shard = heapq.heappop(self.again)[2]
            if self.holders is None or not self.holders.is_held(shard):
                return shard
            self._push(shard, HELD_S)
        return next(self.todo, None)

    def _push(self, shard: ShardRef, delay_s: float) -> None:
        """Put a shard back for later; not all that failed together come together again."""
        due = time.monotonic() + delay_s * random.uniform(0.5, 1.5)
        heapq.heappush(self.again, (due, next(self.tickets), shard))

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
                    f"{self.submission.num_left} shards to score; "
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

    def _settle(self, shard: ShardRef, outcome: Outcome) -> None:
        result = outcome.result
        if isinstance(result, Held):
            assert self.holders is not None
            self.holders.note(result.claim)
            self.submission.num_held += 1
            self._push(shard, HELD_S)
            return
        if outcome.fate == "done" and getattr(result, "stopped", False):
            # Its worker believed itself unwanted, but we are not stopping: a twin was cancelled.
            outcome = Outcome("lost", error=RuntimeError("its worker was told to stop"))
        if outcome.fate == "done":
            self.submission.num_done += 1
            self.on_done(shard, result)
            return
        error = outcome.error or RuntimeError("no result")
        # Inputs that cannot be read are failures of theirs, so this is the store: all other shards
        # would meet the same.
        if refused := explain_refusal(error):
            self.submission.refused = refused
            return
        kind = "transient" if outcome.fate == "failed" and is_transient(error) else outcome.fate
        tries = self.tries.setdefault(shard, Counter())
        tries[kind] += 1
        if tries[kind] > self._limit(kind):
            reason = f"{type(error).__name__}: {error}"
            self.submission.failed.append(FailedShard(shard, reason))
            logger.error("shard %s failed: %s", shard.id, reason)
            return
        self.submission.num_again[kind] += 1
        self._push(shard, self.policy.backoff_s * 2 ** (tries[kind] - 1) * (kind == "transient"))
        logger.warning("shard %s goes back (%s): %s", shard.id, kind, error)

    def _limit(self, kind: str) -> int:
        return {
            "transient": self.policy.transient,
            "killed": self.policy.killed,
            "lost": self.policy.lost,
        }.get(kind, 0)
