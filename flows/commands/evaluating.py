"""evaluate, report."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pixelmill.configs.schema import EvaluationConfig
from pixelmill.flows.commands.options import Collection, StoreRoot, Truth, merge_truth
from pixelmill.flows.commands.running import ExitCode, console, exit_code, run_flow

__all__ = ["evaluate", "report"]

_TRUTH = Truth()


def evaluate(
    store: StoreRoot = "pixelmill-store",
    /,
    *,
    collection: Collection = None,
    model: Annotated[
        tuple[str, ...], Parameter(help="Model key or name; else all.", negative=())
    ] = (),
    truth: Truth = _TRUTH,
) -> ExitCode:
    """Compare predictions with truth; write metrics and report.

    Example: pixelmill evaluate results --instances annotations/instances.json

    Without truth, that of the run's configuration is used.
    """
    subset = merge_truth(EvaluationConfig(), Truth(subset=truth.subset)).subset
    compared = replace(truth, subset=None)
    given = merge_truth(EvaluationConfig(), compared) if compared != _TRUTH else None
    from pixelmill.flows.evaluation import EvaluateParams, evaluate_flow, find_last_run
    from pixelmill.flows.printing import print_evaluation
    from pixelmill.tasks.store import Store

    find_last_run(Store(store), collection)
    params = EvaluateParams(
        store=store, collection=collection, models=model, truth=given, subset=subset
    )
    state, found = run_flow(evaluate_flow, params)
    if found is not None:
        terminal = console()
        print_evaluation(terminal, found.evaluation)
        terminal.print(f"metrics {found.folder}", highlight=False, markup=False, soft_wrap=True)
        terminal.print(f"report  {found.report}", highlight=False, markup=False, soft_wrap=True)
    return exit_code(state)


def report(
    store: StoreRoot = "pixelmill-store",
    /,
    *,
    collection: Collection = None,
    to: Annotated[Path | None, Parameter(help="The HTML file; else in the store.")] = None,
    gallery: Annotated[int, Parameter(help="Images in the gallery, at most.")] = 120,
) -> ExitCode:
    """Write the HTML report of a collection, without comparing with truth.

    Example: pixelmill report results --to report.html
    """
    from pixelmill.flows.evaluation import find_last_run
    from pixelmill.flows.results import keep_results, results_folder
    from pixelmill.tasks.report import build_report, report_files
    from pixelmill.tasks.store import Store

    opened = Store(store)
    run = find_last_run(opened, collection)
    path = to or results_folder(opened, run.collection) / "report.html"
    written = build_report(
        opened, None, path, collection=run.collection, run_id=run.run_id, max_gallery=gallery
    )
    if to is None:
        keep_results(opened, run.collection, report_files(written))
    print(written)
    return ExitCode.COMPLETE
