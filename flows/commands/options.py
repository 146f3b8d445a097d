"""Options that several commands share, and what they make of them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from cyclopts import Group, Parameter

from pixelmill.configs.load import load_config
from pixelmill.configs.schema import (
    BoxPostprocess,
    ComputeConfig,
    DetectionModel,
    EvaluationConfig,
    InstanceModel,
    RunConfig,
)

__all__ = [
    "WHAT",
    "WHERE",
    "AsJson",
    "Cluster",
    "Collection",
    "Folder",
    "Limits",
    "Models",
    "Out",
    "RetryFailed",
    "StoreRoot",
    "Truth",
    "UsageError",
    "Workers",
    "choose_config",
    "merge_truth",
    "with_compute",
]

WHAT = Group("What is scored, and by what")
WHERE = Group("Where")
LIMITS = Group("When to end early")
TRUTH = Group("Truth to compare with")

Folder = Annotated[
    str | None, Parameter(help="Folder or URL (s3://, gs://, az://) of images.", group=WHAT)
]
RetryFailed = Annotated[
    bool,
    Parameter(
        help="Also what failed for good and has not changed; what may succeed later is tried "
        "again anyway.",
        group=WHAT,
        negative=(),
    ),
]
Out = Annotated[str, Parameter(name=("--out", "-o"), help="The store: folder or URL.", group=WHERE)]
Collection = Annotated[
    str | None, Parameter(help="Name of the images in the store; else the folder's.", group=WHERE)
]
Cluster = Annotated[
    str | None,
    Parameter(
        help="auto, inline, local, local:<n>, cuda; or slurm, pbs, kubernetes as a block of the "
        "configuration says.",
        group=WHERE,
    ),
]
StoreRoot = Annotated[str, Parameter(help="Folder or URL of the store.")]
AsJson = Annotated[bool, Parameter(help="Print JSON instead.", negative=())]

# Options of several commands. `name="*"`: they are the command's own, without a prefix.


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Models:
    """By what is scored."""

    preset: Annotated[
        str | None, Parameter(help="Name of a configuration: `pixelmill config list`.", group=WHAT)
    ] = None
    config: Annotated[
        Path | None, Parameter(help="A configuration of your own, YAML.", group=WHAT)
    ] = None
    weights: Annotated[
        tuple[str, ...],
        Parameter(
            help="NAME=FILE: other weights for the configuration's model NAME. A FILE alone, "
            "written by `pixelmill train`: score with that model.",
            group=WHAT,
            negative=(),
            consume_multiple=False,
        ),
    ] = ()
    thresholds: Annotated[
        Path | None,
        Parameter(
            help="Score thresholds by model and class, such as the thresholds.yaml that "
            "`pixelmill evaluate` writes; they make another version of the model.",
            group=WHAT,
        ),
    ] = None
    trust: Annotated[
        bool,
        Parameter(
            help="Whoever made the weights files may run code here: needed for TorchScript and "
            "pickled models, which are programs.",
            group=WHAT,
            negative=(),
        ),
    ] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who scores."""

    cluster: Cluster = None
    scheduler: Annotated[
        str | None, Parameter(help="A running Dask scheduler, tcp://host:port.", group=WHERE)
    ] = None
    memory: Annotated[
        str | None,
        Parameter(
            help="Of each worker, such as 4GB; one that goes beyond it starts anew.", group=WHERE
        ),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Limits:
    """When to end early."""

    until: Annotated[
        str | None,
        Parameter(help="End by this local time, HH:MM; the next run goes on.", group=LIMITS),
    ] = None
    budget: Annotated[
        str | None, Parameter(help="End within this time, such as 45m or 2h.", group=LIMITS)
    ] = None
    max_failures: Annotated[
        str | None,
        Parameter(
            help="End as failed after more failures than this: a number, or a share such as 5% "
            "(counted from 100 images on).",
            group=LIMITS,
        ),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Truth:
    """What predictions are compared with."""

    instances: Annotated[
        Path | None,
        Parameter(
            help="Boxes and masks: COCO JSON, or folder of VOC *.xml or YOLO *.txt.", group=TRUTH
        ),
    ] = None
    semantic: Annotated[
        Path | None, Parameter(help="Folder of PNG label maps named like the images.", group=TRUTH)
    ] = None
    captions: Annotated[Path | None, Parameter(help="COCO captions JSON.", group=TRUTH)] = None
    labels: Annotated[
        Path | None, Parameter(help="CSV with the columns file_name and label.", group=TRUTH)
    ] = None
    subset: Annotated[
        Path | None, Parameter(help="Text file of the images to compare, one a line.", group=TRUTH)
    ] = None


_UNLIMITED = Limits()


class UsageError(Exception):
    """Something is wrong with the command; told in one line."""


def choose_config(folder: str | None, asked: Models) -> RunConfig:
    """The configuration that the options name, or the default one."""
    config = _choose_config(folder, asked)
    return config if asked.thresholds is None else _with_thresholds(config, asked.thresholds)


def _with_thresholds(config: RunConfig, path: Path) -> RunConfig:
    """The configuration with the score thresholds of a file: {model: {class: threshold}}."""
    from pydantic import ValidationError

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as err:
        raise UsageError(f"--thresholds {path}: {_first_line(err)}") from err
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise UsageError(f"--thresholds {path}: expected classes with a number each, by model")
    boxes = {
        one.name: one for one in config.models if isinstance(one, DetectionModel | InstanceModel)
    }
    if unknown := sorted(str(name) for name in found.keys() - boxes.keys()):
        raise UsageError(
            f"--thresholds {path} is for {', '.join(unknown)}, and the models with boxes are: "
            f"{', '.join(boxes) or 'none'}"
        )
    changed = {}
    for name, thresholds in found.items():
        # what was left out stays so: a model's own defaults depend on it
        settings = boxes[name].postprocess.model_dump(exclude_unset=True)
        settings["class_thresholds"] = settings.get("class_thresholds", {}) | thresholds
        try:
            postprocess = BoxPostprocess.model_validate(settings)
        except ValidationError as err:
            raise UsageError(f"--thresholds {path}: {name}: {err.errors()[0]['msg']}") from err
        changed[name] = boxes[name].model_copy(update={"postprocess": postprocess})
    models = tuple(changed.get(model.name, model) for model in config.models)
    return config.model_copy(update={"models": models})


def _choose_config(folder: str | None, asked: Models) -> RunConfig:
    if asked.preset is not None and asked.config is not None:
        raise UsageError("--preset and --config exclude each other")
    if asked.preset is not None or asked.config is not None:
        return _with_weights(load_config(str(asked.config or asked.preset)), asked)
    if asked.weights and not any("=" in each for each in asked.weights):
        return _config_of_weights(asked.weights)
    if folder is None:
        raise UsageError("name a folder to score, or a --preset that has images of its own")
    chosen = _with_weights(load_config("coco"), asked)
    from pixelmill.flows.job import find_source, resolve_models

    find_source(folder)  # nothing is fetched for a folder that is not there
    try:
        resolve_models(chosen)
    except OSError as err:
        raise UsageError(
            "the weights of the default preset `coco` are not here and cannot be fetched; use "
            "--preset demo, name your own by --weights or --config, or run `pixelmill models "
            f"fetch coco` on a connected machine ({_first_line(err)})"
        ) from err
    return chosen


def _with_weights(config: RunConfig, asked: Models) -> RunConfig:
    """The configuration with other weights files for some of its models, all trusted or as said."""
    models = {model.name: model for model in config.models}
    for each in asked.weights:
        name, separator, path = each.partition("=")
        if not separator:
            name, path = next(iter(models)) if len(models) == 1 else "", each
        if name not in models:
            raise UsageError(
                f"--weights must be NAME=FILE with NAME one of {', '.join(models)}, got {each!r}"
            )
        is_reference = re.match(r"[a-z]+:", path)  # hf:, torchvision:, timm:, embedded:
        weights = path if is_reference else str(Path(path).resolve())
        models[name] = models[name].model_copy(update={"weights": weights})
    trusted = {"trust": True} if asked.trust else {}
    chosen = tuple(model.model_copy(update=trusted) for model in models.values())
    return config.model_copy(update={"models": chosen})


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


def merge_truth(config: EvaluationConfig, truth: Truth) -> EvaluationConfig:
    """Truth named on the command line goes before the configuration's."""
    given = {kind: path for kind, path in vars(truth).items() if path is not None}
    named = {kind: path.expanduser().resolve() for kind, path in given.items()}
    absent = [f"--{kind} {path}" for kind, path in named.items() if not path.exists()]
    if absent:
        raise UsageError(f"not there: {', '.join(absent)}")
    return config.model_copy(update={kind: str(path) for kind, path in named.items()})


def with_compute(config: RunConfig, workers: Workers, limits: Limits = _UNLIMITED) -> RunConfig:
    """The configuration with what the options say of `compute`."""
    if workers.cluster is not None and workers.scheduler is not None:
        raise UsageError("--cluster and --scheduler exclude each other")
    given = {
        "cluster": workers.scheduler or workers.cluster,
        "memory": workers.memory,
        "max_failures": limits.max_failures,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        return config
    from pydantic import ValidationError

    try:
        compute = ComputeConfig.model_validate(config.compute.model_dump() | changes)
    except ValidationError as err:
        raise UsageError(
            "; ".join(
                f"--{str(error['loc'][0]).replace('_', '-')}: "
                f"{error['msg'].removeprefix('Value error, ')}"
                for error in err.errors()
            )
        ) from err
    if "cluster" in changes:
        from pixelmill.flows.pool import choose_cluster

        choose_cluster(compute.cluster)
    return config.model_copy(update={"compute": compute})


def _first_line(err: BaseException) -> str:
    return str(err).partition("\n")[0]
