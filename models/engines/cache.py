"""What is kept between processes: converted graphs and the outcomes of parity gates."""

import functools
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["cache_folder", "digest", "keep_folder", "keep_json", "machine", "read_json"]


def cache_folder() -> Path:
    """PIXELMILL_CACHE, else pixelmill in the user's cache folder; may be deleted at any time."""
    chosen = os.environ.get("PIXELMILL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pixelmill")


def digest(identity: Mapping[str, Any]) -> str:
    """Name of what follows from `identity`, this version of our code and of the libraries."""
    everything = {**identity, "code": _code_digest(), "versions": _versions()}
    canonical = json.dumps(everything, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def machine(device: str) -> str:
    """What decides how numbers are rounded here: the processor and what it can, or the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {_processor()}"


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = ("model name", "flags")
    return " ".join(
        next((line for line in lines if line.startswith(name)), "").partition(":")[2].strip()
        for name in names
    )


@functools.cache
def _code_digest() -> str:
    """Of this package's sources: what an older checkout has converted must not be found."""
    package = Path(__file__).parents[1]
    whole = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


@functools.cache
def _versions() -> dict[str, str]:
    names = ("torch", "torchvision", "openvino", "onnxruntime", "onnxscript")
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def keep_folder(path: Path, write: Callable[[Path], None]) -> Path:
    """The folder at `path`, written aside by `write` and renamed if it is not there yet.

    Safe among processes: who comes second throws its own away.
    """
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        write(aside)
        aside.rename(path)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def keep_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(handle, "w") as file:
        json.dump(content, file, indent=1)
    Path(name).replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """What `keep_json` wrote; None where it has not, or where the file is damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
