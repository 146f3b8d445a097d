"""Publishing: committed shards become rows of the tables, once, by an append-only log.

A log record names the shards and the rows that are dropped because their key stands already. The
one create of `log/<seq>.json` orders all publishers; writing the parts that it implies can be done
by anyone, any number of times, with the same bytes.
"""

import hashlib
import io
import logging
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.backend import Backend
from pixelmill.tasks.store.damage import (
    StagedFileError,
    find_faults,
    leave_out,
    load_damage,
    read_staged_bytes,
)
from pixelmill.tasks.store.digests import (
    KEY_COLUMNS,
    Digests,
    contains,
    digests_of,
)
from pixelmill.tasks.store.log import (
    PartSum,
    PublishMark,
    PublishRecord,
    ReplaceRecord,
    load_record,
    read_log,
)
from pixelmill.tasks.store.reader import Store
from pixelmill.tasks.store.receipts import Receipt, StagedFile
from pixelmill.tasks.store.schemas import TABLES, encode_table
from pixelmill.tasks.store.swap import apply_replacement, put_part

__all__ = [
    "PublishSummary",
    "publish",
    "published_shards",
    "record_parts",
    "roll_forward",
    "without_damaged",
]

logger = logging.getLogger(__name__)

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
        num_damaged: shards of which something is left out, because it was damaged since its
            commit; see `Damage`.
    """

    num_records: int = 0
    num_redone: int = 0
    num_shards: int = 0
    num_images: int = 0
    num_dropped: int = 0
    num_failures: int = 0
    num_damaged: int = 0


def publish(store: Store, *, min_receipts: int = 1) -> PublishSummary:
    """Make all committed shards visible in the tables.

    Any process may call it at any time, several at once; one that dies is finished by the next.

    Args:
        store: whose receipts are published.
        min_receipts: leave fewer than this for later, when more have come.

    Raises:
        RefusedError: the store has gone away.
    """
    store.require()
    total = PublishSummary()
    unreadable: set[str] = set()
    while True:
        log, num_redone = roll_forward(store)
        pending = [key for key in _pending(store.backend, log) if key not in unreadable]
        total = _add(total, PublishSummary(num_redone=num_redone))
        if len(pending) < max(1, min_receipts):
            return _add(total, PublishSummary(num_damaged=len(unreadable)))
        loaded = _load_receipts(store.backend, pending[:_MAX_SHARDS_PER_RECORD])
        unreadable |= {key for key, receipt in loaded.items() if receipt is None}
        receipts = [receipt for receipt in loaded.values() if receipt is not None]
        if not receipts:
            continue
        total = _add(total, PublishSummary(num_damaged=_leave_out_damaged(store.backend, receipts)))
        record = PublishRecord(
            seq=len(log),
            shards=tuple(receipt.shard_id for receipt in receipts),
            drop=_rows_to_drop(store, receipts),
            nonce=secrets.token_hex(8),
        )
        # False: another publisher took this place in the order; look again at what is left.
        if store.backend.create(layout.log_key(record.seq), record.model_dump_json().encode()):
            _apply(store.backend, record)
            published = without_damaged(store.backend, receipts)
            total = _add(total, _summary(record, published))


def published_shards(store: Store) -> set[str]:
    """Ids of the shards whose rows were put into the tables, of all runs."""
    log = read_log(store.backend, store.dataset_id)
    keys = [layout.log_key(seq) for seq in sorted(log.published)]
    return _shards(_load_records(store, keys))


def roll_forward(store: Store) -> tuple[list[PublishRecord | ReplaceRecord], int]:
    """Finish the records that whoever created them has not.

    Returns:
        The log, of which every record is finished, and how many this call has finished.

    Raises:
        RuntimeError: a record is missing or damaged, so nobody knows what is published.
    """
    keys = {entry.key for entry in store.backend.list(layout.LOG)}
    finished = {Path(key).stem for key in keys if not key.endswith(".json")}
    # To the last one, also where the listing came by too early to see one before it
    last = max((int(Path(key).stem) for key in keys), default=-1)
    records = [layout.log_key(seq) for seq in range(last + 1)]
    gone = next((key for key in records if key not in keys and not store.backend.exists(key)), None)
    if gone is not None:
        raise RuntimeError(
            f"{store.root}/{gone} is gone, so nobody knows what it published; `pixelmill audit "
            "--repair` restores it"
        )
    log = _load_records(store, records)
    unfinished = [record for record in log if f"{record.seq:08d}" not in finished]
    for record in unfinished:
        if isinstance(record, PublishRecord):
            _apply(store.backend, record)
        else:
            apply_replacement(store.backend, record)
    return log, len(unfinished)


def _load_records(store: Store, keys: Sequence[str]) -> list[PublishRecord | ReplaceRecord]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda key: load_record(store.backend, store.dataset_id, key), keys))


def _shards(log: Iterable[PublishRecord | ReplaceRecord]) -> set[str]:
    return {shard for record in log if isinstance(record, PublishRecord) for shard in record.shards}


def _pending(backend: Backend, log: Iterable[PublishRecord | ReplaceRecord]) -> list[str]:
    """Keys of the receipts that no record names, oldest run first."""
    published = _shards(log)
    return [
        entry.key
        for entry in backend.list(layout.RECEIPTS)
        if Path(entry.key).stem not in published
    ]


def _load_receipts(backend: Backend, keys: Sequence[str]) -> dict[str, Receipt | None]:
    """Receipts by key; None for one that cannot be read."""

    def load(key: str) -> Receipt | None:
        try:
            return Receipt.model_validate_json(backend.get(key))
        except (FileNotFoundError, ValidationError) as err:
            logger.error(
                "receipt %s/%s cannot be read, so its shard is not published; its images will be "
                "scored again by the next run, and `pixelmill audit --repair` clears it away (%s)",
                backend.root, key, err,
            )  # fmt: skip
            return None

    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(keys, pool.map(load, keys), strict=True))


def _leave_out_damaged(backend: Backend, receipts: Sequence[Receipt]) -> int:
    """Mark the staged files that are damaged.

    Before the record that names them: what is left out is then known to all who apply it.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        faults = list(pool.map(lambda receipt: find_faults(backend, receipt), receipts))
    for receipt, found in zip(receipts, faults, strict=True):
        if found:
            leave_out(backend, receipt, found)
    return sum(map(bool, faults))


def _rows_to_drop(store: Store, receipts: Sequence[Receipt]) -> dict[str, tuple[int, ...]]:
    """Rows whose key is published already or comes earlier in the same receipts.

    The first published wins, under whatever date. To be called when all earlier records are
    applied: the parts then hold everything that is published.
    """
    scopes: dict[tuple[str, str], list[StagedFile]] = defaultdict(list)
    for receipt in without_damaged(store.backend, receipts):
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
        for published in store.digests(name, **{TABLES[name].partitions[0]: scope}):
            stands |= contains(published, digests)
        ends = np.cumsum([len(part) for part in staged])
        for file, rows in zip(files, np.split(stands, ends[:-1]), strict=True):
            if rows.any():
                drop[file.path] = tuple(np.flatnonzero(rows).tolist())
    return drop


def _staged_digests(backend: Backend, file: StagedFile) -> Digests:
    with backend.open(file.path) as opened:
        return digests_of(file.table, pq.read_table(opened, columns=KEY_COLUMNS[file.table]))


def _apply(backend: Backend, record: PublishRecord) -> None:
    """Write the parts that a record implies, images last, then its mark.

    Same record, same bytes: two may do it at once, and it may be done again.
    """
    keys = [layout.receipt_key(shard.rpartition("-")[0], shard) for shard in record.shards]
    loaded = _load_receipts(backend, keys)
    receipts = [receipt for receipt in loaded.values() if receipt is not None]
    while True:
        try:
            parts = _write_parts(backend, record, without_damaged(backend, receipts))
        except StagedFileError as err:  # damaged since the record was created
            (damaged,) = (r for r in receipts if err.path in [file.path for file in r.files])
            leave_out(backend, damaged, {err.path: err.what})
        else:
            mark = PublishMark(record=record, parts=parts)
            # The first mark stays: from then on nobody puts a part any more.
            backend.create(layout.done_key(record.seq), mark.model_dump_json().encode())
            return


def without_damaged(backend: Backend, receipts: Sequence[Receipt]) -> list[Receipt]:
    """Receipts without the files that are left out."""
    damage = load_damage(backend)
    left_out = {path for mark in damage.values() for path in mark.left_out}
    return [
        receipt.model_copy(
            update={"files": tuple(file for file in receipt.files if file.path not in left_out)}
        )
        if receipt.shard_id in damage
        else receipt
        for receipt in receipts
    ]


def _write_parts(
    backend: Backend, record: PublishRecord, receipts: Sequence[Receipt]
) -> dict[str, PartSum]:
    written: dict[str, PartSum] = {}
    for name in _APPLY_ORDER:
        for key, table in record_parts(backend, record, receipts, name):
            if table.num_rows:
                data = encode_table(table)
                put_part(backend, key, data, unless=layout.done_key(record.seq))
                written[key] = PartSum(
                    num_rows=table.num_rows,
                    size_bytes=len(data),
                    sha256=hashlib.sha256(data).hexdigest(),
                )
    return written


def record_parts(
    backend: Backend, record: PublishRecord, receipts: Sequence[Receipt], name: str
) -> Iterator[tuple[str, pa.Table]]:
    """The parts of one table that follow from a record: key and sorted rows, perhaps none.

    Args:
        backend: of the store.
        record: of the log.
        receipts: of its shards, without the files that are left out.
        name: of the table.

    Raises:
        StagedFileError: a staged file is damaged.
    """
    parts: dict[str, list[tuple[Receipt, StagedFile]]] = defaultdict(list)
    for receipt in receipts:
        for file in receipt.files:
            if file.table == name:
                parts[_part_key(record.seq, receipt, file)].append((receipt, file))
    for key, files in sorted(parts.items()):
        with ThreadPoolExecutor(_READERS) as pool:
            tables = pool.map(lambda item: _kept_rows(backend, record, *item), files)
            table = pa.concat_tables(tables)
        order = [(column, "ascending") for column in TABLES[name].sort_by]
        yield key, table.sort_by(order)


def _part_key(seq: int, receipt: Receipt, file: StagedFile) -> str:
    values = {
        "collection": receipt.collection,
        "date": receipt.date,
        "model": file.model_key or "",
    }
    return layout.part_key(file.table, values, seq)


def _kept_rows(
    backend: Backend, record: PublishRecord, receipt: Receipt, file: StagedFile
) -> pa.Table:
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
    return pq.read_table(io.BytesIO(read_staged_bytes(backend, file)))


def _summary(record: PublishRecord, receipts: Sequence[Receipt]) -> PublishSummary:
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
