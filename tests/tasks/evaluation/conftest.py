"""A store that grows night by night, and its truth, both random."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pixelmill.configs.schema import EvaluationConfig, PreprocessConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.evaluate import evaluate
from pixelmill.tasks.metrics.detection import encode_mask
from pixelmill.tasks.predictions import Detections, ImagePrediction, MaskCrop
from pixelmill.tasks.store import PLAN, CatalogRow, ImageRow, RunRecord, ShardWriter, Store, publish

HEIGHT, WIDTH = 80, 96
CLASSES = ("cat", "dog", "bird")
REGIONS = ("ground", "sky", "cat")


def make_spec(name, task, classes):
    return ModelSpec(
        name=name,
        task=task,
        architecture="fake",
        arguments={},
        weights_path="fake.safetensors",
        weights_sha256="0" * 64,
        classes=classes,
        preprocess=PreprocessConfig(canvases=((64, 64),)),
        precision="fp32",
    )


SEGMENTER = make_spec("segmenter", "instance_segmentation", CLASSES)
WORSE = make_spec("worse", "instance_segmentation", CLASSES)
MAPPER = make_spec("mapper", "semantic_segmentation", REGIONS)


def box_mask(box_xywh):
    x, y, w, h = box_xywh
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


@dataclass
class Nights:
    """Runs into one store against one truth.

    Attributes:
        truth: path -> (boxes xywh, classes, crowds); versions: path -> number of its content.
    """

    store: Store
    base: Path
    rng: np.random.Generator
    truth: dict = field(default_factory=dict)
    versions: dict = field(default_factory=dict)
    number: int = 0

    def boxes(self, count):
        sides = self.rng.integers(4, 50, (count, 2))
        return np.hstack([self.rng.integers(0, 30, (count, 2)), sides])

    def draw_truth(self, path):
        """New truth of an image, of both kinds."""
        count = int(self.rng.integers(0, 6))
        boxes = self.boxes(count)
        classes = self.rng.integers(0, len(CLASSES), count)
        self.truth[path] = boxes, classes, self.rng.random(count) < 0.2
        labels = self.rng.integers(0, 4, (8, 8)).astype(np.uint8)
        labels[labels == 3] = 255
        labels = np.kron(labels, np.ones((HEIGHT // 8, WIDTH // 8), np.uint8))
        file = self.base / "semantic" / f"{path[:-4]}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(file)

    def save_truth(self):
        images, annotations = [], []
        for number, (path, (boxes, classes, crowds)) in enumerate(sorted(self.truth.items())):
            images.append({"id": number, "file_name": path, "width": WIDTH, "height": HEIGHT})
            for box, k, crowd in zip(boxes.tolist(), classes, crowds, strict=True):
                rle = encode_mask(box_mask(box))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": int(k) + 1,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": int(crowd),
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    }
                )
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (self.base / "instances.json").write_text(json.dumps(document))
        (self.base / "classes.json").write_text(json.dumps(REGIONS))

    def predict(self, path):
        """Boxes near the truth, some of another class, some nowhere; a label map."""
        boxes, classes, _ = self.truth.get(path, (np.zeros((0, 4), int), np.zeros(0, int), None))
        near = boxes + self.rng.integers(-3, 4, boxes.shape)
        wrong = self.boxes(int(self.rng.integers(0, 5)))
        found = np.maximum(np.vstack([near, wrong]), [0, 0, 1, 1])
        found[:, 2] = np.minimum(found[:, 2], WIDTH - found[:, 0])
        found[:, 3] = np.minimum(found[:, 3], HEIGHT - found[:, 1])
        labels = np.append(classes, self.rng.integers(0, len(CLASSES), len(wrong)))
        labels[self.rng.random(len(labels)) < 0.15] = 0
        order = self.rng.permutation(len(found))
        found, labels = found[order], labels[order]
        scores = np.sort(self.rng.choice([0.2, 0.4, 0.4, 0.6, 0.9], len(found)))[::-1]
        detections = Detections(
            boxes_xyxy=np.hstack([found[:, :2], found[:, :2] + found[:, 2:]]).astype(np.float32),
            scores=scores.astype(np.float32),
            labels=labels.astype(np.int32),
            masks=tuple(MaskCrop(y, x, np.ones((h, w), bool)) for x, y, w, h in found.tolist()),
        )
        regions = np.kron(self.rng.integers(0, 3, (8, 8)), np.ones((HEIGHT // 8, WIDTH // 8), int))
        return {
            SEGMENTER.key: ImagePrediction(detections=detections),
            MAPPER.key: ImagePrediction(semantic=regions.astype(np.uint8)),
        }

    def score_worse(self, paths):
        """The segmenter's own detections without the first class, as another model's."""
        found = {}
        for path in paths:
            stored = self.store.instances(path, SEGMENTER.key)
            kept = stored.boxes["class_name"] != CLASSES[0]
            rows = stored.boxes[kept]
            detections = Detections(
                boxes_xyxy=rows[["x_min", "y_min", "x_max", "y_max"]].to_numpy(np.float32),
                scores=rows["score"].to_numpy(np.float32),
                labels=rows["class_id"].to_numpy(np.int32),
                masks=tuple(MaskCrop(0, 0, mask) for mask in stored.masks[kept.to_numpy()]),
            )
            found[path] = {WORSE.key: ImagePrediction(detections=detections)}
        self.write(found)

    def image_id(self, path):
        return hashlib.sha256(f"{path}{self.versions[path]}".encode()).hexdigest()[:32]

    def score(self, paths):
        """A run over these images, of a date of its own."""
        self.write({path: self.predict(path) for path in sorted(paths)})

    def write(self, found):
        """Commit and publish path -> model key -> prediction."""
        self.number += 1
        run_id = f"202601{self.number:02d}T000000-aaaaaa"
        record = RunRecord(
            run_id=run_id,
            date=f"2026-01-{self.number:02d}",
            collection="photos",
            source="photos",
            created_at="2026-01-01T00:00:00Z",
            config={},
            models=(SEGMENTER, MAPPER, WORSE),
            num_images=len(found),
            num_shards=1,
        )
        self.store.create_run(record, pa.Table.from_pylist([], schema=PLAN))
        writer = ShardWriter(self.store, record, 0)
        for path, predictions in found.items():
            place = {
                "collection": "photos",
                "path": path,
                "source_uri": f"file:///photos/{path}",
                "size_bytes": 10 + self.versions[path],
                "modified": "1",
                "image_id": self.image_id(path),
                "width": WIDTH,
                "height": HEIGHT,
            }
            writer.add_catalog(CatalogRow(**place))
            for key, prediction in predictions.items():
                writer.add_image(ImageRow(**place), key, prediction)
        writer.commit()
        publish(self.store)

    def add(self, names):
        """New images with truth, scored in one night."""
        for name in names:
            self.versions[name] = 0
            self.draw_truth(name)
        self.save_truth()
        self.score(names)

    def evaluate(self, **changes):
        known = {"instances": "instances.json", "semantic": "semantic", "bootstrap": 0}
        config = EvaluationConfig(**(known | changes))
        return evaluate(self.store, config, base=self.base, collection="photos")


@pytest.fixture
def nights(tmp_path):
    """Function from a seed to an empty store with its truth."""

    def make(seed):
        base = tmp_path / f"truth-{seed}"
        base.mkdir()
        store = Store(tmp_path / f"out-{seed}", create=True)
        return Nights(store, base, np.random.default_rng(seed))

    return make
