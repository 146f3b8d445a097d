"""A model in int8 that is kept, and one that is not; graphs stay in float32 but for one test."""

import numpy as np
import pytest
from PIL import Image

from pixelmill.configs.schema import IngestConfig, RunConfig, SemanticModel
from pixelmill.models.build import resolve_model
from pixelmill.models.engines.quantized import QuantizedFile
from pixelmill.tasks import quantize
from pixelmill.tasks.engine.score import score_shard
from pixelmill.tasks.ingest import KNOWN_COLUMNS, ingest
from pixelmill.tasks.plan import plan_run, save_plan
from pixelmill.tasks.quantize import quantize_model
from pixelmill.tasks.store import Store

pytest.importorskip("openvino")

CANVASES = ((32, 48), (48, 32))
VOC = (
    "<a><object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    "</bndbox></object></a>"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One for all tests: the same network is converted for the same canvases."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(tmp_path, monkeypatch, cache, write_unet):
    """Of a small U-Net with random weights."""
    monkeypatch.setenv("PIXELMILL_CACHE", str(cache))
    write_unet(tmp_path / "unet.safetensors", CANVASES)
    return SemanticModel(name="s", weights="unet.safetensors")


@pytest.fixture
def images(tmp_path):
    """Six images, all landscape."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(6):
        pixels = rng.integers(256, size=(30 + index, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("deep" if index % 2 else ".") / f"{index}.png")
    return folder


@pytest.fixture
def truth(tmp_path, images):
    """Label maps of half the images."""
    (tmp_path / "truth" / "deep").mkdir(parents=True)
    for path in (images / "deep").iterdir():
        with Image.open(path) as image:
            labels = np.indices(image.size[::-1]).sum(0) // 8 % 3
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "truth" / "deep" / path.name)
    return tmp_path / "truth"


@pytest.fixture
def as_it_is(monkeypatch):
    """NNCF that changes nothing; gives what each graph would be calibrated on."""
    seen = []

    def keep(graph, samples, load):
        seen.append([load(sample).shape for sample in samples])
        return graph

    monkeypatch.setattr(quantize, "quantize_graph", keep)
    return seen


def test_the_file_names_its_figures_and_scores_under_its_own_key(
    config, images, tmp_path, as_it_is
):
    report = quantize_model(config, tmp_path, images, tmp_path / "int8.safetensors")
    assert (report.num_calibration, report.num_held_out) == (3, 3)
    assert report.int8["labels_equal"] > 0.99
    assert report.loss < 0.01
    kept = QuantizedFile(tmp_path / "int8.safetensors")
    assert kept.canvases == CANVASES
    assert kept.report["int8"] == report.int8
    changes = {"engine": "openvino", "precision": "int8", "quantized": "int8.safetensors"}
    spec = resolve_model(config.model_copy(update=changes), tmp_path, device="cpu")
    assert spec.precision == "int8", spec.engine_note


def test_a_canvas_that_no_image_chooses_is_calibrated_on_all(config, images, tmp_path, as_it_is):
    quantize_model(config, tmp_path, images, tmp_path / "int8.safetensors")
    assert as_it_is == [[(1, *canvas, 3)] * 3 for canvas in CANVASES]


def test_images_with_truth_are_judged_by_it(config, images, truth, tmp_path, as_it_is):
    report = quantize_model(
        config, tmp_path, images, tmp_path / "int8.safetensors", truth=truth, num_images=4
    )
    assert (report.num_calibration, report.num_held_out) == (3, 3)
    assert report.int8["mIoU"] == pytest.approx(report.fp32["mIoU"], abs=1e-3)
    assert report.loss == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("with_truth", [False, True])
def test_what_loses_too_much_is_not_written_unless_it_is_allowed(
    config, images, truth, tmp_path, as_it_is, monkeypatch, with_truth
):
    def lose(*_):
        return ({"mIoU": 0.5}, {"mIoU": 0.48}) if with_truth else ({}, {"labels_equal": 0.88})

    monkeypatch.setattr(quantize, "_judge", lose)
    out = tmp_path / "int8.safetensors"
    given = truth if with_truth else None
    with pytest.raises(ValueError, match=r"int8 loses \d+.00%, more than .* nothing was written"):
        quantize_model(config, tmp_path, images, out, truth=given)
    assert not out.exists()
    report = quantize_model(config, tmp_path, images, out, truth=given, max_loss=0.2)
    assert report.loss == pytest.approx(0.04 if with_truth else 0.12)
    assert out.exists()


def test_too_few_images_are_refused(config, tmp_path, images):
    for path in sorted(images.rglob("*.png"))[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="expected images to calibrate on and others to judge by"):
        quantize_model(config, tmp_path, images, tmp_path / "int8.safetensors")


def test_an_image_that_cannot_be_decoded_is_named(config, tmp_path, images):
    for path in images.rglob("*.png"):
        path.write_bytes(b"none")
    with pytest.raises(ValueError, match=r"\.png' cannot be decoded, take it out"):
        quantize_model(config, tmp_path, images, tmp_path / "int8.safetensors")


def test_nncf_gives_a_model_that_answers_much_as_float32_does_and_scores(config, images, tmp_path):
    pytest.importorskip("nncf")
    report = quantize_model(config, tmp_path, images, tmp_path / "int8.safetensors", max_loss=0.3)
    assert report.int8["labels_equal"] > 0.7
    changes = {"engine": "openvino", "precision": "int8", "quantized": "int8.safetensors"}
    spec = resolve_model(config.model_copy(update=changes), tmp_path, device="cpu")
    store = Store(tmp_path / "out", create=True)
    listing = ingest(str(images), IngestConfig(), store.table("catalog", columns=KNOWN_COLUMNS))
    plan = plan_run(
        store,
        listing,
        [spec],
        RunConfig(name="int8", models=(config,)),
        collection="noise",
        source=str(images),
        date="2026-01-31",
    )
    outcome = score_shard(store.root, save_plan(store, plan).run_id, 0, device="cpu")
    assert dict(outcome.num_scored) == {spec.key: 6}
    assert outcome.stats[f"engine/{spec.key}"] == "openvino int8"
    assert "labels_equal" in str(outcome.stats[f"gate/{spec.key}"])
    graph = QuantizedFile(tmp_path / "int8.safetensors").graph(CANVASES[1])
    assert "FakeQuantize" in {operation.get_type_name() for operation in graph.get_ops()}


@pytest.mark.parametrize(
    ("task", "files", "judged"),
    [
        ("detection", {"0.txt": "0 0.5 0.5 0.5 0.5", "deep/1.txt": ""}, {"0.png", "deep/1.png"}),
        (
            "instance_segmentation",
            {"2.txt": "0 0 0 0.5 0 0.5 0.5", "deep/3.txt": "0 0 0 1 0 1 1"},
            {"2.png", "deep/3.png"},
        ),
        ("detection", {"4.xml": "<a></a>", "deep/1.xml": VOC}, {"4.png", "deep/1.png"}),
        ("classification", {"labels.csv": "file_name,label\n0.png,a\n4.png,b"}, {"0.png", "4.png"}),
    ],
    ids=["YOLO", "YOLO polygons", "VOC", "classes"],
)
def test_truth_of_every_format_says_which_images_to_judge_by(
    config, images, tmp_path, monkeypatch, task, files, judged
):
    for name, text in files.items():
        place = tmp_path / "labels" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    spec = resolve_model(config, tmp_path, device="cpu")
    spec = spec.model_copy(update={"task": task})
    seen = {}

    def judge(*given):
        seen["images"], seen["source"] = set(given[3]), given[4]
        return {"box AP": 0.5, "top-1": 0.5}, {"box AP": 0.5, "top-1": 0.5}

    monkeypatch.setattr(quantize, "_resolve", lambda *_: spec)
    monkeypatch.setattr(quantize, "_quantize", lambda *_: {})
    monkeypatch.setattr(quantize, "save_quantized", lambda *_: None)
    monkeypatch.setattr(quantize, "_judge", judge)
    truth = tmp_path / "labels" / "labels.csv" if task == "classification" else tmp_path / "labels"
    report = quantize_model(config, tmp_path, images, tmp_path / "i.safetensors", truth=truth)
    assert seen["images"] == judged
    assert seen["source"].truth == truth
    assert report.loss == 0
