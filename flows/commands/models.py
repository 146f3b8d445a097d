"""models list, show, fetch, check, quantize, table."""

import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from cyclopts import Parameter

from pixelmill.configs.load import load_config
from pixelmill.configs.schema import ModelConfig, RunConfig, TaskName
from pixelmill.flows.commands.options import UsageError
from pixelmill.flows.commands.running import ExitCode

if TYPE_CHECKING:
    from pixelmill.models.spec import ModelSpec

__all__ = [
    "models_check",
    "models_fetch",
    "models_list",
    "models_quantize",
    "models_show",
    "models_table",
]

_HUB = "hf:"

What = Annotated[
    str,
    Parameter(
        help="A preset's name, a YAML file, a checkpoint, a folder that save_pretrained wrote, or "
        "hf:OWNER/NAME@REVISION."
    ),
]
Task = Annotated[
    TaskName | None, Parameter(help="Of weights that do not say it.", show_choices=True)
]
Name = Annotated[str | None, Parameter(help="Name of one of several models.")]
Trust = Annotated[bool, Parameter(help="Whoever made the files may run code here.", negative=())]


def models_list(
    *,
    all_names: Annotated[
        bool,
        Parameter(name="--all", help="Those of timm and segmentation-models-pytorch too."),
    ] = False,
    task: Annotated[TaskName | None, Parameter(help="Only what can do it.")] = None,
) -> ExitCode:
    """List architectures, what they can do, and the weights that come with pixelmill.

    Example: pixelmill models list --task detection
    """
    from rich.console import Console

    from pixelmill.flows.tables import make_table

    rows = [
        (name, family, ", ".join(tasks), size, source)
        for name, family, tasks, size, source in _listed(foreign=all_names)
        if task is None or task in tasks
    ]
    head = ("name", "network", "tasks", "parameters", "from")
    # as wide as it needs, and no terminal cuts a name: lines are read by other programs too
    Console(width=200, soft_wrap=True).print(make_table(head, rows, num_text=3))
    return ExitCode.COMPLETE


def models_show(
    what: Annotated[
        str,
        Parameter(
            help="A name that `models list` has, a preset, a YAML file, a checkpoint, a folder, or "
            "hf:OWNER/NAME@REVISION."
        ),
    ],
    /,
    *,
    model: Name = None,
    task: Task = None,
    trust: Trust = False,
) -> ExitCode:
    """Show what a network is, or what a configured model is in full.

    Example: pixelmill models show unet
    """
    from pixelmill.models.architectures import list_architectures

    known = list_architectures()
    if what in known or what.startswith(("timm/", "smp/")):
        facts = _facts_of_architecture(what)
    else:
        from pixelmill.models.build import resolve_model

        spec = resolve_model(_choose(what, model, task, trust=trust), Path.cwd())
        facts = _facts_of_model(spec)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        lines = textwrap.wrap(value, 100 - width) if "\n" not in value else value.splitlines()
        print(f"{name:{width}}  " + f"\n{'':{width}}  ".join(lines or [""]))
    return ExitCode.COMPLETE


def models_fetch(
    what: Annotated[
        str,
        Parameter(
            help="A preset's name, a YAML file, torchvision/BUILDER, timm/MODEL, or "
            "hf:OWNER/NAME@REVISION."
        ),
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
    if what.startswith(("timm/", _HUB)):
        from pixelmill.models import hub, timm_zoo

        print(hub.fetch_folder(what if what.startswith(_HUB) else timm_zoo.name_weights(what)))
        return ExitCode.COMPLETE
    from pixelmill.flows.job import resolve_models
    from pixelmill.models.zoo import ARCHITECTURES

    if what in ARCHITECTURES:
        raise UsageError(
            f"{what} is a network without weights to fetch: `pixelmill train` makes them, and "
            "`pixelmill models list` has those that come with pixelmill"
        )
    for spec in resolve_models(load_config(what)):
        print(f"{spec.key:40} {spec.weights_path}")
    return ExitCode.COMPLETE


def models_check(
    what: What,
    /,
    *,
    model: Name = None,
    task: Task = None,
    trust: Trust = False,
    device: Annotated[str | None, Parameter(help="cpu or cuda; else the best there is.")] = None,
    seconds: Annotated[float, Parameter(help="At least, for each speed.")] = 3.0,
) -> ExitCode:
    """Ask a model about made images: shapes, ranges, batch mates, repetition, speed, memory.

    Exit code 1 where an answer is wrong, or depends on what it must not.

    Example: pixelmill models check mine.yaml
    """
    from rich.console import Console

    from pixelmill.flows.tables import make_table
    from pixelmill.models.build import resolve_model
    from pixelmill.models.engines.choice import best_device
    from pixelmill.tasks.check_model import check_model

    chosen = device or best_device()
    spec = resolve_model(_choose(what, model, task, trust=trust), Path.cwd(), device=chosen)
    findings = check_model(spec, device=chosen, seconds=seconds)
    verdicts = {True: "ok", False: "WRONG", None: ""}
    rows = [(each.what, verdicts[each.passed], each.result) for each in findings]
    print(f"{spec.key} on {chosen}")
    Console(width=200, soft_wrap=True).print(make_table(("check", "", "result"), rows, num_text=3))
    return ExitCode.FAILED if any(each.passed is False for each in findings) else ExitCode.COMPLETE


def models_table(
    *,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"), help="A .md file.")] = None,
    trained: Annotated[Path, Parameter(help="JSON of what trainings reached.")] = Path(
        "docs/benchmarks/training.json"
    ),
    speeds: Annotated[Path, Parameter(help="JSON of the images a second.")] = Path(
        "docs/benchmarks/models.json"
    ),
    measure: Annotated[
        bool, Parameter(help="Measure the images a second anew, into --speeds.", negative=())
    ] = False,
    seconds: Annotated[float, Parameter(help="At least, for each network.")] = 3.0,
) -> ExitCode:
    """Make the table of our architectures: papers, parameters, what they reached, images a second.

    Example: pixelmill models table --out docs/models.md
    """
    from pixelmill.tasks.model_table import measure_speeds, read_results, render_table

    if measure:
        speeds.write_text(json.dumps(measure_speeds(seconds), indent=1) + "\n")
    known = json.loads(speeds.read_text()) if speeds.is_file() else None
    page = render_table(read_results(trained), known)
    if out is None:
        print(page, end="")
    else:
        out.write_text(page)
    return ExitCode.COMPLETE


def models_quantize(
    config: Annotated[str, Parameter(help="A preset's name, or a YAML file.")],
    /,
    *,
    images: Annotated[Path, Parameter(help="Folder of images like those to be scored.")],
    out: Annotated[Path, Parameter(name=("--out", "-o"), help="The file, .safetensors.")],
    model: Annotated[str | None, Parameter(help="Name of one of several models.")] = None,
    truth: Annotated[
        Path | None,
        Parameter(help="As training takes it, of some of them; else compare with float32."),
    ] = None,
    number: Annotated[
        int, Parameter(help="Images to calibrate on, and as many to judge by.")
    ] = 300,
    max_loss: Annotated[
        float | None,
        Parameter(
            help="Loss of a metric, relative, that is allowed: 0.02; without truth, share of "
            "answers that differ: 0.1."
        ),
    ] = None,
) -> ExitCode:
    """Make a model's int8 graphs for CPUs, if they are accurate enough.

    Example: pixelmill models quantize mine.yaml --images photos --out mine.int8.safetensors
    """
    models = {each.name: each for each in load_config(config).models}
    name = model or next(iter(models))
    if name not in models or (model is None and len(models) > 1):
        raise UsageError(f"expected --model, one of {', '.join(models)}; got {model!r}")
    from pixelmill.tasks.quantize import quantize_model

    report = quantize_model(
        models[name],
        Path.cwd(),
        images,
        out,
        truth=truth,
        num_images=number,
        max_loss=max_loss,
    )
    print(f"calibrated on {report.num_calibration} images, judged by {report.num_held_out} others")
    for metric, value in report.int8.items():
        beside = f" (float32 {report.fp32[metric]:.4f})" if report.fp32 else ""
        print(f"{metric} {value:.4f}{beside}")
    print(f"loss {report.loss:.2%}")
    print(f"engine: openvino, precision: int8, quantized: {out}")
    return ExitCode.COMPLETE


def _listed(*, foreign: bool) -> Iterator[tuple[str, str, tuple[TaskName, ...], str, str]]:
    """Name, network, tasks, parameters and source of each architecture and embedded checkpoint."""
    from pixelmill.models import torchvision_zoo, weights, zoo
    from pixelmill.models.architectures import list_architectures
    from pixelmill.models.catalogue import count_parameters, entries_of
    from pixelmill.models.checkpoint import read_metadata
    from pixelmill.models.user_code import registered

    packages = registered()
    for name, tasks in list_architectures(foreign=foreign).items():
        library, separator, builder = name.partition("/")
        if name in zoo.ARCHITECTURES:
            entries = entries_of(name)
            size = f"{count_parameters(entries[0]):,}" if entries else ""
            yield name, "; ".join(each.name for each in entries), tasks, size, "pixelmill"
        elif name.startswith(torchvision_zoo.PREFIX):
            size = f"{torchvision_zoo.find_weights_meta(name)['num_params']:,}"
            yield name, builder, tasks, size, library
        elif separator:
            yield name, builder, tasks, "", library
        else:
            owner = packages[name].dist
            yield name, packages[name].value, tasks, "", owner.name if owner else ""
    for path in sorted(Path(weights.__file__).parent.glob("*.safetensors")):
        meta = read_metadata(path)
        yield f"embedded:{path.stem}", meta.architecture, (meta.task,), "", "weights"


def _facts_of_architecture(name: str) -> list[tuple[str, str]]:
    from pixelmill.models import timm_zoo, torchvision_zoo, zoo
    from pixelmill.models.architectures import find_architecture
    from pixelmill.models.catalogue import count_parameters, entries_of

    architecture = find_architecture(name, name)
    facts = [("name", name), ("tasks", ", ".join(architecture.tasks))]
    if name in zoo.ARCHITECTURES:
        for entry in entries_of(name):
            size = f"{count_parameters(entry):,} parameters"
            if entry.published is not None:
                size += f"; published {entry.published:,} ({entry.source})"
            facts += [
                (entry.name, f"{entry.paper}, {entry.url}"),
                ("", size),
                ("", f"{_said(entry.arguments)}; canvas {entry.canvas[0]}x{entry.canvas[1]}"),
            ]
        facts.append(("trainable", "yes" if architecture.trainable else "no"))
        parameters = inspect.signature(architecture.build).parameters.values()
        facts.append(("arguments", ", ".join(str(each) for each in parameters)))
        module = inspect.getmodule(architecture.build)
        facts.append(("about", inspect.cleandoc(module.__doc__ or "") if module else ""))
    elif name.startswith(torchvision_zoo.PREFIX):
        facts += _facts_of_weights(torchvision_zoo.find_weights_meta(name))
    elif name.startswith(timm_zoo.PREFIX):
        facts += _facts_of_timm(name)
    return facts


def _facts_of_weights(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("parameters", f"{meta['num_params']:,}"), ("classes", str(len(meta["categories"])))]
    facts += [
        (f"on {dataset}", ", ".join(f"{name} {value}" for name, value in metrics.items()))
        for dataset, metrics in meta.get("_metrics", {}).items()
    ]
    facts.append(("recipe", str(meta.get("recipe", ""))))
    # torchvision says nothing of it: that of the code, which is no word on the data
    return [*facts, ("licence of code", "BSD-3-Clause; torchvision names none of its weights")]


def _facts_of_timm(name: str) -> list[tuple[str, str]]:
    from pixelmill.models import timm_zoo

    described = timm_zoo.describe(name)
    return [(key, str(value)) for key, value in described.items() if value]


def _facts_of_model(spec: "ModelSpec") -> list[tuple[str, str]]:
    canvases = ", ".join(f"{height}x{width}" for height, width in spec.preprocess.canvases)
    pixels = spec.preprocess.model_dump(exclude={"canvases"}, exclude_none=True)
    labels = ", ".join(spec.classes[:20]) + (", ..." if len(spec.classes) > 20 else "")
    facts = [
        ("key", spec.key),
        ("task", spec.task),
        ("architecture", f"{spec.architecture} {_said(spec.arguments)}".strip()),
        ("weights", spec.weights_path),
        ("sha256", spec.weights_sha256),
        ("revision", spec.revision or ""),
        ("code", spec.code_path or ""),
        ("canvases", canvases),
        ("preprocess", _said(pixels)),
        ("labels", f"{len(spec.classes)}: {labels}" if spec.classes else ""),
        ("words", str(len(spec.vocabulary) or "")),
        ("engine", f"{spec.engine} {spec.precision}"),
        ("note", spec.engine_note),
        ("postprocess", _said(spec.postprocess.model_dump()) if spec.postprocess else ""),
    ]
    return [fact for fact in facts if fact[1]]


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value != {})


def _choose(what: str, name: str | None, task: TaskName | None, *, trust: bool) -> ModelConfig:
    """One model of a configuration, or one made of weights alone."""
    if what.startswith(_HUB) or (Path(what).exists() and not what.endswith((".yaml", ".yml"))):
        return _model_of_weights(what, task, trust=trust)
    models = {each.name: each for each in load_config(what).models}
    chosen = name or next(iter(models))
    if chosen not in models or (name is None and len(models) > 1):
        raise UsageError(f"expected --model, one of {', '.join(models)}; got {name!r}")
    return models[chosen].model_copy(update={"trust": True} if trust else {})


def _model_of_weights(weights: str, task: TaskName | None, *, trust: bool) -> ModelConfig:
    path = Path(weights)
    if task is None and path.suffix == ".safetensors":
        from pixelmill.models.checkpoint import read_metadata

        task = read_metadata(path).task
    if task is None:
        tasks = ", ".join(get_args(TaskName))
        raise UsageError(f"{weights} does not say what it is for; add --task, one of {tasks}")
    place = weights if weights.startswith(_HUB) else str(path.resolve())
    about = {"name": "model", "task": task, "weights": place, "trust": trust}
    return RunConfig.model_validate({"name": "one", "models": [about]}).models[0]
