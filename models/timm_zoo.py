"""timm's classifiers by name, with the preprocessing that their weights were trained with.

Weights are a state dict of timm's, a folder that timm's `save_for_hf` wrote, `hf:timm/<name>`, or
`timm:DEFAULT`, which are those that timm itself loads for the name.
"""

import difflib
import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pixelmill.configs.schema import PreprocessConfig, TaskName
from pixelmill.models.classifier import class_outputs
from pixelmill.models.defaults import Defaults
from pixelmill.models.hub import HUB, read_folder_config
from pixelmill.models.spec import Arguments
from pixelmill.models.zoo import Architecture

__all__ = [
    "PREFIX",
    "architecture",
    "describe",
    "find_defaults",
    "list_architectures",
    "name_weights",
]

PREFIX = "timm/"


def list_architectures() -> dict[str, tuple[TaskName, ...]]:
    """Names with the one task that all of them do.

    Raises:
        ImportError: timm is not installed.
    """
    return {PREFIX + name: ("classification",) for name in _import_timm().list_models()}


def architecture(name: str) -> Architecture:
    """How `timm/<model>` or `timm/<model>.<weights>` is built and read.

    Raises:
        ImportError: timm is not installed.
        ValueError: it has no such model.
    """
    timm = _import_timm()
    model = name.removeprefix(PREFIX)
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3)
        remedy = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has them all"
        raise ValueError(f"timm has no model {model!r}; {remedy}")

    def build(**arguments: Any) -> nn.Module:
        module: nn.Module = timm.create_model(model, pretrained=False, **arguments)
        return module

    return Architecture(build=build, tasks=("classification",), read_out=class_outputs)


def find_defaults(
    name: str, arguments: Arguments, classes: Sequence[str] | None, folder: Path | None
) -> Defaults:
    """Classes, arguments and preprocessing, without a download.

    Args:
        name: `timm/<model>`, with or without `.<weights>`.
        arguments: what the config says of the builder's.
        classes: what the config says; None: those of the weights.
        folder: of the weights, whose config.json then speaks for them; None: a state dict, of
            which timm knows how such weights are used.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such model, or images are prepared as our canvases cannot be.
    """
    architecture(name)
    timm = _import_timm()
    content = read_folder_config(folder) if folder else {}
    if "pretrained_cfg" in content:
        config: dict[str, Any] = dict(content["pretrained_cfg"]) | _of_model(content)
    elif content:  # files of timm 0.x have one level
        config = dict(content)
    else:
        known = timm.get_pretrained_cfg(name.removeprefix(PREFIX))
        config = known.to_dict() if known else {}
    resolved: Arguments = {**_plain(content.get("model_args", {})), **arguments}
    asked = len(classes) if classes else None
    num_classes = resolved.setdefault("num_classes", asked or config.get("num_classes", 1000))
    names = tuple(classes) if classes else _class_names(config, int(str(num_classes)))
    return Defaults(names, resolved, _preprocess(name, config))


def describe(name: str) -> dict[str, Any]:
    """What timm says of the weights of `timm/<model>` or `timm/<model>.<weights>`; for people.

    Raises:
        ImportError: timm is not installed.
        ValueError: it has no such model.
    """
    architecture(name)
    config = _import_timm().get_pretrained_cfg(name.removeprefix(PREFIX))
    if config is None:
        return {}
    return {
        "classes": config.num_classes,
        "input": "x".join(map(str, config.input_size[1:])),
        "interpolation": config.interpolation,
        "paper": config.paper_ids,
        "origin": config.origin_url,
        "weights": name_weights(name) if config.hf_hub_id else None,
        "licence of weights": config.license or "not named",
    }


def name_weights(name: str) -> str:
    """The Hub's reference of what timm loads for `timm/<model>` or `timm/<model>.<weights>`.

    Raises:
        ImportError: timm is not installed.
        ValueError: it has no weights for it, or not on the Hub.
    """
    architecture(name)
    timm = _import_timm()
    model = name.removeprefix(PREFIX)
    config = timm.get_pretrained_cfg(model)
    place = config.hf_hub_id if config else None
    if not place:
        raise ValueError(
            f"timm has no weights of {model!r} on the Hugging Face Hub; set weights: to a file"
        )
    if place.endswith("/"):  # an owner, of repositories named like the model and its weights
        place += f"{model.partition('.')[0]}.{config.tag}"
    return HUB + str(place)


def _of_model(content: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside the weights' configuration and goes before it."""
    names = ("num_classes", "label_names", "label_descriptions")
    return {name: content[name] for name in names if name in content}


def _plain(arguments: Mapping[str, Any]) -> Arguments:
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in arguments.items()
    }


def _class_names(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    labels = config.get("label_names")
    if labels and len(labels) == num_classes:
        meanings = config.get("label_descriptions") or {}
        return tuple(_short(meanings.get(label, label)) for label in labels)
    known: Any = importlib.import_module("timm.data")
    subset = known.infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return None
    return tuple(_short(each) for each in known.ImageNetInfo(subset).label_descriptions())


def _short(meaning: str) -> str:
    """The first of the synonyms of an ImageNet class."""
    return str(meaning).partition(",")[0]


def _preprocess(name: str, config: Mapping[str, Any]) -> PreprocessConfig:
    library: Any = importlib.import_module("timm.data")
    data = library.resolve_data_config(pretrained_cfg=dict(config) or {"num_classes": 0})
    height, width = data["input_size"][1:]
    crop, mode, interpolation = data["crop_pct"], data["crop_mode"], data["interpolation"]
    how: dict[str, Any] = {"resize": "center_crop", "crop_from": math.floor(height / crop)}
    if mode == "squash" and crop == 1:
        how = {"resize": "stretch"}
    if (mode != "center" or height != width) and how["resize"] != "stretch":
        raise _unknown(name, f"crop_mode {mode!r} of {height}x{width} at {crop}")
    if interpolation not in ("bilinear", "bicubic"):
        raise _unknown(name, f"interpolation {interpolation!r}")
    return PreprocessConfig(
        canvases=((height, width),),
        interpolation=interpolation,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        **how,
    )


def _unknown(name: str, what: str) -> ValueError:
    return ValueError(
        f"{name} was trained with {what}, which canvases cannot have; set preprocess: to what "
        "comes nearest"
    )


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as err:
        raise ImportError(
            "models of timm need it; install it with: pip install 'pixelmill[timm]'"
        ) from err
    return timm
