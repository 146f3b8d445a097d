import hashlib
import io
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.metrics.results import (
    ClassRow,
    Confusion,
    Curve,
    Evaluation,
    ImageRow,
    Metric,
    ModelEvaluation,
)
from pixelmill.tasks.predictions import Caption, Detections, ImagePrediction, Label, MaskCrop
from pixelmill.tasks.store import (
    PLAN,
    CatalogRow,
    FailureRow,
    RunRecord,
    ShardWriter,
    Store,
    publish,
)
from pixelmill.tasks.store import ImageRow as StoredImage

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>javascript:alert(1)"
COLLECTION = "harbour"
RUN_ID = "20260101T000000-aaaaaa"
HEIGHT, WIDTH = 48, 64


def make_spec(name, task, classes):
    return ModelSpec(
        name=name,
        task=task,
        architecture="some/architecture",
        arguments={},
        weights_path="weights",
        weights_sha256="ab" * 32,
        classes=classes,
        preprocess=PreprocessConfig(canvases=((64, 64),)),
        precision="fp32",
    )


def make_record(specs, num_images):
    return RunRecord(
        run_id=RUN_ID,
        date="2026-01-01",
        collection=COLLECTION,
        source="/photos",
        created_at="2026-01-01T00:00:00+00:00",
        config={},
        models=specs,
        num_images=num_images,
        num_shards=1,
    )


@pytest.fixture(scope="session")
def specs():
    return (
        make_spec("finder", "instance_segmentation", ("car", EVIL, "boat")),
        make_spec("painter", "semantic_segmentation", ("background", "sky", "sea")),
        make_spec("teller", "captioning", ()),
        make_spec("sorter", "classification", ("day", "night")),
    )


def predictions(index):
    """What the four models say of image number `index`: of image 3 the finder says nothing."""
    count = 0 if index == 3 else 3
    mask = np.zeros((10, 12), bool)
    mask[2:8, 3:9] = True
    boxes = np.array([[8, 4, 20, 14], [30, 10, 42, 20], [2, 30, 14, 40]], np.float32)
    found = Detections(
        boxes_xyxy=boxes[:count],
        scores=np.array([0.9, 0.6, 0.1], np.float32)[:count],
        labels=np.array([0, 1, 2], np.int32)[:count],
        masks=tuple(MaskCrop(int(box[1]), int(box[0]), mask) for box in boxes[:count]),
    )
    regions = np.zeros((HEIGHT, WIDTH), np.uint8)
    regions[:16], regions[16:30], regions[-2:] = 1, 2, 255
    return (
        ImagePrediction(detections=found),
        ImagePrediction(semantic=regions),
        ImagePrediction(captions=(Caption(f"a quay {EVIL}", -1.0, 4),)),
        ImagePrediction(labels=(Label(0, 0.8), Label(1, 0.2))),
    )


def write_store(root, specs, paths):
    """A published store of one shard, its images as files; a last path without image fails."""
    store = Store(root / "store", create=True)
    record = make_record(specs, len(paths) + 1)
    store.create_run(record, PLAN.empty_table())
    writer = ShardWriter(store, record, 0)
    for index, path in enumerate(paths):
        shade = np.random.default_rng(index).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        sink = io.BytesIO()
        Image.fromarray(shade).save(sink, "PNG")
        data = sink.getvalue()
        file = root / f"picture{index}.png"
        file.write_bytes(data)
        image_id = hashlib.sha256(data).hexdigest()[:32]
        place = {"collection": COLLECTION, "path": path, "source_uri": str(file)}
        place |= {"size_bytes": len(data), "modified": "1", "image_id": image_id}
        writer.add_catalog(CatalogRow(**place, width=WIDTH, height=HEIGHT))
        for spec, prediction in zip(specs, predictions(index), strict=True):
            writer.add_image(StoredImage(**place, width=WIDTH, height=HEIGHT), spec.key, prediction)
    writer.add_failure(
        FailureRow(
            collection=COLLECTION,
            path="gone.jpg",
            source_uri=str(root / "gone.jpg"),
            stage="read",
            reason="missing_file",
            message=f"no such file {EVIL}",
            retryable=True,
        )
    )
    stats = {"wall_s": 2.0, "decode_s": 0.5, "forward_s": 1.5, "num_decoded": 4}
    stats |= {f"forward_s/{specs[0].key}": 1.5}
    stats |= {f"engine/{specs[0].key}": "openvino bf16"}
    stats |= {f"gate/{specs[0].key}": "boxes within 0.4 px"}
    writer.commit(stats)
    publish(store)
    return store


@pytest.fixture(scope="session")
def paths():
    return (*(f"pier/{index}.png" for index in range(7)), f"pier/{EVIL}.png")


@pytest.fixture(scope="session")
def store(tmp_path_factory, specs, paths):
    return write_store(tmp_path_factory.mktemp("report"), specs, paths)


@pytest.fixture
def bare_store(tmp_path):
    """A store with nothing in it."""
    return Store(tmp_path / "bare", create=True)


@pytest.fixture(scope="session")
def evaluation(specs, paths):
    boxes = ModelEvaluation(
        model_key=specs[0].key,
        task=specs[0].task,
        kind="boxes",
        headline=(Metric("AP", 0.5, f"averaged {EVIL}"),),
        metrics=(Metric("AP", 0.5, f"averaged {EVIL}"), Metric("AP large", float("nan"), "none")),
        per_class=(
            ClassRow("car", 12, 11, {"AP": 0.75, "AP50": 0.875}),
            ClassRow(EVIL, 3, 4, {"AP": 0.25, "AP50": float("nan")}),
        ),
        curves=tuple(
            Curve("precision-recall", name, "recall", "precision", (0.0, 0.5, 1.0), (1.0, 0.9, 0.0))
            for name in ("mean", "car", EVIL)
        ),
        confusion=Confusion(
            rows=("car", EVIL, "background"),
            columns=("car", EVIL, "background"),
            counts=((10, 1, 1), (0, 3, 0), (1, 0, 0)),
            unit="instances",
        ),
        per_image=tuple(
            ImageRow(path, None, {"TP": 1.0, "F1": index / 10}) for index, path in enumerate(paths)
        ),
        num_images=8,
        missing=("far.png",),
        notes=(f"a note {EVIL}",),
    )
    return Evaluation(
        collection=COLLECTION,
        created_at="2026-01-01T01:00:00+00:00",
        models=(boxes,),
        truth={"instances": "/nowhere/instances.json"},
        skipped={specs[1].key: f"no truth {EVIL}"},
    )


class Page(HTMLParser):
    """Every element as (tag, attributes), the text outside scripts and styles, open tags."""

    VOID = frozenset({"meta", "img", "input", "link", "br", "hr"})

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts, self.source = [], [], [], html
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"}.intersection(self.open):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def find(self, tag, css=None):
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and (css is None or css in (attrs.get("class") or "").split())
        ]


@pytest.fixture(scope="session")
def kit():
    """What the tests need by name: they are not a package."""
    return SimpleNamespace(
        EVIL=EVIL,
        COLLECTION=COLLECTION,
        RUN_ID=RUN_ID,
        Page=Page,
        make_spec=make_spec,
        make_record=make_record,
        write_store=write_store,
        predictions=predictions,
    )
