"""What a worker runs, here or on a cluster. Imports no Prefect: workers need none."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from pixelmill.tasks.engine.score import (
    ShardOutcome,
    configure_process,
    nothing,
    score_shard,
)
from pixelmill.tasks.store import ShardRef, Store
from pixelmill.tasks.store.backend import gone_away
from pixelmill.tasks.store.claims import Claim, release, take_claim

__all__ = ["Held", "score_reference"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """A shard was not scored: a worker of another session has it."""

    claim: Claim


def score_reference(
    root: str,
    session: str,
    shard: ShardRef,
    /,
    *,
    should_stop: Callable[[], bool],
    on_scored: Callable[[], None] = nothing,
    is_isolated: bool,
) -> ShardOutcome | Held:
    """Score a shard on one CPU thread, the same wherever it runs, unless somebody else does.

    The number of threads is fixed because sums over several threads differ in their last bits:
    an image's result would depend on where it was scored.

    Args:
        root: of the store.
        session: that submits; what it claimed itself, for a worker that died, does not count.
        shard: which.
        should_stop: asked before each batch.
        on_scored: called when the worker may begin another shard; see `score_shard`.
        is_isolated: this process may end itself, because it is started again: when an image hangs
            it or takes too much memory, or when its GPU is lost.

    Raises:
        RefusedError: the store has gone away.
    """
    configure_process()
    try:
        backend = Store(root).backend
    except FileNotFoundError as err:  # not to be made anew by our claim
        raise gone_away(root) from err
    claim = take_claim(backend, shard.id, session)
    if claim.holder != session:
        return Held(claim)
    try:
        return score_shard(
            root,
            shard.run_id,
            shard.index,
            should_stop=should_stop,
            on_scored=on_scored,
            may_exit=is_isolated,
        )
    finally:
        try:
            release(backend, claim)
        except Exception as err:  # our session's end gives it back
            logger.warning("could not release shard %s: %s", shard.id, err)
