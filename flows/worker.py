"""What a worker runs, here or on a cluster. Imports no Prefect: workers need none."""

from collections.abc import Callable

from pixelmill.tasks.engine.score import ShardOutcome, configure_process, score_shard

__all__ = ["score_reference"]


def score_reference(
    root: str, run_id: str, shard_index: int, /, *, should_stop: Callable[[], bool]
) -> ShardOutcome:
    """Score a shard on one CPU thread, the same wherever it runs.

    The number of threads is fixed because sums over several threads differ in their last bits:
    an image's result would depend on where it was scored.
    """
    configure_process()
    return score_shard(root, run_id, shard_index, should_stop=should_stop)
