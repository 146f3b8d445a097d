"""The flow `nightly`: score what is new, judge the night, report, and tell whoever asked."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, cast

from prefect import flow, serve
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from pixelmill.configs.load import load_config
from pixelmill.configs.schema import NotifyConfig, Outcome, RunConfig
from pixelmill.flows.job import ScoreParams
from pixelmill.flows.neighbours import NIGHTLY, Neighbours
from pixelmill.flows.score import RunReport, score
from pixelmill.tasks.health.judge import Health, health_task
from pixelmill.tasks.notify import Notice, NoticeFailure, send_notice
from pixelmill.tasks.stage import stage
from pixelmill.tasks.store import Store

__all__ = [
    "NightReport",
    "NightlyParams",
    "night_notice",
    "nightly",
    "nightly_flow",
    "scheduled_flow",
    "serve_nights",
]

# What is emitted when a collection is whole; prefect.yaml has the same
LANDED, WHICH = "pixelmill.collection.landed", "pixelmill.collection.*"

# Of a message; the notice and the report have all
_MOST_ALARMS = 3

notify_task = stage("notify")(send_notice)


class NightlyParams(BaseModel):
    """Parameters of the flow `nightly`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: ScoreParams = Field(description="what is scored, by which models, and where to")
    health: bool = Field(
        default=True, description="compare the night with the ones before it; see the config"
    )


@dataclass(frozen=True, slots=True)
class NightReport:
    """What a night leaves behind.

    Attributes:
        run: None if another night was at work on the store.
        health: None where nothing was scored, or it was not asked for.
        untold: notices that did not arrive.
    """

    run: RunReport | None
    health: Health | None = None
    untold: tuple[NoticeFailure, ...] = ()


def nightly(params: NightlyParams) -> State[NightReport]:
    """Score what is new, publish, evaluate, judge, report and tell.

    One night at a time works on a store; another one that starts meanwhile is skipped, as the first
    does its work. What gives way, such as a backfill, starts nothing new until the night is over. A
    try that fails is told only if it is the last one.

    Returns:
        As of `score`; Unhealthy if the night is unlike those before it, or Skipped.
    """
    config = params.score.config
    config = config if isinstance(config, RunConfig) else load_config(config)
    store = Store(params.score.store, create=True)
    with Neighbours(store) as neighbours, neighbours.only_one(NIGHTLY) as is_our_turn:
        if not is_our_turn:
            message = f"another nightly run is at work on {store.root}, and does what is new"
            return Completed(name="Skipped", message=message, data=NightReport(None))
        try:
            state: State[Any] = score(_recent(params.score, config.nightly.days))
            run = cast("RunReport", state.data)
            health = _judge(store, config, run) if params.health else None
        except Exception as err:
            if not _is_tried_again():
                _tell(config, _crash_notice(params, err))
            raise
    if health is not None and health.level == "alarm" and state.is_completed():
        alarms = [each.text for each in health.findings if each.level == "alarm"]
        state = Completed(name="Unhealthy", message="; ".join(alarms[:_MOST_ALARMS]))
    notice = night_notice(state, run, health)
    create_markdown_artifact(_page(notice), key="nightly")
    is_over = not (state.is_failed() and _is_tried_again())
    state.data = NightReport(run, health, _tell(config, notice) if is_over else ())
    return state


nightly_flow = flow(
    name="nightly", flow_run_name="nightly-{params.score.title}", persist_result=False
)(nightly)

# As a deployment: a night that failed is tried again, and goes on where it was
scheduled_flow = nightly_flow.with_options(retries=2, retry_delay_seconds=300)


def serve_nights(name: str, parameters: dict[str, Any], cron: str) -> None:
    """Stay, and run `scheduled_flow` when the Prefect server's schedule or an event says so.

    Args:
        name: of the deployment.
        parameters: of its runs.
        cron: when.
    """
    # Its `serve` would name the function below the flow, which has none of the flow's options
    deployment = RunnerDeployment.from_entrypoint(
        f"{__name__}.scheduled_flow",
        name=name,
        cron=cron,
        parameters=parameters,
        triggers=[DeploymentEventTrigger(expect={LANDED}, match={"prefect.resource.id": WHICH})],
        tags=["pixelmill"],
    )
    serve(deployment, limit=1, pause_on_shutdown=False)


def _is_tried_again() -> bool:
    """Whether Prefect starts this run once more if it fails."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return False
    return context.flow_run.run_count <= (context.flow_run.empirical_policy.retries or 0)


def _recent(params: ScoreParams, days: int | None) -> ScoreParams:
    """The last days only; the night itself is the last of them."""
    if days is None:
        return params
    night = date.fromisoformat(params.date) if params.date else datetime.now(UTC).date()
    first = night - timedelta(days=days - 1)
    return params.model_copy(update={"since": first.isoformat()})


def _judge(store: Store, config: RunConfig, run: RunReport) -> Health | None:
    """Hold the night against those before it; one without a run of its own is like nothing."""
    if run.end is None or run.run_id is None:
        return None
    night = store.run(run.run_id).date
    found: Health = health_task(store, config.health, collection=run.collection, date=night)
    return found


def night_notice(state: State[Any], run: RunReport, health: Health | None = None) -> Notice:
    """What is told of a night that came to its end."""
    outcome = _outcome(state)
    scored = max(run.scoring.num_scored.values(), default=0)
    title = (
        f"{run.collection}: {outcome.replace('_', ' ')}, {scored:,} of {run.num_listed:,} images"
    )
    lines = [state.message or ""]
    if run.end is not None:
        for key, counts in run.end.ledger.items():
            failed = sum(counts.failed.values())
            told = f"{counts.scored + counts.scored_empty:,} scored, {failed:,} failed"
            lines.append(f"{key}: {told}, {sum(counts.skipped.values()):,} skipped")
    for model in run.evaluation.models if run.evaluation else ():
        lines += [f"{model.model_key}: {each.name} {each.value:.3f}" for each in model.headline[:1]]
    lines += [
        f"{each.level}: {each.text}"
        for each in (health.findings if health else ())
        if each.level != "note"
    ]
    if run.report is not None:
        lines.append(f"report: {run.report}")
    facts = {
        "store": run.store,
        "collection": run.collection,
        "run_id": run.run_id,
        "num_listed": run.num_listed,
        "num_scored": scored,
        "num_failed": run.scoring.num_failed,
        "health": health.level if health else None,
        "seconds": round(run.scoring.seconds, 1),
    }
    return Notice(outcome, title, "\n".join(line for line in lines if line), facts)


def _page(notice: Notice) -> str:
    """The notice as markdown, in which lines are not joined."""
    return "\n".join((f"# {notice.title}", "", *(f"- {each}" for each in notice.text.splitlines())))


def _crash_notice(params: NightlyParams, error: Exception) -> Notice:
    what = params.score.collection or params.score.source or "the night"
    facts = {"store": params.score.store, "error": type(error).__name__}
    return Notice("failed", f"{what}: failed", f"{type(error).__name__}: {error}", facts)


def _outcome(state: State[Any]) -> Outcome:
    if not state.is_completed():
        return "failed"
    outcomes: dict[str, Outcome] = {
        "CompletedWithQuarantine": "quarantine",
        "OutOfTime": "out_of_time",
        "Unhealthy": "unhealthy",
    }
    return outcomes.get(state.name or "", "complete")


def _tell(config: RunConfig, notice: Notice) -> tuple[NoticeFailure, ...]:
    targets: tuple[NotifyConfig, ...] = config.nightly.notify
    send: Callable[..., tuple[NoticeFailure, ...]] = notify_task
    return send(targets, notice) if targets else ()
