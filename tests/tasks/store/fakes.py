"""Made-up runs and predictions that follow from the image_id: what was stored can be checked.

Loaded by conftest.py and by chaos_worker.py, which runs in processes of its own.
"""

import hashlib

import numpy as np
import pyarrow as pa

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.predictions import Caption, Detections, ImagePrediction, Label, MaskCrop
from pixelmill.tasks.store import (
    PLAN,
    CatalogRow,
    FailureRow,
    ImageRow,
    Receipt,
    RunRecord,
    ShardWriter,
    Store,
)

CLASSES = ("cell", "debris", "background")


def make_spec(name, task, classes=CLASSES, weights="0"):
    return ModelSpec(
        name=name,
        task=task,
        architecture="fake",
        arguments={},
        weights_path="fake.safetensors",
        weights_sha256=weights * 64,
        classes=classes,
        preprocess=PreprocessConfig(canvases=((64, 64),)),
        precision="fp32",
    )


SEMANTIC = make_spec("labels-of", "semantic_segmentation")
INSTANCE = make_spec("things-in", "instance_segmentation")
MODELS = (SEMANTIC, INSTANCE)


def image_id_of(content):
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def size_of(image_id):
    """(height, width): three sizes on two canvases."""
    return ((40, 60), (70, 50), (30, 260))[int(image_id[:8], 16) % 3]


def num_detections(image_id):
    return int(image_id[8:10], 16) % 6


def semantic_of(image_id):
    height, width = size_of(image_id)
    rows, columns = np.mgrid[:height, :width]
    seed = int(image_id[:4], 16)
    return ((rows // 7 + columns // 9 + seed) % len(CLASSES)).astype(np.uint8)


def detections_of(image_id):
    """Boxes whose masks all overlap in the middle of the image."""
    height, width = size_of(image_id)
    number = num_detections(image_id)
    rng = np.random.default_rng(int(image_id[:8], 16))
    masks = []
    for _ in range(number):
        top, left = int(rng.integers(0, height // 3)), int(rng.integers(0, width // 3))
        mask = rng.random((height // 2, width // 2)) < 0.7
        masks.append(MaskCrop(top, left, mask))
    boxes = [(m.left, m.top, m.left + m.mask.shape[1], m.top + m.mask.shape[0]) for m in masks]
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.1, number, dtype=np.float32),
        (np.arange(number) % len(CLASSES)).astype(np.int32),
        tuple(masks),
    )


def full_masks(detections, height, width):
    """(N, H, W) bool."""
    full = np.zeros((len(detections.scores), height, width), bool)
    for plane, crop in zip(full, detections.masks, strict=True):
        rows, columns = crop.mask.shape
        plane[crop.top : crop.top + rows, crop.left : crop.left + columns] = crop.mask
    return full


def prediction_of(image_id, spec):
    if spec.task == "semantic_segmentation":
        return ImagePrediction(semantic=semantic_of(image_id))
    found = detections_of(image_id)
    return ImagePrediction(
        detections=found,
        captions=(Caption(f"an image called {image_id}", -1.5, 5),),
        labels=(Label(0, 0.75), Label(1, 0.25)),
        candidates=Detections(found.boxes_xyxy, found.scores, found.labels),
    )


def make_run(
    store,
    contents,
    *,
    run_id,
    date="2026-01-01",
    models=MODELS,
    per_shard=4,
    collection="slides",
):
    """A run over files, path -> content; equal content is the same image."""
    rows = [
        {
            "shard": i // per_shard,
            "path": path,
            "source_uri": f"/data/{path}",
            "size_bytes": len(content),
            "modified": "1",
            "image_id": image_id_of(content),
            "model_mask": (1 << len(models)) - 1,
        }
        for i, (path, content) in enumerate(sorted(contents.items()))
    ]
    record = RunRecord(
        run_id=run_id,
        date=date,
        collection=collection,
        source="/data",
        created_at="2026-01-01T00:00:00+00:00",
        config={},
        models=models,
        num_images=len(rows),
        num_shards=-(-len(rows) // per_shard),
    )
    store.create_run(record, pa.Table.from_pylist(rows, schema=PLAN))
    return record


def image_of(run: RunRecord, row):
    """The image of a row of the plan."""
    height, width = size_of(row["image_id"])
    names = ("path", "source_uri", "size_bytes", "modified", "image_id")
    return ImageRow(
        collection=run.collection,
        width=width,
        height=height,
        **{name: row[name] for name in names},
    )


def write_shard(store: Store, run: RunRecord, index: int) -> ShardWriter:
    """All but the commit."""
    writer = ShardWriter(store, run, index)
    for row in store.shard_rows(run.run_id, index).to_pylist():
        place = {
            "collection": run.collection,
            **{key: row[key] for key in ("path", "source_uri", "size_bytes", "modified")},
        }
        if "broken" in row["path"]:
            writer.add_failure(
                FailureRow(
                    **place, stage="decode", reason="corrupt", message="bad", retryable=False
                )
            )
            continue
        image_id = row["image_id"]
        height, width = size_of(image_id)
        writer.add_catalog(CatalogRow(**place, image_id=image_id, width=width, height=height))
        for spec in run.models:
            writer.add_image(image_of(run, row), spec.key, prediction_of(image_id, spec))
    return writer


def score_shard(store: Store, run: RunRecord, index: int) -> Receipt:
    return write_shard(store, run, index).commit({"wall_s": 2.0})


def score_run(store: Store, run: RunRecord) -> list[Receipt]:
    return [score_shard(store, run, index) for index in range(run.num_shards)]
