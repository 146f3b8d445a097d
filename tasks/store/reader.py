"""Reading a store: published tables as pandas or Arrow, masks as arrays, runs and receipts."""

import functools
import json
import operator
import re
import statistics
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from pixelmill.configs.schema import TaskName
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.store import layout
from pixelmill.tasks.store.backend import (
    Backend,
    gone_away,
    open_backend,
    probe_create_if_absent,
)
from pixelmill.tasks.store.current import (
    Promotion,
    append_promotion,
    promoted,
    read_promotions,
    task_of,
)
from pixelmill.tasks.store.digests import Digests, contains, digests_of, part_digests
from pixelmill.tasks.store.log import Log, read_log
from pixelmill.tasks.store.masks import read_planes
from pixelmill.tasks.store.receipts import Receipt
from pixelmill.tasks.store.runs import RunEnd, RunRecord, shard_id, shard_index
from pixelmill.tasks.store.schemas import FORMAT_VERSION, PLAN, TABLES, encode_table

__all__ = ["Instances", "Store"]

# A million rows of a plan in 60 row groups: reading one shard touches one or two of them.
_PLAN_ROW_GROUP_ROWS = 16_384
_READERS = 8
_NO_DIGESTS: Digests = np.empty(0, "S16")
# Of a read whose parts were replaced meanwhile; replacements are minutes apart.
_TRIES = 5
_THROUGHPUT_RECEIPTS = 64

T = TypeVar("T")
Filter = tuple[str, str, Any]
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Instances:
    """The instances of one image by one model, best first.

    Attributes:
        boxes: rows of `detections`.
        masks: (N, H, W) bool, one per row.
    """

    boxes: pd.DataFrame
    masks: NDArray[np.bool_]


class Store:
    """Predictions of any number of models on any number of images under one root.

    Tables show what is completely published: all parts of a publication or none.

    Args:
        root: a folder, or `s3://`, `gs://`, `az://`, `memory://`.
        create: make the store if there is none; also tries out that the file system or object
            store can do what commits rest on.

    Raises:
        FileNotFoundError: there is no store, and `create` is false.
        RuntimeError: `create` is true and the place cannot create-if-absent.
        ValueError: the store has another format version.
    """

    def __init__(self, root: str | Path, create: bool = False) -> None:
        self.backend: Backend = open_backend(root)
        self.root: str = self.backend.root
        if create:
            probe_create_if_absent(self.backend)
            if not self.backend.exists(layout.DATASET):
                identity = {"format_version": FORMAT_VERSION, "dataset_id": uuid.uuid4().hex}
                self.backend.create(layout.DATASET, json.dumps(identity).encode())
        try:
            dataset = json.loads(self.backend.get(layout.DATASET))
        except FileNotFoundError as err:
            raise FileNotFoundError(
                f"no Pixelmill store at {self.root!r}; `pixelmill score FOLDER --out` that place "
                "makes one"
            ) from err
        if dataset["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"store {self.root!r} has format version {dataset['format_version']}, this "
                f"version of Pixelmill reads {FORMAT_VERSION}"
            )
        # What a process remembers of immutable parts must not outlive a store that was deleted
        # and made anew in the same place.
        self.dataset_id: str = dataset["dataset_id"]

    def require(self) -> None:
        """Make sure that the store is where it was: under an empty mount point it is not.

        Raises:
            RefusedError: it is gone, or another one is in its place.
        """
        try:
            dataset = json.loads(self.backend.get(layout.DATASET))
        except FileNotFoundError as err:
            raise gone_away(self.root) from err
        if dataset["dataset_id"] != self.dataset_id:
            raise gone_away(self.root)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.root,)

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    # Tables

    def parts(self, name: str, **partitions: str) -> list[layout.Part]:
        """The published files of a table, in the order of publication.

        They are those of one moment: all parts of a publication or none, either those that a
        compaction replaced or those that took their place. One that was replaced since may be gone
        when it is opened: `FileNotFoundError` then means to look again.

        Args:
            name: of the table.
            **partitions: values that `model`, `date` or `collection` must have.
        """
        return self.parts_at_once([name], **partitions)[name]

    def parts_at_once(
        self, names: Sequence[str], **partitions: str
    ) -> dict[str, list[layout.Part]]:
        """Like `parts`, of several tables at the same moment."""
        log = read_log(self.backend, self.dataset_id)
        while True:
            listed = {name: _list_parts(self.backend, name, partitions) for name in names}
            later = log
            # Records have no gaps; one look costs less than a listing of all
            if self.backend.exists(layout.log_key(log.num_records)):
                later = read_log(self.backend, self.dataset_id)
            if later.replacements == log.replacements:
                return {name: _live(log, name, partitions, listed[name]) for name in names}
            log = later  # files may have gone while they were listed

    def table(
        self,
        name: str,
        *,
        model: str | None = None,
        columns: Sequence[str] | None = None,
        filters: Sequence[Filter] = (),
    ) -> pa.Table:
        """Published rows of a table.

        Args:
            name: catalog, images, detections, captions, labels, candidates or failures.
            model: only this model's rows; `current:<task>`: of each image those of the newest
                promoted version that has it, see `promote`.
            columns: which; partition columns (`model`, `date`, `collection`) may be named.
            filters: `(column, operator, value)`, all of which must hold; operators are those of
                `pyarrow.parquet.read_table`. On partition columns: = == != < <= > >=.

        Returns:
            The rows, partition columns last, in the order of publication and then of the key.

        Raises:
            KeyError: no such table or column, or nothing was promoted for the task.
        """
        if name not in TABLES:
            raise KeyError(f"no table {name!r}, there are: {', '.join(TABLES)}")
        table = TABLES[name]
        names = [*table.schema.names, *table.partitions]
        wanted = names if columns is None else list(columns)
        unknown = {*wanted, *(column for column, _, _ in filters)} - set(names)
        if unknown:
            raise KeyError(f"table {name!r} has no {sorted(unknown)}, it has: {', '.join(names)}")
        task = task_of(model)
        if task is not None and "model" not in table.partitions:
            raise KeyError(f"table {name!r} is not by model, so it has no current version")
        is_one_model = model is not None and task is None
        chosen = {"model": str(model)} if is_one_model and "model" in table.partitions else {}
        on_path = [item for item in filters if item[0] in table.partitions]
        in_file = [item for item in filters if item[0] not in table.partitions]
        if is_one_model and "model" not in table.partitions and "model_key" in names:
            in_file.append(("model_key", "=", model))
        schema = pa.schema(
            [*table.schema, *(pa.field(key, pa.string(), False) for key in table.partitions)]
        )
        empty = schema.empty_table().select(wanted)

        def read(part: layout.Part, newer: Digests) -> pa.Table:
            needed = {*wanted, "image_id"} if len(newer) else set(wanted)
            rows = _read_part(self.backend, part, sorted(needed), in_file)
            if len(newer) and rows.num_rows:
                rows = rows.filter(pa.array(~contains(newer, digests_of("images", rows))))
            for key, value in part.partitions.items():
                if key in wanted:
                    rows = rows.append_column(
                        schema.field(key), pa.repeat(pa.scalar(value), rows.num_rows)
                    )
            return rows.select(wanted).cast(empty.schema)

        def read_all() -> pa.Table:
            if task is None:
                parts = [(part, _NO_DIGESTS) for part in self.parts(name, **chosen)]
            else:
                parts = self._current_parts(name, task)
            parts = [
                (part, newer)
                for part, newer in parts
                if all(
                    _COMPARE[how](part.partitions[column], value) for column, how, value in on_path
                )
            ]
            with ThreadPoolExecutor(_READERS) as pool:
                return pa.concat_tables([empty, *pool.map(lambda one: read(*one), parts)])

        return _retried(read_all)

    def _current_parts(self, name: str, task: TaskName) -> list[tuple[layout.Part, Digests]]:
        """Parts of the promoted models, and of each the images of which newer ones have rows."""
        versions = self._versions(task)
        found = self.parts_at_once(["images", name])
        parts: list[tuple[layout.Part, Digests]] = []
        newer = _NO_DIGESTS
        for version in versions:
            parts += [(part, newer) for part in found[name] if part.partitions["model"] == version]
            ids = [
                part_digests(self.backend, self.dataset_id, "images", part.path)
                for part in found["images"]
                if part.partitions["model"] == version
            ]
            newer = np.sort(np.concatenate([newer, *ids]))
        return parts

    def images(self, model: str | None = None) -> pd.DataFrame:
        """One row per image and model."""
        return self.table("images", model=model).to_pandas()

    def boxes(self, model: str | None = None) -> pd.DataFrame:
        """One row per detection: pixels of the original image, max exclusive."""
        return self.table("detections", model=model).to_pandas()

    def captions(self, model: str | None = None) -> pd.DataFrame:
        """One row per caption."""
        return self.table("captions", model=model).to_pandas()

    def labels(self, model: str | None = None) -> pd.DataFrame:
        """One row per class given to an image."""
        return self.table("labels", model=model).to_pandas()

    def candidates(self, model: str | None = None) -> pd.DataFrame:
        """One row per box before suppression, where the config kept them."""
        return self.table("candidates", model=model).to_pandas()

    def failures(self) -> pd.DataFrame:
        """One row per failed try; a later success does not erase it."""
        return self.table("failures").to_pandas()

    def catalog(self, collection: str | None = None) -> pd.DataFrame:
        """Where each image lies: one row per (path, size_bytes, modified) ever read.

        In the order of publication, so of rows with one path the last is the current one.
        """
        chosen = [] if collection is None else [("collection", "=", collection)]
        return self.table("catalog", filters=chosen).to_pandas()

    def models(self) -> dict[str, ModelSpec]:
        """The models that have published images, by key."""
        published = {part.partitions["model"] for part in self.parts("images")}
        found: dict[str, ModelSpec] = {}
        for run_id in reversed(self.runs()):
            if published <= found.keys():
                break
            found |= {spec.key: spec for spec in self.run(run_id).models if spec.key in published}
        return dict(sorted(found.items()))

    # Versions

    def promote(self, model_key: str) -> Promotion:
        """Make a model the current one of its task: one small write, which `rollback` undoes.

        Readers of `current:<task>` get its predictions, and of an image that it has not scored
        those of the model that was current before, and so on.

        Raises:
            KeyError: nothing is published of such a model.
        """
        models = self.models()
        if model_key not in models:
            known = ", ".join(models)
            raise KeyError(f"nothing is published of a model {model_key!r}; there are: {known}")
        while True:
            history = self.promotions()
            step = append_promotion(
                self.backend, history, "promote", models[model_key].task, model_key
            )
            if step is not None:
                return step

    def rollback(self, task: TaskName) -> Promotion:
        """Undo the last promotion for a task.

        Raises:
            ValueError: there is none.
            RuntimeError: another process promoted or rolled back just now.
        """
        history = self.promotions()
        current = promoted(history, task)
        if not current:
            raise ValueError(f"no model is promoted for {task}, so there is nothing to undo")
        step = append_promotion(self.backend, history, "rollback", task, current[0])
        if step is None:
            raise RuntimeError(
                f"another process promoted or rolled back a model just now; {current[0]} was the "
                f"current one for {task}: look which is now, before you undo that"
            )
        return step

    def promotions(self) -> list[Promotion]:
        """All promotions and rollbacks, in order."""
        return read_promotions(self.backend, self.dataset_id)

    def current(self, task: TaskName) -> tuple[str, ...]:
        """Keys of the models promoted for a task: the current one, then what it took over from."""
        return promoted(self.promotions(), task)

    def _versions(self, task: TaskName) -> tuple[str, ...]:
        versions = self.current(task)
        if not versions:
            raise KeyError(f"no model is promoted for {task}: see Store.promote")
        return versions

    def published_ids(self, model_key: str) -> NDArray[np.bytes_]:
        """Sorted image ids of a model's published images, as 16 raw bytes each (dtype S16)."""
        ids = self.digests("images", model=model_key)
        return np.sort(np.concatenate([_NO_DIGESTS, *ids]))

    def digests(self, name: str, **partitions: str) -> list[Digests]:
        """The sorted keys of the rows of each part, as 16 raw bytes each (dtype S16).

        Args:
            name: images or catalog.
            **partitions: as in `parts`.
        """
        return _retried(
            lambda: [
                part_digests(self.backend, self.dataset_id, name, part.path)
                for part in self.parts(name, **partitions)
            ]
        )

    # Single images

    def find(self, image: str, model: str | None = None) -> list[dict[str, Any]]:
        """Rows of `images` of one image, one per model, with `model` and `date`.

        Args:
            image: an image_id, or a path as in the catalog; of a file that changed, the newest.
            model: only this model's row; or `current:<task>`, as of `table`.

        Raises:
            KeyError: there is none, or the path is in several collections.
        """
        return [row for row, _ in self._find(image, model)]

    def _find(self, image: str, model: str | None) -> list[tuple[dict[str, Any], layout.Part]]:
        """Rows of `images` of one image, and the part of each."""
        image_id = image if re.fullmatch(r"[0-9a-f]{32}", image) else self._image_id(image)
        digest = np.array([bytes.fromhex(image_id)], "S16")
        task = task_of(model)
        chosen = {} if model is None or task is not None else {"model": model}

        def has_it(part: layout.Part) -> bool:
            published = part_digests(self.backend, self.dataset_id, "images", part.path)
            return bool(contains(published, digest)[0])

        def look() -> list[tuple[dict[str, Any], layout.Part]]:
            return [
                (row | part.partitions, part)
                for part in self.parts("images", **chosen)
                if has_it(part)
                for row in _rows_of_image(self.backend, self.dataset_id, part, image_id).to_pylist()
            ]

        found = _retried(look)
        if task is not None:
            rank = {key: place for place, key in enumerate(self._versions(task))}
            promoted = [item for item in found if item[0]["model"] in rank]
            found = sorted(promoted, key=lambda item: rank[item[0]["model"]])[:1]
        if not found:
            of_model = "" if model is None else f" by model {model!r}"
            raise KeyError(
                f"no published predictions of image {image!r}{of_model}; see Store.failures() for "
                "what could not be scored and Store.models() for the models"
            )
        return found

    def semantic_mask(self, image: str, model: str | None = None) -> NDArray[Any]:
        """The label map of an image.

        Args:
            image: catalog path or image_id.
            model: may be left out where one model has a map of it.

        Returns:
            (H, W) uint8 class indices, 255 void; uint16 and 65535 above 254 classes.

        Raises:
            KeyError: unknown or ambiguous.
        """
        row, _ = self._only_row(image, model, "semantic_array", "semantic mask")
        array = self.mask_array(row["mask_store"], row["semantic_array"])
        return read_planes(array, row["semantic_row"], row["height"], row["width"])

    def instances(self, image: str, model: str | None = None) -> Instances:
        """The boxes and masks of an image.

        Args:
            image: catalog path or image_id.
            model: may be left out where one model has instance masks of it.

        Raises:
            KeyError: unknown, ambiguous, or without masks.
        """

        def look() -> tuple[dict[str, Any], pa.Table]:
            row, part = self._only_row(image, model, "instances_array", "instance masks")
            return row, self._beside(part, "detections", row["image_id"])

        row, table = _retried(look)
        boxes = table.to_pandas().assign(model=row["model"], date=row["date"])
        array = self.mask_array(row["mask_store"], row["instances_array"])
        planes = read_planes(array, row["instances_row"], row["height"], row["width"])
        layers = boxes["mask_layer"].to_numpy(np.int64)
        values = boxes["mask_value"].to_numpy(planes.dtype)
        return Instances(boxes, planes[layers] == values[:, None, None])

    def _beside(self, images: layout.Part, name: str, image_id: str) -> pa.Table:
        """An image's rows in another table than `images`.

        One record publishes an image and its boxes, and one record replaces them: their parts have
        the same number.
        """
        for part in self.parts(name, **images.partitions):
            if part.seq == images.seq:
                return _rows_of_image(self.backend, self.dataset_id, part, image_id)
        raise FileNotFoundError(f"{self.root}/{images.key} has no part of {name} beside it")

    def _only_row(
        self, image: str, model: str | None, column: str, what: str
    ) -> tuple[dict[str, Any], layout.Part]:
        found = [item for item in self._find(image, model) if item[0][column] is not None]
        if len(found) == 1:
            return found[0]
        if not found:
            raise KeyError(f"image {image!r} has no {what}")
        models = ", ".join(row["model"] for row, _ in found)
        raise KeyError(f"several models have {what} of {image!r}: name one of {models}")

    def _image_id(self, path: str) -> str:
        rows = self.table(
            "catalog", columns=["image_id", "collection"], filters=[("path", "=", path)]
        ).to_pylist()
        if not rows:
            raise KeyError(f"no image {path!r} in the catalog; see Store.catalog().path")
        collections = sorted({row["collection"] for row in rows})
        if len(collections) > 1:
            raise KeyError(
                f"path {path!r} is in the collections {', '.join(collections)}: give the image_id "
                "instead, from Store.catalog(collection)"
            )
        return str(rows[-1]["image_id"])

    def mask_array(self, mask_store: str, array: str) -> "zarr.Array[Any]":
        """An array of masks as `images` names it; `read_planes` of `tasks.store.masks` reads it."""
        found = _open_masks(self.backend.root, mask_store)[array]
        assert isinstance(found, zarr.Array)
        return found

    # Runs and receipts

    def create_run(self, record: RunRecord, plan_table: pa.Table) -> None:
        """Store a plan; the record comes last and makes the run exist.

        Args:
            record: of the run.
            plan_table: schema PLAN, sorted by shard.

        Raises:
            ValueError: the table is not of that schema.
            FileExistsError: another run has the id.
        """
        if not plan_table.schema.equals(PLAN):
            raise ValueError(f"expected the schema\n{PLAN}\ngot\n{plan_table.schema}")
        data = encode_table(plan_table.sort_by("shard"), row_group_rows=_PLAN_ROW_GROUP_ROWS)
        text = record.model_dump_json().encode()
        if not (
            self.backend.create(layout.plan_key(record.run_id), data)
            and self.backend.create(layout.run_key(record.run_id), text)
        ):
            raise FileExistsError(f"run {record.run_id} exists in {self.root}")

    def run(self, run_id: str) -> RunRecord:
        """A run's record.

        Raises:
            KeyError: no such run.
        """
        return _load_run(self.backend, self.dataset_id, run_id)

    def runs(self) -> list[str]:
        """Ids of all runs, oldest first."""
        entries = self.backend.list(layout.RUNS)
        return [Path(entry.key).stem for entry in entries if entry.key.endswith(".json")]

    def open_runs(self) -> list[RunRecord]:
        """Runs that have not ended, oldest first: they are running, or were killed."""
        ended = {Path(entry.key).stem for entry in self.backend.list(layout.ENDS)}
        return [self.run(run_id) for run_id in self.runs() if run_id not in ended]

    def plan_rows(self, run_id: str) -> pa.Table:
        """The inputs of a run, schema PLAN."""
        with self.backend.open(layout.plan_key(run_id)) as file:
            return pq.read_table(file)

    def run_end(self, run_id: str) -> RunEnd | None:
        """How a run ended; None if it runs, or was killed."""
        try:
            return RunEnd.model_validate_json(self.backend.get(layout.end_key(run_id)))
        except FileNotFoundError:
            return None

    def shard_rows(self, run_id: str, index: int) -> pa.Table:
        """The inputs of one shard, schema PLAN."""
        with self.backend.open(layout.plan_key(run_id)) as file:
            return pq.read_table(file, filters=[("shard", "=", index)])

    def committed_shards(self, run_id: str) -> set[int]:
        """Indices of the shards that have a receipt, by one listing."""
        entries = self.backend.list(layout.receipts_of(run_id))
        return {shard_index(Path(entry.key).stem) for entry in entries}

    def receipt(self, run_id: str, index: int) -> Receipt | None:
        """The receipt of a shard, or None while it is not committed."""
        try:
            data = self.backend.get(layout.receipt_key(run_id, shard_id(run_id, index)))
        except FileNotFoundError:
            return None
        return Receipt.model_validate_json(data)

    def receipts(self, run_id: str | None = None) -> list[Receipt]:
        """Receipts of a run, or of all runs, in order of the shards."""
        folder = layout.RECEIPTS if run_id is None else layout.receipts_of(run_id)
        return self._load_receipts([entry.key for entry in self.backend.list(folder)])

    def throughput(self) -> dict[str, float]:
        """Images per second and worker, by model: the median of the newest receipts.

        A shard's time is shared among its models by `forward_s/<model_key>`, or equally.
        """
        keys = [entry.key for entry in self.backend.list(layout.RECEIPTS)]
        rates: dict[str, list[float]] = {}
        for receipt in self._load_receipts(keys[-_THROUGHPUT_RECEIPTS:]):
            wall_s = float(receipt.stats.get("wall_s", 0))
            scored = {key: number for key, number in receipt.num_scored.items() if number}
            forward_s = {key: float(receipt.stats.get(f"forward_s/{key}", 1)) for key in scored}
            for key, number in scored.items():
                seconds = wall_s * forward_s[key] / (sum(forward_s.values()) or 1)
                if seconds > 0:
                    rates.setdefault(key, []).append(number / seconds)
        return {key: statistics.median(values) for key, values in sorted(rates.items())}

    def _load_receipts(self, keys: Sequence[str]) -> list[Receipt]:
        with ThreadPoolExecutor(_READERS) as pool:
            return [Receipt.model_validate_json(data) for data in pool.map(self.backend.get, keys)]


def _retried(read: Callable[[], T]) -> T:
    """Read parts, and again if one was replaced by others before it was opened."""
    for _ in range(_TRIES - 1):
        with suppress(FileNotFoundError):
            return read()
    return read()


def _live(
    log: Log, name: str, partitions: dict[str, str], listed: dict[str, layout.Part]
) -> list[layout.Part]:
    """Which of the listed files the log makes parts of the table, and what comes in their place."""
    live = {key: part for key, part in listed.items() if not part.tag and part.seq in log.published}
    for record in log.replacements:
        for key in record.remove:
            live.pop(key, None)
        for added in record.add:
            part = layout.parse_part(added.key)
            if part.table == name and partitions.items() <= part.partitions.items():
                path = added.key if added.key in listed else added.staged
                live[added.key] = replace(part, path=path)
    return sorted(live.values(), key=lambda part: (part.seq, part.key))


def _list_parts(backend: Backend, name: str, partitions: dict[str, str]) -> dict[str, layout.Part]:
    prefix = name
    for key in TABLES[name].partitions:
        if key not in partitions:
            break
        prefix += f"/{key}={partitions[key]}"
    keys = [entry.key for entry in backend.list(prefix) if not layout.is_changing(entry.key)]
    parts = {key: layout.parse_part(key) for key in keys}
    return {
        key: part for key, part in parts.items() if partitions.items() <= part.partitions.items()
    }


def _read_part(
    backend: Backend, part: layout.Part, columns: Sequence[str], filters: Sequence[Filter]
) -> pa.Table:
    in_file = [name for name in columns if name not in part.partitions]
    with backend.open(part.path) as file:
        return pq.read_table(file, columns=in_file, filters=list(filters) or None)


def _rows_of_image(backend: Backend, dataset_id: str, part: layout.Part, image_id: str) -> pa.Table:
    """An image's rows of one part: parts are sorted by image_id, so few row groups are read."""
    ranges = _image_id_ranges(backend, dataset_id, part.path)
    groups = [i for i, (low, high) in enumerate(ranges) if low <= image_id <= high]
    tables = [_row_group(backend, dataset_id, part.path, i) for i in groups]
    empty = TABLES[part.table].schema.empty_table()
    return pa.concat_tables([empty, *tables]).filter(ds.field("image_id") == image_id)


@functools.lru_cache(maxsize=4096)
def _image_id_ranges(backend: Backend, dataset_id: str, path: str) -> tuple[tuple[str, str], ...]:
    """Least and greatest image_id of each row group, from the file's footer."""
    with backend.open(path) as file:
        metadata = pq.read_metadata(file)
    columns = [metadata.row_group(i).column(0) for i in range(metadata.num_row_groups)]
    return tuple((column.statistics.min, column.statistics.max) for column in columns)


@functools.lru_cache(maxsize=16)
def _row_group(backend: Backend, dataset_id: str, path: str, index: int) -> pa.Table:
    """A row group of a published part; looking up image after image finds it here."""
    with backend.open(path) as file:
        return pq.ParquetFile(file).read_row_group(index)


@functools.lru_cache(maxsize=256)
def _load_run(backend: Backend, dataset_id: str, run_id: str) -> RunRecord:
    try:
        return RunRecord.model_validate_json(backend.get(layout.run_key(run_id)))
    except FileNotFoundError as err:
        raise KeyError(f"no run {run_id!r} in {backend.root}") from err


@functools.lru_cache(maxsize=64)
def _open_masks(root: str, mask_store: str) -> zarr.Group:
    """Mask stores are written once under names of their own, so an open one stays true."""
    store = open_backend(root).zarr_store(mask_store)
    return zarr.open_group(store, mode="r", zarr_format=3)
