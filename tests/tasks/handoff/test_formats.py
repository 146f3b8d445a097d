import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import yaml
from pycocotools import mask as codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pixelmill.tasks.box_files import FolderSizes, load_voc, load_yolo
from pixelmill.tasks.handoff.formats import FORMATS, export_scenes
from pixelmill.tasks.handoff.scenes import (
    Scene,
    Thing,
    choose_model,
    parse_condition,
    read_scenes,
)
from pixelmill.tasks.metrics.detection import decode_mask
from pixelmill.tasks.truth import load_captions, load_coco_instances

COUNT = 6


@pytest.fixture(scope="module")
def store(predicted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("handoff")
    store = predicted.new_store(folder / "store")
    pictures = folder / "pictures"
    pictures.mkdir()
    models = [
        (predicted.make_spec("boxer"), predicted.found_by),
        (
            predicted.make_spec("masker", "instance_segmentation"),
            lambda i: predicted.found_by(i, with_masks=True),
        ),
        (
            predicted.make_spec("painter", "semantic_segmentation", predicted.REGIONS),
            predicted.regions_of,
        ),
        (predicted.make_spec("teller", "captioning", ()), predicted.caption_of),
        (predicted.make_spec("sorter", "classification"), predicted.label_of),
    ]
    names = [f"pier/{index:02d}.png" for index in range(COUNT)]
    predicted.write_night(store, models, count=COUNT, folder=pictures, names=names)
    return store


@pytest.fixture
def images(store, tmp_path):
    """The images by their names in the store, where VOC and YOLO readers look for them."""
    folder = tmp_path / "images"
    for row in store.images(choose_model(store, "boxer").key).itertuples():
        place = folder / row.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(row.source_uri)
    return folder


@pytest.fixture
def export(store, tmp_path):
    def export(model, format, *, min_score=0.0, where=(), **options):
        spec = choose_model(store, model)
        conditions = [parse_condition(text) for text in where]
        scenes = list(read_scenes(store, spec, min_score=min_score, where=conditions))
        out = tmp_path / f"{model}-{format}"
        return scenes, out, export_scenes(iter(scenes), spec, format, out, **options)

    return export


@pytest.mark.parametrize("model", ["boxer", "masker", "painter"])
def test_coco_is_read_as_truth_and_as_results(export, model, capsys):
    scenes, out, done = export(model, "coco")
    truth = load_coco_instances(out / "instances.json")
    assert len(truth.images) == done.num_images == COUNT
    assert len(truth.annotations) == done.num_things == sum(len(s.things) for s in scenes)
    assert truth.has_masks == (model != "boxer")
    first = scenes[0].things[0]
    left, top, width, height = truth.annotations[0]["bbox"]
    assert (left, top, left + width, top + height) == pytest.approx(first.box_xyxy, abs=0.002)
    export(model, "coco-results")
    folder = out.parent / f"{model}-coco-results"
    reference = COCO(str(out / "instances.json"))
    results = reference.loadRes(str(folder / "results.json"))
    evaluator = COCOeval(reference, results, "bbox" if model == "boxer" else "segm")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert evaluator.stats[0] == pytest.approx(1)
    assert len(COCO(str(folder / "images.json")).imgs) == COUNT
    capsys.readouterr()


def test_coco_results_take_over_the_truths_ids(export, tmp_path):
    truth = {
        "images": [{"id": 71, "file_name": "pier/03.png", "width": 128, "height": 96}],
        "categories": [{"id": 9, "name": "boat"}, {"id": 4, "name": "car"}],
        "annotations": [],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    _, out, done = export("boxer", "coco-results", truth=path)
    results = json.loads((out / "results.json").read_text())
    assert {entry["image_id"] for entry in results} == {71}
    assert {entry["category_id"] for entry in results} <= {4, 9}
    assert done.skipped["images that the truth has not"] == COUNT - 1
    assert not (out / "images.json").exists()


def test_masks_are_the_stores_masks(export, store):
    scenes, _, _ = export("masker", "coco")
    for scene in scenes:
        masks = store.instances(scene.image_id, choose_model(store, "masker").key).masks
        for thing, mask in zip(scene.things, masks, strict=True):
            assert (decode_mask(thing.mask) == mask).all()


def test_captions_and_labels(export):
    scenes, out, _ = export("teller", "coco")
    truth = load_captions(out / "captions.json")
    assert dict(zip(truth.file_names, truth.captions, strict=True)) == {
        scene.path: scene.captions for scene in scenes
    }
    _, out, _ = export("teller", "coco-results")
    assert len(json.loads((out / "results.json").read_text())) == COUNT
    scenes, out, _ = export("sorter", "fiftyone")
    labels = json.loads((out / "labels.json").read_text())
    assert labels["labels"][scenes[0].image_id]["label"] == scenes[0].labels[0][0]
    scenes, out, _ = export("sorter", "cvat")
    tags = ET.parse(out / "annotations.xml").getroot().findall("image/tag")
    assert [tag.get("label") for tag in tags] == [scene.labels[0][0] for scene in scenes]


def test_yolo_boxes_come_back(export, images):
    scenes, out, _ = export("boxer", "yolo")
    truth = load_yolo(out / "labels", FolderSizes(images))
    assert yaml.safe_load((out / "data.yaml").read_text())["names"][1] == "boat"
    boxes = [
        thing.box_xyxy for scene in sorted(scenes, key=lambda s: s.path) for thing in scene.things
    ]
    read = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in truth.annotations)]
    assert np.allclose(sorted(read), sorted(boxes), atol=1e-3)
    assert len(truth.annotations) == len(boxes)


def test_yolo_polygons_come_back(export, images):
    scenes, out, _ = export("masker", "yolo")
    truth = load_yolo(out / "labels", FolderSizes(images))
    areas = sorted(float(codec.area(t.mask)) for s in scenes for t in s.things)
    assert np.allclose(sorted(a["area"] for a in truth.annotations), areas, rtol=0.1)


def test_voc_comes_back_to_the_pixel(export, images):
    scenes, out, _ = export("boxer", "voc")
    truth = load_voc(out / "Annotations", FolderSizes(images))
    in_order = sorted(scenes, key=lambda scene: scene.path)
    boxes = [thing.box_xyxy for scene in in_order for thing in scene.things]
    read = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in truth.annotations)]
    assert len(read) == len(boxes)
    assert np.abs(np.array(read) - np.array(boxes)).max() <= 1


def test_cvat_masks_decode_to_the_masks(export):
    scenes, out, _ = export("masker", "cvat")
    root = ET.parse(out / "annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert [label["name"] for label in json.loads((out / "labels.json").read_text())] == [
        name.text for name in root.findall("meta/task/labels/label/name")
    ]
    for scene, image in zip(scenes, root.findall("image"), strict=True):
        assert image.get("name") == scene.path
        assert int(image.attrib["width"]) == scene.width
        shapes = image.findall("mask")
        for thing, shape in zip(reversed(scene.things), shapes, strict=True):
            width, height = int(shape.attrib["width"]), int(shape.attrib["height"])
            counts = [int(count) for count in shape.attrib["rle"].split(", ")]
            flat = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
            pixels = np.zeros((scene.height, scene.width), bool)
            top, left = int(shape.attrib["top"]), int(shape.attrib["left"])
            pixels[top : top + height, left : left + width] = flat.reshape(height, width)
            assert (pixels == decode_mask(thing.mask)).all()


def test_label_studio_places_are_percent(export):
    scenes, out, _ = export("boxer", "label-studio", min_score=0.5)
    tasks = json.loads((out / "tasks.json").read_text())
    config = ET.parse(out / "config.xml").getroot()
    assert [label.get("value") for label in config.iter("Label")] == [
        "car",
        "boat",
        "person",
        "dog",
    ]
    assert len(tasks) == COUNT
    for scene, task in zip(scenes, tasks, strict=True):
        assert task["data"]["image"].startswith("/data/local-files/?d=")
        (prediction,) = task["predictions"]
        for thing, result in zip(scene.things, prediction["result"], strict=True):
            assert result["type"] == "rectanglelabels"
            assert result["score"] >= 0.5
            value = result["value"]
            assert value["x"] * result["original_width"] / 100 == pytest.approx(
                thing.box_xyxy[0], abs=0.01
            )
            assert 0 <= value["x"] <= value["x"] + value["width"] <= 100.001
    _, out, _ = export("masker", "label-studio")
    kinds = {r["type"] for t in json.loads((out / "tasks.json").read_text())
             for r in t["predictions"][0]["result"]}  # fmt: skip
    assert kinds == {"polygonlabels"}


def test_fiftyone_boxes_are_shares(export):
    scenes, out, _ = export("boxer", "fiftyone")
    labels = json.loads((out / "labels.json").read_text())
    places = json.loads((out / "data.json").read_text())
    assert set(labels["labels"]) == set(places) == {scene.image_id for scene in scenes}
    box = labels["labels"][scenes[0].image_id][0]["bounding_box"]
    assert box[0] * scenes[0].width == pytest.approx(scenes[0].things[0].box_xyxy[0], abs=1e-3)


def test_only_some_images(export):
    assert len(export("boxer", "coco", where=("path~pier/0[12].png",))[0]) == 2
    assert len(export("boxer", "coco", where=("width>=129",))[0]) == 0
    assert len(export("boxer", "coco", where=("date=2026-01-01", "status=ok"))[0]) == COUNT


@pytest.mark.parametrize("text", ["nothing", "shape=3", "width>=wide", "path"])
def test_a_condition_that_is_none_says_what_one_is(text):
    with pytest.raises(ValueError, match=r"COLUMN|whole number"):
        parse_condition(text)


def test_what_a_format_cannot_hold_is_told(export):
    with pytest.raises(ValueError, match=r"voc cannot hold captioning; these can: coco"):
        export("teller", "voc")
    with pytest.raises(ValueError, match="ids of a truth file"):
        export("boxer", "coco", truth="truth.json")


def scene(path, **changes):
    thing = Thing(0, "car", 0.5, (1.0, 2.0, 11.0, 12.0))
    return Scene("ab" * 16, path, f"/photos/{path}", 20, 20, (thing,), **changes)


def test_names_that_would_be_one_file_are_refused(predicted, tmp_path):
    for format in ("yolo", "voc"):
        with pytest.raises(ValueError, match="would both be"):
            export_scenes(
                [scene("a/1.jpg"), scene("a/1.png")], predicted.make_spec(), format, tmp_path
            )


@pytest.mark.parametrize("path", ["../../outside.png", "/etc/passwd.png", "a/../../b.png"])
@pytest.mark.parametrize("format", ["yolo", "voc"])
def test_no_file_is_written_outside(predicted, tmp_path, format, path):
    out = tmp_path / "deep" / "out"
    with pytest.raises(ValueError, match=r"leads out|absolute"):
        export_scenes([scene(path)], predicted.make_spec(), format, out)
    assert not list(tmp_path.glob("*.txt"))


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("yolo",)])
def test_hostile_names_stay_text(predicted, tmp_path, format):
    evil = predicted.EVIL + "\x1b[2J\x00"
    spec = predicted.make_spec(classes=(evil,))
    thing = Thing(0, evil, 0.5, (1.0, 2.0, 11.0, 12.0))
    path = "bad name\x1b.png" if format == "voc" else f"{evil}.png"
    one = Scene("ab" * 16, path, "/photos/x", 20, 20, (thing,))
    done = export_scenes([one], spec, format, tmp_path)
    for file in tmp_path.rglob("*.*"):
        if file.suffix == ".xml":
            assert evil.replace("\x1b", "\\x1b").replace("\x00", "\\x00") in "".join(
                [*ET.parse(file).getroot().itertext(),
                 *(value for e in ET.parse(file).getroot().iter() for value in e.attrib.values())]
            )  # fmt: skip
        elif file.suffix == ".json":
            json.loads(file.read_text())
    assert done.num_things == 1
