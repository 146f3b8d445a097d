"""Every architecture that a configuration may name, and where it comes from."""

import difflib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pixelmill.configs.schema import TaskName
from pixelmill.models import smp_zoo, timm_zoo, torchvision_zoo, zoo
from pixelmill.models.hub import read_folder_config
from pixelmill.models.hugging_face import TRANSFORMERS
from pixelmill.models.interface import ViewOutput
from pixelmill.models.spec import ONNX, ModelSpec
from pixelmill.models.trust import EXPORTED, PROGRAMS, TORCHSCRIPT, is_exported, is_torchscript
from pixelmill.models.user_code import (
    import_file,
    is_file_factory,
    load_factory,
    load_registered,
    registered,
)
from pixelmill.models.user_decode import load_decode, read_arrays
from pixelmill.models.zoo import Architecture, ReadOut

__all__ = [
    "LIBRARIES",
    "find_architecture",
    "guess_architecture",
    "is_known_by_name",
    "list_architectures",
    "own_architecture",
    "user_read_out",
]

# Prefix -> how the library's networks are built and read
LIBRARIES: Mapping[str, Any] = {
    torchvision_zoo.PREFIX: torchvision_zoo,
    timm_zoo.PREFIX: timm_zoo,
    smp_zoo.PREFIX: smp_zoo,
}
# Package whose presence makes a library's names listable; torchvision is always there
_PACKAGES = {timm_zoo.PREFIX: "timm", smp_zoo.PREFIX: "segmentation_models_pytorch"}


def list_architectures(*, foreign: bool = False) -> dict[str, tuple[TaskName, ...]]:
    """Names that a config may give, with their tasks; files and own functions besides.

    Args:
        foreign: those of timm and segmentation-models-pytorch too, where they are installed.

    Raises:
        ImportError: a package has registered an architecture that cannot be imported.
    """
    ours = {name: architecture.tasks for name, architecture in zoo.ARCHITECTURES.items()}
    theirs = {name: load_registered(entry).tasks for name, entry in registered().items()}
    listed = theirs | ours | torchvision_zoo.list_architectures()
    if foreign:
        for prefix, package in _PACKAGES.items():
            if find_spec(package) is not None:
                listed |= LIBRARIES[prefix].list_architectures()
    return listed


def find_architecture(name: str, architecture: str) -> Architecture:
    """How a network that has a name is built and read.

    Args:
        name: of the model, for messages.
        architecture: ours, `torchvision/...`, `timm/...`, `smp/...`, or of another package.

    Raises:
        ImportError: the library is not installed, or the package cannot be imported.
        ValueError: there is none of that name.
    """
    if architecture in zoo.ARCHITECTURES:
        return zoo.ARCHITECTURES[architecture]
    library = _library_of(architecture)
    if library is not None:
        found: Architecture = library.architecture(architecture)
        return found
    entries = registered()
    if architecture in entries:
        return load_registered(entries[architecture])
    near = difflib.get_close_matches(architecture, [*zoo.ARCHITECTURES, *entries], n=1)
    remedy = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"{name}: no architecture {architecture!r}; {remedy}`pixelmill models list` has them all, "
        "and `package.module:function` or `file.py:function` names one of your own"
    )


def is_known_by_name(architecture: str) -> bool:
    """Whether it is neither in the weights file or folder nor a function of the user's."""
    in_weights = (ONNX, TRANSFORMERS, *PROGRAMS)
    return architecture not in in_weights and ":" not in architecture


def guess_architecture(name: str, weights: Path) -> str:
    """What a weights file or folder says of its network.

    Raises:
        ValueError: it says nothing.
        FileNotFoundError: a folder has no config.json.
    """
    if weights.is_dir():
        return _of_folder(name, weights)
    if weights.suffix == ".onnx":
        return ONNX
    if is_torchscript(weights):
        return TORCHSCRIPT
    if is_exported(weights):
        return EXPORTED
    raise ValueError(
        f"{name}: {weights.name!r} does not say what network it belongs to; set architecture:"
    )


def own_architecture(spec: ModelSpec) -> Architecture:
    """A user's `package.module:function` or `file.py:function`, read by their decode function.

    Raises:
        ImportError: the function cannot be imported here.
        ValueError: its file has changed since the run was planned, or is not trusted.
    """
    if is_file_factory(spec.architecture):
        if not spec.trust:
            raise ValueError(f"{spec.name}: {spec.architecture} is not trusted; set trust: true")
        function = spec.architecture.rpartition(":")[2]
        path = Path(spec.code_path or "")
        build = import_file(spec.name, path, function, spec.code_sha256)
    else:
        build = load_factory(spec.name, spec.architecture)
    return Architecture(build=build, tasks=(spec.task,), read_out=user_read_out(spec))


def user_read_out(spec: ModelSpec) -> ReadOut:
    """Raw outputs to predictions by the user's decode function."""
    decode = load_decode(spec)

    def read_out(
        module: nn.Module, outputs: Any, spec: ModelSpec, canvas: tuple[int, int]
    ) -> list[ViewOutput]:
        arrays = [
            leaf.float().cpu().numpy() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)
        ]
        return read_arrays(arrays, spec, canvas, decode)

    return read_out


def _library_of(architecture: str) -> ModuleType | None:
    return next(
        (
            library
            for prefix, library in LIBRARIES.items()
            if architecture.lower().startswith(prefix)
        ),
        None,
    )


def _of_folder(name: str, folder: Path) -> str:
    content = read_folder_config(folder)
    if "_model_class" in content:
        return smp_zoo.PREFIX + str(content["_model_class"]).lower()
    if isinstance(content.get("architecture"), str):
        return timm_zoo.PREFIX + str(content["architecture"])
    if "model_type" in content:
        return TRANSFORMERS
    raise ValueError(
        f"{name}: the config.json in {str(folder)!r} is of neither transformers, timm nor "
        "segmentation-models-pytorch; set architecture: and weights: to the file in it"
    )
