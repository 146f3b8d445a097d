"""Other runs on the same store: who plans, who scores what, and who is dead."""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from pixelmill.tasks.sharing import OpenRun
from pixelmill.tasks.store import RunRecord, ShardRef, Store, end_run, run_ledger
from pixelmill.tasks.store.claims import (
    LEASE_S,
    Claim,
    Session,
    Watch,
    claimed_names,
    find_claim,
    release,
    sweep,
    take_claim,
    take_over,
)

__all__ = ["NIGHTLY", "Neighbours"]

logger = logging.getLogger(__name__)

# What one process at a time does on a store
NIGHTLY = "nightly"
_PLAN = "plan"
_ABANDONED = "abandoned: its process died, and its rest is planned anew"
_LOOK_S = 1.0


class Neighbours:
    """This process among others that work on a store; within `with` they can tell that it lives.

    Args:
        store: that is shared.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._backend = store.backend
        self._session = Session(store.backend)
        self._watch = Watch(store.backend)
        self._held: dict[str, Claim] = {}
        self._claimed: set[str] = set()
        self._looked_at = float("-inf")

    @property
    def session(self) -> str:
        """Id of our session."""
        return self._session.id

    def __enter__(self) -> Self:
        self._session.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session.__exit__(kind, error, traceback)

    # Whose turn it is

    @contextlib.contextmanager
    def only_one(self, name: str) -> Iterator[bool]:
        """Do something that one process at a time may do on the store.

        Args:
            name: of it.

        Yields:
            Whether this is the one; False if another one, that lives, does it. Of one on another
            machine that takes up to a lease to know.
        """
        claim = take_claim(self._backend, name, self.session)
        known_at = time.monotonic() + LEASE_S + _LOOK_S
        while claim.holder != self.session:
            if self._watch.is_dead(claim.holder):
                claim = take_over(self._backend, claim, self.session)
                continue
            if self._watch.is_here(claim.holder) or time.monotonic() > known_at:
                yield False
                return
            time.sleep(_LOOK_S)
            claim = take_claim(self._backend, name, self.session)
        try:
            yield True
        finally:
            release(self._backend, claim)

    def is_anybody(self, name: str) -> bool:
        """Whether another process does something that `only_one` may do; looks once a second."""
        if name not in self._look():
            return False
        claim = find_claim(self._backend, name)
        return claim is not None and not self._watch.is_dead(claim.holder)

    # Planning

    @contextlib.contextmanager
    def planning(self) -> Iterator[None]:
        """One plans at a time: two who do not know of each other's plan would plan the same."""
        claim = take_claim(self._backend, _PLAN, self.session)
        has_told = False
        while claim.holder != self.session:
            if self._watch.is_dead(claim.holder):
                claim = take_over(self._backend, claim, self.session)
                continue
            if not has_told:
                logger.info("another run is planning; waiting for it")
                has_told = True
            time.sleep(_LOOK_S / 2)
            claim = take_claim(self._backend, _PLAN, self.session)
        try:
            yield
        finally:
            release(self._backend, claim)

    def open_runs(self) -> list[OpenRun]:
        """Runs that have not ended, and whether anybody still works on them."""
        return [OpenRun(record, self.is_dead(record)) for record in self.store.open_runs()]

    def is_dead(self, run: RunRecord) -> bool:
        """Whether nobody works on a run any more; False while that is not known."""
        return self._watch.is_dead(run.session)

    def end_dead_runs(self, runs: Iterable[RunRecord]) -> None:
        """Record the end of dead runs of which no shard will be scored any more.

        To be called after `publish`.
        """
        for run in runs:
            is_done = len(self.store.committed_shards(run.run_id)) == run.num_shards
            ledger = run_ledger(self.store, run.run_id, stopped_by=None if is_done else "stopped")
            end_run(self.store, ledger, stopped_by=None if is_done else _ABANDONED)
        sweep(self._backend, self._watch)

    # Scoring

    def note(self, claim: Claim) -> None:
        """A worker of ours found a shard claimed."""
        self._held[claim.name] = claim

    def is_held(self, shard: ShardRef) -> bool:
        """Whether a living session still has a shard that was found claimed.

        What a dead one left is claimed for us. A claim that is gone was given back: the shard is
        committed, or its owner gave it up.
        """
        claim = self._held.get(shard.id)
        if claim is None:
            return False
        if claim.name not in self._look():
            claim = None
        elif self._watch.is_dead(claim.holder):
            claim = take_over(self._backend, claim, self.session)
        if claim is None or claim.holder == self.session:
            del self._held[shard.id]
            return False
        self._held[shard.id] = claim
        return True

    def _look(self) -> set[str]:
        if time.monotonic() - self._looked_at >= _LOOK_S:
            self._claimed = claimed_names(self._backend)
            self._looked_at = time.monotonic()
        return self._claimed
