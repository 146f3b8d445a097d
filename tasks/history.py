"""The runs of a store, from its records: one in a line, one in full, two beside each other."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pixelmill.configs.schema import ComputeConfig
from pixelmill.tasks.engine.telemetry import Stats, bottleneck, sum_stats
from pixelmill.tasks.settings import flatten_settings, setting_differences
from pixelmill.tasks.store import RunEnd, RunRecord, Store
from pixelmill.tasks.store.claims import Watch

__all__ = ["RunDetail", "RunLine", "list_runs", "read_run", "run_differences"]

State = Literal["running", "killed", "complete", "incomplete", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run at a glance.

    Attributes:
        state: how it ended; killed: it did not, and nobody works on it.
        num_planned: inputs; num_scored, num_failed: of the model that has most.
        seconds: from its plan to its end; None without an end.
    """

    run_id: str
    date: str
    collection: str
    state: State
    reason: str | None
    models: tuple[str, ...]
    num_listed: int
    num_planned: int
    num_scored: int
    num_failed: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class RunDetail:
    """All that is known of a run.

    Attributes:
        num_committed: shards with a receipt, of the record's.
        stats: of all its shards, see `telemetry`.
        worker_s: seconds of all workers together.
        cost: of these, where compute.cost_per_hour was configured.
    """

    line: RunLine
    record: RunRecord
    end: RunEnd | None
    num_committed: int
    stats: Stats
    bottleneck: str
    worker_s: float
    cost: float | None


def list_runs(
    store: Store, *, collection: str | None = None, last: int | None = None
) -> list[RunLine]:
    """Runs, the newest first.

    Args:
        store: whose records and ends are read.
        collection: only its runs.
        last: at most so many.
    """
    watch = Watch(store.backend)
    found: list[RunLine] = []
    for run_id in reversed(store.runs()):
        record = store.run(run_id)
        if collection in (None, record.collection):
            found.append(_line(record, store.run_end(run_id), watch))
        if len(found) == last:
            break
    return found


def read_run(store: Store, run_id: str) -> RunDetail:
    """A run in full.

    Args:
        store: that has it.
        run_id: its id, or how it begins; `last` is the newest.

    Raises:
        KeyError: there is none, or there are several.
    """
    record = store.run(_full_id(store, run_id))
    end = store.run_end(record.run_id)
    receipts = store.receipts(record.run_id)
    stats = sum_stats(receipt.stats for receipt in receipts)
    worker_s = float(stats.get("wall_s", 0))
    rate = ComputeConfig.model_validate(record.config.get("compute", {})).cost_per_hour
    return RunDetail(
        line=_line(record, end, Watch(store.backend)),
        record=record,
        end=end,
        num_committed=len(receipts),
        stats=stats,
        bottleneck=bottleneck(stats),
        worker_s=worker_s,
        cost=None if rate is None else rate * worker_s / 3600,
    )


def run_differences(a: RunDetail, b: RunDetail) -> Iterator[tuple[str, str, str]]:
    """(setting, in A, in B) of two runs' configurations, models and software that differ."""
    first, second = (
        flatten_settings({"config": run.record.config, "software": run.record.software})
        | {f"model.{spec.name}": spec.key for spec in run.record.models}
        | {f"weights.{spec.name}": spec.weights_sha256[:12] for spec in run.record.models}
        | {"source": run.record.source, "collection": run.record.collection}
        for run in (a, b)
    )
    return setting_differences(first, second)


def _full_id(store: Store, text: str) -> str:
    known = store.runs()
    if text == "last" and known:
        return known[-1]
    found = [run_id for run_id in known if run_id.startswith(text)]
    if len(found) != 1:
        newest = ", ".join(reversed(known[-3:])) or "none"
        raise KeyError(
            f"{len(found)} runs of {store.root} begin with {text!r}; the newest are: {newest}"
        )
    return found[0]


def _line(record: RunRecord, end: RunEnd | None, watch: Watch) -> RunLine:
    ledger = end.ledger.values() if end else ()
    state: State = "killed" if watch.is_dead(record.session) else "running"
    if end is not None:
        state = end.state
    return RunLine(
        run_id=record.run_id,
        date=record.date,
        collection=record.collection,
        state=state,
        reason=end.reason if end else None,
        models=tuple(spec.key for spec in record.models),
        num_listed=record.listing.get("listed", 0),
        num_planned=record.num_images,
        num_scored=max((each.scored + each.scored_empty for each in ledger), default=0),
        num_failed=max((sum(each.failed.values()) for each in ledger), default=0),
        seconds=_seconds(record, end),
    )


def _seconds(record: RunRecord, end: RunEnd | None) -> float | None:
    if end is None:
        return None
    span = datetime.fromisoformat(end.ended_at) - datetime.fromisoformat(record.created_at)
    return span.total_seconds()
