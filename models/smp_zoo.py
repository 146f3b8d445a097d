"""segmentation-models-pytorch's networks by name, for semantic segmentation.

Weights are a state dict of theirs, a folder that `save_pretrained` wrote, or `hf:<owner>/<name>`.
A network of one output (`classes: 1`) is scored as one of two classes, of which the first has the
logit 0: the softmax of both is the sigmoid of the output.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from pixelmill.configs.schema import PreprocessConfig, TaskName
from pixelmill.models.defaults import Defaults, usual_canvases
from pixelmill.models.hub import fetch_config, read_folder_config
from pixelmill.models.semantic import semantic_outputs
from pixelmill.models.spec import Arguments
from pixelmill.models.zoo import Architecture

__all__ = ["PREFIX", "architecture", "find_defaults", "list_architectures"]

PREFIX = "smp/"

# Encoders halve the image five times
_MULTIPLE = 32
# Of the shorter side, where nothing is said: about the crops that such networks are trained on
_SHORTER = 512
# Of the folder's configuration; ours, or only for training
_NOT_ARGUMENTS = ("_model_class", "encoder_weights", "activation", "aux_params", "in_channels")


def list_architectures() -> dict[str, tuple[TaskName, ...]]:
    """Names with the one task that all of them do.

    Raises:
        ImportError: segmentation-models-pytorch is not installed.
    """
    return {PREFIX + name: ("semantic_segmentation",) for name in _networks()}


def architecture(name: str) -> Architecture:
    """How `smp/<network>` is built and read.

    Raises:
        ImportError: segmentation-models-pytorch is not installed.
        ValueError: it has no such network.
    """
    known = _networks()
    network = name.removeprefix(PREFIX).lower()
    if network not in known:
        raise ValueError(
            f"segmentation-models-pytorch has no {network!r}, but {', '.join(sorted(known))}"
        )

    def build(**arguments: Any) -> nn.Module:
        return _Segmenter(_import_smp().create_model(network, encoder_weights=None, **arguments))

    return Architecture(build, ("semantic_segmentation",), semantic_outputs)


def find_defaults(
    name: str,
    arguments: Arguments,
    classes: Sequence[str] | None,
    folder: Path | None,
    preprocess: PreprocessConfig | None,
) -> Defaults:
    """Arguments and preprocessing; nothing of theirs names classes.

    Args:
        name: `smp/<network>`.
        arguments: what the config says of the builder's.
        classes: what the config says.
        folder: of the weights, whose config.json has the arguments; None: a state dict.
        preprocess: what the config says; with mean and std nothing is looked up.

    Raises:
        ImportError: segmentation-models-pytorch is not installed.
        OSError: how the encoder's images were prepared cannot be looked up on the Hub.
        ValueError: there is no such network or encoder, or it is not known how the encoder's
            images were prepared.
    """
    architecture(name)
    content = read_folder_config(folder) if folder else {}
    saved: Arguments = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in content.items()
        if key not in _NOT_ARGUMENTS
    }
    trained_on = arguments.get("encoder_weights", content.get("encoder_weights", "imagenet"))
    resolved = {**saved, **arguments}
    resolved.pop("encoder_weights", None)
    resolved.setdefault("encoder_name", "resnet34")
    if classes:
        resolved.setdefault("classes", len(classes))
    return Defaults(
        tuple(classes) if classes else None,
        resolved,
        preprocess
        if preprocess and {"mean", "std"} <= preprocess.model_fields_set
        else _preprocess(str(resolved["encoder_name"]), trained_on),
    )


class _Segmenter(nn.Module):
    """Their network, whose forward gives (B, K, H, W) logits, K at least 2."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Take the names of their own files."""
        return self.model.load_state_dict(*args, **kwargs)

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.model(images)
        # with a classification head: masks, labels
        logits = cast("Tensor", outputs[0] if isinstance(outputs, tuple) else outputs)
        if logits.shape[1] > 1:
            return logits
        return torch.cat((torch.zeros_like(logits), logits), dim=1)


def _preprocess(encoder: str, trained_on: object) -> PreprocessConfig:
    """As the encoder's own images were prepared, on canvases of 512 pixels and more."""
    if not isinstance(trained_on, str):
        raise ValueError(
            f"the encoder {encoder} was not pretrained, so nothing says how images are prepared; "
            "set preprocess: with mean and std"
        )
    settings = _settings(encoder, trained_on)
    scale = 255 / (settings.get("input_range", [0, 1]) or [0, 255])[1]
    mean, std = (tuple(each / 255 * scale for each in settings[name]) for name in ("mean", "std"))
    return PreprocessConfig(
        canvases=usual_canvases(_SHORTER, None, _MULTIPLE),
        channels="bgr" if settings.get("input_space") == "BGR" else "rgb",
        mean=cast("tuple[float, float, float]", mean),
        std=cast("tuple[float, float, float]", std),
    )


def _settings(encoder: str, trained_on: str) -> Mapping[str, Any]:
    if encoder.startswith("tu-"):  # timm's universal encoders
        settings: Mapping[str, Any] = _import_smp().encoders.get_preprocessing_params(encoder)
        return settings
    encoders = _import_smp().encoders.encoders
    if encoder not in encoders:
        raise ValueError(f"segmentation-models-pytorch has no encoder {encoder!r}")
    pretrained = encoders[encoder]["pretrained_settings"]
    if trained_on not in pretrained:
        raise ValueError(
            f"the encoder {encoder} has no weights {trained_on!r}, but {', '.join(pretrained)}"
        )
    place = pretrained[trained_on]
    try:
        return fetch_config(f"{place['repo_id']}@{place['revision']}")
    except OSError as err:
        raise OSError(
            f"how images of the encoder {encoder} are prepared is not known here: {err}; or set "
            "preprocess: with mean and std (ImageNet's are [0.485, 0.456, 0.406] and "
            "[0.229, 0.224, 0.225])"
        ) from err


def _networks() -> Mapping[str, Any]:
    networks: Mapping[str, Any] = _import_smp().MODEL_ARCHITECTURES_MAPPING
    return networks


def _import_smp() -> ModuleType:
    try:
        import segmentation_models_pytorch
    except ImportError as err:
        raise ImportError(
            "models of segmentation-models-pytorch need it; install it with: "
            "pip install 'pixelmill[smp]'"
        ) from err
    return segmentation_models_pytorch
