"""The flow `backfill`: score a collection part by part, by day, month or folder."""

from dataclasses import dataclass, replace
from typing import Literal

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from pixelmill.flows.job import Job, ScoreParams, plan_job, read_known
from pixelmill.flows.neighbours import Neighbours
from pixelmill.flows.score import Scoring, prepare_task, publish_task, score_listing
from pixelmill.tasks.ingest import Listing, ingest_task
from pixelmill.tasks.partition import UNDATED, By, partition_listing
from pixelmill.tasks.plan import Plan
from pixelmill.tasks.store import Store

__all__ = ["BackfillParams", "BackfillReport", "PartStatus", "backfill", "backfill_flow"]

Status = Literal["done", "partial", "missing", "failed"]


class BackfillParams(BaseModel):
    """Parameters of the flow `backfill`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: ScoreParams = Field(description="what is scored, by which models, and where to")
    by: By = Field(default="day", description="day and month are read from the paths")
    first: str | None = Field(default=None, description="first part, such as 2024-05-01")
    last: str | None = Field(default=None, description="last part, included")
    reverse: bool = Field(default=False, description="newest first")
    dry_run: bool = Field(default=False, description="only tell the state of each part")


@dataclass(frozen=True, slots=True)
class PartStatus:
    """How a part stands, read from the store.

    Attributes:
        status: done; failed: nothing to do but some images failed for good; missing: nothing has
            been scored; partial: the rest.
        num_missing: images that lack a prediction of some model.
    """

    part: str
    status: Status
    num_images: int
    num_missing: int
    num_failed: int


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """Each part before its turn, and what was scored."""

    parts: tuple[PartStatus, ...]
    scoring: dict[str, Scoring]


def backfill(params: BackfillParams) -> State[BackfillReport]:
    """Score the parts of a collection that are not done, one after the other.

    How far a backfill is follows from the store alone: run again, it goes on.
    """
    job = prepare_task(params.score)
    store = Store(params.score.store, create=True)
    publish_task(store)
    listing = ingest_task(job.source, job.config.ingest, read_known(store, job.collection))
    parts = _select(partition_listing(listing, params.by), params)
    report = BackfillReport(tuple(_status(store, job, key, parts[key]) for key in parts), {})
    create_table_artifact(
        [
            {"part": part.part, "status": part.status, "images": part.num_images}
            | {"missing": part.num_missing, "failed": part.num_failed}
            for part in report.parts
        ],
        key="backfill",
    )
    if params.dry_run:
        return Completed(message=_count_open(report), data=report)
    incomplete: list[str] = []
    with Neighbours(store) as neighbours:
        for part in report.parts:
            if part.num_missing == 0:
                continue
            dated = _dated(job, part.part, params)
            _, scoring, end = score_listing(neighbours, dated, parts[part.part], is_part=True)
            report.scoring[part.part] = scoring
            if end is not None and end.state == "incomplete":
                incomplete.append(part.part)
            if scoring.ended == "stopped":
                message = f"stopped by {scoring.reason} in {part.part}; run again to resume"
                return Cancelled(message=message, data=report)
            if scoring.ended == "broken":
                return Failed(message=f"{scoring.reason}; in {part.part}", data=report)
            if scoring.ended == "out of time":
                message = f"{scoring.reason}, in {part.part}; run again to go on"
                return Completed(name="OutOfTime", message=message, data=report)
    failed = [key for key, scoring in report.scoring.items() if scoring.failed_shards]
    if failed:
        return Failed(message=f"shards failed in {', '.join(failed)}; run again", data=report)
    if incomplete:
        message = f"of some inputs of {', '.join(incomplete)} nothing is recorded"
        return Failed(message=f"{message}: `pixelmill audit` tells which", data=report)
    message = f"{len(report.scoring)} of {len(report.parts)} parts scored"
    if any(scoring.num_failed for scoring in report.scoring.values()):
        return Completed(name="CompletedWithQuarantine", message=message, data=report)
    return Completed(message=message, data=report)


backfill_flow = flow(
    name="backfill", flow_run_name="backfill-{params.score.source}", persist_result=False
)(backfill)


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


def _status(store: Store, job: Job, part: str, listing: Listing) -> PartStatus:
    plan = plan_job(store, job, listing)
    return PartStatus(
        part, _name_status(plan), plan.num_listed, plan.num_planned, plan.num_quarantined
    )


def _name_status(plan: Plan) -> Status:
    if plan.num_planned == 0:
        return "failed" if plan.num_quarantined else "done"
    return "partial" if any(plan.num_reused.values()) else "missing"


def _dated(job: Job, part: str, params: BackfillParams) -> Job:
    """The job with the part's own date, which its predictions are filed under."""
    if params.by == "folder" or part == UNDATED:
        return job
    return replace(job, date=part if params.by == "day" else f"{part}-01")


def _count_open(report: BackfillReport) -> str:
    num_open = sum(1 for part in report.parts if part.num_missing)
    return f"{num_open} of {len(report.parts)} parts to score"
