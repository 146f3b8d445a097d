"""The flow `score`: a folder of images becomes masks, boxes, captions, metrics and a report."""

import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from pixelmill.configs.schema import ComputeConfig
from pixelmill.flows.job import Job, ScoreParams, prepare_job, read_known, start_run, watched
from pixelmill.flows.limits import FailureBudget, Pace
from pixelmill.flows.logs import score_logged
from pixelmill.flows.neighbours import NIGHTLY, Neighbours
from pixelmill.flows.pool import open_pool
from pixelmill.flows.progress import collected_logs, show_progress
from pixelmill.flows.results import keep_results, results_folder
from pixelmill.flows.stopping import StopFlag
from pixelmill.flows.submit import FailedShard, RetryPolicy, Submission, run_shards
from pixelmill.flows.versions import find_needs
from pixelmill.flows.worker import score_reference
from pixelmill.tasks.engine.score import ShardOutcome
from pixelmill.tasks.evaluate import evaluate_task
from pixelmill.tasks.evaluation.save import save_evaluation
from pixelmill.tasks.ingest import Listing, ingest_task
from pixelmill.tasks.metrics.results import Evaluation
from pixelmill.tasks.partition import listing_since
from pixelmill.tasks.plan import Plan
from pixelmill.tasks.report import build_report, report_files, summarise_run, summary_markdown
from pixelmill.tasks.stage import stage
from pixelmill.tasks.store import RunEnd, RunRecord, ShardRef, Store, end_run, publish, run_ledger
from pixelmill.tasks.transient import explain_refusal

__all__ = [
    "RunReport",
    "Scoring",
    "describe_run",
    "evaluate_job",
    "final_state",
    "prepare_task",
    "publish_task",
    "report_job",
    "report_task",
    "score",
    "score_flow",
    "score_listing",
    "score_listings",
    "score_shards",
]

logger = logging.getLogger(__name__)


Ended = Literal["done", "broken", "stopped", "out of time"]
EARLY: tuple[Ended, ...] = ("broken", "stopped", "out of time")  # the first that holds is told


@dataclass(frozen=True, slots=True)
class Scoring:
    """What the score stage did.

    Attributes:
        num_images: inputs of the shards that were done meanwhile, by whomever.
        num_scored: images by model key.
        num_failed: tries that failed: images, or one model on an image.
        num_shared: shards that other runs' workers had, or had done meanwhile.
        ended: done: nothing is left but what failed; stopped: it was told to stop.
        reason: why it ended early; None if it did not.
    """

    num_shards: int = 0
    num_done: int = 0
    num_images: int = 0
    num_scored: Mapping[str, int] = field(default_factory=dict)
    num_failed: int = 0
    num_shared: int = 0
    failed_shards: tuple[FailedShard, ...] = ()
    images_per_s: float = 0.0
    seconds: float = 0.0
    ended: Ended = "done"
    reason: str | None = None

    @property
    def num_left(self) -> int:
        """Shards that are neither done nor given up."""
        return self.num_shards - self.num_done - len(self.failed_shards)


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run leaves behind, for whoever called the flow.

    Attributes:
        run_id: of the run, or of the other one whose shards it finished; None if there was nothing
            to score.
        num_planned: inputs to score, in shards of its own or of others.
        end: how its own run ended.
    """

    store: str
    collection: str
    run_id: str | None
    num_listed: int
    num_planned: int
    num_quarantined: int
    num_problems: int
    scoring: Scoring
    end: RunEnd | None = None
    evaluation: Evaluation | None = None
    report: Path | None = None


@dataclass(slots=True)
class _Counter:
    """Sums over shards' outcomes."""

    num_scored: Counter[str] = field(default_factory=Counter)
    num_inputs: int = 0
    num_failed: int = 0
    num_done: int = 0
    num_cached: int = 0

    def add(self, shard: ShardRef, outcome: ShardOutcome) -> None:
        self.num_scored.update(outcome.num_scored)
        self.num_inputs += shard.num_images
        self.num_failed += outcome.num_failed
        self.num_done += 1
        self.num_cached += outcome.cached

    def is_broken(self, budget: FailureBudget | None, given_up: Sequence[FailedShard]) -> bool:
        """Whether more has failed than may; of a shard that was given up, all of it."""
        if budget is None:
            return False
        num_lost = sum(failed.shard.num_images for failed in given_up)
        return budget.is_spent(self.num_failed + num_lost, self.num_inputs + num_lost)


class _Publisher:
    """Publishes beside the scoring, so that readers see a long run grow.

    Attributes:
        refused: why the store took no more writes the last time, and what to do about it.
    """

    def __init__(self, store: Store, compute: ComputeConfig) -> None:
        self._store, self._compute = store, compute
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pixelmill-publish")
        self._running: Future[object] | None = None
        self._num_waiting, self._last = 0, time.monotonic()
        self.refused: str | None = None

    def count(self) -> None:
        """A shard was committed."""
        self._num_waiting += 1
        is_due = (
            self._num_waiting >= self._compute.publish_every
            or time.monotonic() - self._last >= self._compute.publish_seconds
        )
        if is_due and (self._running is None or self._running.done()):
            self._num_waiting, self._last = 0, time.monotonic()
            self._running = self._executor.submit(self._publish)

    def close(self) -> None:
        """Wait for a publication that is under way."""
        self._executor.shutdown(wait=True)

    def _publish(self) -> None:
        try:
            publish(self._store)
        except Exception as err:
            # The publish stage does it again, and fails loudly if it must.
            self.refused = explain_refusal(err)
            logger.warning("could not publish meanwhile: %s", err)


def score_shards(neighbours: Neighbours, job: Job, shards: Sequence[ShardRef]) -> Scoring:
    """Score shards that are not committed, on the cluster that the config names.

    Args:
        neighbours: other runs on the store; shards that their workers have are left to them, and
            looked after when they die.
        job: where, by when, and how often is published.
        shards: of this run, then of others.
    """
    store, compute = neighbours.store, job.config.compute
    todo = _uncommitted(store, shards)
    counter, stop = _Counter(), StopFlag(flow_run.id)
    pace = Pace(_seconds_per_image(store, job))
    reason: dict[Ended, str] = {}
    with contextlib.ExitStack() as stack:
        drain_logs = stack.enter_context(collected_logs(get_run_logger()))
        num_images = sum(shard.num_images for shard in todo)
        progress = stack.enter_context(show_progress(job.collection, num_images, "scoring"))
        stack.enter_context(stop.listening())
        publisher = stack.enter_context(contextlib.closing(_Publisher(store, compute)))
        needs = find_needs(job.specs)
        pool = stack.enter_context(
            open_pool(compute.cluster, len(todo), compute=compute, needs=needs)
        )

        def should_stop() -> bool:
            if stop.reason is None and job.deadline is not None and job.deadline.left_s <= 0:
                reason["out of time"] = "the deadline was reached"
            return stop() or bool(reason)

        def should_pause() -> bool:
            return job.gives_way and neighbours.is_anybody(NIGHTLY)

        def may_start(shard: ShardRef, has_to_wait: bool) -> bool:
            if job.deadline is None:
                return True
            seconds = pace.estimate_s(shard.num_images) * (2 if has_to_wait else 1)
            return seconds < job.deadline.left_s

        def on_done(shard: ShardRef, outcome: ShardOutcome) -> None:
            counter.add(shard, outcome)
            publisher.count()
            pace.add(shard.num_images, float(outcome.stats.get("wall_s", 0)))
            progress.done += shard.num_images
            if job.metrics is not None:
                job.metrics.on_done(shard, outcome)
            logger.info("shard %s is done", shard.id, extra=_shard_facts(shard, outcome))

        def on_tick(submission: Submission) -> None:
            drain_logs()
            if publisher.refused is not None:
                reason["broken"] = publisher.refused
            if counter.is_broken(job.max_failures, submission.failed):
                reason["broken"] = (
                    f"more failures than the {job.max_failures} that compute.max_failures allows, "
                    f"after {counter.num_inputs} images"
                )
            detail = f", {len(submission.failed)} shards failed" if submission.failed else ""
            if submission.paused:
                detail += ", waiting: the nightly run goes first"
            elif submission.num_held and not submission.num_in_flight:
                detail += ", waiting for shards of another run"
            progress.tick(detail)
            if job.metrics is not None:
                job.metrics.on_tick(submission, progress.images_per_s)

        score_it = functools.partial(
            score_reference, store.root, neighbours.session, is_isolated=pool.is_isolated
        )
        call = functools.partial(score_logged, score_it)
        submission = run_shards(
            pool,
            call,
            todo,
            name=shards[0].run_id,
            policy=RetryPolicy(transient=compute.retries),
            holders=neighbours,
            should_stop=should_stop,
            should_pause=should_pause,
            may_start=may_start,
            on_done=on_done,
            on_tick=on_tick,
        )
    if submission.refused is not None:
        reason["broken"] = submission.refused
    elif stop.reason is not None and submission.stopped:
        reason["stopped"] = stop.reason
    elif submission.closed:
        reason["out of time"] = "no other shard would have ended before the deadline"
    early: list[Ended] = [kind for kind in EARLY if kind in reason]
    ended = early[0] if early else "done"
    return Scoring(
        num_shards=len(shards),
        num_done=len(shards) - len(todo) + counter.num_done,
        num_images=counter.num_inputs,
        num_scored=dict(counter.num_scored),
        num_failed=counter.num_failed,
        num_shared=counter.num_cached,
        failed_shards=tuple(submission.failed),
        images_per_s=progress.images_per_s,
        seconds=progress.seconds,
        ended=ended,
        reason=reason.get(ended),
    )


def _shard_facts(shard: ShardRef, outcome: ShardOutcome) -> dict[str, object]:
    """What a line of the log has beside its message."""
    return {
        "run": shard.run_id,
        "shard": shard.id,
        "images": shard.num_images,
        "failed": outcome.num_failed,
        "seconds": outcome.stats.get("wall_s"),
        "device": outcome.stats.get("device"),
    }


def _uncommitted(store: Store, shards: Sequence[ShardRef]) -> list[ShardRef]:
    runs = {shard.run_id for shard in shards}
    committed = {run_id: store.committed_shards(run_id) for run_id in runs}
    return [shard for shard in shards if shard.index not in committed[shard.run_id]]


def _seconds_per_image(store: Store, job: Job) -> float | None:
    """What all models take for an image on one worker; None if one was never measured."""
    if job.deadline is None:
        return None
    rates = store.throughput()
    keys = [spec.key for spec in job.specs]
    return sum(1 / rates[key] for key in keys) if all(key in rates for key in keys) else None


prepare_task = stage("prepare")(prepare_job)
plan_task = stage("plan")(start_run)
score_task = stage("score")(score_shards)
publish_task = stage("publish")(publish)
report_task = stage("report")(build_report)


def score(params: ScoreParams) -> State[RunReport]:
    """Score what is missing of a folder, publish it, evaluate it, and report.

    Run again, it goes on where it was stopped; with nothing missing it changes nothing. Runs at the
    same time on the same store share what they have in common.

    Args:
        params: what, by which models, and where to.

    Returns:
        Completed, CompletedWithQuarantine, OutOfTime, Failed if shards were given up or the run
        broke, or Cancelled if it was stopped; with the run's report as data.
    """
    with watched(prepare_task(params)) as job:
        store = Store(params.store, create=True)
        listing = ingest_task(job.source, job.config.ingest, read_known(store, job.collection))
        if params.since is not None:
            listing = listing_since(listing, params.since, job.config.backfill.pattern)
        is_part = params.since is not None
        with Neighbours(store) as neighbours:
            plan, scoring, end = score_listing(neighbours, job, listing, is_part=is_part)
    evaluation = report = None
    if scoring.ended == "done":
        evaluation = evaluate_job(store, job)
        report = report_job(store, job, evaluation, plan) if params.report else None
    run = RunReport(
        store=store.root,
        collection=job.collection,
        run_id=_run_id(plan),
        num_listed=plan.num_listed,
        num_planned=plan.num_planned + plan.num_adopted,
        num_quarantined=plan.num_quarantined,
        num_problems=plan.num_problems,
        scoring=scoring,
        end=end,
        evaluation=evaluation,
        report=report,
    )
    create_markdown_artifact(describe_run(store, run), key="run-summary")
    return final_state(run)


score_flow = flow(name="score", flow_run_name="score-{params.title}", persist_result=False)(score)


def score_listing(
    neighbours: Neighbours, job: Job, listing: Listing, *, is_part: bool = False
) -> tuple[Plan, Scoring, RunEnd | None]:
    """Plan what a listing lacks, score it, publish it, and record how the run ended."""
    plans, scoring, ends = score_listings(neighbours, [(job, listing)], is_part=is_part)
    return plans[0], scoring, ends[0]


def score_listings(
    neighbours: Neighbours, work: Sequence[tuple[Job, Listing]], *, is_part: bool = False
) -> tuple[list[Plan], Scoring, list[RunEnd | None]]:
    """Like `score_listing`, of several runs whose shards are scored side by side.

    Args:
        neighbours: other runs on the store.
        work: jobs that differ in their dates only, and what each is to score.
        is_part: as in `start_run`.
    """
    plans = [plan_task(neighbours, job, listing, is_part=is_part) for job, listing in work]
    shards = [shard for plan in plans for shard in _own_shards(plan)]
    shards += [shard for plan in plans for shard in plan.adopted]
    if not shards:
        return plans, Scoring(), [None] * len(plans)
    scoring = score_task(neighbours, work[0][0], shards)
    try:
        publish_task(neighbours.store)
        ends = [
            None if plan.is_empty else end_task(neighbours, plan, scoring, is_part=is_part)
            for plan in plans
        ]
    except OSError as err:
        # The run stays open: what it has committed is published by the next, which goes on with it
        refused = explain_refusal(err)
        if refused is None:
            raise
        return plans, replace(scoring, ended="broken", reason=refused), [None] * len(plans)
    return plans, scoring, ends


def _own_shards(plan: Plan) -> list[ShardRef]:
    if plan.record is None:
        return []
    sizes = np.bincount(plan.rows["shard"].to_numpy()).tolist()
    return [ShardRef(plan.record.run_id, index, size) for index, size in enumerate(sizes)]


def _run_id(plan: Plan) -> str | None:
    if plan.record is not None:
        return plan.record.run_id
    return plan.adopted[0].run_id if plan.adopted else None


def end_runs(
    neighbours: Neighbours, plan: Plan, scoring: Scoring, *, is_part: bool
) -> RunEnd | None:
    """Record how a run ended, and the ends of dead runs whose work it has finished.

    Args:
        neighbours: other runs on the store.
        plan: of the run.
        scoring: what came of it.
        is_part: as in `start_run`.

    Returns:
        The end of the run; None if all its shards were those of others.
    """
    store = neighbours.store
    adopted = {shard.run_id for shard in plan.adopted}
    dead = [run for run in store.open_runs() if run.run_id in adopted and neighbours.is_dead(run)]
    failed = {shard.shard.run_id for shard in scoring.failed_shards}

    def is_settled(run: RunRecord) -> bool:
        """Whether none of its shards is worth another try under its name."""
        is_done = len(store.committed_shards(run.run_id)) == run.num_shards
        return is_done or run.run_id in failed or (scoring.ended == "done" and not is_part)

    neighbours.end_dead_runs(run for run in dead if is_settled(run))
    if plan.record is None:
        return None
    run_id = plan.record.run_id
    given_up = {
        failed.shard.index: failed.error.partition(":")[0]
        for failed in scoring.failed_shards
        if failed.shard.run_id == run_id
    }
    stopped_by: dict[Ended, Literal["stopped", "deadline"]] = {
        "stopped": "stopped",
        "broken": "stopped",
        "out of time": "deadline",
    }
    ledger = run_ledger(store, run_id, stopped_by=stopped_by.get(scoring.ended), given_up=given_up)
    error = scoring.reason if scoring.ended == "broken" else None
    if given_up and error is None:
        error = f"{len(given_up)} of {plan.num_shards} shards were given up"
    return end_run(store, ledger, stopped_by=scoring.reason, error=error)


end_task = stage("end")(end_runs)


def evaluate_job(store: Store, job: Job) -> Evaluation | None:
    """Compare the job's models with its truth; None without truth or predictions."""
    published = store.models()
    keys = [spec.key for spec in job.specs if spec.key in published]
    if job.truth is None or not keys:
        return None
    return evaluate_task(
        store, job.truth, base=job.truth_base, collection=job.collection, models=keys
    )


def report_job(store: Store, job: Job, evaluation: Evaluation | None, plan: Plan) -> Path:
    """Write metrics and report; those of an unchanged store stay as they are, byte by byte."""
    folder = results_folder(store, job.collection)
    path = folder / "report.html"
    if plan.is_empty and path.exists():
        return path
    metrics = () if evaluation is None else save_evaluation(evaluation, folder)
    report_task(store, evaluation, path, collection=job.collection, run_id=_run_id(plan))
    keep_results(store, job.collection, (*metrics, *report_files(path)))
    return path


def describe_run(store: Store, run: RunReport) -> str:
    """The run as markdown, for Prefect's page of it."""
    summary = summarise_run(
        store, collection=run.collection, run_id=run.run_id, evaluation=run.evaluation
    )
    text = summary_markdown(run.evaluation, summary)
    return f"{text}\n\nReport: `{run.report}`" if run.report else text


def final_state(run: RunReport) -> State[RunReport]:
    """What Prefect shows of the run, with the run as data."""
    scoring = run.scoring
    left = f"{scoring.num_left} of {scoring.num_shards} shards are left"
    if scoring.ended == "stopped":
        progress = f"{scoring.num_done} of {scoring.num_shards} shards"
        message = f"stopped by {scoring.reason} after {progress}; run again to resume"
        return Cancelled(message=message, data=run)
    if scoring.ended == "broken":
        cause = _commonest_failure(run.end)
        often = f", most often {cause}" if cause else ""
        message = f"{scoring.reason}{often}; {left}, what was committed is kept"
        return Failed(message=message, data=run)
    if scoring.failed_shards:
        message = f"{len(scoring.failed_shards)} of {scoring.num_shards} shards failed; run again"
        return Failed(message=f"{message} to try them again", data=run)
    if run.end is not None and run.end.state == "incomplete":
        message = f"{run.end.reason}: `pixelmill audit {run.store}` tells which"
        return Failed(message=message, data=run)
    if scoring.ended == "out of time":
        message = f"{scoring.reason}; {left}, run again to go on"
        return Completed(name="OutOfTime", message=message, data=run)
    message = f"{run.num_planned} of {run.num_listed} images scored"
    if scoring.num_failed:
        message += f", {scoring.num_failed} failures recorded"
        return Completed(name="CompletedWithQuarantine", message=message, data=run)
    return Completed(message=message, data=run)


def _commonest_failure(end: RunEnd | None) -> str | None:
    """The stage and reason that most failures of a run have."""
    causes: Counter[str] = Counter()
    for counts in end.ledger.values() if end else ():
        causes.update(counts.failed)
    return causes.most_common(1)[0][0] if causes else None
