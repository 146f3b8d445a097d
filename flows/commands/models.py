"""models list, models fetch, models quantize."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pixelmill.configs.load import load_config
from pixelmill.flows.commands.options import UsageError
from pixelmill.flows.commands.running import ExitCode

__all__ = ["models_fetch", "models_list", "models_quantize"]


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


def models_quantize(
    config: Annotated[str, Parameter(help="A preset's name, or a YAML file.")],
    /,
    *,
    images: Annotated[Path, Parameter(help="Folder of images like those to be scored.")],
    out: Annotated[Path, Parameter(name=("--out", "-o"), help="The file, .safetensors.")],
    model: Annotated[str | None, Parameter(help="Name of one of several models.")] = None,
    truth: Annotated[
        Path | None,
        Parameter(help="COCO file or folder of label maps; else compare with float32."),
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
