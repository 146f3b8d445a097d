"""The command line. Heavy imports wait until a command needs them: help must be instant."""

import signal
import sys
from collections.abc import Callable
from enum import IntEnum
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter

from pixelmill.configs.load import (
    TRAIN_PRESETS,
    ConfigError,
    find_config,
    list_presets,
    load_config,
    load_train_config,
)
from pixelmill.configs.schema import EvaluationConfig, RunConfig

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State
    from rich.console import Console

    from pixelmill.flows.job import ScoreParams

__all__ = ["ExitCode", "app", "main"]


class ExitCode(IntEnum):
    """What a scheduler is told."""

    COMPLETE = 0
    FAILED = 1
    USAGE = 2
    QUARANTINE = 3
    INTERRUPTED = 130
    TERMINATED = 143


HELP = """Score folders of images with vision models.

Masks, boxes, captions and labels go into a store, with an HTML report.
Run the same command again after anything (a crash, Ctrl-C, new images):
it does what is missing and nothing else.

    pixelmill demo                   everything once, on rendered scenes
    pixelmill score photos           COCO and ImageNet models of torchvision
    pixelmill score photos --config mine.yaml
    pixelmill plan photos            what that would do

Exit codes: 0 complete; 1 failed, run again to resume; 2 wrong usage or
configuration; 3 complete, but new images were quarantined;
130 stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

VERSION = package_version("pixelmill")

app = App(name="pixelmill", help=HELP, help_format="plaintext", version=VERSION)
config_app = App(name="config", help="Look at configurations.", help_format="plaintext")
models_app = App(name="models", help="List and fetch models.", help_format="plaintext")
app.command(config_app)
app.command(models_app)

WHAT = Group("What is scored, and by what")
WHERE = Group("Where")
TRUTH = Group("Truth to compare with")

Folder = Annotated[
    str | None, Parameter(help="Folder or URL (s3://, gs://, az://) of images.", group=WHAT)
]
Preset = Annotated[
    str | None, Parameter(help="Name of a configuration: `pixelmill config list`.", group=WHAT)
]
ConfigFile = Annotated[
    Path | None, Parameter(help="A configuration of your own, YAML.", group=WHAT)
]
Weights = Annotated[
    tuple[str, ...],
    Parameter(
        help="NAME=FILE: other weights for the configuration's model NAME. A FILE alone, written "
        "by `pixelmill train`: score with that model.",
        group=WHAT,
        negative=(),
        consume_multiple=False,
    ),
]
Reprocess = Annotated[
    Literal["missing", "failed", "all"],
    Parameter(help="failed: also what failed for good; all: everything.", group=WHAT),
]
Out = Annotated[str, Parameter(name=("--out", "-o"), help="The store: folder or URL.", group=WHERE)]
Collection = Annotated[
    str | None, Parameter(help="Name of the images in the store; else the folder's.", group=WHERE)
]
Date = Annotated[
    str | None, Parameter(help="Logical date of the batch, YYYY-MM-DD; else today.", group=WHERE)
]
Cluster = Annotated[
    str | None, Parameter(help="auto, inline, local, local:<n> or cuda.", group=WHERE)
]
Scheduler = Annotated[
    str | None, Parameter(help="A running Dask scheduler, tcp://host:port.", group=WHERE)
]
Instances = Annotated[Path | None, Parameter(help="COCO JSON with boxes and masks.", group=TRUTH)]
Semantic = Annotated[
    Path | None, Parameter(help="Folder of PNG label maps named like the images.", group=TRUTH)
]
Captions = Annotated[Path | None, Parameter(help="COCO captions JSON.", group=TRUTH)]
Labels = Annotated[
    Path | None, Parameter(help="CSV with the columns file_name and label.", group=TRUTH)
]
Subset = Annotated[
    Path | None, Parameter(help="Text file of the images to compare, one a line.", group=TRUTH)
]
StoreRoot = Annotated[str, Parameter(help="Folder or URL of the store.")]


class UsageError(Exception):
    """Something is wrong with the command; told in one line."""


@app.command
def score(
    folder: Folder = None,
    /,
    *,
    preset: Preset = None,
    config: ConfigFile = None,
    weights: Weights = (),
    reprocess: Reprocess = "missing",
    out: Out = "pixelmill-store",
    collection: Collection = None,
    date: Date = None,
    cluster: Cluster = None,
    scheduler: Scheduler = None,
    instances: Instances = None,
    semantic: Semantic = None,
    captions: Captions = None,
    labels: Labels = None,
    subset: Subset = None,
    no_report: Annotated[bool, Parameter(help="Score only.", negative=(), group=WHERE)] = False,
) -> ExitCode:
    """Score what is missing of a folder of images.

    Example: pixelmill score photos --preset demo --out results

    Without a preset or configuration, COCO and ImageNet models of
    torchvision are used; their weights are downloaded once.
    """
    chosen = _choose_config(folder, preset, config, weights)
    truth = _merge_truth(
        chosen.evaluation,
        instances=instances,
        semantic=semantic,
        captions=captions,
        labels=labels,
        subset=subset,
    )
    chosen = _on_cluster(chosen.model_copy(update={"evaluation": truth}), cluster, scheduler)
    params = _score_params(
        source=folder,
        store=out,
        config=chosen,
        collection=collection,
        date=date,
        reprocess=reprocess,
        report=not no_report,
    )
    from pixelmill.flows.printing import print_run
    from pixelmill.flows.score import score_flow

    state, run = _run_flow(score_flow, params)
    if run is not None and not state.is_cancelled():
        print_run(_console(), run)
    return _exit_code(state)


@app.command
def plan(
    folder: Folder = None,
    /,
    *,
    preset: Preset = None,
    config: ConfigFile = None,
    weights: Weights = (),
    reprocess: Reprocess = "missing",
    out: Out = "pixelmill-store",
    collection: Collection = None,
    cluster: Cluster = None,
    scheduler: Scheduler = None,
) -> ExitCode:
    """Say what `score` would do: images, bytes, shards, time.

    Example: pixelmill plan photos --preset demo --out results
    """
    chosen = _on_cluster(_choose_config(folder, preset, config, weights), cluster, scheduler)
    params = _score_params(
        source=folder, store=out, config=chosen, collection=collection, reprocess=reprocess
    )
    from pixelmill.flows.job import prepare_job, preview_plan
    from pixelmill.flows.printing import print_plan

    job = prepare_job(params)
    print_plan(_console(), preview_plan(params.store, job), job.collection)
    return ExitCode.COMPLETE


@app.command
def backfill(
    folder: Folder = None,
    /,
    *,
    by: Annotated[
        Literal["day", "month", "folder"],
        Parameter(help="Parts; days and months are read from the paths.", group=WHAT),
    ] = "day",
    first: Annotated[
        str | None, Parameter(name="--from", help="First part, such as 2024-05-01.", group=WHAT)
    ] = None,
    last: Annotated[
        str | None, Parameter(name="--to", help="Last part, included.", group=WHAT)
    ] = None,
    reverse: Annotated[bool, Parameter(help="Newest part first.", negative=(), group=WHAT)] = False,
    dry_run: Annotated[
        bool, Parameter(help="Only tell the state of each part.", negative=(), group=WHAT)
    ] = False,
    preset: Preset = None,
    config: ConfigFile = None,
    weights: Weights = (),
    reprocess: Reprocess = "missing",
    out: Out = "pixelmill-store",
    collection: Collection = None,
    cluster: Cluster = None,
    scheduler: Scheduler = None,
) -> ExitCode:
    """Score a long collection by day, month or folder.

    Example: pixelmill backfill archive --by month --from 2024-01 --dry-run

    How far it is follows from the store alone; run it again and it goes on.
    """
    chosen = _on_cluster(_choose_config(folder, preset, config, weights), cluster, scheduler)
    params = _score_params(
        source=folder, store=out, config=chosen, collection=collection, reprocess=reprocess
    )
    from pixelmill.flows.backfill import BackfillParams, backfill_flow
    from pixelmill.flows.printing import print_backfill

    asked = BackfillParams(
        score=params, by=by, first=first, last=last, reverse=reverse, dry_run=dry_run
    )
    state, report = _run_flow(backfill_flow, asked)
    if report is not None:
        print_backfill(_console(), report)
    return _exit_code(state)


@app.command
def evaluate(
    store: StoreRoot = "pixelmill-store",
    /,
    *,
    collection: Collection = None,
    model: Annotated[
        tuple[str, ...], Parameter(help="Model key or name; else all.", negative=())
    ] = (),
    instances: Instances = None,
    semantic: Semantic = None,
    captions: Captions = None,
    labels: Labels = None,
    subset: Subset = None,
) -> ExitCode:
    """Compare predictions with truth; write metrics and report.

    Example: pixelmill evaluate results --instances annotations/instances.json

    Without truth, that of the run's configuration is used.
    """
    given = {"instances": instances, "semantic": semantic, "captions": captions, "labels": labels}
    truth = _merge_truth(EvaluationConfig(), **given) if any(given.values()) else None
    chosen = _merge_truth(EvaluationConfig(), subset=subset).subset
    from pixelmill.flows.evaluation import EvaluateParams, evaluate_flow, find_last_run
    from pixelmill.flows.printing import print_evaluation
    from pixelmill.tasks.store import Store

    find_last_run(Store(store), collection)
    params = EvaluateParams(
        store=store, collection=collection, models=model, truth=truth, subset=chosen
    )
    state, found = _run_flow(evaluate_flow, params)
    if found is not None:
        console = _console()
        print_evaluation(console, found.evaluation)
        console.print(f"metrics {found.folder}", highlight=False, soft_wrap=True)
        console.print(f"report  {found.report}", highlight=False, soft_wrap=True)
    return _exit_code(state)


@app.command
def report(
    store: StoreRoot = "pixelmill-store",
    /,
    *,
    collection: Collection = None,
    to: Annotated[Path | None, Parameter(help="The HTML file; else in the store.")] = None,
) -> ExitCode:
    """Write the HTML report of a collection, without comparing with truth.

    Example: pixelmill report results --to report.html
    """
    from pixelmill.flows.evaluation import find_last_run
    from pixelmill.flows.job import results_folder
    from pixelmill.tasks.report import build_report
    from pixelmill.tasks.store import Store

    opened = Store(store)
    run = find_last_run(opened, collection)
    path = to or results_folder(opened, run.collection) / "report.html"
    print(build_report(opened, None, path, collection=run.collection, run_id=run.run_id))
    return ExitCode.COMPLETE


@app.command
def publish(store: StoreRoot = "pixelmill-store", /) -> ExitCode:
    """Show readers what a killed run had finished.

    Example: pixelmill publish results

    `score` does it too; this is for when nothing is to be scored.
    """
    from pixelmill.tasks.store import Store
    from pixelmill.tasks.store import publish as publish_store

    summary = publish_store(Store(store))
    print(f"{summary.num_shards} shards published: {summary.num_images} rows of images")
    return ExitCode.COMPLETE


@app.command
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
    params = _score_params(
        source=str(scenes / "images"),
        store=str(out / "store"),
        config=_on_cluster(load_config("demo"), cluster, None),
        collection="demo",
    )
    state, run = _run_flow(score_flow, params)
    if run is not None and not state.is_cancelled():
        print_run(_console(), run)
    return _exit_code(state)


@app.command
def train(
    config: Annotated[str, Parameter(help="A training preset, or a YAML file.")],
    /,
    *,
    out: Annotated[Path, Parameter(name=("--out", "-o"), help="Folder of the weights.")] = Path(
        "runs/train"
    ),
) -> ExitCode:
    """Train one of our models on images with truth.

    Example: pixelmill train bccd, then: pixelmill score --preset bccd
    """
    chosen = load_train_config(config)
    from pixelmill.flows.training import TrainParams, train_flow

    state, summary = _run_flow(train_flow, TrainParams(config=chosen, out=str(out)))
    if summary is not None:
        for name, value in summary.metrics.items():
            print(f"{name} {value:.4f}")
        print(f"weights {summary.weights}")
    return _exit_code(state)


@config_app.command(name="list")
def config_list() -> ExitCode:
    """List the presets, with the first line of each.

    Example: pixelmill config list
    """
    for name in list_presets():
        print(f"{name:12} {load_config(name).description}")
    for name in list_presets(TRAIN_PRESETS):
        print(f"{name:12} (pixelmill train {name})")
    return ExitCode.COMPLETE


@config_app.command(name="show")
def config_show(
    config: Annotated[str, Parameter(help="A preset's name, or a YAML file.")], /
) -> ExitCode:
    """Print a configuration with every default filled in.

    Example: pixelmill config show demo
    """
    import yaml

    document = load_config(config).model_dump(mode="json")
    print(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), end="")
    return ExitCode.COMPLETE


@config_app.command(name="check")
def config_check(
    config: Annotated[str, Parameter(help="A preset's name, or a YAML file.")], /
) -> ExitCode:
    """Find every fault of a configuration.

    Example: pixelmill config check mine.yaml
    """
    load_config(config)
    print(f"{find_config(config)} is sound")
    return ExitCode.COMPLETE


@models_app.command(name="list")
def models_list() -> ExitCode:
    """List architectures, what they can do, and the weights that come with pixelmill.

    Example: pixelmill models list
    """
    from pixelmill.models import weights
    from pixelmill.models.build import list_architectures

    for name, tasks in list_architectures().items():
        print(f"{name:48} {', '.join(tasks)}")
    for path in sorted(Path(weights.__file__).parent.glob("*.safetensors")):
        print(f"{f'embedded:{path.stem}':48} weights")
    return ExitCode.COMPLETE


@models_app.command(name="fetch")
def models_fetch(
    what: Annotated[
        str, Parameter(help="A preset's name, a YAML file, or torchvision/BUILDER.")
    ] = "coco",
    /,
) -> ExitCode:
    """Download weights, for machines without a network.

    Example: pixelmill models fetch coco
    """
    if what.startswith("torchvision/"):
        from pixelmill.models import torchvision_zoo

        print(torchvision_zoo.download_weights(what, "DEFAULT"))
        return ExitCode.COMPLETE
    from pixelmill.flows.job import resolve_models

    for spec in resolve_models(load_config(what)):
        print(f"{spec.key:40} {spec.weights_path}")
    return ExitCode.COMPLETE


@app.command
def version() -> ExitCode:
    """Print the version."""
    print(package_version("pixelmill"))
    return ExitCode.COMPLETE


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command, and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code: int = app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        code = ExitCode.USAGE  # cyclopts has said what is wrong
    except (UsageError, ConfigError) as err:
        code = _complain(str(err))
    except (ValueError, OSError, KeyError, ImportError) as err:
        code = _complain(err.args[0] if isinstance(err, KeyError) else str(err))
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    sys.exit(int(code or 0))


def _complain(message: str) -> ExitCode:
    print(f"pixelmill: {message}", file=sys.stderr)
    return ExitCode.USAGE


def _terminate(number: int, frame: object) -> NoReturn:
    # An orderly exit: the embedded server is stopped by atexit, which a plain SIGTERM skips.
    sys.exit(int(ExitCode.TERMINATED))


def _choose_config(
    folder: str | None, preset: str | None, config: Path | None, weights: tuple[str, ...]
) -> RunConfig:
    """The configuration that the options name, or the default one."""
    if preset is not None and config is not None:
        raise UsageError("--preset and --config exclude each other")
    if preset is not None or config is not None:
        return _with_weights(load_config(str(config or preset)), weights)
    if weights and not any("=" in each for each in weights):
        return _config_of_weights(weights)
    if folder is None:
        raise UsageError("name a folder to score, or a --preset that has images of its own")
    chosen = _with_weights(load_config("coco"), weights)
    from pixelmill.flows.job import resolve_models

    try:
        resolve_models(chosen)
    except OSError as err:
        raise UsageError(
            "the weights of the default preset `coco` are not here and cannot be fetched; use "
            "--preset demo, name your own by --weights or --config, or run `pixelmill models "
            f"fetch coco` on a connected machine ({_first_line(err)})"
        ) from err
    return chosen


def _with_weights(config: RunConfig, weights: tuple[str, ...]) -> RunConfig:
    """The configuration with other weights files for some of its models."""
    models = {model.name: model for model in config.models}
    for each in weights:
        name, separator, path = each.partition("=")
        if not separator:
            name, path = next(iter(models)) if len(models) == 1 else "", each
        if name not in models:
            raise UsageError(
                f"--weights must be NAME=FILE with NAME one of {', '.join(models)}, got {each!r}"
            )
        models[name] = models[name].model_copy(update={"weights": str(Path(path).resolve())})
    return config.model_copy(update={"models": tuple(models.values())})


def _config_of_weights(weights: tuple[str, ...]) -> RunConfig:
    """A configuration of checkpoints of ours, which say themselves what they are."""
    from pixelmill.models.checkpoint import read_metadata

    models = []
    for each in weights:
        path = Path(each).expanduser().resolve()
        if path.suffix != ".safetensors":
            raise UsageError(
                f"{each} does not say what network it belongs to: describe it in a --config, or "
                "replace a preset's weights by --preset NAME --weights MODEL=FILE"
            )
        meta = read_metadata(path)
        models.append({"name": meta.name, "task": meta.task, "weights": str(path)})
    return RunConfig.model_validate({"name": "weights", "models": models})


def _merge_truth(config: EvaluationConfig, **given: Path | None) -> EvaluationConfig:
    """Truth named on the command line goes before the configuration's."""
    named = {kind: path.expanduser().resolve() for kind, path in given.items() if path is not None}
    absent = [f"--{kind} {path}" for kind, path in named.items() if not path.exists()]
    if absent:
        raise UsageError(f"not there: {', '.join(absent)}")
    return config.model_copy(update={kind: str(path) for kind, path in named.items()})


def _on_cluster(config: RunConfig, cluster: str | None, scheduler: str | None) -> RunConfig:
    if cluster is not None and scheduler is not None:
        raise UsageError("--cluster and --scheduler exclude each other")
    chosen = scheduler or cluster
    if chosen is None:
        return config
    from pixelmill.flows.pool import choose_cluster

    choose_cluster(chosen, num_shards=1)
    compute = config.compute.model_copy(update={"cluster": chosen})
    return config.model_copy(update={"compute": compute})


def _score_params(**fields: Any) -> "ScoreParams":
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


def _run_flow(flow: Callable[..., Any], params: object) -> "tuple[State[Any], Any]":
    """Run a flow here, with an embedded server unless PREFECT_API_URL names one.

    Returns:
        Its final state, and what it returned; None if it failed.
    """
    from pixelmill.flows.server import start_server

    start_server()
    state = flow(params, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        print(f"pixelmill: {type(result).__name__}: {result}", file=sys.stderr)
        return state, None
    if not state.is_completed():
        print(f"pixelmill: {state.message}", file=sys.stderr)
    return state, result


def _exit_code(state: "State[Any]") -> ExitCode:
    if state.is_cancelled():
        by_sigterm = "SIGTERM" in (state.message or "")
        return ExitCode.TERMINATED if by_sigterm else ExitCode.INTERRUPTED
    if not state.is_completed():
        return ExitCode.FAILED
    quarantined = state.name == "CompletedWithQuarantine"
    return ExitCode.QUARANTINE if quarantined else ExitCode.COMPLETE


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _first_line(err: BaseException) -> str:
    return str(err).partition("\n")[0]


if __name__ == "__main__":
    main()
