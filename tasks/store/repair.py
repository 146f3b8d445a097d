"""Mending what an audit found: by rebuilding from what is whole, by taking out, never by guessing.

Whatever cannot be rebuilt exactly is taken out of the tables, as one step that readers see at once;
its images are then as if their models had never seen them, and the next run scores them. What is
moved aside lies in `_commit/quarantine`, under its old name.
"""

import hashlib
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.audit import Audit, audit_store
from pixelmill.tasks.store.change import Change
from pixelmill.tasks.store.damage import StagedFileError, leave_out
from pixelmill.tasks.store.digests import Digests, contains, digests_of
from pixelmill.tasks.store.findings import Finding, Lost
from pixelmill.tasks.store.garbage import GRACE_S, collect_garbage
from pixelmill.tasks.store.ledger import end_run, run_ledger
from pixelmill.tasks.store.log import (
    AddedPart,
    PartSum,
    PublishMark,
    PublishRecord,
    load_record,
    parse_record,
)
from pixelmill.tasks.store.publish import publish, record_parts, without_damaged
from pixelmill.tasks.store.reader import Store
from pixelmill.tasks.store.receipts import Receipt
from pixelmill.tasks.store.runs import RunEnd
from pixelmill.tasks.store.schemas import TABLES, encode_table

__all__ = ["Repair", "repair_store"]

logger = logging.getLogger(__name__)

# What one round mends may uncover what the next one has to.
_MAX_ROUNDS = 5
_OF_MODEL = ("images", "detections", "captions", "labels", "candidates")


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did.

    Attributes:
        before: the audit that it started from.
        after: the audit that followed; sound unless something cannot be mended.
        num_moved: objects moved to the quarantine folder.
        num_rebuilt: parts rebuilt from staged files.
        num_removed: rows of images taken out, to be scored again.
        num_deleted: objects of garbage.
    """

    before: Audit
    after: Audit
    num_moved: int
    num_rebuilt: int
    num_removed: int
    num_deleted: int

    def to_json(self) -> dict[str, Any]:
        """The audit that followed, and what was done before it."""
        names = ("num_moved", "num_rebuilt", "num_removed", "num_deleted")
        repaired = {name: getattr(self, name) for name in names}
        found = [finding.row() for finding in self.before.findings]
        return self.after.to_json() | {"repaired": repaired | {"findings": found}}


def repair_store(store: Store, *, full: bool = True, grace_s: float = GRACE_S) -> Repair:
    """Mend what can be mended.

    Args:
        store: not being scored into, or the shards that are published meanwhile may be looked at
            half done.
        full: see `audit_store`.
        grace_s: garbage younger than this may be somebody's work, and is left alone.
    """
    before = audit = audit_store(store, full=full, grace_s=grace_s)
    done: Counter[str] = Counter()
    for _ in range(_MAX_ROUNDS):
        if not any(f.is_mendable for f in audit.findings):
            break
        done += _Round(store, audit.findings, grace_s).run()
        audit = audit_store(store, full=full, grace_s=grace_s)
    return Repair(before, audit, done["moved"], done["rebuilt"], done["removed"], done["deleted"])


_Place = tuple[str, str, str, int]  # kind of table, model or collection, date, seq


@dataclass(eq=False)
class _Round:
    """One pass over the findings of one audit."""

    store: Store
    findings: Sequence[Finding]
    grace_s: float
    done: Counter[str] = field(default_factory=Counter)

    def run(self) -> Counter[str]:
        self.backend = self.store.backend
        kinds = {finding.kind for finding in self.findings if finding.severity == "damage"}
        for finding in self.findings:
            if finding.kind == "log_damaged":
                self._restore_record(finding.key)
            elif finding.kind == "mark_damaged":
                self._restore_mark(int(Path(finding.key).stem))
            elif finding.kind in ("foreign_object", "stray_part", "receipt_damaged"):
                self._move_aside(finding.key)
            elif finding.kind == "run_damaged":
                self._move_aside(finding.key)
                self._move_aside(layout.plan_key(Path(finding.key).stem))
            elif finding.kind == "plan_damaged":
                self._move_aside(finding.key)
                self._end_as_failed(Path(finding.key).stem)
            elif finding.kind == "end_damaged":
                self._move_aside(finding.key)
        self._leave_out(f for f in self.findings if f.kind == "staged_damaged")
        publish(self.store)
        for finding in self.findings:
            # Of a store that is otherwise sound: before, what is missing may yet be rebuilt
            if finding.kind == "end_damaged" or kinds == {"ledger_untrue"} == {finding.kind}:
                run_id = Path(finding.key).stem
                end_run(self.store, run_ledger(self.store, run_id))
        self._replace_parts()
        for finding in self.findings:
            if finding.kind == "orphaned_plan":
                self.backend.delete([finding.key])
                self.done["deleted"] += 1
        if not kinds:  # only where everything can be read it is known what nobody names
            garbage = collect_garbage(self.store, grace_s=self.grace_s)
            self.done["deleted"] += sum(each.num_objects for each in garbage)
        return self.done

    # Objects

    def _move_aside(self, key: str) -> None:
        try:
            data = self.backend.get(key)
        except FileNotFoundError:
            return
        self.backend.put(f"{layout.QUARANTINE}/{key}", data)
        self.backend.delete([key])
        self.done["moved"] += 1
        logger.warning("%s/%s was moved to %s", self.store.root, key, layout.QUARANTINE)

    def _restore_record(self, key: str) -> None:
        """Write a log record as its mark has it, or an empty one whose shards are free again."""
        self._move_aside(key)
        seq = int(Path(key).stem)
        try:
            mark = PublishMark.model_validate_json(self.backend.get(layout.done_key(seq)))
        except (FileNotFoundError, ValidationError):
            record = PublishRecord(seq=seq, shards=(), drop={}, nonce="restored")
            mark = PublishMark(record=record, parts={})
            self._move_aside(layout.done_key(seq))
            self.backend.put(layout.done_key(seq), mark.model_dump_json().encode())
        self.backend.put(key, mark.record.model_dump_json().encode())

    def _restore_mark(self, seq: int) -> None:
        """Write a mark from what the record implies, or else from what is there."""
        key = layout.log_key(seq)
        try:
            record = parse_record(self.backend.get(key))
        except (FileNotFoundError, ValidationError):
            return  # both are damaged: the record's restoration takes care of it
        assert isinstance(record, PublishRecord)
        try:
            parts = {
                part: _sum_of(encode_table(table), table.num_rows)
                for name in TABLES
                for part, table in self._record_parts(record, name).items()
                if table.num_rows
            }
        except StagedFileError:
            parts = {}
            for name in TABLES:
                for entry in self.backend.list(name):
                    part = layout.parse_part(entry.key)
                    if part.seq == seq and not part.tag:
                        data = self.backend.get(entry.key)
                        parts[entry.key] = _sum_of(
                            data, pq.read_metadata(io.BytesIO(data)).num_rows
                        )
        self._move_aside(layout.done_key(seq))
        mark = PublishMark(record=record, parts=parts)
        self.backend.put(layout.done_key(seq), mark.model_dump_json().encode())

    def _end_as_failed(self, run_id: str) -> None:
        end = self.store.run_end(run_id)
        ended = RunEnd(
            run_id=run_id,
            ended_at=end.ended_at if end else self.store.run(run_id).created_at,
            state="failed",
            reason="its plan was damaged",
            ledger=end.ledger if end else {},
        )
        self.backend.put(layout.end_key(run_id), ended.model_dump_json().encode())

    def _leave_out(self, findings: Iterable[Finding]) -> None:
        faults: dict[str, dict[str, str]] = defaultdict(dict)
        for finding in findings:
            shard = Path(finding.key).parent.name.rpartition("-")[0]
            faults[shard][finding.key] = finding.what
        for shard, of_shard in faults.items():
            key = layout.receipt_key(shard.rpartition("-")[0], shard)
            receipt = Receipt.model_validate_json(self.backend.get(key))
            leave_out(self.backend, receipt, of_shard)

    # Parts

    def _replace_parts(self) -> None:
        """Take out what cannot stay, put in what could be rebuilt, as one step."""
        bad: dict[_Place, dict[str, layout.Part]] = defaultdict(dict)
        lost: dict[_Place, list[Lost]] = defaultdict(list)
        for finding in self.findings:
            if finding.kind in ("part_missing", "part_damaged"):
                part = layout.parse_part(finding.key)
                bad[_place(part)][part.table] = part
            if finding.lost is not None:
                which = finding.lost
                lost[which.table, which.scope, which.date, which.seq].append(which)
        if not bad and not lost:
            return
        steps = [
            _Step(self, place, bad.get(place, {}), lost.get(place, []))
            for place in sorted(bad.keys() | lost.keys())
        ]
        for step in steps:
            step.plan()
        change = Change(
            self.store,
            "repair",
            [part for step in steps for part in step.remove],
            mask_stores=sorted({name for step in steps for name in step.mask_stores}),
        )
        for step in steps:
            for part, rows in step.add:
                change.add(part.table, part.partitions, part.seq, encode_table(rows))
        if change.commit() is None:
            logger.warning("%s: parts were replaced meanwhile; looking again", self.store.root)
            return
        self.done["rebuilt"] += sum(step.num_rebuilt for step in steps)
        self.done["removed"] += sum(step.num_removed for step in steps)

    def _rebuild(self, part: layout.Part) -> pa.Table | None:
        """A part's rows from the files that it was made of; None if these are not whole."""
        if part.tag:
            return self._rebuild_replacement(part)
        record = load_record(self.backend, self.store.dataset_id, layout.log_key(part.seq))
        assert isinstance(record, PublishRecord)
        try:
            return self._record_parts(record, part.table).get(part.key)
        except StagedFileError:
            return None

    def _record_parts(self, record: PublishRecord, name: str) -> dict[str, pa.Table]:
        """The parts of one table that follow from a record.

        Raises:
            StagedFileError: something that it was published from is not there any more.
        """
        receipts = []
        for shard in record.shards:
            key = layout.receipt_key(shard.rpartition("-")[0], shard)
            try:
                receipts.append(Receipt.model_validate_json(self.backend.get(key)))
            except (FileNotFoundError, ValidationError) as err:
                raise StagedFileError(self.store.root, key, "gone or damaged") from err
        whole = without_damaged(self.backend, receipts)
        return dict(record_parts(self.backend, record, whole, name))

    def _rebuild_replacement(self, part: layout.Part) -> pa.Table | None:
        added = self._added().get(part.key)
        try:
            data = self.backend.get(added.staged) if added else b""
        except FileNotFoundError:
            return None
        if added is None or hashlib.sha256(data).hexdigest() != added.sha256:
            return None
        return pq.read_table(io.BytesIO(data))

    def _added(self) -> dict[str, AddedPart]:
        found: dict[str, AddedPart] = {}
        for entry in self.backend.list(layout.LOG):
            if entry.key.endswith(".json"):
                record = load_record(self.backend, self.store.dataset_id, entry.key)
                if not isinstance(record, PublishRecord):
                    found |= {added.key: added for added in record.add}
        return found


@dataclass(eq=False)
class _Step:
    """What happens to the parts of one place: of a model, date and number, say."""

    round: _Round
    place: _Place
    bad: dict[str, layout.Part]
    lost: Sequence[Lost]
    remove: list[layout.Part] = field(default_factory=list)
    add: list[tuple[layout.Part, pa.Table]] = field(default_factory=list)
    mask_stores: set[str] = field(default_factory=set)
    num_rebuilt: int = 0
    num_removed: int = 0

    def plan(self) -> None:
        kind = self.place[0]
        tables = {name: self._tables(name) for name in (_OF_MODEL if kind == "images" else (kind,))}
        whole, keys = self._lost_rows(tables)
        for name, (part, rows) in tables.items():
            if part is None:
                continue
            kept = TABLES[name].schema.empty_table()
            if rows is not None and not whole:
                kept = rows
                if len(keys):
                    of_row = digests_of("catalog" if kind == "catalog" else "images", rows)
                    kept = rows.filter(pa.array(~contains(keys, of_row)))
            num_rows = 0 if rows is None else rows.num_rows
            if name not in self.bad and kept.num_rows == num_rows:
                continue
            self.remove.append(part)
            if kept.num_rows:
                self.add.append((part, kept))
                self.num_rebuilt += name in self.bad
            if name == "images" and rows is not None:
                self.num_removed += num_rows - kept.num_rows
                gone = set(rows["mask_store"].unique().to_pylist())
                stay = set(kept["mask_store"].unique().to_pylist())
                self.mask_stores |= gone - stay - {None}

    def _tables(self, name: str) -> tuple[layout.Part | None, pa.Table | None]:
        """A part of the place and its rows; no rows if it cannot be rebuilt."""
        if name in self.bad:
            rows = self.round._rebuild(self.bad[name])
            return self.bad[name], rows
        for part in self.round.store.parts(name):
            if _place(part) == self.place:
                with self.round.store.backend.open(part.path) as file:
                    return part, pq.read_table(file)
        return None, None

    def _lost_rows(
        self, tables: dict[str, tuple[layout.Part | None, pa.Table | None]]
    ) -> tuple[bool, Digests]:
        """Whether nothing can stay, and else the keys of the rows that cannot, sorted."""
        whole = any(lost.keys is None for lost in self.lost)
        keys = [lost.keys for lost in self.lost if lost.keys is not None]
        images = tables["images"][1] if "images" in tables else None
        for name in self.bad:
            if tables[name][1] is not None:
                continue
            counted = {"detections": "n_detections", "captions": "n_captions"}.get(name)
            if counted is None or images is None:
                whole = True
            else:
                concerned = images.filter(pa.array(images[counted].to_numpy() > 0))
                keys.append(digests_of("images", concerned))
        return whole, np.unique(np.concatenate([np.empty(0, "S16"), *keys]))


def _place(part: layout.Part) -> _Place:
    kind = "images" if part.table in _OF_MODEL else part.table
    scope = part.partitions.get("model") or part.partitions.get("collection", "")
    return kind, scope, part.partitions.get("date", ""), part.seq


def _sum_of(data: bytes, num_rows: int) -> PartSum:
    return PartSum(num_rows=num_rows, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
