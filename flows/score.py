"""The flow `score`: a folder of images becomes masks, boxes, captions, metrics and a report."""

import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from pixelmill.configs.schema import ComputeConfig
from pixelmill.flows.job import Job, ScoreParams, plan_job, prepare_job, read_known
from pixelmill.flows.pool import open_pool
from pixelmill.flows.progress import collected_logs, show_progress
from pixelmill.flows.results import keep_results, results_folder
from pixelmill.flows.stopping import StopFlag
from pixelmill.flows.submit import FailedShard, RetryPolicy, Submission, run_shards
from pixelmill.flows.worker import score_reference
from pixelmill.tasks.engine.score import ShardOutcome
from pixelmill.tasks.evaluate import evaluate_task, save_evaluation
from pixelmill.tasks.ingest import Listing, ingest_task
from pixelmill.tasks.metrics.results import Evaluation
from pixelmill.tasks.plan import Plan, save_plan
from pixelmill.tasks.report import build_report, summarise_run, summary_markdown
from pixelmill.tasks.stage import stage
from pixelmill.tasks.store import RunRecord, Store, publish

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
    "score_shards",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scoring:
    """What the score stage did.

    Attributes:
        num_scored: images by model key.
        num_failed: tries that failed: images, or one model on an image.
        stopped_by: why it ended early; None if it did not.
    """

    num_shards: int = 0
    num_done: int = 0
    num_scored: Mapping[str, int] = field(default_factory=dict)
    num_failed: int = 0
    failed_shards: tuple[FailedShard, ...] = ()
    images_per_s: float = 0.0
    seconds: float = 0.0
    stopped_by: str | None = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run leaves behind, for whoever called the flow."""

    store: str
    collection: str
    run_id: str | None
    num_listed: int
    num_planned: int
    num_quarantined: int
    num_problems: int
    scoring: Scoring
    evaluation: Evaluation | None = None
    report: Path | None = None


@dataclass(slots=True)
class _Counter:
    """Sums over shards' outcomes."""

    num_scored: Counter[str] = field(default_factory=Counter)
    num_failed: int = 0
    num_done: int = 0

    def add(self, outcome: ShardOutcome) -> None:
        self.num_scored.update(outcome.num_scored)
        self.num_failed += outcome.num_failed
        self.num_done += 1


class _Publisher:
    """Publishes beside the scoring, so that readers see a long run grow."""

    def __init__(self, store: Store, compute: ComputeConfig) -> None:
        self._store, self._compute = store, compute
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pixelmill-publish")
        self._running: Future[object] | None = None
        self._num_waiting, self._last = 0, time.monotonic()

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
            logger.warning("could not publish meanwhile: %s", err)


def score_shards(
    root: str, record: RunRecord, shard_sizes: NDArray[np.int64], compute: ComputeConfig
) -> Scoring:
    """Score the shards of a run that are not committed, on the cluster that the config names.

    Args:
        root: of the store.
        record: of the run.
        shard_sizes: (num_shards,) images of each.
        compute: where, and how often is published.
    """
    store = Store(root)
    committed = store.committed_shards(record.run_id)
    todo = [index for index in range(record.num_shards) if index not in committed]
    counter, stop = _Counter(), StopFlag(flow_run.id)
    with contextlib.ExitStack() as stack:
        drain_logs = stack.enter_context(collected_logs(get_run_logger()))
        progress = stack.enter_context(
            show_progress(record.collection, int(shard_sizes.sum()), "scoring")
        )
        stack.enter_context(stop.listening())
        publisher = stack.enter_context(contextlib.closing(_Publisher(store, compute)))
        pool = stack.enter_context(open_pool(compute.cluster, len(todo)))

        def on_done(shard_index: int, outcome: ShardOutcome) -> None:
            counter.add(outcome)
            publisher.count()
            progress.done += int(shard_sizes[shard_index])

        def on_tick(submission: Submission) -> None:
            drain_logs()
            progress.tick(f", {len(submission.failed)} shards failed" if submission.failed else "")

        submission = run_shards(
            pool,
            functools.partial(score_reference, root, record.run_id),
            todo,
            name=record.run_id,
            policy=RetryPolicy(transient=compute.retries),
            should_stop=stop,
            on_done=on_done,
            on_tick=on_tick,
        )
    return Scoring(
        num_shards=record.num_shards,
        num_done=len(committed) + counter.num_done,
        num_scored=dict(counter.num_scored),
        num_failed=counter.num_failed,
        failed_shards=tuple(submission.failed),
        images_per_s=progress.images_per_s,
        seconds=progress.seconds,
        stopped_by=stop.reason if submission.stopped else None,
    )


prepare_task = stage("prepare")(prepare_job)
plan_task = stage("plan")(plan_job)
score_task = stage("score")(score_shards)
publish_task = stage("publish")(publish)
report_task = stage("report")(build_report)


def score(params: ScoreParams) -> State[RunReport]:
    """Score what is missing of a folder, publish it, evaluate it, and report.

    Run again, it goes on where it was stopped; with nothing missing it changes nothing.

    Args:
        params: what, by which models, and where to.

    Returns:
        Completed, CompletedWithQuarantine, Failed if shards were given up, or Cancelled if it was
        stopped; with the run's report as data.
    """
    job = prepare_task(params)
    store = Store(params.store, create=True)
    publish_task(store)  # what a killed run had finished is known from here on
    listing = ingest_task(job.source, job.config.ingest, read_known(store, job.collection))
    plan, scoring = score_listing(store, job, listing)
    evaluation = report = None
    if scoring.stopped_by is None:
        evaluation = evaluate_job(store, job)
        report = report_job(store, job, evaluation, plan) if params.report else None
    run = RunReport(
        store=store.root,
        collection=job.collection,
        run_id=plan.record.run_id if plan.record else None,
        num_listed=plan.num_listed,
        num_planned=plan.num_planned,
        num_quarantined=plan.num_quarantined,
        num_problems=plan.num_problems,
        scoring=scoring,
        evaluation=evaluation,
        report=report,
    )
    create_markdown_artifact(describe_run(store, run), key="run-summary")
    return final_state(run)


score_flow = flow(name="score", flow_run_name="score-{params.source}", persist_result=False)(score)


def score_listing(store: Store, job: Job, listing: Listing) -> tuple[Plan, Scoring]:
    """Plan what a listing lacks, score it and publish it."""
    plan = plan_task(store, job, listing)
    if plan.record is None:
        return plan, Scoring()
    record = save_plan(store, plan)
    sizes = np.bincount(plan.rows["shard"].to_numpy())
    scoring = score_task(store.root, record, sizes, job.config.compute)
    publish_task(store)
    return plan, scoring


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
    if plan.record is None and path.exists():
        return path
    metrics = () if evaluation is None else save_evaluation(evaluation, folder)
    run_id = plan.record.run_id if plan.record else None
    report_task(store, evaluation, path, collection=job.collection, run_id=run_id)
    keep_results(store, job.collection, (*metrics, path))
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
    progress = f"{scoring.num_done} of {scoring.num_shards} shards"
    if scoring.stopped_by is not None:
        message = f"stopped by {scoring.stopped_by} after {progress}; run again to resume"
        return Cancelled(message=message, data=run)
    if scoring.failed_shards:
        message = f"{len(scoring.failed_shards)} of {scoring.num_shards} shards failed; run again"
        return Failed(message=f"{message} to try them again", data=run)
    message = f"{run.num_planned} of {run.num_listed} images scored"
    if scoring.num_failed:
        message += f", {scoring.num_failed} failures recorded"
        return Completed(name="CompletedWithQuarantine", message=message, data=run)
    return Completed(message=message, data=run)
