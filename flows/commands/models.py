"""models list, models fetch."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pixelmill.configs.load import load_config
from pixelmill.flows.commands.running import ExitCode

__all__ = ["models_fetch", "models_list"]


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
