"""Stores full of made-up predictions, as two versions of a model and nights of one would leave."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from pixelmill.configs.schema import BoxPostprocess, PreprocessConfig, TaskName
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.predictions import Caption, Detections, ImagePrediction, Label, MaskCrop
from pixelmill.tasks.store import (
    PLAN,
    CatalogRow,
    FailureRow,
    ImageRow,
    RunRecord,
    ShardWriter,
    Store,
    publish,
)

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
CLASSES = ("car", "boat", "person", "dog")
REGIONS = ("sky", "sea", "sand")
WORDS = ("a", "boat", "car", "on", "the", "water", "road", "near", "people", "red")
HEIGHT, WIDTH = 96, 128
COLLECTION = "harbour"


def make_spec(
    name="finder", task: TaskName = "detection", classes=CLASSES, version=0, threshold=None
):
    return ModelSpec(
        name=name,
        task=task,
        architecture="some/architecture",
        arguments={"version": version},
        weights_path="weights",
        weights_sha256=f"{version:02x}" * 32,
        classes=classes,
        preprocess=PreprocessConfig(canvases=((64, 64),)),
        precision="fp32",
        postprocess=None if threshold is None else BoxPostprocess(score_threshold=threshold),
    )


def scene(index, per_image=6):
    """What is to be found in image `index`: (class, box_xyxy, score) of each thing."""
    rng = np.random.default_rng(index)
    things = []
    for _ in range(per_image):
        width, height = rng.uniform(14, 30, 2)
        left, top = rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height)
        label = int(rng.choice(len(CLASSES), p=(0.4, 0.2, 0.25, 0.15)))
        things.append((label, (left, top, left + width, top + height), float(rng.uniform(0.06, 1))))
    return things


def found_by(index, *, seed=0, noise=0.4, change=None, with_masks=False):
    """A detector's answer: the scene with a little noise, each thing changed by `change`.

    Args:
        index: of the image.
        seed: of the noise, one per version.
        change: (class, box, score) -> the same or None.
    """
    rng = np.random.default_rng((index, seed))
    rows = []
    for label, box, score in scene(index):
        moved = np.array(box) + rng.normal(0, noise, 4)
        thing = (label, moved, float(np.clip(score + rng.normal(0, 0.01), 0.05, 1)))
        thing = thing if change is None else change(*thing)
        if thing is not None:
            rows.append(thing)
    rows.sort(key=lambda row: -row[2])
    boxes = np.array([row[1] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, WIDTH)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, HEIGHT)
    crops = None
    if with_masks:
        corners = [
            (int(np.ceil(x0)), int(np.ceil(y0)), int(x1), int(y1)) for x0, y0, x1, y1 in boxes
        ]
        crops = tuple(
            MaskCrop(y0, x0, np.ones((y1 - y0, x1 - x0), bool)) for x0, y0, x1, y1 in corners
        )
    return ImagePrediction(
        detections=Detections(
            boxes,
            np.array([row[2] for row in rows], np.float32),
            np.array([row[0] for row in rows], np.int32),
            crops,
        )
    )


def regions_of(index, *, seed=0):
    """Three horizontal bands, their borders a pixel apart from version to version."""
    rng = np.random.default_rng(index)
    first, second = sorted(rng.integers(10, HEIGHT - 10, 2))
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[first + seed % 2 :], labels[second:] = 1, 2
    return ImagePrediction(semantic=labels)


def caption_of(index, *, seed=0):
    rng = np.random.default_rng(index)
    words = list(rng.choice(WORDS, 6))
    if np.random.default_rng((index, seed)).random() < 0.1:
        words[0] = "some"
    return ImagePrediction(captions=(Caption(" ".join(words), -1.0, 7),))


def label_of(index, *, seed=0):
    classes = len(CLASSES)
    label = int(np.random.default_rng(index).integers(classes))
    score = 0.6 + 0.01 * (seed % 5)
    others = [k for k in range(classes) if k != label]
    rest = (1 - score) / len(others)
    return ImagePrediction(labels=(Label(label, score), *(Label(k, rest) for k in others)))


def write_night(
    store,
    predict,
    *,
    date="2026-01-01",
    first=0,
    count=40,
    folder=None,
    num_failed=0,
    shade=None,
    names=None,
    stats=None,
):
    """One run of one shard over images first .. first + count, published and ended.

    Args:
        predict: (spec, index -> ImagePrediction) of each model.
        folder: where pictures are written, so that they can be shown; None: images are only named.
        num_failed: images more that could not be read.
        names: of the images; else `pier/<index>.png`.
    """
    specs = tuple(spec for spec, _ in predict)
    number = len(store.runs())
    run_id = f"{date.replace('-', '')}T{number:06d}-{number:06x}"
    record = RunRecord(
        run_id=run_id,
        date=date,
        collection=COLLECTION,
        source="/photos",
        created_at=f"{date}T00:00:00+00:00",
        config={},
        models=specs,
        num_images=count + num_failed,
        num_shards=1,
    )
    store.create_run(record, PLAN.empty_table())
    writer = ShardWriter(store, record, 0)
    for index in range(first, first + count):
        path = names[index - first] if names else f"pier/{index:05d}.png"
        data, uri = f"picture {index}".encode(), f"/photos/{index}.png"
        if folder is not None:
            data = picture(index, shade)
            file = Path(folder) / f"picture{index}.png"
            file.write_bytes(data)
            uri = str(file)
        place = {"collection": COLLECTION, "path": path, "source_uri": uri}
        place |= {"size_bytes": len(data), "modified": "1"}
        place |= {"image_id": hashlib.sha256(data).hexdigest()[:32]}
        writer.add_catalog(CatalogRow(**place, width=WIDTH, height=HEIGHT))
        for spec, answer in predict:
            writer.add_image(ImageRow(**place, width=WIDTH, height=HEIGHT), spec.key, answer(index))
    for index in range(num_failed):
        writer.add_failure(
            FailureRow(
                collection=COLLECTION,
                path=f"pier/broken{date}-{index}.png",
                source_uri=f"/photos/broken{index}.png",
                stage="decode",
                reason="truncated",
                message=f"ends early {EVIL}",
                retryable=False,
            )
        )
    writer.commit({"wall_s": 1.0, "num_decoded": count, **(stats or {})})
    publish(store)
    return record


def picture(index, shade=None):
    """A PNG; `shade` is its mean value."""
    rng = np.random.default_rng(index)
    low = 60 if shade is None else max(0, shade - 40)
    pixels = rng.integers(low, low + 80, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def new_store(folder):
    return Store(Path(folder), create=True)
