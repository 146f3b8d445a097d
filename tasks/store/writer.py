"""Writing one shard: masks and staged tables under a new name, then the receipt that commits them.

Killed anywhere before the receipt, nothing is visible and the leftovers have names that nobody else
uses. Killed after it, the shard is committed. A second worker on the same shard loses the race for
the receipt and removes what it wrote.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pixelmill.tasks.predictions import Caption, Detections, ImagePrediction, Label
from pixelmill.tasks.store import layout
from pixelmill.tasks.store.masks import MaskSet, Place
from pixelmill.tasks.store.reader import Store
from pixelmill.tasks.store.receipts import Receipt, StagedFile
from pixelmill.tasks.store.rows import CatalogRow, FailureRow, ImageRow
from pixelmill.tasks.store.runs import RunRecord, shard_id
from pixelmill.tasks.store.schemas import (
    CANDIDATES,
    CAPTIONS,
    CATALOG,
    DETECTIONS,
    FAILURES,
    FORMAT_VERSION,
    IMAGES,
    LABELS,
    encode_table,
    table_metadata,
)

__all__ = ["ShardWriter"]


@dataclass(frozen=True, slots=True)
class _Scored:
    """What is kept of an image until the commit: its masks are in the `MaskSet`."""

    image: ImageRow
    detections: Detections | None
    mask_layers: NDArray[np.int32] | None
    mask_areas: NDArray[np.int32] | None
    captions: tuple[Caption, ...]
    labels: tuple[Label, ...]
    candidates: Detections | None


class ShardWriter:
    """Collects the results of one shard, for all models of the run, and commits them.

    Args:
        store: to write to.
        run: whose shard it is.
        shard_index: of the shard in the run's plan.
    """

    def __init__(self, store: Store, run: RunRecord, shard_index: int) -> None:
        self._store = store
        self._run = run
        self._shard_index = shard_index
        self.shard_id = shard_id(run.run_id, shard_index)
        self.attempt = secrets.token_hex(4)
        self._classes = {spec.key: spec.classes for spec in run.models}
        self._scored: dict[str, dict[str, _Scored]] = {spec.key: {} for spec in run.models}
        self._masks = {key: MaskSet(classes) for key, classes in self._classes.items()}
        self._catalog: list[CatalogRow] = []
        self._failures: list[tuple[FailureRow, datetime]] = []
        self._may_be_committed = False
        self._committed_at = datetime.now(UTC)
        self._files: tuple[StagedFile, ...] | None = None
        self._mask_stores: dict[str, str] = {}

    def add_image(self, image: ImageRow, model_key: str, prediction: ImagePrediction) -> None:
        """Take what one model says of one image.

        An image that comes again (a copy under another name) is taken once.

        Raises:
            KeyError: the run has no such model.
            ValueError: the prediction does not fit the image or the model's classes.
        """
        classes = self._run.model(model_key).classes
        _check(image, prediction, len(classes))
        if image.image_id in self._scored[model_key]:
            return
        masks, layers, areas = self._masks[model_key], None, None
        if prediction.semantic is not None:
            masks.add_semantic(image.image_id, prediction.semantic)
        detections = prediction.detections
        if detections is not None and detections.masks:
            layers = masks.add_instances(
                image.image_id, detections.masks, image.height, image.width
            )
            areas = np.array([np.count_nonzero(crop.mask) for crop in detections.masks], np.int32)
            detections = replace(detections, masks=None)
        self._scored[model_key][image.image_id] = _Scored(
            image,
            detections,
            layers,
            areas,
            prediction.captions,
            prediction.labels,
            prediction.candidates,
        )

    def add_catalog(self, row: CatalogRow) -> None:
        """Take where an image lies."""
        if row.collection != self._run.collection:
            raise ValueError(
                f"expected collection {self._run.collection!r} of the run, got {row.collection!r}"
            )
        self._catalog.append(row)

    def add_failure(self, row: FailureRow) -> None:
        """Take what could not be scored, and why."""
        self._failures.append((row, datetime.now(UTC)))

    def stage(self) -> None:
        """Write everything but the receipt; nothing can be added after it."""
        self._committed_at = datetime.now(UTC)
        tables: list[tuple[str, pa.Table, str | None]] = []
        origins = self._origins()
        for model_key, scored in self._scored.items():
            if scored:
                semantic, instances = self._write_masks(model_key)
                rows = [scored[image_id] for image_id in sorted(scored)]
                classes = self._classes[model_key]
                provenance = {
                    "mask_store": self._mask_stores.get(model_key),
                    "shard_id": self.shard_id,
                    "run_id": self._run.run_id,
                    "scored_at": self._committed_at,
                }
                of_model = {
                    "images": _images_table(rows, semantic, instances, origins, provenance),
                    "detections": _detections_table(rows, classes),
                    "candidates": _candidates_table(rows, classes),
                    "captions": _captions_table(rows),
                    "labels": _labels_table(rows, classes),
                }
                tables += [
                    (name, table, model_key)
                    for name, table in of_model.items()
                    if table.num_rows or name == "images"
                ]
        if self._catalog:
            tables.append(("catalog", self._catalog_table(), None))
        if self._failures:
            tables.append(("failures", self._failures_table(), None))
        staged = [self._encoded(*item) for item in tables]
        self._store.backend.put_new({file.path: data for file, data in staged})
        self._files = tuple(file for file, _ in staged)

    @property
    def num_bytes(self) -> int:
        """Of what was staged, masks included."""
        tables = sum(file.size_bytes for file in self._files or ())
        return tables + sum(masks.num_bytes for masks in self._masks.values())

    def commit(self, stats: Mapping[str, float | int | str] | None = None) -> Receipt:
        """Write everything that is not staged yet, then the receipt.

        Args:
            stats: measurements for the receipt; see `Receipt`.

        Returns:
            The receipt of the shard: this attempt's, or that of the one that was first.
        """
        winner = self._store.receipt(self._run.run_id, self._shard_index)
        if winner is not None:
            self.abort()
            return winner
        if self._files is None:
            self.stage()
        paths = {row.path for row in self._catalog} | {row.path for row, _ in self._failures}
        receipt = Receipt(
            shard_id=self.shard_id,
            attempt=self.attempt,
            run_id=self._run.run_id,
            shard_index=self._shard_index,
            date=self._run.date,
            collection=self._run.collection,
            committed_at=self._committed_at.isoformat(),
            num_inputs=len(paths),
            num_scored={key: len(scored) for key, scored in self._scored.items()},
            num_failed=len(self._failures),
            files=self._files or (),
            mask_stores=self._mask_stores,
            stats=dict(stats or {}),
        )
        key = layout.receipt_key(self._run.run_id, self.shard_id)
        self._store.require()
        self._may_be_committed = True
        if self._store.backend.create(key, receipt.model_dump_json().encode()):
            return receipt
        self._may_be_committed = False
        self.abort()
        return Receipt.model_validate_json(self._store.backend.get(key))

    def abort(self) -> None:
        """Delete whatever this attempt wrote.

        Nothing is deleted once the receipt was asked for: even where that raised, it may be there.
        """
        if self._may_be_committed:
            return
        backend = self._store.backend
        folders = [layout.staging_of(self.shard_id, self.attempt)]
        folders += [self._mask_store(model_key) for model_key in self._classes]
        backend.delete([entry.key for folder in folders for entry in backend.list(folder)])

    def _mask_store(self, model_key: str) -> str:
        return layout.mask_store_key(model_key, self._run.date, self.shard_id, self.attempt)

    def _origins(self) -> dict[str, CatalogRow]:
        """Where each image lies; of copies the first by path, whichever of them was scored."""
        origins: dict[str, CatalogRow] = {}
        for row in sorted(self._catalog, key=lambda row: row.path):
            origins.setdefault(row.image_id, row)
        return origins

    def _write_masks(self, model_key: str) -> tuple[dict[str, Place], dict[str, Place]]:
        if not self._masks[model_key]:
            return {}, {}
        self._mask_stores[model_key] = self._mask_store(model_key)
        attributes = {
            "pixelmill_format": FORMAT_VERSION,
            "shard_id": self.shard_id,
            "attempt": self.attempt,
            "run_id": self._run.run_id,
            "model_key": model_key,
            "date": self._run.date,
            "collection": self._run.collection,
        }
        return self._masks[model_key].write(
            self._store.backend, self._mask_stores[model_key], attributes
        )

    def _encoded(
        self, name: str, table: pa.Table, model_key: str | None
    ) -> tuple[StagedFile, bytes]:
        classes = () if model_key is None else self._classes[model_key]
        metadata = table_metadata(name, model_key, classes)
        data = encode_table(table.replace_schema_metadata(metadata))
        path = layout.staged_key(self.shard_id, self.attempt, name, model_key)
        file = StagedFile(
            table=name,
            model_key=model_key,
            path=path,
            num_rows=table.num_rows,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        return file, data

    def _catalog_table(self) -> pa.Table:
        added = {"run_id": self._run.run_id}
        return _rows_table(CATALOG, (_flat(row) | added for row in self._catalog))

    def _failures_table(self) -> pa.Table:
        added = {"run_id": self._run.run_id, "attempt": self.attempt}
        rows = (_flat(row) | added | {"failed_at": when} for row, when in self._failures)
        return _rows_table(FAILURES, rows)


def _check(image: ImageRow, prediction: ImagePrediction, num_classes: int) -> None:
    """What is stored once is never corrected: refuse what no reader could make sense of."""
    if re.fullmatch(r"[0-9a-f]{32}", image.image_id) is None:
        raise ValueError(f"expected an image_id of 32 hex digits, got {image.image_id!r}")
    semantic = prediction.semantic
    if semantic is not None and semantic.shape != (image.height, image.width):
        raise ValueError(
            f"image {image.image_id}: expected a label map of its {image.height}x{image.width} "
            f"pixels, got {semantic.shape}"
        )
    for what in (prediction.detections, prediction.candidates):
        if what is not None:
            _check_detections(image.image_id, what, num_classes)
    for label in prediction.labels:
        if not 0 <= label.class_id < num_classes or not 0 <= label.score <= 1:
            raise ValueError(
                f"image {image.image_id}: expected class_id in [0, {num_classes}) and a score in "
                f"[0, 1], got {label}"
            )


def _check_detections(image_id: str, detections: Detections, num_classes: int) -> None:
    number = len(detections.boxes_xyxy)
    shapes = (detections.boxes_xyxy.shape, detections.scores.shape, detections.labels.shape)
    masks = detections.masks
    if shapes != ((number, 4), (number,), (number,)) or (masks and len(masks) != number):
        raise ValueError(
            f"image {image_id}: expected (N, 4) boxes, (N,) scores and labels and N masks or None, "
            f"got {shapes} and {None if masks is None else len(masks)} masks"
        )
    if not np.isfinite(detections.boxes_xyxy).all():
        raise ValueError(f"image {image_id}: boxes hold NaN or infinity")
    if not ((detections.scores >= 0) & (detections.scores <= 1)).all():
        raise ValueError(f"image {image_id}: scores are not all in [0, 1]")
    if not ((detections.labels >= 0) & (detections.labels < num_classes)).all():
        raise ValueError(f"image {image_id}: labels are not all in [0, {num_classes})")


def _images_table(
    rows: Sequence[_Scored],
    semantic: Mapping[str, Place],
    instances: Mapping[str, Place],
    origins: Mapping[str, CatalogRow],
    provenance: Mapping[str, Any],
) -> pa.Table:
    def values(row: _Scored) -> dict[str, Any]:
        image_id = row.image.image_id
        label_map, objects = semantic.get(image_id), instances.get(image_id)
        return {
            **_flat(_at(row.image, origins.get(image_id))),
            **provenance,
            "n_detections": 0 if row.detections is None else len(row.detections.scores),
            "n_captions": len(row.captions),
            "mask_store": provenance["mask_store"] if label_map or objects else None,
            "semantic_array": label_map and label_map.array,
            "semantic_row": label_map and label_map.row,
            "instances_array": objects and objects.array,
            "instances_row": objects and objects.row,
        }

    return _rows_table(IMAGES, map(values, rows))


def _flat(row: ImageRow | CatalogRow | FailureRow) -> dict[str, Any]:
    """As `dataclasses.asdict`, which copies each value deeply: 6 times as fast."""
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _at(image: ImageRow, origin: CatalogRow | None) -> ImageRow:
    """An image where it was found first."""
    if origin is None:
        return image
    return replace(
        image,
        path=origin.path,
        source_uri=origin.source_uri,
        size_bytes=origin.size_bytes,
        modified=origin.modified,
    )


def _detections_table(rows: Sequence[_Scored], classes: Sequence[str]) -> pa.Table:
    columns = _box_columns([(row.image.image_id, row.detections) for row in rows], classes)
    layers, areas = [], []
    for row in rows:
        if row.mask_layers is None or row.mask_areas is None:
            number = 0 if row.detections is None else len(row.detections.scores)
            layers.append(np.full(number, -1, np.int32))
            areas.append(np.full(number, -1, np.int32))
        else:
            layers.append(row.mask_layers)
            areas.append(row.mask_areas)
    layer = np.concatenate([np.empty(0, np.int32), *layers])
    absent = layer < 0
    columns["mask_layer"] = pa.array(layer, mask=absent)
    columns["mask_value"] = pa.array(columns["rank"] + 1, mask=absent)
    columns["mask_area"] = pa.array(np.concatenate([np.empty(0, np.int32), *areas]), mask=absent)
    return pa.table(columns, schema=DETECTIONS)


def _candidates_table(rows: Sequence[_Scored], classes: Sequence[str]) -> pa.Table:
    items = [(row.image.image_id, row.candidates) for row in rows]
    return pa.table(_box_columns(items, classes), schema=CANDIDATES)


def _box_columns(
    items: Iterable[tuple[str, Detections | None]], classes: Sequence[str]
) -> dict[str, Any]:
    found = [(image_id, boxes) for image_id, boxes in items if boxes is not None]
    numbers = [len(boxes.scores) for _, boxes in found]
    boxes_xyxy = np.concatenate(
        [np.empty((0, 4), np.float32), *(boxes.boxes_xyxy for _, boxes in found)]
    ).astype(np.float32)
    labels = np.concatenate([np.empty(0, np.int32), *(boxes.labels for _, boxes in found)])
    ranks = [np.arange(number, dtype=np.int32) for number in numbers]
    scores = np.concatenate([np.empty(0, np.float32), *(boxes.scores for _, boxes in found)])
    return {
        "image_id": np.repeat(np.array([image_id for image_id, _ in found], object), numbers),
        "rank": np.concatenate([np.empty(0, np.int32), *ranks]),
        "class_id": labels.astype(np.int32),
        "class_name": np.array([classes[label] for label in labels], object),
        "score": scores.astype(np.float32),
        **{name: boxes_xyxy[:, i] for i, name in enumerate(("x_min", "y_min", "x_max", "y_max"))},
    }


def _captions_table(rows: Sequence[_Scored]) -> pa.Table:
    return _rows_table(
        CAPTIONS,
        (
            {
                "image_id": row.image.image_id,
                "rank": rank,
                "text": caption.text,
                "logprob": caption.logprob,
                "n_tokens": caption.num_tokens,
                "prompt": caption.prompt,
            }
            for row in rows
            for rank, caption in enumerate(row.captions)
        ),
    )


def _labels_table(rows: Sequence[_Scored], classes: Sequence[str]) -> pa.Table:
    return _rows_table(
        LABELS,
        (
            {
                "image_id": row.image.image_id,
                "rank": rank,
                "class_id": label.class_id,
                "class_name": classes[label.class_id],
                "score": label.score,
            }
            for row in rows
            for rank, label in enumerate(row.labels)
        ),
    )


def _rows_table(schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows to columns; keys that the schema has not (partition columns) are left out."""
    return pa.Table.from_pylist(list(rows), schema=schema)
