"""Safetensors files whose header says, as JSON under a key of ours, what the tensors are."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["read_header", "read_tensors", "save_tensors"]


def read_header(path: Path, key: str, *, remedy: str) -> str:
    """What a file's header says under a key; the tensors are not read.

    Args:
        path: of the file.
        key: of the header.
        remedy: who writes such files, or what to do without, for the message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or its header has no such key.
    """
    _check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError as err:
        raise _not_safetensors(path, err) from err
    if key not in header:
        raise ValueError(f"{str(path)!r} has no {key!r} entry in its header; {remedy}")
    return header[key]


def read_tensors(path: Path, *names: str) -> dict[str, Tensor]:
    """The tensors of these names, on the CPU; without names all of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file.
    """
    _check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names or file.keys()}
    except SafetensorError as err:
        raise _not_safetensors(path, err) from err


def save_tensors(path: Path, tensors: Mapping[str, Tensor], key: str, content: str) -> None:
    """Write a file whole or not at all; an existing one is replaced.

    Args:
        path: ends in .safetensors.
        tensors: contiguous, on the CPU.
        key: of the header.
        content: JSON that the header has under it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # not save_file, whose files nobody but their owner may read
    partial.write_bytes(save(dict(tensors), {key: content}))
    partial.replace(path)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"expected a safetensors file, got no file at {str(path)!r}")


def _not_safetensors(path: Path, err: SafetensorError) -> ValueError:
    return ValueError(f"expected a safetensors file, got {str(path)!r}: {err}")
