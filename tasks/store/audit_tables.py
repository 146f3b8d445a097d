"""Auditing tables: every published part as it was written, every key once, every count true."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.audit_masks import UNREADABLE, check_masks
from pixelmill.tasks.store.backend import Backend
from pixelmill.tasks.store.digests import Digests, contains, digests_of
from pixelmill.tasks.store.findings import Finding, Lost
from pixelmill.tasks.store.log import AddedPart, PartSum
from pixelmill.tasks.store.schemas import TABLES

__all__ = ["Expected", "TableAudit"]

_COUNTED = {"detections": "n_detections", "captions": "n_captions"}
_OF_IMAGES = ("detections", "captions", "labels", "candidates")
_MASK_COLUMNS = [
    *("image_id", "height", "width", "mask_store", "semantic_array", "semantic_row"),
    *("instances_array", "instances_row"),
]
_BOX_COLUMNS = ["image_id", "rank", "mask_layer", "mask_value", "mask_area"]

_Place = tuple[str, str, str, int]  # table, model or collection, date, seq
Expected = PartSum | AddedPart | None  # None: published by a mark that says nothing of its parts


class _PartError(Exception):
    """A part is not what was published; the message says how."""


@dataclass(eq=False)
class TableAudit:
    """Checks all tables of a store, part by part.

    It holds one part at a time, and 16 bytes for every row of images and catalog.

    Attributes:
        expected: published parts that are there, by key.
        bad: published parts that are known to be missing or damaged.
        full: read everything; else only the columns that are keys or counts.
        catalog_may_lead: rows of images were removed since they were catalogued, so the catalog may
            know images that no other table does.
        num_rows: by table.
        scored: images by (run_id, model).
        mask_stores: those that rows name.
    """

    backend: Backend
    expected: Mapping[str, Expected]
    bad: Iterable[str]
    full: bool
    catalog_may_lead: bool = False
    num_rows: Counter[str] = field(default_factory=Counter)
    num_parts: int = 0
    scored: Counter[tuple[str, str]] = field(default_factory=Counter)
    mask_stores: set[str] = field(default_factory=set)
    _known: list[Digests] = field(default_factory=list)
    _bad: set[_Place] = field(default_factory=set)

    def run(self) -> Iterator[Finding]:
        """Check everything."""
        self._bad = {_place(layout.parse_part(key)) for key in self.bad}
        by_table: dict[str, list[layout.Part]] = {name: [] for name in TABLES}
        for key in sorted(self.expected):
            part = layout.parse_part(key)
            by_table[part.table].append(part)
        groups: dict[str, dict[tuple[int, str], dict[str, layout.Part]]] = defaultdict(dict)
        for name in ("images", *_OF_IMAGES):
            for part in by_table[name]:
                of_model = groups[part.partitions["model"]]
                of_model.setdefault((part.seq, part.partitions["date"]), {})[name] = part
        for model, of_model in sorted(groups.items()):
            yield from self._model(model, of_model)
        for part in by_table["failures"]:
            yield from self._failures(part)
        yield from self._catalog(by_table["catalog"])

    # Parts

    def _read(self, part: layout.Part, columns: Sequence[str]) -> pa.Table:
        """Columns of a part, all of which is checked if the audit is a full one.

        Raises:
            _PartError: it is damaged. Trouble of the disk or the network is raised as it is.
            FileNotFoundError: it is gone.
        """
        expected = self.expected[part.key]
        self.num_parts += 1
        if not self.full:
            try:
                with self.backend.open(part.key) as file:
                    return self._parse(part, file, columns, expected)
            except FileNotFoundError:
                raise
            except (OSError, _PartError):
                pass  # damage or trouble on the way: reading it whole tells
        try:
            data = self.backend.get(part.key)
        except OSError as err:
            if err.errno in UNREADABLE:
                raise _PartError(f"cannot be read: {err}") from err
            raise
        if expected is not None and hashlib.sha256(data).hexdigest() != expected.sha256:
            raise _PartError(
                f"expected {expected.size_bytes} bytes of sha256 {expected.sha256}, got "
                f"{len(data)} others"
            )
        return self._parse(part, io.BytesIO(data), columns, expected)

    def _parse(
        self, part: layout.Part, file: object, columns: Sequence[str], expected: Expected
    ) -> pa.Table:
        schema = TABLES[part.table].schema
        try:
            parquet = pq.ParquetFile(file)
            if not parquet.schema_arrow.equals(schema):
                raise _PartError("its schema is not the table's")
            if expected is not None and parquet.metadata.num_rows != expected.num_rows:
                raise _PartError(
                    f"expected {expected.num_rows} rows, got {parquet.metadata.num_rows}"
                )
            model = (parquet.schema_arrow.metadata or {}).get(b"pixelmill.model_key")
            if model is not None and model.decode() != part.partitions.get("model"):
                raise _PartError(f"its rows are of model {model.decode()}")
            table = parquet.read(None if self.full else list(columns))
        except (pa.ArrowException, UnicodeDecodeError) as err:
            raise _PartError(f"cannot be read: {err}") from err
        except OSError as err:
            if isinstance(file, io.BytesIO):  # Arrow's word for what it cannot decode
                raise _PartError(f"cannot be read: {err}") from err
            raise
        self.num_rows[part.table] += table.num_rows
        return table.select(list(columns))

    def _tried(
        self, part: layout.Part, columns: Sequence[str], findings: list[Finding]
    ) -> pa.Table | None:
        """A part, or None and a finding."""
        try:
            return self._read(part, columns)
        except FileNotFoundError:
            findings.append(Finding("part_missing", part.key, "gone"))
        except _PartError as err:
            findings.append(Finding("part_damaged", part.key, str(err)))
        self._bad.add(_place(part))
        return None

    # Images and what belongs to them

    def _model(
        self, model: str, groups: Mapping[tuple[int, str], Mapping[str, layout.Part]]
    ) -> Iterator[Finding]:
        ids: list[Digests] = []
        order = sorted(groups)
        for place in order:
            found: list[Finding] = []
            ids.append(self._group(Lost("images", model, place[1], place[0]), groups[place], found))
            yield from found
        known, doubled = _merge(ids)
        for index, again in doubled.items():
            seq, date = order[index]
            what = f"{len(again)} images stand in an earlier part too"
            lost = Lost("images", model, date, seq, again)
            yield Finding("rows_doubled", groups[order[index]]["images"].key, what, lost)
        self._known.append(known)

    def _group(
        self, group: Lost, parts: Mapping[str, layout.Part], findings: list[Finding]
    ) -> Digests:
        """Check the parts of one publication of one model.

        Returns:
            The sorted ids of its images.
        """
        if ("images", group.scope, group.date, group.seq) in self._bad:
            return np.empty(0, "S16")
        if "images" not in parts:
            for part in parts.values():
                what = "there is no part of images with its number"
                findings.append(Finding("rows_orphaned", part.key, what, group))
            return np.empty(0, "S16")
        columns = [*_MASK_COLUMNS, *_COUNTED.values(), "run_id"]
        images = self._tried(parts["images"], columns, findings)
        if images is None:
            return np.empty(0, "S16")
        ids = digests_of("images", images)
        for entry in images["run_id"].value_counts().to_pylist():
            self.scored[entry["values"], group.scope] += entry["counts"]
        key = parts["images"].key
        if (ids[1:] < ids[:-1]).any():
            findings.append(Finding("rows_unsorted", key, "not in the order of image_id", group))
            return np.sort(ids)
        repeated = ids[1:][ids[1:] == ids[:-1]]
        if len(repeated):  # there is no telling which row's boxes are there
            lost = _some(group, np.unique(repeated))
            what = f"{len(lost.keys or ())} images are there twice"
            findings.append(Finding("rows_doubled", key, what, lost))
        boxes = None
        for name in _OF_IMAGES:
            counted = _COUNTED.get(name)
            if name not in parts:
                is_bad = (name, group.scope, group.date, group.seq) in self._bad
                if counted is not None and not is_bad:
                    numbers = np.zeros(len(ids), np.int64)
                    findings += _counts(group, key, counted, images, ids, numbers)
                continue
            columns = _BOX_COLUMNS if name == "detections" else ["image_id", "rank"]
            rows = self._tried(parts[name], columns, findings)
            if rows is None:
                continue
            found, numbers = _rows_of_images(group, parts[name].key, rows, ids)
            findings += found
            if counted is not None:
                findings += _counts(group, key, counted, images, ids, numbers)
            if name == "detections":
                boxes = rows
        findings += self._masks(group, images, boxes)
        return np.unique(ids)

    def _masks(self, group: Lost, images: pa.Table, boxes: pa.Table | None) -> Iterator[Finding]:
        """Check the mask stores that rows of images name."""
        images = images.filter(pc.is_valid(images["mask_store"]))
        if not images.num_rows:
            return
        with_masks = images.select(_MASK_COLUMNS).to_pandas()
        found = TABLES["detections"].schema.empty_table() if boxes is None else boxes
        with_layer = found.filter(pc.is_valid(found["mask_layer"])).to_pandas()
        store_of = with_masks.set_index("image_id")["mask_store"]
        store_of = store_of[~store_of.index.duplicated()]
        owner = with_layer["image_id"].map(store_of)
        boxes_by_store = dict(list(with_layer.groupby(owner, sort=False)))
        for mask_store, rows in with_masks.groupby("mask_store", sort=True):
            self.mask_stores.add(str(mask_store))
            of_store = boxes_by_store.get(mask_store, with_layer.iloc[:0])
            for fault in check_masks(self.backend, str(mask_store), rows, of_store, full=self.full):
                lost_ids = pa.table({"image_id": rows["image_id"][fault.images].tolist()})
                if lost_ids.num_rows:  # else nobody reads it: its images were taken out
                    lost = _some(group, np.sort(digests_of("images", lost_ids)))
                    what = f"{fault.what} ({lost_ids.num_rows} images)"
                    yield Finding(fault.kind, fault.key, what, lost)

    # Other tables

    def _failures(self, part: layout.Part) -> Iterator[Finding]:
        findings: list[Finding] = []
        table = self._tried(part, ["image_id"], findings)
        if table is not None:
            table = table.filter(pc.is_valid(table["image_id"]))
            self._known.append(np.unique(digests_of("images", table)))
        yield from findings

    def _catalog(self, parts: Sequence[layout.Part]) -> Iterator[Finding]:
        known, _ = _merge(self._known)
        self._known.clear()
        can_lead = self.catalog_may_lead or any(place[0] != "catalog" for place in self._bad)
        seen: dict[str, list[tuple[layout.Part, Digests]]] = defaultdict(list)
        for part in sorted(parts, key=lambda part: (part.seq, part.key)):
            whole = Lost("catalog", part.partitions["collection"], "", part.seq)
            findings: list[Finding] = []
            table = self._tried(part, ["path", "size_bytes", "modified", "image_id"], findings)
            yield from findings
            if table is None:
                continue
            path = table["path"].combine_chunks()
            if pc.any(pc.less(path[1:], path[:-1])).as_py():
                yield Finding("rows_unsorted", part.key, "not in the order of path", whole)
                continue
            keys = digests_of("catalog", table)
            seen[whole.scope].append((part, keys))
            is_known = contains(known, digests_of("images", table))
            if not is_known.all() and not can_lead:
                number = int((~is_known).sum())
                what = f"{number} of {len(keys)} rows; the first: {path[int(np.argmin(is_known))]}"
                lost = _some(whole, np.sort(keys[~is_known]))
                yield Finding("catalog_unknown", part.key, what, lost)
        for scope, of_scope in seen.items():
            _, doubled = _merge([keys for _, keys in of_scope])
            for index, again in doubled.items():
                part = of_scope[index][0]
                what = f"{len(again)} rows stand in an earlier part too"
                lost = Lost("catalog", scope, "", part.seq, again)
                yield Finding("rows_doubled", part.key, what, lost)


def _merge(parts: Sequence[Digests]) -> tuple[Digests, dict[int, Digests]]:
    """All keys of the parts, sorted, once each; and by index of the part those seen before it."""
    everything = np.concatenate([np.empty(0, "S16"), *parts])
    part_of = np.repeat(np.arange(len(parts)), [len(keys) for keys in parts])
    halves = everything.view(">u8").reshape(-1, 2).astype(np.uint64)  # sorts 6 times as fast
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    halves, part_of = halves[order], part_of[order]
    again = np.zeros(len(everything), bool)
    again[1:] = (halves[1:] == halves[:-1]).all(axis=1)
    merged = everything[order]
    return merged[~again], {
        int(index): np.unique(merged[again & (part_of == index)])
        for index in np.unique(part_of[again])
    }


def _place(part: layout.Part) -> _Place:
    partitions = part.partitions
    scope = partitions.get("model") or partitions.get("collection", "")
    return part.table, scope, partitions.get("date", ""), part.seq


def _some(group: Lost, keys: Digests) -> Lost:
    return Lost(group.table, group.scope, group.date, group.seq, keys)


def _rows_of_images(
    group: Lost, key: str, rows: pa.Table, ids: Digests
) -> tuple[list[Finding], NDArray[np.int64]]:
    """Check the rows of a table of results against the sorted ids of their images.

    Returns:
        What was found, and (N,) the number of rows of each image.
    """
    findings: list[Finding] = []
    numbers = np.zeros(len(ids), np.int64)
    of_row = digests_of("images", rows)
    is_known = contains(ids, of_row)
    if not is_known.all():
        what = f"{int((~is_known).sum())} rows of {len(np.unique(of_row[~is_known]))} images"
        lost = _some(group, np.unique(of_row[~is_known]))
        findings.append(Finding("rows_orphaned", key, what, lost))
    index = np.searchsorted(ids, of_row[is_known])
    numbers += np.bincount(index, minlength=len(ids))
    place = (index << 32) + rows["rank"].to_numpy()[is_known]
    step = np.diff(place)
    if (step < 0).any():
        what = "not in the order of image_id and rank"
        findings.append(Finding("rows_unsorted", key, what, group))
    elif (step == 0).any():
        doubled = np.unique(ids[index[1:][step == 0]])
        what = f"(image_id, rank) is there twice for {len(doubled)} images"
        findings.append(Finding("rows_doubled", key, what, _some(group, doubled)))
    return findings, numbers


def _counts(
    group: Lost,
    key: str,
    column: str,
    images: pa.Table,
    ids: Digests,
    numbers: NDArray[np.int64],
) -> Iterator[Finding]:
    differ = images[column].to_numpy() != numbers
    if differ.any():
        what = f"{column} of {int(differ.sum())} images"
        yield Finding("counts_differ", key, what, _some(group, np.unique(ids[differ])))
