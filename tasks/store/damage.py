"""What was damaged between its commit and its publication is left out, and said so for good.

A staged file that is not what its receipt says stops nobody: its model's tables of that shard are
left out, whole, by a mark that every publisher reads. Its images are then as if they had never been
scored by that model, and the next run plans them again.
"""

import hashlib
import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.backend import Backend
from pixelmill.tasks.store.receipts import Receipt, StagedFile

__all__ = [
    "Damage",
    "StagedFileError",
    "find_faults",
    "leave_out",
    "load_damage",
    "read_staged_bytes",
]

logger = logging.getLogger(__name__)


class StagedFileError(RuntimeError):
    """A staged file is missing or is not what its receipt says."""

    def __init__(self, root: str, path: str, what: str) -> None:
        super().__init__(f"{root}/{path}: {what}; it was changed or damaged after the commit")
        self.path = path
        self.what = what


class Damage(BaseModel):
    """What of a committed shard is not published, because it was damaged.

    Attributes:
        found_at: ISO 8601, UTC.
        faults: what is wrong, by path.
        left_out: paths of the staged files that are not published: of each table with a fault, all
            of the same model, for an image without its boxes would be a lie.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_id: str
    found_at: str
    faults: dict[str, str]
    left_out: tuple[str, ...]


def read_staged_bytes(backend: Backend, file: StagedFile) -> bytes:
    """A staged file, checked.

    Raises:
        StagedFileError: it is not what its receipt says.
    """
    what = ""
    for _ in range(2):  # the first reading may have been damaged on its way
        try:
            data = backend.get(file.path)
        except FileNotFoundError:
            what = "missing"
            continue
        if hashlib.sha256(data).hexdigest() == file.sha256:
            return data
        what = f"expected {file.size_bytes} bytes of sha256 {file.sha256}, got {len(data)} others"
    raise StagedFileError(backend.root, file.path, what)


def find_faults(backend: Backend, receipt: Receipt) -> dict[str, str]:
    """What is wrong with a shard's staged files, by path."""
    faults: dict[str, str] = {}
    for file in receipt.files:
        try:
            read_staged_bytes(backend, file)
        except StagedFileError as err:
            faults[file.path] = err.what
    return faults


def leave_out(backend: Backend, receipt: Receipt, faults: Mapping[str, str]) -> Damage:
    """Mark what of a shard is not to be published."""
    before = load_damage(backend, receipt.run_id).get(receipt.shard_id)
    faults = {**(before.faults if before else {}), **faults}
    models = {file.model_key for file in receipt.files if file.path in faults} - {None}
    damage = Damage(
        shard_id=receipt.shard_id,
        found_at=datetime.now(UTC).isoformat(timespec="seconds"),
        faults=faults,
        left_out=tuple(
            file.path for file in receipt.files if file.path in faults or file.model_key in models
        ),
    )
    backend.put(
        layout.damage_key(receipt.run_id, receipt.shard_id), damage.model_dump_json().encode()
    )
    for path, what in faults.items():
        logger.error(
            "shard %s: %s: %s; its images are not published and will be scored again by the next "
            "run",
            receipt.shard_id, path, what,
        )  # fmt: skip
    return damage


def load_damage(backend: Backend, run_id: str | None = None) -> dict[str, Damage]:
    """The marks of a run, or of all runs, by shard."""
    folder = layout.DAMAGED if run_id is None else f"{layout.DAMAGED}/{run_id}"
    marks = [Damage.model_validate_json(backend.get(entry.key)) for entry in backend.list(folder)]
    return {mark.shard_id: mark for mark in marks}
