"""Checkpoint folders as the Hugging Face Hub keeps them: a config.json, weights, vocabularies.

transformers, timm and segmentation-models-pytorch all write such folders (`save_pretrained`,
`save_for_hf`). `hf:<owner>/<name>@<revision>` names one on the Hub; it is fetched once, into the
Hub's own cache (`$HF_HOME/hub`), and is a folder like any other from then on.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "HUB",
    "fetch_config",
    "fetch_folder",
    "folder_files",
    "read_folder_config",
    "revision_of",
    "weights_in",
]

HUB = "hf:"

# What is read of a folder, weights aside: configurations, labels, vocabularies
_DESCRIPTIONS = ("*.json", "*.txt", "*.model")
_WEIGHTS = ("*.safetensors", "*.bin")
_REFERENCE = re.compile(r"^(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?$")


def fetch_folder(reference: str) -> Path:
    """The folder of a repository on the Hub, fetched if it is not here.

    Of weights in several formats only safetensors are fetched, if there are any.

    Args:
        reference: `hf:<owner>/<name>`, with `@` and a branch, tag or commit; without, the main
            branch as it is today.

    Raises:
        ImportError: the Hub's client is not installed.
        OSError: the folder is not here and cannot be fetched; the message says what to do.
        ValueError: no such reference is possible.
    """
    folder = _fetch(reference, [*_DESCRIPTIONS, _WEIGHTS[0]])
    if not any(folder.glob(_WEIGHTS[0])):
        folder = _fetch(reference, [*_DESCRIPTIONS, _WEIGHTS[1]])
    return folder


def fetch_config(reference: str) -> Mapping[str, Any]:
    """The config.json of a repository alone; see `fetch_folder`."""
    return read_folder_config(_fetch(reference, ["config.json"]))


def _fetch(reference: str, patterns: list[str]) -> Path:
    match = _REFERENCE.match(reference.removeprefix(HUB))
    if match is None:
        raise ValueError(
            f"expected {HUB}<owner>/<name> or {HUB}<owner>/<name>@<revision>, got {reference!r}"
        )
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as err:
        raise ImportError(
            f"{reference} is fetched by Hugging Face's client; install it with: "
            "pip install 'pixelmill[hf]' (or the extra timm or smp)"
        ) from err
    try:
        folder = snapshot_download(
            match["repository"], revision=match["revision"], allow_patterns=patterns
        )
    except (OSError, HFValidationError) as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise OSError(
            f"cannot fetch {reference} ({reason}); check the name and the revision, and for a "
            "closed model log in by `hf auth login`; without a network run `pixelmill models fetch "
            f"{reference}` on a connected machine and copy the folder that it prints, under "
            f"{constants.HF_HUB_CACHE} or anywhere, then set weights: to that folder"
        ) from err
    return Path(folder)


def folder_files(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that decide what its network computes, sorted by name.

    Raises:
        FileNotFoundError: it has no config.json, or no weights.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"expected a folder that save_pretrained wrote, with a config.json, got {str(folder)!r}"
        )
    described = [path for pattern in _DESCRIPTIONS for path in folder.glob(pattern)]
    return tuple(sorted([*described, *weights_in(folder)]))


def weights_in(folder: Path) -> tuple[Path, ...]:
    """A folder's safetensors files, or its pickles if it has no others.

    Raises:
        FileNotFoundError: it has neither.
    """
    for pattern in _WEIGHTS:
        if found := sorted(folder.glob(pattern)):
            return tuple(found)
    raise FileNotFoundError(
        f"{str(folder)!r} has no weights, neither .safetensors nor .bin; convert those of another "
        "framework by save_pretrained"
    )


def read_folder_config(folder: Path) -> Mapping[str, Any]:
    """What config.json says.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"expected a config.json in {str(folder)!r}")
    try:
        content = json.loads(path.read_text())
    except ValueError as err:
        raise ValueError(f"{str(path)!r} is no JSON: {err}") from err
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {str(path)!r}, got {type(content).__name__}")
    return content


def revision_of(folder: Path) -> str | None:
    """The commit that a folder of the Hub's cache is; None for every other folder."""
    return folder.name if folder.parent.name == "snapshots" else None
