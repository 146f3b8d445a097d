"""The flow `evaluate`: compare what a store holds with truth, and report."""

from dataclasses import dataclass
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict, Field

from pixelmill.configs.schema import EvaluationConfig, RunConfig
from pixelmill.flows.job import find_truth, results_folder, truth_base
from pixelmill.flows.score import report_task
from pixelmill.tasks.evaluate import evaluate_task, save_evaluation
from pixelmill.tasks.metrics.results import Evaluation
from pixelmill.tasks.report import summary_markdown
from pixelmill.tasks.store import RunRecord, Store

__all__ = ["EvaluateParams", "EvaluationReport", "evaluate_flow", "evaluate_store", "find_last_run"]


class EvaluateParams(BaseModel):
    """Parameters of the flow `evaluate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str = Field(description="folder or URL of the store")
    collection: str | None = Field(default=None, description="left out: of the newest run")
    models: tuple[str, ...] = Field(default=(), description="keys or names; left out: all")
    truth: EvaluationConfig | None = Field(
        default=None, description="left out: what the collection's newest run was configured with"
    )


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The numbers, and where they were written."""

    evaluation: Evaluation
    folder: Path
    report: Path


def evaluate_store(params: EvaluateParams) -> EvaluationReport:
    """Compare a collection's predictions with truth, save the numbers and write the report."""
    store = Store(params.store)
    last_run = find_last_run(store, params.collection)
    config = RunConfig.model_validate(last_run.config)
    base = truth_base(last_run.source)
    evaluation = evaluate_task(
        store,
        params.truth or find_truth(config.evaluation, base) or config.evaluation,
        base=base,
        collection=last_run.collection,
        models=params.models or None,
    )
    folder = results_folder(store, last_run.collection)
    save_evaluation(evaluation, folder)
    report = report_task(
        store,
        evaluation,
        folder / "report.html",
        collection=last_run.collection,
        run_id=last_run.run_id,
    )
    create_markdown_artifact(summary_markdown(evaluation, None), key="evaluation")
    return EvaluationReport(evaluation, folder, report)


evaluate_flow = flow(
    name="evaluate", flow_run_name="evaluate-{params.store}", persist_result=False
)(evaluate_store)


def find_last_run(store: Store, collection: str | None) -> RunRecord:
    """The newest run, or the newest of a collection.

    Raises:
        ValueError: there is none.
    """
    known: set[str] = set()
    for run_id in reversed(store.runs()):
        record = store.run(run_id)
        if collection in (None, record.collection):
            return record
        known.add(record.collection)
    if collection is None:
        raise ValueError(f"store {store.root} has no run; score a folder into it first")
    raise ValueError(
        f"store {store.root} has no run of collection {collection!r}; it has: "
        f"{', '.join(sorted(known)) or 'none'}"
    )
