"""The two sides of a comparison: which models of which stores, and their rows, bit by bit."""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from pixelmill.configs.schema import TaskName
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.comparison.results import Kind
from pixelmill.tasks.store import Store

__all__ = [
    "KIND_OF_TASK",
    "ModelRows",
    "Side",
    "chunks",
    "open_side",
    "pair_models",
    "scored_ids",
]

KIND_OF_TASK: Mapping[TaskName, Kind] = {
    "detection": "boxes",
    "instance_segmentation": "boxes",
    "semantic_segmentation": "semantic",
    "captioning": "captions",
    "classification": "labels",
}
# At most 100 boxes an image, 60 bytes each and side: some 400 MB at worst, 40 as a rule
_CHUNK_IMAGES = 32_768
# Of each table and side, the chunk's own rows included
_AHEAD_BYTES = 128 << 20
_RUN_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: as it was given.
        run_id: only images that this run scored; None: all.
    """

    name: str
    store: Store
    models: Mapping[str, ModelSpec]
    run_id: str | None = None


def open_side(name: str, store: Store | None, models: Sequence[str] = ()) -> Side:
    """Find what a name stands for: a store, a run of `store`, or a model of `store`.

    Args:
        name: folder or URL of a store; a run's id; a model's key, or its name if unambiguous.
        store: where runs and models are looked for; None: the name must be a store.
        models: keys or names, of which only these count; for stores and runs of several models.

    Raises:
        ValueError: the name stands for nothing, or for several models.
        FileNotFoundError: it is a folder or URL without a store.
    """
    if store is None:
        opened = Store(name)
        return Side(name, opened, _only(opened, opened.models(), models))
    if _RUN_ID.fullmatch(name):
        record = store.run(name)
        return Side(name, store, _only(store, {m.key: m for m in record.models}, models), name)
    known = store.models()
    found = {key: spec for key, spec in known.items() if name in (key, spec.name)}
    if len(found) == 1:
        return Side(name, store, found)
    if found:
        raise ValueError(
            f"{name!r} is the name of {len(found)} models: give a key, one of {', '.join(found)}"
        )
    raise ValueError(
        f"{name!r} is no model and no run of {store.root}; models: {', '.join(known) or 'none'}; "
        f"newest runs: {', '.join(store.runs()[-3:]) or 'none'}"
    )


def _only(
    store: Store, models: Mapping[str, ModelSpec], names: Sequence[str]
) -> Mapping[str, ModelSpec]:
    if not names:
        return models
    found = {key: spec for key, spec in models.items() if {key, spec.name} & set(names)}
    if not found:
        raise ValueError(
            f"no model {', '.join(names)} in {store.root}; it has: {', '.join(models) or 'none'}"
        )
    return found


def pair_models(a: Side, b: Side) -> tuple[tuple[tuple[ModelSpec, ModelSpec], ...], dict[str, str]]:
    """Which model of A is compared with which of B.

    Two of one name and kind belong together; else the only one of a kind with the only one.

    Returns:
        The pairs, and model key -> why it has no counterpart.
    """
    pairs: list[tuple[ModelSpec, ModelSpec]] = []
    skipped: dict[str, str] = {}
    for kind in dict.fromkeys(KIND_OF_TASK.values()):
        first = {s.key: s for s in a.models.values() if KIND_OF_TASK[s.task] == kind}
        second = {s.key: s for s in b.models.values() if KIND_OF_TASK[s.task] == kind}
        for spec in list(first.values()):
            named = [s for s in second.values() if s.key == spec.key]
            named = named or [s for s in second.values() if s.name == spec.name]
            rivals = [s for s in first.values() if s.name == spec.name]
            if len(named) == 1 and (named[0].key == spec.key or len(rivals) == 1):
                pairs.append((spec, named[0]))
                del first[spec.key], second[named[0].key]
        if len(first) == len(second) == 1:
            pairs.append((next(iter(first.values())), next(iter(second.values()))))
            continue
        for side, left in (("A", first), ("B", second)):
            other = "B" if side == "A" else "A"
            for key in left:
                skipped[key] = f"no one model of {other} to compare {kind} with: name it by --model"
    return tuple(pairs), skipped


def scored_ids(side: Side, model_key: str, collection: str | None) -> NDArray[np.bytes_]:
    """Sorted ids (dtype S16, raw bytes) of the images that a side's model has scored."""
    if side.run_id is None and collection is None:
        return side.store.published_ids(model_key)
    filters = [
        (column, "=", value)
        for column, value in (("run_id", side.run_id), ("collection", collection))
        if value is not None
    ]
    rows = side.store.table("images", model=model_key, columns=["image_id"], filters=filters)
    ids = [bytes.fromhex(text) for text in rows["image_id"].to_pylist()]
    return np.sort(np.array(ids, "S16"))


def chunks(ids: NDArray[np.bytes_]) -> Iterator[list[str]]:
    """Ids as 32 hex digits, in order, in lists whose rows fit into memory."""
    for start in range(0, len(ids), _CHUNK_IMAGES):
        yield _hex_digits(ids[start : start + _CHUNK_IMAGES])


def _hex_digits(ids: NDArray[np.bytes_]) -> list[str]:
    raw = ids.tobytes()  # elements of dtype S16 lose their trailing zeros
    return [raw[k : k + 16].hex() for k in range(0, len(raw), 16)]


@dataclass(frozen=True, slots=True)
class _Span:
    """Rows of some chunks that follow one another."""

    numbers: range
    rows: pa.Table

    @property
    def num_fitting(self) -> int:
        """Chunks of which the rows may be held at once; at least one."""
        return max(1, _AHEAD_BYTES * len(self.numbers) // max(1, self.rows.nbytes))


_NOTHING = _Span(range(0), pa.table({}))


class ModelRows:
    """A model's rows of some images, for one chunk after the other.

    Ids are digests, so every part has images of every chunk, and most parts are one row group: with
    a chunk's rows those of as many chunks behind it are read as `_AHEAD_BYTES` hold.

    Args:
        store: with the rows.
        model_key: whose.
        ids: sorted, dtype S16, all that will be asked for.
    """

    def __init__(self, store: Store, model_key: str, ids: NDArray[np.bytes_]) -> None:
        self.store = store
        self._model_key = model_key
        firsts = np.arange(0, len(ids), _CHUNK_IMAGES)
        lasts = np.minimum(firsts + _CHUNK_IMAGES, len(ids)) - 1
        self._firsts, self._lasts = _hex_digits(ids[firsts]), _hex_digits(ids[lasts])
        self._spans: dict[tuple[Any, ...], _Span] = {}

    def read(
        self,
        table: str,
        image_ids: Sequence[str],
        columns: Sequence[str],
        filters: Sequence[tuple[str, str, Any]] = (),
    ) -> pa.Table:
        """Rows of the images of a chunk, and of those between them.

        Args:
            table: images, detections, captions or labels.
            image_ids: of a chunk, all or some, sorted.
            columns: beside `image_id`.
            filters: as of `Store.table`.
        """
        asked = (table, *columns, *filters)
        number = bisect_left(self._lasts, image_ids[0])
        if number not in self._spans.setdefault(asked, _NOTHING).numbers:
            ahead = self._spans.pop(asked).num_fitting  # its rows are let go before others come
            numbers = range(number, min(number + ahead, len(self._lasts)))
            within = [
                ("image_id", ">=", self._firsts[number]),
                ("image_id", "<=", self._lasts[numbers[-1]]),
            ]
            found = self.store.table(
                table,
                model=self._model_key,
                columns=["image_id", *columns],
                filters=[*within, *filters],
            )
            self._spans[asked] = _Span(numbers, found)
        rows = self._spans[asked].rows
        wanted = (ds.field("image_id") >= image_ids[0]) & (ds.field("image_id") <= image_ids[-1])
        return rows.filter(wanted)

    def each(
        self,
        table: str,
        image_ids: Sequence[str],
        columns: Sequence[str],
        filters: Sequence[tuple[str, str, Any]] = (),
    ) -> pa.Table:
        """The row of each image of a chunk, in their order, of nulls where there is none.

        Arguments as of `read`; of an image at most one row may be left by `filters`.
        """
        rows = self.read(table, image_ids, columns, filters)
        place = pc.index_in(pa.array(image_ids), value_set=rows["image_id"].combine_chunks())  # pyright: ignore[reportAttributeAccessIssue]
        return rows.select(list(columns)).take(place)
