"""Digests of what a model key stands for: weights and code."""

import functools
import hashlib
from pathlib import Path

from pixelmill.models.hub import folder_files
from pixelmill.models.onnx_files import external_files

__all__ = ["check_digest", "file_digest", "weights_digest"]


def weights_digest(path: Path) -> str:
    """Sha256 of a file.

    Of an ONNX graph with its weights in other files, of all their digests; of a folder, of the
    names and digests of all files that are read of it.
    """
    if path.is_dir():
        named = [f"{each.name} {file_digest(each)}" for each in folder_files(path)]
        return hashlib.sha256("\n".join(named).encode()).hexdigest()
    beside = external_files(path) if path.suffix == ".onnx" else ()
    digests = [file_digest(each) for each in (path, *beside)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest() if beside else digests[0]


def file_digest(path: Path) -> str:
    """Sha256 of a file's bytes."""
    status = path.stat()
    return _digest_of(str(path), status.st_size, status.st_mtime_ns)


def check_digest(name: str, path: Path, sha256: str | None) -> None:
    """Refuse weights that are not those of the plan.

    Raises:
        ValueError: they are others.
    """
    if weights_digest(path) != sha256:
        raise ValueError(
            f"{name}: {str(path)!r} is not the file that the run was planned with; start a new run"
        )


@functools.lru_cache(maxsize=256)
def _digest_of(path: str, size_bytes: int, modified_ns: int) -> str:
    """Read once while size and time stay."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
