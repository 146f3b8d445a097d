"""Garbage: what killed processes left, and what is not needed any more.

Nothing that is named anywhere is garbage, and nothing is that is younger than the grace: it may
belong to a process that is at work, or to a reader that found it before it was replaced.
"""

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.backend import TMP, Backend, Entry
from pixelmill.tasks.store.log import PublishRecord, ReplaceRecord
from pixelmill.tasks.store.publish import roll_forward
from pixelmill.tasks.store.reader import Store
from pixelmill.tasks.store.receipts import Receipt
from pixelmill.tasks.store.schemas import TABLES

__all__ = ["GRACE_S", "Garbage", "collect_garbage", "find_garbage", "store_time_s"]

# Longer than any shard takes, and than anybody reads one table.
GRACE_S = 24 * 3600.0

_LogRecords = list[PublishRecord | ReplaceRecord]


@dataclass(frozen=True, slots=True)
class Garbage:
    """One kind of it.

    Attributes:
        kind: what it was, for people.
    """

    kind: str
    num_objects: int
    size_bytes: int


def store_time_s(backend: Backend) -> float:
    """Now, in seconds since the epoch, by the clock that dates the store's objects."""
    key = f"{TMP}/clock-{uuid.uuid4().hex}/now"
    backend.put(key, b"")
    try:
        (entry,) = backend.list(key.rpartition("/")[0])
    finally:
        backend.delete([key])
    return entry.modified_s


def collect_garbage(
    store: Store, *, grace_s: float = GRACE_S, dry_run: bool = False
) -> list[Garbage]:
    """Delete what nothing names and nobody can be using.

    It may run beside anything, if the grace is longer than any shard takes.

    Args:
        store: to clear.
        grace_s: age from which things are garbage.
        dry_run: only tell.
    """
    log, _ = roll_forward(store)
    before_s = store_time_s(store.backend) - grace_s
    found = []
    for kind, entries in find_garbage(store, log, before_s):
        size_bytes = sum(entry.size_bytes for entry in entries)
        found.append(Garbage(kind, len(entries), size_bytes))
        if not dry_run:
            _delete(store.backend, [entry.key for entry in entries])
    return found


def find_garbage(
    store: Store, log: _LogRecords, before_s: float
) -> Iterator[tuple[str, list[Entry]]]:
    """What nothing names, by kind.

    Args:
        store: to look through.
        log: all of it.
        before_s: time of the store; what is younger may be in use.
    """
    for kind, find in _KINDS.items():
        entries = list(find(store, log, before_s))
        if entries:
            yield kind, entries


def _delete(backend: Backend, keys: list[str]) -> None:
    """A store of masks without its root does not open: nobody reads what is missing as void."""
    roots = [key for key in keys if key.endswith(".zarr/zarr.json")]
    backend.delete(roots)
    backend.delete([key for key in keys if not key.endswith(".zarr/zarr.json")])


def _replaced_parts(store: Store, log: _LogRecords, before_s: float) -> Iterator[Entry]:
    """What a process that slept through a replacement put back into a table: at any age."""
    replacements = [record for record in log if isinstance(record, ReplaceRecord)]
    removed = {key for record in replacements for key in record.remove}
    finished = {layout.changing_key("", record.nonce) for record in replacements}
    for name in TABLES:
        for entry in store.backend.list(name):
            if entry.key in removed or f"/{Path(entry.key).name}" in finished:
                yield entry


def _changes(store: Store, log: _LogRecords, before_s: float) -> Iterator[Entry]:
    """What was prepared to replace parts, and what was replaced."""
    marks = {
        entry.key: entry.modified_s
        for entry in store.backend.list(layout.LOG)
        if entry.key.endswith(".replaced")
    }
    ended_s = {
        record.nonce: marks[layout.replaced_key(record.seq)]
        for record in log
        if isinstance(record, ReplaceRecord)
    }
    for nonce, entries in _by_folder(store.backend, layout.CHANGES).items():
        if ended_s.get(nonce, max(entry.modified_s for entry in entries)) <= before_s:
            yield from entries


def _staging(store: Store, log: _LogRecords, before_s: float) -> Iterator[Entry]:
    """Tables of attempts that were published, or that died or were too late."""
    folders = _by_folder(store.backend, layout.STAGING)
    old = {
        name: entries
        for name, entries in folders.items()
        if max(entry.modified_s for entry in entries) <= before_s
    }
    waiting = {f"{receipt.shard_id}-{receipt.attempt}" for receipt in _unpublished(store, log)}
    for name, entries in old.items():
        if name not in waiting:
            yield from entries


def _masks(store: Store, log: _LogRecords, before_s: float) -> Iterator[Entry]:
    """Masks of attempts that died or were too late, and of images whose rows were removed."""
    stores: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in store.backend.list("masks"):
        # masks/model=<key>/date=<date>/<shard>-<attempt>.zarr/...
        stores["/".join(entry.key.split("/")[:4])].append(entry)
    # After the listing: what was committed since is found below.
    named = {path for receipt in _unpublished(store, log) for path in receipt.mask_stores.values()}
    named |= set(store.table("images", columns=["mask_store"])["mask_store"].unique().to_pylist())
    marks = {entry.key: entry.modified_s for entry in store.backend.list(layout.LOG)}
    removed_s = {
        path: marks[layout.replaced_key(record.seq)]
        for record in log
        if isinstance(record, ReplaceRecord)
        for path in record.mask_stores
    }
    for path, entries in stores.items():
        age_s = removed_s.get(path, max(entry.modified_s for entry in entries))
        if path not in named and age_s <= before_s:
            yield from entries


def _evaluations(store: Store, log: _LogRecords, before_s: float) -> Iterator[Entry]:
    """What evaluations kept of models that have no images any more."""
    published = {part.partitions["model"] for part in store.parts("images")}
    for entry in store.backend.list(layout.EVALUATIONS):
        # evaluations/model=<key>/...
        model_key = entry.key.split("/")[1].removeprefix("model=")
        if model_key not in published and entry.modified_s <= before_s:
            yield entry


def _old(folder: str) -> Callable[[Store, _LogRecords, float], Iterator[Entry]]:
    def find(store: Store, log: _LogRecords, before_s: float) -> Iterator[Entry]:
        return (entry for entry in store.backend.list(folder) if entry.modified_s <= before_s)

    return find


def _unpublished(store: Store, log: _LogRecords) -> list[Receipt]:
    """Receipts of committed shards that no record names."""
    published = {
        shard for record in log if isinstance(record, PublishRecord) for shard in record.shards
    }
    return [
        Receipt.model_validate_json(store.backend.get(entry.key))
        for entry in store.backend.list(layout.RECEIPTS)
        if Path(entry.key).stem not in published
    ]


def _by_folder(backend: Backend, prefix: str) -> dict[str, list[Entry]]:
    """Objects by the folder right below the prefix."""
    folders: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in backend.list(prefix):
        folders[entry.key.removeprefix(f"{prefix}/").split("/")[0]].append(entry)
    return folders


_KINDS: dict[str, Callable[[Store, _LogRecords, float], Iterator[Entry]]] = {
    "parts put back after they were replaced": _replaced_parts,
    "parts that were replaced": _changes,
    "staged tables": _staging,
    "masks": _masks,
    "records of evaluations": _evaluations,
    "temporary files": _old(TMP),
    "notes of dead workers": _old(layout.CRUMBS),
}
