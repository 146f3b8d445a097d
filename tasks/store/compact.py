"""Compaction: many small parts of a partition become few big ones, with the same rows."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.change import Change
from pixelmill.tasks.store.garbage import store_time_s
from pixelmill.tasks.store.log import Log, load_mark, read_log
from pixelmill.tasks.store.publish import roll_forward
from pixelmill.tasks.store.reader import Store
from pixelmill.tasks.store.schemas import TABLES
from pixelmill.tasks.store.swap import can_exchange_folders

__all__ = ["TARGET_BYTES", "CompactSummary", "compact"]

# Big enough for scans at the speed of the disk or network, small enough to be sorted in memory.
TARGET_BYTES = 256 << 20
# Where folders can't be exchanged, a publisher that sleeps for longer than this could put a part
# back that was replaced meanwhile; `collect_garbage` would remove it again.
_SETTLED_S = 3600.0


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
            some fifteen times as much memory.

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
        for name in names
        for part in store.parts(name, **chosen)
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
            rows = pa.concat_tables([_read_checked(store, log, part) for part in parts])
            rows = rows.sort_by([(key, "ascending") for key in keys])
            change.add(name, parts[0].partitions, seq, rows)
    except FileNotFoundError:  # another process has replaced one of them meanwhile
        change.abandon()
        return None
    except BaseException:
        change.abandon()
        raise
    return change


def _read_checked(store: Store, log: Log, part: layout.Part) -> pa.Table:
    """A part's rows: damage must not be merged into what is whole."""
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
    return pq.read_table(io.BytesIO(data))
