"""A store of very many images, made directly of published parts; its pictures are a few scenes."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.store import PLAN, TABLES, RunRecord, Store, layout
from pixelmill.tasks.store.schemas import encode_table

COLLECTION = "archive"
NUM_CLASSES = 80
PER_NIGHT = 100_000
_WHEN = datetime(2026, 1, 1, tzinfo=UTC)


def class_names(count: int = NUM_CLASSES) -> tuple[str, ...]:
    return tuple(f"class {number:02d}" for number in range(count))


def detector(version: int = 0) -> ModelSpec:
    return ModelSpec(
        name="finder",
        task="detection",
        architecture="some/architecture",
        arguments={},
        weights_path="weights",
        weights_sha256=f"{0xAB + version:02x}" * 32,
        classes=class_names(),
        preprocess=PreprocessConfig(canvases=((480, 640),)),
        precision="fp32",
    )


def write_big_store(root: Path, num_images: int, boxes_per_image: int, files: list[Path]) -> Store:
    """One model, nights of 100,000 images in twenty folders each, one run that planned the last.

    Args:
        root: of the new store.
        num_images: a multiple of 1,000.
        boxes_per_image: of each.
        files: the images' source, in turn.
    """
    store, spec = Store(root, create=True), detector()
    rng = np.random.default_rng(0)
    date = ""
    for night, start in enumerate(range(0, num_images, PER_NIGHT)):
        count = min(PER_NIGHT, num_images - start)
        raw = rng.bytes(16 * count).hex()
        image_ids = np.sort(np.array([raw[i : i + 32] for i in range(0, len(raw), 32)]))
        number = np.arange(start, start + count)
        images = {
            "image_id": pa.array(image_ids),
            "path": pa.array([f"camera-{n % 20:02d}/IMG_{n:08d}.jpg" for n in number]),
            "source_uri": pa.array([str(files[n % len(files)]) for n in number]),
            "size_bytes": pa.array(rng.integers(50_000, 900_000, count)),
            "modified": pa.array(number.astype(str)),
            "width": pa.array(np.full(count, 640, np.int32)),
            "height": pa.array(np.full(count, 480, np.int32)),
            "n_detections": pa.array(np.full(count, boxes_per_image, np.int32)),
        }
        boxes = _boxes(image_ids, boxes_per_image, rng)
        date = f"2026-01-{1 + night:02d}"
        partitions = {"model": spec.key, "date": date}
        _put(store, "catalog", {"collection": COLLECTION}, night, images)
        _put(store, "detections", partitions, night, boxes)
        _put(store, "images", partitions, night, images)
        store.backend.put(layout.done_key(night), b"")
    _record(store, spec, num_images, date)
    return store


def write_version(root: Path, first: ModelSpec, second: ModelSpec, noise: float) -> None:
    """Another version's predictions for the same images: boxes `noise` pixels off, all classes."""
    store, rng = Store(root), np.random.default_rng(1)
    for name in ("detections", "images"):
        for seq, part in enumerate(store.parts(name, model=first.key), start=1000):
            with store.backend.open(part.path) as file:
                table = pq.read_table(file)
            if name == "detections":
                for axis in "xy":
                    off = rng.normal(0, noise, table.num_rows).astype(np.float32)
                    for column in (f"{axis}_min", f"{axis}_max"):
                        index = table.column_names.index(column)
                        values = pa.array(table[column].to_numpy() + off)
                        table = table.set_column(index, table.field(index), values)
            partitions = {**part.partitions, "model": second.key}
            store.backend.put(layout.part_key(name, partitions, seq), encode_table(table))
            store.backend.put(layout.done_key(seq), b"")
    _record(store, second, 0, "2026-01-01")


def _record(store: Store, spec: ModelSpec, num_images: int, date: str) -> None:
    """A run that is known to have the model; it planned no shard."""
    number = len(store.runs())
    record = RunRecord(
        run_id=f"20260101T{number:06d}-aaaaaa",
        date=date,
        collection=COLLECTION,
        source="/photos",
        created_at=_WHEN.isoformat(),
        config={},
        models=(spec,),
        num_images=num_images,
        num_shards=0,
    )
    store.create_run(record, PLAN.empty_table())


def _boxes(image_ids: np.ndarray, each: int, rng: np.random.Generator) -> dict[str, pa.Array]:
    count = len(image_ids) * each
    class_id = np.minimum(rng.geometric(0.06, count), NUM_CLASSES) - 1
    x, y = rng.uniform(0, 500, count), rng.uniform(0, 400, count)
    scores = -np.sort(-rng.beta(1.2, 1.6, (len(image_ids), each)), axis=1).ravel()
    return {
        "image_id": pa.array(np.repeat(image_ids, each)),
        "rank": pa.array(np.tile(np.arange(each, dtype=np.int32), len(image_ids))),
        "class_id": pa.array(class_id.astype(np.int32)),
        "class_name": pa.array(np.array(class_names())[class_id]),
        "score": pa.array(scores.astype(np.float32)),
        "x_min": pa.array(x.astype(np.float32)),
        "y_min": pa.array(y.astype(np.float32)),
        "x_max": pa.array((x + rng.uniform(10, 140, count)).astype(np.float32)),
        "y_max": pa.array((y + rng.uniform(10, 80, count)).astype(np.float32)),
    }


def _put(
    store: Store, name: str, partitions: dict[str, str], seq: int, columns: dict[str, pa.Array]
) -> None:
    """A published part; columns that are not given have a constant."""
    constants = {"status": "ok", "scored_at": _WHEN, "run_id": "r", "shard_id": "s"}
    constants |= {"collection": COLLECTION, "n_captions": 0}
    rows = len(columns["image_id"])
    table = pa.table(
        {
            field.name: columns[field.name].cast(field.type)
            if field.name in columns
            else pa.repeat(pa.scalar(constants.get(field.name), field.type), rows)
            for field in TABLES[name].schema
        },
        schema=TABLES[name].schema,
    )
    order = [(column, "ascending") for column in TABLES[name].sort_by]
    store.backend.put(layout.part_key(name, partitions, seq), encode_table(table.sort_by(order)))
