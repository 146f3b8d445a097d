"""Compaction: many small parts of a partition become few big ones, with the same rows."""

import hashlib
import io
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.change import Change
from pixelmill.tasks.store.garbage import store_time_s
from pixelmill.tasks.store.log import Log, load_mark, read_log
from pixelmill.tasks.store.publish import roll_forward
from pixelmill.tasks.store.reader import Store
from pixelmill.tasks.store.schemas import TABLES, encode_tables
from pixelmill.tasks.store.swap import can_exchange_folders

__all__ = ["TARGET_BYTES", "CompactSummary", "compact"]

# Big enough for scans at the speed of the disk or network, small enough to be held in memory.
TARGET_BYTES = 256 << 20
# Where folders can't be exchanged, a publisher that sleeps for longer than this could put a part
# back that was replaced meanwhile; `collect_garbage` would remove it again.
_SETTLED_S = 3600.0
# Decoded rows that are sorted at once; one row of so many is asked where a stretch of them ends.
_STRETCH_BYTES = 256 << 20
_SAMPLED_ROWS = 256


@dataclass(frozen=True, slots=True)
class CompactSummary:
    """What the parts looked at were and are.

    Attributes:
        num_records: changes made, one per partition at most.
        num_young: parts left alone because they were published within the last hour; on a local
            disk none are.
    """

    num_records: int
    num_parts_before: int
    num_parts_after: int
    bytes_before: int
    bytes_after: int
    num_young: int


# The parts of one partition by table; of a model's predictions those of all its tables, because an
# image and its boxes stay in parts of the same number.
_Unit = dict[str, list[layout.Part]]


def compact(
    store: Store, *, model: str | None = None, target_bytes: int = TARGET_BYTES
) -> CompactSummary:
    """Merge small parts.

    It may run while others score, publish, read and compact, and may be killed anywhere: see
    `swap`. A part of half the target is left as it is, so a row is rewritten a few times at most.

    Args:
        store: whose parts.
        model: key; only this model's predictions. Else all, and catalog and failures.
        target_bytes: merged parts of the largest table of a partition have about this size. Takes
            twice as much memory, and 0.8 GB.

    Raises:
        ValueError: a part is damaged.
    """
    roll_forward(store)
    log = read_log(store.backend, store.dataset_id)
    names = [name for name, table in TABLES.items() if model is None or "model" in table.partitions]
    chosen = {} if model is None else {"model": model}
    entries = {entry.key: entry for name in names for entry in store.backend.list(name)}
    # What was published since would be half listed. What was replaced since is missed by `commit`.
    parts = [
        part
        for found in store.parts_at_once(names, **chosen).values()
        for part in found
        if part.key in entries and part.seq in log.published
    ]
    sizes = {part.key: entries[part.key].size_bytes for part in parts}
    youngest_s = float("inf")
    if not can_exchange_folders(store.backend):
        youngest_s = store_time_s(store.backend) - _SETTLED_S
    young = {part.key for part in parts if entries[part.key].modified_s > youngest_s}
    removed: list[int] = []
    added: list[int] = []
    num_records = 0
    for unit in _units([part for part in parts if part.key not in young]):
        change = _merged(store, log, unit, _groups(unit, sizes, target_bytes))
        record = change and change.commit()
        if record:
            num_records += 1
            removed += [sizes[key] for key in record.remove]
            added += [part.size_bytes for part in record.add]
    return CompactSummary(
        num_records=num_records,
        num_parts_before=len(parts),
        num_parts_after=len(parts) - len(removed) + len(added),
        bytes_before=sum(sizes.values()),
        bytes_after=sum(sizes.values()) - sum(removed) + sum(added),
        num_young=len(young),
    )


def _units(parts: Sequence[layout.Part]) -> list[_Unit]:
    units: defaultdict[tuple[str, ...], _Unit] = defaultdict(lambda: defaultdict(list))
    for part in parts:
        kind = "predictions" if "model" in part.partitions else part.table
        units[kind, *part.partitions.values()][part.table].append(part)
    return [units[key] for key in sorted(units)]


def _groups(unit: _Unit, sizes: Mapping[str, int], target_bytes: int) -> list[set[int]]:
    """Numbers of parts to merge: neighbours, for the order of publication is kept."""
    largest: defaultdict[int, int] = defaultdict(int)
    for parts in unit.values():
        for part in parts:
            largest[part.seq] = max(largest[part.seq], sizes[part.key])
    groups: list[set[int]] = [set()]
    total = 0
    for seq, size in sorted(largest.items()):
        if total + size > target_bytes or 2 * size >= target_bytes:
            groups.append(set())
            total = 0
        if 2 * size < target_bytes:
            groups[-1].add(seq)
            total += size
    return [group for group in groups if len(group) > 1]


def _merged(store: Store, log: Log, unit: _Unit, groups: Sequence[set[int]]) -> Change | None:
    """The change that makes one part of each group in each table, prepared; None if there is none.

    A table with one part in the group gets it anew under the number that the others have.
    """
    merges = [
        (name, max(group), [part for part in parts if part.seq in group])
        for group in groups
        for name, parts in unit.items()
    ]
    merges = [
        (name, seq, parts)
        for name, seq, parts in merges
        if len(parts) > 1 or (parts and parts[0].seq != seq)
    ]
    if not merges:
        return None
    change = Change(store, "compact", [part for _, _, parts in merges for part in parts])
    try:
        for name, seq, parts in merges:
            # Of a path with several rows in the catalog the last one published is the current one,
            # so they stay in that order; the sort is stable.
            keys = ("path",) if name == "catalog" else TABLES[name].sort_by
            read = [_read_checked(store, log, part) for part in parts]
            rows = _in_order(read, keys)
            data = encode_tables(rows, pq.read_schema(io.BytesIO(read[0])))
            change.add(name, parts[0].partitions, seq, data)
    except FileNotFoundError:  # another process has replaced one of them meanwhile
        change.abandon()
        return None
    except BaseException:
        change.abandon()
        raise
    return change


def _in_order(parts: Sequence[bytes], keys: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of several parts in the order of the keys, a stretch of keys at a time.

    All rows at once would take twelve times the memory of the encoded parts. A small part is one
    row group, so it is decoded once per stretch.
    """
    num_stretches = math.ceil(_decoded_bytes(parts) / _STRETCH_BYTES)
    ends = _quantiles(parts, keys[0], num_stretches)
    for low, high in itertools.pairwise([None, *ends, None]):
        wanted = [(keys[0], how, end) for how, end in ((">=", low), ("<", high)) if end is not None]
        # without a name, so that only the sorted rows are kept while they are encoded
        yield pa.concat_tables(
            pq.read_table(io.BytesIO(data), filters=wanted or None) for data in parts
        ).sort_by([(key, "ascending") for key in keys])


def _quantiles(parts: Sequence[bytes], key: str, number: int) -> list[str]:
    """Values of a column that cut the rows into a number of about equal shares."""
    sample: list[str] = []
    for data in parts if number > 1 else ():
        column = pq.read_table(io.BytesIO(data), columns=[key])[key]
        sample += column.take(pa.array(range(0, len(column), _SAMPLED_ROWS))).to_pylist()
    sample.sort()
    return sorted({sample[len(sample) * place // number] for place in range(1, number)})


def _decoded_bytes(parts: Sequence[bytes]) -> float:
    """Memory that the rows would take, by those of one row group."""
    some = pq.ParquetFile(io.BytesIO(max(parts, key=len))).read_row_group(0)
    num_rows = sum(pq.read_metadata(io.BytesIO(data)).num_rows for data in parts)
    return some.nbytes / some.num_rows * num_rows


def _read_checked(store: Store, log: Log, part: layout.Part) -> bytes:
    """A part as it was published: damage must not be merged into what is whole."""
    data = store.backend.get(part.path)
    if part.tag:
        known = {added.key: added.sha256 for record in log.replacements for added in record.add}
    else:
        mark = load_mark(store.backend, store.dataset_id, part.seq)
        known = {key: total.sha256 for key, total in mark.parts.items()}
    if hashlib.sha256(data).hexdigest() != known.get(part.key):
        raise ValueError(
            f"{store.root}/{part.key} is not what was published: it was changed or damaged; run "
            "`pixelmill audit --repair`"
        )
    return data
