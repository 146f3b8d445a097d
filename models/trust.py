"""Weights files that are programs, which are run only for who says that they trust them.

A safetensors file holds tensors and nothing else, and PyTorch reads a pickle of tensors with
`weights_only=True` without importing what the pickle names. A TorchScript archive is a program,
and so are a .pt2 file of torch.export (see `exported.py`) and a pickle of a whole module: they may
call any function of any package when they are opened.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixelmill.models.checkpoint import load_state
from pixelmill.models.exported import ExportedNetwork

__all__ = [
    "EXPORTED",
    "PICKLE",
    "PROGRAMS",
    "TORCHSCRIPT",
    "is_exported",
    "is_torchscript",
    "load_program",
    "load_tensors",
    "refuse_program",
]

TORCHSCRIPT = "torchscript"
EXPORTED = "exported"
PICKLE = "pickle"
# Architectures that are in the weights file itself
PROGRAMS = (TORCHSCRIPT, EXPORTED, PICKLE)

_KINDS = {
    TORCHSCRIPT: "a TorchScript archive",
    EXPORTED: "a program of torch.export",
    PICKLE: "a pickle",
}
_DATA_SUFFIXES = (".safetensors", ".onnx")
# Where trainings keep the weights among other things; and what DataParallel puts before each name
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PARALLEL = "module."
_NAMED = re.compile(r"GLOBAL ([\w.]+)")
_MAX_NAMES = 5


def refuse_program(name: str, path: Path, architecture: str | None, *, trusted: bool) -> None:
    """Stop before a file is run that was not declared to be trusted.

    Args:
        name: of the model, for the message.
        path: the weights file.
        architecture: as configured.
        trusted: the user has said that whoever made the file may run code here.

    Raises:
        ValueError: the file is a program; the message says what would be run.
    """
    if trusted or path.suffix in _DATA_SUFFIXES:
        return
    if is_torchscript(path):
        raise ValueError(
            f"{name}: {str(path)!r} is a TorchScript program, which scoring would run. If you "
            "trust whoever made it, set architecture: torchscript and trust: true (or --trust); "
            "else ask for the weights as safetensors, or export the network to ONNX"
        )
    if is_exported(path):
        raise ValueError(
            f"{name}: {str(path)!r} is a program of torch.export, and opening it may run any code. "
            "If you trust whoever made it, set trust: true (or --trust); else ask for the weights "
            "as safetensors, or export the network to ONNX"
        )
    if architecture in PROGRAMS:
        raise ValueError(
            f"{name}: architecture: {architecture} runs the code in {str(path)!r}. If you trust "
            "whoever made the file, set trust: true (or --trust); else name an architecture and "
            "use its weights alone"
        )
    if imported := _imports(path):
        raise _refusal(name, path, imported)


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive that `torch.jit.save` wrote."""
    return any(entry.endswith("/constants.pkl") for entry in _entries(path))


def is_exported(path: Path) -> bool:
    """Whether a file is an archive that `torch.export.save` wrote, or says so by its name."""
    return path.suffix == ".pt2" or any(
        entry.endswith(("/archive_format", "serialized_exported_program.json"))
        for entry in _entries(path)
    )


def _entries(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def load_tensors(name: str, path: Path, *, trusted: bool) -> Mapping[str, Tensor]:
    """A state dict from a safetensors file or from a pickle of tensors.

    Raises:
        ValueError: it is none, or would run code and is not trusted.
    """
    if path.suffix == ".safetensors":
        return load_state(path)
    refuse_program(name, path, None, trusted=trusted)
    try:
        state = torch.load(path, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as err:
        raise _refusal(name, path, _NAMED.findall(str(err))) from err
    if isinstance(state, nn.Module):
        state = state.state_dict()
    state = _unwrapped(state)
    if not isinstance(state, dict):
        raise ValueError(
            f"{str(path)!r} must hold a state dict (names and tensors), got {type(state).__name__}"
        )
    return state


def _unwrapped(state: Any) -> Any:
    """The weights among what trainings store beside them, under their own names."""
    for name in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if isinstance(state, dict) and state and all(key.startswith(_PARALLEL) for key in state):
        return {key.removeprefix(_PARALLEL): tensor for key, tensor in state.items()}
    return state


def load_program(name: str, path: Path, architecture: str, *, trusted: bool) -> nn.Module:
    """The module that a file holds, code and weights.

    Args:
        name: of the model, for messages.
        path: written by `torch.jit.save`, `torch.export.save`, or `torch.save` of a whole module.
        architecture: "torchscript", "exported" or "pickle".
        trusted: see `refuse_program`.

    Raises:
        ValueError: it is not trusted, or holds something else.
    """
    refuse_program(name, path, architecture, trusted=trusted)
    if not trusted:  # whatever the file is: nothing below may run
        raise ValueError(f"{name}: {str(path)!r} is not trusted; set trust: true (or --trust)")
    kind = TORCHSCRIPT if is_torchscript(path) else EXPORTED if is_exported(path) else PICKLE
    if kind != architecture:
        raise ValueError(
            f"{name}: {str(path)!r} is {_KINDS[kind]}, not {_KINDS[architecture]}; set "
            f"architecture: {kind}"
        )
    if architecture == EXPORTED:
        return ExportedNetwork(path)
    if architecture == TORCHSCRIPT:
        with warnings.catch_warnings():
            # PyTorch 2.15 deprecates the format; who was given such a file can do nothing about it
            warnings.simplefilter("ignore", FutureWarning)
            return torch.jit.load(str(path), map_location="cpu")
    module: Any = torch.load(path, map_location="cpu", weights_only=False)
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"{name}: {str(path)!r} must hold a whole module, got {type(module).__name__}; of a "
            "state dict, name the architecture"
        )
    return module


def _imports(path: Path) -> list[str]:
    """What opening a pickle would import, beyond tensors; of old formats that is not known here."""
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except (ValueError, RuntimeError):
        return []


def _refusal(name: str, path: Path, imported: list[str]) -> ValueError:
    shown = ", ".join(imported[:_MAX_NAMES]) or "something"
    if len(imported) > _MAX_NAMES:
        shown += f" and {len(imported) - _MAX_NAMES} more"
    return ValueError(
        f"{name}: {str(path)!r} is a pickle that would import and call {shown} when opened. If you "
        "trust whoever made it, set trust: true (or --trust), with architecture: pickle for a "
        "whole module; else ask for the weights alone: torch.save(model.state_dict(), ...) or "
        "safetensors"
    )
