"""The flow `evaluate`: compare what a store holds with truth, and report."""

from dataclasses import dataclass
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict, Field

from pixelmill.configs.schema import EvaluationConfig, RunConfig
from pixelmill.flows.job import find_truth, last_run, truth_base
from pixelmill.flows.results import keep_results, results_folder
from pixelmill.flows.score import report_task
from pixelmill.tasks.evaluate import evaluate_task
from pixelmill.tasks.evaluation.save import save_evaluation
from pixelmill.tasks.metrics.results import Evaluation
from pixelmill.tasks.report import report_files, summary_markdown
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
    subset: str | None = Field(
        default=None, description="text file of the images to compare; left out: the truth's own"
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
    run = find_last_run(store, params.collection)
    base = truth_base(run.source)
    evaluation = evaluate_task(
        store,
        _choose_truth(params, run, base),
        base=base,
        collection=run.collection,
        models=params.models or None,
    )
    folder = results_folder(store, run.collection)
    metrics = save_evaluation(evaluation, folder)
    report = report_task(
        store,
        evaluation,
        folder / "report.html",
        collection=run.collection,
        run_id=run.run_id,
    )
    keep_results(store, run.collection, (*metrics, *report_files(report)))
    create_markdown_artifact(summary_markdown(evaluation, None), key="evaluation")
    return EvaluationReport(evaluation, folder, report)


evaluate_flow = flow(
    name="evaluate", flow_run_name="evaluate-{params.store}", persist_result=False
)(evaluate_store)


def _choose_truth(params: EvaluateParams, run: RunRecord, base: Path) -> EvaluationConfig:
    """The truth asked for, else the run's that is there, else the run's, to be complained of."""
    configured = RunConfig.model_validate(run.config).evaluation
    truth = params.truth or configured
    if params.subset is not None:
        truth = truth.model_copy(update={"subset": params.subset})
    return truth if params.truth else find_truth(truth, base) or truth


def find_last_run(store: Store, collection: str | None) -> RunRecord:
    """The newest run, or the newest of a collection.

    Raises:
        ValueError: there is none.
    """
    found = last_run(store, collection)
    if found is not None:
        return found
    known = sorted({store.run(run_id).collection for run_id in store.runs()})
    if not known:
        raise ValueError(f"store {store.root} has no run; score a folder into it first")
    raise ValueError(
        f"store {store.root} has no run of collection {collection!r}; it has: {', '.join(known)}"
    )
