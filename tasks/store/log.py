"""The log: one record after the other, each created once, says what the tables hold.

A record is finished by whoever comes by; its mark says that its files are in place. Where a record
replaces parts, its creation is the moment from which `Store` shows the new ones: their staged files
are there before the record is.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.backend import Backend

__all__ = [
    "AddedPart",
    "Log",
    "Operation",
    "PartSum",
    "PublishMark",
    "PublishRecord",
    "ReplaceRecord",
    "load_mark",
    "load_record",
    "parse_record",
    "read_log",
]


Operation = Literal["compact", "prune", "repair"]


class PublishRecord(BaseModel):
    """Shards whose receipts become parts.

    Attributes:
        shards: whose receipts are published by it.
        drop: rows of staged images and catalog files, by path, whose key stands already.
        nonce: tells this publisher's record from another's with the same content.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: int
    shards: tuple[str, ...]
    drop: dict[str, tuple[int, ...]]
    nonce: str


class PartSum(BaseModel):
    """What a part was when it was published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_rows: int
    size_bytes: int
    sha256: str


class PublishMark(BaseModel):
    """The mark that a publication is finished, and what it wrote.

    Attributes:
        record: that was published, should its own object be damaged.
        parts: by key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: PublishRecord
    parts: dict[str, PartSum]


class AddedPart(BaseModel):
    """A part that takes the place of others.

    Attributes:
        staged: path of its bytes, there before the record and until they are garbage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    staged: str
    num_rows: int
    size_bytes: int
    sha256: str


class ReplaceRecord(BaseModel):
    """Parts that take the place of others, made by `Change`.

    Attributes:
        op: why: small parts merged, a model's predictions removed, damage mended.
        created_at: ISO 8601, UTC; for people.
        remove: keys of parts; a name that was removed is never used again.
        mask_stores: stores of masks that no row names any more.
        folders: partition folders whose new content stands ready in the change's folder, to be
            exchanged with the old one at once; None: their files are replaced one by one.
        nonce: name of the change's folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: int
    op: Operation
    created_at: str
    remove: tuple[str, ...]
    add: tuple[AddedPart, ...] = ()
    mask_stores: tuple[str, ...] = ()
    folders: tuple[str, ...] | None = None
    nonce: str


@dataclass(frozen=True, slots=True)
class Log:
    """The log as one listing shows it.

    Attributes:
        published: numbers of the finished publications.
        replacements: all of them, finished or not, in order.
        num_records: the next one gets this number.
    """

    published: frozenset[int]
    replacements: tuple[ReplaceRecord, ...]
    num_records: int


def read_log(backend: Backend, dataset_id: str) -> Log:
    """List the log, and read what replaces parts; a publication's mark says all that is needed."""
    records: set[int] = set()
    published: set[int] = set()
    replaced: set[int] = set()
    of = {".json": records, ".done": published, ".replaced": replaced}
    for entry in backend.list(layout.LOG):
        path = Path(entry.key)
        of[path.suffix].add(int(path.stem))
    loaded = (
        load_record(backend, dataset_id, layout.log_key(seq))
        for seq in sorted((records - published) | replaced)
    )
    replacements = tuple(record for record in loaded if isinstance(record, ReplaceRecord))
    num_records = max(records | published | replaced, default=-1) + 1
    return Log(frozenset(published), replacements, num_records)


_RECORD: TypeAdapter[PublishRecord | ReplaceRecord] = TypeAdapter(PublishRecord | ReplaceRecord)


@functools.lru_cache(maxsize=65_536)
def load_record(backend: Backend, dataset_id: str, key: str) -> PublishRecord | ReplaceRecord:
    """Records never change; one process reads each once (of a store of this identity).

    Raises:
        RuntimeError: it cannot be read.
    """
    try:
        return parse_record(backend.get(key))
    except ValidationError as err:
        raise RuntimeError(
            f"{backend.root}/{key} is damaged; `pixelmill audit --repair` mends it"
        ) from err


def parse_record(data: bytes) -> PublishRecord | ReplaceRecord:
    """A record as it is stored.

    Raises:
        ValidationError: it is none.
    """
    return _RECORD.validate_json(data)


@functools.lru_cache(maxsize=256)
def load_mark(backend: Backend, dataset_id: str, seq: int) -> PublishMark:
    """The mark of a finished publication."""
    return PublishMark.model_validate_json(backend.get(layout.done_key(seq)))
