"""Publishing: committed shards become rows of the tables, once, by an append-only log.

A log record names the shards and the rows that are dropped because their key stands already. The
one create of `log/<seq>.json` orders all publishers; writing the parts that it implies can be done
by anyone, any number of times, with the same bytes.
"""

import functools
import hashlib
import io
import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.backend import Backend
from pixelmill.tasks.store.digests import (
    KEY_COLUMNS,
    Digests,
    contains,
    digests_of,
    part_digests,
)
from pixelmill.tasks.store.reader import Store
from pixelmill.tasks.store.receipts import Receipt, StagedFile
from pixelmill.tasks.store.schemas import TABLES, encode_table

__all__ = ["PublishSummary", "publish"]

# 256 shards of 1024 images: parts of about a quarter of a million rows, memory of a few hundred MB.
_MAX_SHARDS_PER_RECORD = 256
_READERS = 8
# Readers join the other tables to images, so a row there says that the rest is there.
_APPLY_ORDER = ("failures", "candidates", "captions", "labels", "detections", "catalog", "images")


@dataclass(frozen=True, slots=True)
class PublishSummary:
    """What one call published.

    Attributes:
        num_records: log records written.
        num_redone: unfinished records of others that were finished.
        num_shards: receipts published.
        num_images: rows of images, summed over models.
        num_dropped: rows of images that stood already.
        num_failures: rows of failures.
    """

    num_records: int = 0
    num_redone: int = 0
    num_shards: int = 0
    num_images: int = 0
    num_dropped: int = 0
    num_failures: int = 0


class LogRecord(BaseModel):
    """One step of the order of publication.

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


def publish(store: Store, *, min_receipts: int = 1) -> PublishSummary:
    """Make all committed shards visible in the tables.

    Any process may call it at any time, several at once; one that dies is finished by the next.

    Args:
        store: whose receipts are published.
        min_receipts: leave fewer than this for later, when more have come.

    Raises:
        RuntimeError: a staged file is not what its receipt says.
    """
    total = PublishSummary()
    while True:
        log, num_redone = _roll_forward(store)
        pending = _pending(store.backend, log)
        total = _add(total, PublishSummary(num_redone=num_redone))
        if len(pending) < max(1, min_receipts):
            return total
        receipts = _receipts(store.backend, pending[:_MAX_SHARDS_PER_RECORD])
        record = LogRecord(
            seq=len(log),
            shards=tuple(receipt.shard_id for receipt in receipts),
            drop=_rows_to_drop(store, receipts),
            nonce=secrets.token_hex(8),
        )
        # False: another publisher took this place in the order; look again at what is left.
        if store.backend.create(layout.log_key(record.seq), record.model_dump_json().encode()):
            _apply(store.backend, record)
            total = _add(total, _summary(record, receipts))


def _roll_forward(store: Store) -> tuple[list[LogRecord], int]:
    """Read the log and finish the records whose publisher has not."""
    keys = [entry.key for entry in store.backend.list(layout.LOG)]
    done = {Path(key).stem for key in keys if key.endswith(".done")}
    records = [key for key in keys if key.endswith(".json")]
    with ThreadPoolExecutor(_READERS) as pool:
        log = list(
            pool.map(lambda key: _load_record(store.backend, store.dataset_id, key), records)
        )
    unfinished = [record for record in log if f"{record.seq:08d}" not in done]
    for record in unfinished:
        _apply(store.backend, record)
    return log, len(unfinished)


def _pending(backend: Backend, log: Iterable[LogRecord]) -> list[str]:
    """Keys of the receipts that no record names, oldest run first."""
    published = {shard for record in log for shard in record.shards}
    return [
        entry.key
        for entry in backend.list(layout.RECEIPTS)
        if Path(entry.key).stem not in published
    ]


def _receipts(backend: Backend, keys: Sequence[str]) -> list[Receipt]:
    with ThreadPoolExecutor(_READERS) as pool:
        return [Receipt.model_validate_json(data) for data in pool.map(backend.get, keys)]


def _rows_to_drop(store: Store, receipts: Sequence[Receipt]) -> dict[str, tuple[int, ...]]:
    """Rows whose key is published already or comes earlier in the same receipts.

    The first published wins, under whatever date. To be called when all earlier records are
    applied: the parts then hold everything that is published.
    """
    scopes: dict[tuple[str, str], list[StagedFile]] = defaultdict(list)
    for receipt in receipts:
        for file in receipt.files:
            if file.table in KEY_COLUMNS:
                scopes[file.table, file.model_key or receipt.collection].append(file)
    drop: dict[str, tuple[int, ...]] = {}
    for (name, scope), files in scopes.items():
        with ThreadPoolExecutor(_READERS) as pool:
            staged = list(pool.map(lambda file: _staged_digests(store.backend, file), files))
        digests = np.concatenate(staged)
        stands = np.ones(len(digests), bool)
        stands[np.unique(digests, return_index=True)[1]] = False
        folder = f"{name}/{TABLES[name].partitions[0]}={scope}"
        for entry in store.backend.list(folder):
            published = part_digests(store.backend, store.dataset_id, entry.key)
            stands |= contains(published, digests)
        ends = np.cumsum([len(part) for part in staged])
        for file, rows in zip(files, np.split(stands, ends[:-1]), strict=True):
            if rows.any():
                drop[file.path] = tuple(np.flatnonzero(rows).tolist())
    return drop


def _staged_digests(backend: Backend, file: StagedFile) -> Digests:
    with backend.open(file.path) as opened:
        return digests_of(file.table, pq.read_table(opened, columns=KEY_COLUMNS[file.table]))


def _apply(backend: Backend, record: LogRecord) -> None:
    """Write the parts that a record implies, images last, then its mark.

    Same record, same bytes: two may do it at once, and it may be done again.
    """
    keys = [layout.receipt_key(shard.rpartition("-")[0], shard) for shard in record.shards]
    receipts = _receipts(backend, keys)
    for name in _APPLY_ORDER:
        parts: dict[str, list[tuple[Receipt, StagedFile]]] = defaultdict(list)
        for receipt in receipts:
            for file in receipt.files:
                if file.table == name:
                    parts[_part_key(record.seq, receipt, file)].append((receipt, file))
        for key, files in sorted(parts.items()):
            with ThreadPoolExecutor(_READERS) as pool:
                tables = pool.map(lambda item: _kept_rows(backend, record, *item), files)
                table = pa.concat_tables(tables)
            if table.num_rows:
                order = [(column, "ascending") for column in TABLES[name].sort_by]
                backend.put(key, encode_table(table.sort_by(order)))
    backend.put(layout.done_key(record.seq), b"")


def _part_key(seq: int, receipt: Receipt, file: StagedFile) -> str:
    values = {
        "collection": receipt.collection,
        "date": receipt.date,
        "model": file.model_key or "",
    }
    return layout.part_key(file.table, values, seq)


def _kept_rows(backend: Backend, record: LogRecord, receipt: Receipt, file: StagedFile) -> pa.Table:
    """A staged table without the rows that the record drops, for images in all their tables."""
    table = _read_staged(backend, file)
    if file.table in KEY_COLUMNS:
        kept = np.ones(table.num_rows, bool)
        kept[list(record.drop.get(file.path, ()))] = False
        return table.filter(pa.array(kept))
    for images in receipt.files:
        if images.table == "images" and images.model_key == file.model_key:
            rows = list(record.drop.get(images.path, ()))
            if rows:
                dropped = np.sort(digests_of("images", _read_staged(backend, images).take(rows)))
                return table.filter(pa.array(~contains(dropped, digests_of("images", table))))
    return table


def _read_staged(backend: Backend, file: StagedFile) -> pa.Table:
    data = backend.get(file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise RuntimeError(
            f"{backend.root}/{file.path} is not what its receipt says ({file.size_bytes} bytes, "
            f"sha256 {file.sha256}): it was changed or damaged after the commit"
        )
    return pq.read_table(io.BytesIO(data))


def _summary(record: LogRecord, receipts: Sequence[Receipt]) -> PublishSummary:
    files = [file for receipt in receipts for file in receipt.files]
    dropped = sum(len(record.drop.get(file.path, ())) for file in files if file.table == "images")
    return PublishSummary(
        num_records=1,
        num_shards=len(receipts),
        num_images=sum(file.num_rows for file in files if file.table == "images") - dropped,
        num_dropped=dropped,
        num_failures=sum(file.num_rows for file in files if file.table == "failures"),
    )


def _add(first: PublishSummary, second: PublishSummary) -> PublishSummary:
    names = PublishSummary.__dataclass_fields__
    return PublishSummary(**{name: getattr(first, name) + getattr(second, name) for name in names})


@functools.lru_cache(maxsize=65_536)
def _load_record(backend: Backend, dataset_id: str, key: str) -> LogRecord:
    """Records never change; one process reads each once (of a store of this identity)."""
    return LogRecord.model_validate_json(backend.get(key))
