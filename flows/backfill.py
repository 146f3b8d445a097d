"""The flow `backfill`: score an archive part by part, by day, month or folder."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from pixelmill.flows.canary import judge_canary
from pixelmill.flows.job import Job, ScoreParams, read_known, watched
from pixelmill.flows.neighbours import Neighbours
from pixelmill.flows.score import Scoring, prepare_task, publish_task, score_listings
from pixelmill.tasks.canary import Canary, canary_document, read_canary
from pixelmill.tasks.ingest import Listing, ingest_task, join_again
from pixelmill.tasks.partition import UNDATED, By, partition_listing
from pixelmill.tasks.parts import PartStatus, part_statuses
from pixelmill.tasks.report.backfill import backfill_key
from pixelmill.tasks.stage import stage
from pixelmill.tasks.store import RunEnd, Store

__all__ = ["BackfillParams", "BackfillReport", "backfill", "backfill_flow"]


class BackfillParams(BaseModel):
    """Parameters of the flow `backfill`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: ScoreParams = Field(description="what is scored, by which models, and where to")
    by: By = Field(default="day", description="day and month are read from the paths")
    pattern: str | None = Field(
        default=None, description="where the date is in a path; left out: backfill.pattern"
    )
    first: str | None = Field(default=None, description="first part, such as 2024-05-01")
    last: str | None = Field(default=None, description="last part, included")
    max_active: int = Field(
        default=1, ge=1, description="parts at once; more keep the workers busy between parts"
    )
    reverse: bool = Field(default=False, description="newest first")
    dry_run: bool = Field(default=False, description="only tell the state of each part")


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """How the parts stood before and stand now, and what was scored.

    Attributes:
        now: as `parts` where nothing was done.
        seconds: of scoring.
        canary: None where none was asked for, or there was nothing to compare with.
        note: why there was no canary, if one was asked for.
    """

    parts: tuple[PartStatus, ...]
    now: tuple[PartStatus, ...]
    seconds: float = 0.0
    canary: Canary | None = None
    note: str = ""


@dataclass(slots=True)
class _Progress:
    """What came of the parts so far."""

    seconds: float = 0.0
    num_parts: int = 0
    num_failed: int = 0
    failed: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)

    def add(self, names: Sequence[str], scoring: Scoring, ends: Sequence[RunEnd | None]) -> None:
        self.seconds += scoring.seconds
        self.num_parts += len(names)
        self.num_failed += scoring.num_failed
        for name, end in zip(names, ends, strict=True):
            if end is not None and end.state == "incomplete":
                self.incomplete.append(name)
        if scoring.failed_shards:
            self.failed += names


status_task = stage("status")(part_statuses)


def backfill(params: BackfillParams) -> State[BackfillReport]:
    """Score the parts of an archive that are not done, a few at a time.

    How far a backfill is follows from the store alone: run again, it goes on. While a nightly run
    is at work on the store, it starts no shard.

    Returns:
        Completed, CompletedWithQuarantine, OutOfTime, Cancelled or Failed as of `score`;
        CanaryFailed if a gate of `backfill.canary` did not hold, and then nothing but the sample
        was scored.
    """
    with watched(replace(prepare_task(params.score), gives_way=True)) as job:
        return _backfill(job, params)


def _backfill(job: Job, params: BackfillParams) -> State[BackfillReport]:
    store = Store(params.score.store, create=True)
    publish_task(store)
    listing = ingest_task(job.source, job.config.ingest, read_known(store, job.collection))
    parts = _cut(listing, job, params)
    before = _look(store, job, parts, params)
    _show(before)
    if params.dry_run:
        return Completed(message=_count_open(before), data=BackfillReport(before, before))
    with Neighbours(store) as neighbours:
        trial = judge_canary(neighbours, job, parts, lambda part: _dated(job, part, params))
        progress, early, canary = _Progress(), trial.early, trial.canary
        is_refused = canary is not None and bool(canary.broken)
        if early is None and not is_refused:
            early = _score_parts(neighbours, job, parts, _todo(before, params), params, progress)
    is_new = progress.num_parts > 0 or trial.has_scored
    now = _look_again(store, job, listing, params) if is_new else before
    report = BackfillReport(before, now, progress.seconds, canary, trial.note)
    return _final_state(early, progress, report)


backfill_flow = flow(
    name="backfill", flow_run_name="backfill-{params.score.title}", persist_result=False
)(backfill)


def _score_parts(
    neighbours: Neighbours,
    job: Job,
    parts: Mapping[str, Listing],
    todo: Sequence[str],
    params: BackfillParams,
    progress: _Progress,
) -> Scoring | None:
    """Score parts, `max_active` at once.

    Returns:
        What ended it early; None if nothing did.
    """
    for names in _batches(todo, params.max_active):
        work = [(_dated(job, name, params), parts[name]) for name in names]
        _, scoring, ends = score_listings(neighbours, work, is_part=True)
        progress.add(names, scoring, ends)
        if scoring.ended != "done":
            return replace(scoring, reason=f"{scoring.reason}, in {', '.join(names)}")
    return None


def _final_state(
    early: Scoring | None, progress: _Progress, report: BackfillReport
) -> State[BackfillReport]:
    if early is not None and early.ended == "stopped":
        return Cancelled(message=f"stopped by {early.reason}; run again to resume", data=report)
    if early is not None and early.ended == "broken":
        return Failed(message=early.reason, data=report)
    if early is not None:
        message = f"{early.reason}; run again to go on"
        return Completed(name="OutOfTime", message=message, data=report)
    canary = report.canary
    if canary is not None and canary.broken:
        message = f"the canary of {canary.num_images} images says no: "
        message += f"{'; '.join(canary.broken)} ({canary.new} beside {canary.old})"
        return Failed(name="CanaryFailed", message=message, data=report)
    if progress.failed:
        message = f"shards failed in {', '.join(progress.failed)}; run again"
        return Failed(message=message, data=report)
    if progress.incomplete:
        message = f"of some inputs of {', '.join(progress.incomplete)} nothing is recorded"
        return Failed(message=f"{message}: `pixelmill audit` tells which", data=report)
    message = f"{progress.num_parts} of {len(report.parts)} parts scored"
    message += f" (no canary: {report.note})" if report.note else ""
    if progress.num_failed:
        return Completed(name="CompletedWithQuarantine", message=message, data=report)
    return Completed(message=message, data=report)


def _cut(listing: Listing, job: Job, params: BackfillParams) -> dict[str, Listing]:
    pattern = params.pattern or job.config.backfill.pattern
    return _select(partition_listing(listing, params.by, pattern), params)


def _look(
    store: Store, job: Job, parts: Mapping[str, Listing], params: BackfillParams
) -> tuple[PartStatus, ...]:
    """How the parts stand; kept in the store, too."""
    found: tuple[PartStatus, ...] = status_task(
        store, parts, job.specs, job.config, collection=job.collection
    )
    _keep(store, job, params, found)
    return found


def _look_again(
    store: Store, job: Job, listing: Listing, params: BackfillParams
) -> tuple[PartStatus, ...]:
    """How they stand now that the catalog knows what was scored."""
    known = join_again(listing, read_known(store, job.collection))
    return _look(store, job, _cut(known, job, params), params)


def _select(parts: dict[str, Listing], params: BackfillParams) -> dict[str, Listing]:
    """The parts asked for, in the order asked for; undated ones only where no range is given."""
    first, last = params.first or "", params.last
    chosen = [
        key
        for key in sorted(parts, reverse=params.reverse)
        if key >= first and (last is None or key <= last or key.startswith(last))
    ]
    if params.first or params.last:
        chosen = [key for key in chosen if key != UNDATED]
    return {key: parts[key] for key in chosen}


def _todo(parts: Sequence[PartStatus], params: BackfillParams) -> list[str]:
    """Names of the parts in which there is something to do."""
    reprocess = params.score.reprocess

    def is_open(part: PartStatus) -> bool:
        is_failed = reprocess == "failed" and part.num_failed > 0
        return reprocess == "all" or part.num_missing > 0 or is_failed

    return [part.part for part in parts if is_open(part)]


def _batches(names: Sequence[str], size: int) -> Iterator[list[str]]:
    rest = iter(names)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _dated(job: Job, part: str, params: BackfillParams) -> Job:
    """The job with the part's own date, which its predictions are filed under."""
    if params.by == "folder" or part == UNDATED:
        return job
    return replace(job, date=part if params.by == "day" else f"{part}-01")


def _keep(store: Store, job: Job, params: BackfillParams, found: Sequence[PartStatus]) -> None:
    """Put the status into the store, as JSON: the report draws it, and others may."""
    canaries = (read_canary(store, job.collection, spec.key) for spec in job.specs)
    document: dict[str, Any] = {
        "collection": job.collection,
        "models": [spec.key for spec in job.specs],
        "by": params.by,
        "looked_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "canaries": [canary_document(each) for each in canaries if each is not None],
        "parts": [asdict(part) for part in found],
    }
    store.backend.put(backfill_key(job.collection), json.dumps(document, indent=1).encode())


def _show(parts: Sequence[PartStatus]) -> None:
    create_table_artifact(
        [
            {"part": part.part, "status": part.status, "images": part.num_images}
            | {"missing": part.num_missing, "failed": part.num_failed}
            for part in parts
        ],
        key="backfill",
    )


def _count_open(parts: Sequence[PartStatus]) -> str:
    num_open = sum(1 for part in parts if part.num_missing)
    return f"{num_open} of {len(parts)} parts to score"
