"""Work that is in the shards of other runs: it is not planned again, but done together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.ingest import find_rows
from pixelmill.tasks.store import RunRecord, ShardRef, Store

__all__ = ["OpenRun", "Wanted", "adopt_shards"]


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that has not ended.

    Attributes:
        is_dead: nobody works on it any more; False while that is not known.
    """

    record: RunRecord
    is_dead: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a planner would have scored.

    Attributes:
        images: of the listing.
        model_mask: (N,) int64; bit i: `models[i]` is to score it.
        config: as it would be stored with the run.
    """

    images: pa.Table
    model_mask: NDArray[np.int64]
    models: tuple[ModelSpec, ...]
    collection: str
    date: str
    config: Mapping[str, Any]


def adopt_shards(
    store: Store, open_runs: Sequence[OpenRun], wanted: Wanted
) -> tuple[tuple[ShardRef, ...], NDArray[np.int64]]:
    """Find uncommitted shards of other runs that hold what is wanted.

    A living run does its shards anyway, so each that holds any of it is taken part in. A dead
    run's shard is finished only where that is the same as planning it now: all its inputs are
    there, unchanged and wanted by the same models, under the same date and limits, with the weights
    in the same place. So it keeps its name, under which the deaths that its images caused are
    counted.

    Args:
        store: that has the runs.
        open_runs: others that have not ended.
        wanted: what is missing.

    Returns:
        The shards, those of living runs from the end: their own runs come from the beginning. And
        (N,) which models' predictions of each input they bring.
    """
    adopted: list[ShardRef] = []
    left, brought = wanted.model_mask.copy(), np.zeros_like(wanted.model_mask)
    for run in sorted(open_runs, key=lambda run: run.is_dead):  # the living first
        record = run.record
        if record.collection != wanted.collection or not left.any():
            continue
        if run.is_dead and not _is_as_planned_now(record, wanted):
            continue
        shards = list(_match(store, record, wanted))
        for shard in shards if run.is_dead else reversed(shards):
            overlap = shard.model_mask & left[shard.rows]
            if (shard.is_known and (overlap == shard.model_mask).all()) or (
                not run.is_dead and overlap.any()
            ):
                adopted.append(shard.ref)
                brought[shard.rows] |= overlap
                left[shard.rows] &= ~overlap
    return tuple(adopted), brought


@dataclass(frozen=True, slots=True)
class _Match:
    """An uncommitted shard and its inputs in the listing.

    Attributes:
        rows: (M,) of the inputs that are listed, unchanged.
        model_mask: (M,) of the shard, in the bits of what is wanted.
        is_known: all its inputs are listed, and all its models wanted.
    """

    ref: ShardRef
    rows: NDArray[np.int64]
    model_mask: NDArray[np.int64]
    is_known: bool


def _is_as_planned_now(record: RunRecord, wanted: Wanted) -> bool:
    """Whether a worker would do the same for both: a limit that was too high may have killed it."""
    return (
        record.date == wanted.date
        and all(spec in wanted.models for spec in record.models)
        and record.config.get("ingest") == wanted.config.get("ingest")
        and record.config.get("compute", {}).get("memory")
        == wanted.config.get("compute", {}).get("memory")
    )


def _match(store: Store, record: RunRecord, wanted: Wanted) -> Iterator[_Match]:
    committed = store.committed_shards(record.run_id)
    if len(committed) == record.num_shards:
        return
    plan = store.plan_rows(record.run_id)
    shards = plan["shard"].to_numpy()
    row = find_rows(plan, wanted.images)
    is_listed = row.is_valid().to_numpy(zero_copy_only=False)
    rows = row.fill_null(-1).to_numpy().astype(np.int64)
    keys = [spec.key for spec in wanted.models]
    theirs = plan["model_mask"].to_numpy()
    ours = np.zeros_like(theirs)
    is_ours = np.ones(len(theirs), np.bool_)
    for bit, spec in enumerate(record.models):
        has_model = (theirs >> bit & 1).astype(np.bool_)
        if spec.key in keys:
            ours |= has_model.astype(np.int64) << keys.index(spec.key)
        else:
            is_ours &= ~has_model
    starts = np.searchsorted(shards, np.arange(record.num_shards + 1))
    for index in range(record.num_shards):
        if index not in committed:
            inside = slice(starts[index], starts[index + 1])
            listed = is_listed[inside]
            yield _Match(
                ShardRef(record.run_id, index, len(listed)),
                rows[inside][listed],
                ours[inside][listed],
                bool((listed & is_ours[inside]).all()),
            )
