"""Auditing a store: log, receipts, tables, masks and ledgers are reconciled with one another.

It reads and reports; `repair` mends. It goes by the objects themselves and not by `Store`, whose
readers rightly refuse what an audit has to look at.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.audit_tables import Expected, TableAudit
from pixelmill.tasks.store.damage import find_faults, load_damage
from pixelmill.tasks.store.findings import Finding, Severity
from pixelmill.tasks.store.garbage import GRACE_S, find_garbage
from pixelmill.tasks.store.log import PublishMark, PublishRecord, ReplaceRecord, parse_record
from pixelmill.tasks.store.reader import Store
from pixelmill.tasks.store.receipts import Receipt
from pixelmill.tasks.store.runs import RunEnd, RunRecord
from pixelmill.tasks.store.schemas import PLAN, TABLES

__all__ = ["Audit", "audit_store"]

_READERS = 8
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Attributes:
        full: whether everything was read and decoded.
        num_rows: by table.
    """

    root: str
    full: bool
    findings: tuple[Finding, ...]
    num_receipts: int
    num_parts: int
    num_rows: dict[str, int]
    num_mask_stores: int
    seconds: float

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged; garbage and notes may be there."""
        return not self.of("damage")

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def to_json(self) -> dict[str, Any]:
        """Everything, for other programs."""
        return {
            "store": self.root,
            "mode": "full" if self.full else "fast",
            "sound": self.is_sound,
            "num_receipts": self.num_receipts,
            "num_parts": self.num_parts,
            "num_rows": self.num_rows,
            "num_mask_stores": self.num_mask_stores,
            "seconds": round(self.seconds, 2),
            "findings": [finding.row() for finding in self.findings],
        }


def audit_store(store: Store, *, full: bool = True, grace_s: float = GRACE_S) -> Audit:
    """Look for everything that is not as it was written, or does not fit together.

    Args:
        store: may be in use: what others are about to write or to finish is no finding. A shard
            that is published, or a part that is replaced, while the audit is at it may show as
            damage; such findings are gone at the next.
        full: compute checksums, read all columns and decode all masks; else read sizes, footers
            and the columns that are keys or counts.
        grace_s: leftovers younger than this may be somebody's work.

    Returns:
        The findings, damage first.
    """
    started = time.perf_counter()
    auditor = _Auditor(store, full, grace_s)
    order = ("damage", "garbage", "note")
    findings = sorted(auditor.run(), key=lambda f: (order.index(f.severity), f.kind, f.key))
    return Audit(
        root=store.root,
        full=full,
        findings=tuple(findings),
        num_receipts=auditor.num_receipts,
        num_parts=auditor.tables.num_parts,
        num_rows=dict(auditor.tables.num_rows),
        num_mask_stores=len(auditor.tables.mask_stores),
        seconds=time.perf_counter() - started,
    )


@dataclass(eq=False)
class _Log:
    """The log, as far as it can be read.

    Attributes:
        finished: publications that are done, with what their marks say.
        unfinished: records without a mark, of either kind.
    """

    records: dict[int, PublishRecord | ReplaceRecord] = field(default_factory=dict)
    finished: dict[int, PublishMark | None] = field(default_factory=dict)
    unfinished: set[int] = field(default_factory=set)

    @property
    def published_shards(self) -> set[str]:
        """Shards of finished publications."""
        found: set[str] = set()
        for seq, mark in self.finished.items():
            record = mark.record if mark else self.records.get(seq)
            if isinstance(record, PublishRecord):
                found.update(record.shards)
        return found

    @property
    def replacements(self) -> list[ReplaceRecord]:
        """In order."""
        return [r for _, r in sorted(self.records.items()) if isinstance(r, ReplaceRecord)]


class _Auditor:
    def __init__(self, store: Store, full: bool, grace_s: float) -> None:
        self.store, self.backend = store, store.backend
        self.full = full
        self.before_s = time.time() - grace_s
        self.log = _Log()
        self.num_receipts = 0
        self.committed: set[str] = set()
        self.bad: list[str] = []
        self.has_removed = False
        self.tables = TableAudit(self.backend, {}, (), full)

    def run(self) -> Iterator[Finding]:
        is_sound = True
        for finding in self._run():
            is_sound &= finding.severity != "damage"
            yield finding
        if is_sound:  # what damaged objects name cannot be told from garbage
            yield from self._find_garbage()

    def _run(self) -> Iterator[Finding]:
        yield from self._check_log()
        yield from self._check_receipts()
        expected = yield from self._check_names()
        self.tables = TableAudit(
            self.backend, expected, self.bad, self.full, catalog_may_lead=self.has_removed
        )
        yield from self.tables.run()
        yield from self._check_runs()

    # Log and receipts

    def _check_log(self) -> Iterator[Finding]:
        numbers: dict[str, set[int]] = defaultdict(set)
        for entry in self.backend.list(layout.LOG):
            path = Path(entry.key)
            if path.stem.isdigit():
                numbers[path.suffix].add(int(path.stem))
        records, done, replaced = (numbers[name] for name in (".json", ".done", ".replaced"))
        for seq in range(max(records | done | replaced, default=-1) + 1):
            key = layout.log_key(seq)
            if seq in done:
                try:
                    self.log.finished[seq] = self._mark(seq)
                except ValidationError as err:
                    self.log.finished[seq] = None
                    yield Finding("mark_damaged", layout.done_key(seq), _first_line(err))
            if seq not in records:
                yield Finding("log_damaged", key, "gone")
                continue
            try:
                record = parse_record(self.backend.get(key))
            except ValidationError as err:
                yield Finding("log_damaged", key, _first_line(err))
                continue
            mark = self.log.finished.get(seq)
            if record.seq != seq or (mark is not None and mark.record != record):
                yield Finding("log_damaged", key, "not the record that was published")
                continue
            self.log.records[seq] = record
            if seq not in done | replaced:
                self.log.unfinished.add(seq)
                yield Finding("unfinished", key, f"a record of {_describe(record)}")

    def _mark(self, seq: int) -> PublishMark | None:
        data = self.backend.get(layout.done_key(seq))
        return PublishMark.model_validate_json(data) if data else None

    def _check_receipts(self) -> Iterator[Finding]:
        published = self.log.published_shards
        recorded = {
            shard
            for seq in self.log.unfinished
            if isinstance(record := self.log.records[seq], PublishRecord)
            for shard in record.shards
        }
        damage = load_damage(self.backend)
        self.has_removed = bool(damage) or any(
            record.op != "compact" for record in self.log.replacements
        )
        waiting: Counter[str] = Counter()
        keys = (entry.key for entry in self.backend.list(layout.RECEIPTS))
        while batch := list(islice(keys, _BATCH)):
            for key, receipt in zip(batch, self._load_receipts(batch), strict=True):
                self.num_receipts += 1
                shard = Path(key).stem
                self.committed.add(shard)
                if not isinstance(receipt, Receipt):
                    yield Finding("receipt_damaged", key, receipt)
                    continue
                if shard in published:
                    continue
                waiting[receipt.run_id] += shard not in recorded
                left_out = damage[shard].left_out if shard in damage else ()
                for path, what in find_faults(self.backend, receipt).items():
                    if path not in left_out:
                        yield Finding("staged_damaged", path, what)
        for run_id, number in sorted(waiting.items()):
            if number:
                yield Finding("unpublished", f"{layout.receipts_of(run_id)}/", f"{number} shards")
        for shard in sorted(published - self.committed):
            key = layout.receipt_key(shard.rpartition("-")[0], shard)
            yield Finding("receipt_missing", key, "its shard is published")
        for shard, mark in sorted(damage.items()):
            key = layout.damage_key(shard.rpartition("-")[0], shard)
            yield Finding("left_out", key, f"{len(mark.left_out)} tables, found {mark.found_at}")

    def _load_receipts(self, keys: Iterable[str]) -> Iterator[Receipt | str]:
        """Receipts, or what is wrong with them."""

        def load(key: str) -> Receipt | str:
            try:
                receipt = Receipt.model_validate_json(self.backend.get(key))
            except ValidationError as err:
                return _first_line(err)
            if key != layout.receipt_key(receipt.run_id, receipt.shard_id):
                return f"says that it is of shard {receipt.shard_id}"
            return receipt

        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(load, keys)

    # Names and sizes of parts

    def _check_names(self) -> Generator[Finding, None, dict[str, Expected]]:
        """Reconcile the folders of the tables with the log.

        Returns:
            The parts whose content is to be checked.
        """
        expected: dict[str, Expected] = {
            key: part
            for mark in self.log.finished.values()
            if mark is not None
            for key, part in mark.parts.items()
        }
        unknown = {seq for seq, mark in self.log.finished.items() if mark is None}
        in_change: set[str] = set()
        removed: set[str] = set()
        for record in self.log.replacements:
            is_open = record.seq in self.log.unfinished
            removed.update(record.remove)
            in_change.update(record.remove if is_open else ())
            in_change.update(part.key for part in record.add if is_open)
            for key in record.remove:
                expected.pop(key, None)
            expected |= {part.key: part for part in record.add}
        open_marks = tuple(
            layout.changing_key("", record.nonce)
            for record in self.log.replacements
            if record.seq in self.log.unfinished
        )
        sizes: dict[str, int] = {}
        for name in TABLES:
            for entry in self.backend.list(name):
                if layout.is_changing(entry.key):
                    if not entry.key.endswith(open_marks):
                        what = "the mark of a change that is over: it makes readers fail"
                        yield Finding("foreign_object", entry.key, what)
                    continue
                try:
                    part = layout.parse_part(entry.key)
                except ValueError:
                    yield Finding("foreign_object", entry.key, "not written by Pixelmill")
                    continue
                sizes[entry.key] = entry.size_bytes
                if entry.key in expected or entry.key in in_change:
                    continue
                if entry.key not in removed and not part.tag and part.seq in unknown:
                    expected[entry.key] = None
                elif part.seq not in self.log.unfinished:
                    yield Finding("stray_part", entry.key, f"{entry.size_bytes} bytes")
        to_check: dict[str, Expected] = {}
        for key, published in expected.items():
            if key in sizes:
                if published is not None and sizes[key] != published.size_bytes:
                    what = f"expected {published.size_bytes} bytes, got {sizes[key]}"
                    self.bad.append(key)
                    yield Finding("part_damaged", key, what)
                else:
                    to_check[key] = published
            elif key not in in_change:
                self.bad.append(key)
                yield Finding("part_missing", key, "gone")
        return to_check

    # Runs

    def _check_runs(self) -> Iterator[Finding]:
        pruned = {
            layout.parse_part(key).partitions.get("model")
            for record in self.log.replacements
            if record.op == "prune"
            for key in record.remove
        }
        entries = list(self.backend.list(layout.RUNS))
        records = {Path(entry.key).stem for entry in entries if entry.key.endswith(".json")}
        for entry in entries:
            run_id = Path(entry.key).stem
            if entry.key.endswith(".parquet") and run_id not in records:
                if entry.modified_s < self.before_s:
                    yield Finding("orphaned_plan", entry.key, f"{entry.size_bytes} bytes")
            elif entry.key.endswith(".json"):
                yield from self._check_run(run_id)
        for entry in self.backend.list(layout.ENDS):
            try:
                end = RunEnd.model_validate_json(self.backend.get(entry.key))
            except ValidationError as err:
                yield Finding("end_damaged", entry.key, _first_line(err))
                continue
            for model, counts in sorted(end.ledger.items()):
                recorded = counts.scored + counts.scored_empty
                found = self.tables.scored[end.run_id, model]
                if found < recorded and model not in pruned:
                    what = f"{recorded} images scored by {model}, {found} of them are there"
                    yield Finding("ledger_untrue", entry.key, what)

    def _check_run(self, run_id: str) -> Iterator[Finding]:
        key, plan_key = layout.run_key(run_id), layout.plan_key(run_id)
        try:
            record = RunRecord.model_validate_json(self.backend.get(key))
        except ValidationError as err:
            yield Finding("run_damaged", key, _first_line(err))
            return
        try:
            with self.backend.open(plan_key) as file:
                parquet = pq.ParquetFile(file)
                if self.full:
                    for _ in parquet.iter_batches():
                        pass
                if not parquet.schema_arrow.equals(PLAN):
                    yield Finding("plan_damaged", plan_key, "its schema is not that of a plan")
                elif parquet.metadata.num_rows != record.num_images:
                    what = f"expected {record.num_images} rows, got {parquet.metadata.num_rows}"
                    yield Finding("plan_damaged", plan_key, what)
        except FileNotFoundError:
            # Nobody needs the plan of a run that has ended
            if not self.backend.exists(layout.end_key(run_id)):
                yield Finding("plan_damaged", plan_key, "gone")
        except (pa.ArrowException, OSError) as err:
            yield Finding("plan_damaged", plan_key, f"cannot be read: {_first_line(err)}")

    # Garbage

    def _find_garbage(self) -> Iterator[Finding]:
        """Leftovers, one finding for each folder of an attempt or a change."""
        log = [record for _, record in sorted(self.log.records.items())]
        for kind, entries in find_garbage(self.store, log, self.before_s):
            for folder, members in groupby(entries, lambda entry: _folder_of(entry.key)):
                sizes = [entry.size_bytes for entry in members]
                yield Finding("orphan", folder, f"{kind}: {len(sizes)} objects, {sum(sizes)} bytes")


def _folder_of(key: str) -> str:
    """The folder that an attempt or a change had to itself; else the key."""
    depth = {"masks": 4, "_commit": 3}.get(key.split("/")[0], 0)
    names = key.split("/")
    return "/".join(names[:depth]) + "/" if len(names) > depth > 0 else key


def _describe(record: PublishRecord | ReplaceRecord) -> str:
    if isinstance(record, PublishRecord):
        return f"{len(record.shards)} shards"
    return f"a {record.op}, {len(record.remove)} parts out and {len(record.add)} in"


def _first_line(err: Exception) -> str:
    return str(err).partition("\n")[0]
