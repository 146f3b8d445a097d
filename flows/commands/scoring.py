"""score, plan, demo."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pixelmill.configs.load import load_config
from pixelmill.flows.commands.options import (
    WHERE,
    Cluster,
    Collection,
    Folder,
    Limits,
    Models,
    Out,
    RetryFailed,
    Truth,
    UsageError,
    Workers,
    choose_config,
    merge_truth,
    with_compute,
)
from pixelmill.flows.commands.running import ExitCode, console, exit_code, run_flow

if TYPE_CHECKING:
    from pixelmill.flows.job import ScoreParams

__all__ = ["demo", "plan", "score", "score_params", "writable_params"]

_MODELS, _WORKERS, _LIMITS, _TRUTH = Models(), Workers(), Limits(), Truth()


def score(
    folder: Folder = None,
    /,
    *,
    models: Models = _MODELS,
    retry_failed: RetryFailed = False,
    out: Out = "pixelmill-store",
    collection: Collection = None,
    date: Annotated[
        str | None,
        Parameter(help="Logical date of the batch, YYYY-MM-DD; else today.", group=WHERE),
    ] = None,
    workers: Workers = _WORKERS,
    limits: Limits = _LIMITS,
    truth: Truth = _TRUTH,
    no_report: Annotated[bool, Parameter(help="Score only.", negative=(), group=WHERE)] = False,
) -> ExitCode:
    """Score what is missing of a folder of images.

    Example: pixelmill score photos --preset demo --out results

    Without a preset or configuration, COCO and ImageNet models of
    torchvision are used; their weights are downloaded once.
    """
    chosen = choose_config(folder, models)
    compared = merge_truth(chosen.evaluation, truth)
    chosen = with_compute(chosen.model_copy(update={"evaluation": compared}), workers, limits)
    params = writable_params(
        source=folder,
        store=out,
        config=chosen,
        collection=collection,
        date=date,
        reprocess="failed" if retry_failed else "missing",
        until=limits.until,
        budget=limits.budget,
        report=not no_report,
    )
    from pixelmill.flows.printing import print_run
    from pixelmill.flows.score import score_flow

    state, run = run_flow(score_flow, params)
    if run is not None and not state.is_cancelled():
        print_run(console(), run)
    return exit_code(state)


def plan(
    folder: Folder = None,
    /,
    *,
    models: Models = _MODELS,
    retry_failed: RetryFailed = False,
    out: Out = "pixelmill-store",
    collection: Collection = None,
    workers: Workers = _WORKERS,
) -> ExitCode:
    """Say what `score` would do: images, bytes, shards, time.

    Example: pixelmill plan photos --preset demo --out results
    """
    chosen = with_compute(choose_config(folder, models), workers)
    params = score_params(
        source=folder,
        store=out,
        config=chosen,
        collection=collection,
        reprocess="failed" if retry_failed else "missing",
    )
    from pixelmill.flows.job import prepare_job, preview_plan
    from pixelmill.flows.printing import print_plan

    job = prepare_job(params)
    print_plan(console(), preview_plan(params.store, job), job.collection)
    return ExitCode.COMPLETE


def demo(
    *,
    images: Annotated[int, Parameter(help="Scenes to render.")] = 240,
    out: Annotated[Path, Parameter(name=("--out", "-o"), help="Folder of it all.")] = Path("demo"),
    cluster: Cluster = None,
) -> ExitCode:
    """Everything once, offline: render scenes, score, evaluate, report.

    Example: pixelmill demo --images 60

    Three small models of our own give boxes with masks, regions and
    captions; classification has no embedded model. The scenes were not
    trained on.
    """
    if images < 1:
        raise UsageError(f"--images must be at least 1, got {images}")
    from pixelmill.flows.printing import print_run
    from pixelmill.flows.score import score_flow
    from pixelmill.tasks.scenes.write import write_scenes

    scenes = out / "scenes"
    print(f"rendering {images} scenes into {scenes}", file=sys.stderr, flush=True)
    write_scenes(scenes, images, seed=0)
    params = writable_params(
        source=str(scenes / "images"),
        store=str(out / "store"),
        config=with_compute(load_config("demo"), Workers(cluster=cluster)),
        collection="demo",
    )
    state, run = run_flow(score_flow, params)
    if run is not None and not state.is_cancelled():
        print_run(console(), run)
    return exit_code(state)


def score_params(**fields: Any) -> "ScoreParams":
    """Checked parameters; what cannot work is told before Prefect starts."""
    from pydantic import ValidationError

    from pixelmill.flows.job import ScoreParams, prepare_job

    try:
        params = ScoreParams(**fields)
    except ValidationError as err:
        faults = "; ".join(f"--{error['loc'][0]}: {error['msg']}" for error in err.errors())
        raise UsageError(faults) from err
    prepare_job(params)
    return params


def writable_params(**fields: Any) -> "ScoreParams":
    """Checked parameters of a run that writes; a store that refuses is told of before it starts."""
    params = score_params(**fields)
    from pixelmill.tasks.store import Store

    try:
        Store(params.store, create=True)
    except (OSError, RuntimeError) as err:
        raise UsageError(str(err)) from err
    return params
