"""Networks that are code of the user's: a function of a file or package, or of another package's.

What such code computes is part of the model key by the digest of the source file that has the
function. What that file imports is not: who changes only that gives the model another name.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pixelmill.models.digests import file_digest
from pixelmill.models.zoo import Architecture

__all__ = [
    "ENTRY_POINTS",
    "import_file",
    "is_file_factory",
    "load_factory",
    "load_registered",
    "registered",
    "source_digest",
]

# Group of `[project.entry-points."pixelmill.architectures"]`
ENTRY_POINTS = "pixelmill.architectures"


def import_file(name: str, path: Path, function: str, sha256: str | None) -> Callable[..., Any]:
    """A function of a Python file.

    Args:
        name: of the model, for messages.
        path: of the file.
        function: its name there.
        sha256: of the file as the run was planned with it; None: it is being planned.

    Raises:
        FileNotFoundError: the file is gone.
        ValueError: it has changed since, or has no such function.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{name}: no Python file at {str(path)!r}; workers need it at the same path as the "
            "planner"
        )
    if sha256 is not None and file_digest(path) != sha256:
        raise ValueError(
            f"{name}: {str(path)!r} has changed since the run was planned; start a new run"
        )
    spec = importlib.util.spec_from_file_location(f"_pixelmill_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{name}: {str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return _function(name, module, function, str(path))


def is_file_factory(architecture: str) -> bool:
    """Whether an architecture is `file.py:function`."""
    return architecture.rpartition(":")[0].endswith(".py")


def load_factory(name: str, architecture: str) -> Callable[..., Any]:
    """The function that `package.module:function` names.

    Raises:
        ImportError: it cannot be imported here.
    """
    module_name, _, function = architecture.partition(":")
    try:
        return _function(name, importlib.import_module(module_name), function, module_name)
    except (ImportError, ValueError) as err:
        raise ImportError(
            f"{name}: cannot import {function} from {module_name}: {err}; it must be installed on "
            "every worker"
        ) from err


def source_digest(function: Callable[..., Any]) -> str | None:
    """Sha256 of the file that a function stands in; None for one that is not written in Python."""
    while isinstance(function, partial):
        function = function.func
    try:
        source = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
    return file_digest(Path(source)) if source and Path(source).is_file() else None


def registered() -> dict[str, EntryPoint]:
    """Architectures of other packages by name; none of them is imported.

    Raises:
        ValueError: two packages have registered one name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise ValueError(
                f"the architecture {entry.name!r} is registered twice, as {other.value} by "
                f"{_owner(other)} and as {entry.value} by {_owner(entry)}; uninstall one of them"
            )
    return found


@cache
def load_registered(entry: EntryPoint) -> Architecture:
    """What another package has registered.

    Raises:
        ImportError: it cannot be imported.
        TypeError: it is no `Architecture`.
    """
    try:
        loaded = entry.load()
    except (ImportError, AttributeError) as err:
        raise ImportError(
            f"the architecture {entry.name!r} of {_owner(entry)} cannot be imported: {err}"
        ) from err
    if not isinstance(loaded, Architecture):
        raise TypeError(
            f"{entry.value} of {_owner(entry)} must be a pixelmill.models.zoo.Architecture, got "
            f"{type(loaded).__name__}"
        )
    return loaded


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown package"


def _function(name: str, module: ModuleType, function: str, place: str) -> Callable[..., Any]:
    found: Any = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"{name}: {place!r} has no function {function!r}")
    return found
