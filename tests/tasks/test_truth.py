import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_codec

from pixelmill.tasks.metrics.detection import encode_mask
from pixelmill.tasks.truth import (
    load_captions,
    load_coco_instances,
    load_labels,
    load_semantic,
    match_images,
    read_label_map,
)

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 20, "height": 10}
CATEGORY = {"id": 7, "name": "cat"}
BOX = {"id": 0, "image_id": 1, "category_id": 7, "bbox": [1, 2, 4, 3]}


@pytest.fixture
def write(tmp_path):
    def write_document(document):
        path = tmp_path / "truth.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write_document


def coco(annotations=(), images=(IMAGE,), categories=(CATEGORY,)):
    return {
        "images": list(images),
        "annotations": list(annotations),
        "categories": list(categories),
    }


def test_boxes_are_read_and_the_area_is_computed(write):
    truth = load_coco_instances(write(coco([BOX])))
    assert truth.annotations == (
        {
            "image_id": 1,
            "category_id": 7,
            "iscrowd": 0,
            "bbox": [1.0, 2.0, 4.0, 3.0],
            "area": 12.0,
        },
    )
    assert not truth.has_masks


def test_polygons_and_both_kinds_of_rle_are_read(write):
    mask = np.zeros((10, 20), dtype=bool)
    mask[2:5, 1:5] = True
    compressed = encode_mask(mask)
    compressed["counts"] = compressed["counts"].decode()
    uncompressed = {"size": [10, 20], "counts": [12, 3, 7, 3, 7, 3, 7, 3, 155]}
    polygon = [[1, 2, 5, 2, 5, 5, 1, 5]]
    truth = load_coco_instances(
        write(coco([{**BOX, "segmentation": one} for one in (polygon, uncompressed, compressed)]))
    )
    assert truth.has_masks
    for annotation in truth.annotations:
        expected: Any = [encode_mask(mask)]
        assert mask_codec.iou([annotation["segmentation"]], expected, [0]) == 1
        assert annotation["area"] == 12


def test_a_missing_box_comes_from_the_mask_and_crowds_are_kept(write):
    annotation = {
        "image_id": 1, "category_id": 7, "iscrowd": 1, "area": 5.5,
        "segmentation": [[1, 2, 5, 2, 5, 5, 1, 5]],
    }  # fmt: skip
    (found,) = load_coco_instances(write(coco([annotation]))).annotations
    assert (found["bbox"], found["iscrowd"], found["area"]) == ([1.0, 2.0, 4.0, 3.0], 1, 5.5)


def test_truth_where_only_some_have_masks_has_none(write):
    annotations = [BOX, {**BOX, "segmentation": [[1, 2, 5, 2, 5, 5]]}]
    assert not load_coco_instances(write(coco(annotations))).has_masks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 2}, "image_id 2 is not in images"),
        ({"category_id": 2}, "category_id 2 is not in categories"),
        ({"bbox": [1, 2, -4, 3]}, "negative width or height.*not two corners"),
        ({"bbox": [1, 2, 4]}, "four numbers"),
        ({"bbox": [1, 2, float("nan"), 3]}, "finite"),
        ({"area": -1}, "area must be finite"),
        ({"segmentation": [[1, 2, 3]]}, "polygon"),
        ({"segmentation": {"counts": "x"}}, "polygons or an RLE"),
        ({"segmentation": {"size": [20, 10], "counts": [200]}}, "image's .height, width."),
        ({"segmentation": {"size": [10, 20], "counts": [3]}}, "counts add up to 3"),
    ],
)
def test_faulty_annotations_are_named_with_the_remedy(write, change, message):
    with pytest.raises(ValueError, match=rf"(?s)annotations\[0\] \(id 0\).*{message}"):
        load_coco_instances(write(coco([{**BOX, **change}])))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON"),
        ([], "a results file"),
        ({"images": []}, "no list named annotations"),
        (coco(images=[]), "images is empty"),
        (coco(categories=[]), "categories is empty"),
        (coco(images=[IMAGE, IMAGE]), "id 1 is used twice"),
        (coco(images=[IMAGE, {**IMAGE, "id": 2}]), "'a.jpg' is used twice"),
        (coco(images=[{**IMAGE, "width": 0}]), "width and height must be > 0"),
        (coco(images=[{"id": 1}]), "needs an integer id and a file_name"),
        (coco(categories=[CATEGORY, {"id": 8, "name": "cat"}]), "'cat' is used twice"),
    ],
)
def test_faulty_files_are_refused(write, document, message):
    with pytest.raises(ValueError, match=message):
        load_coco_instances(write(document))


def test_every_fault_is_reported_at_once(write):
    faulty = [{**BOX, "image_id": 5}, {**BOX, "bbox": None}]
    with pytest.raises(ValueError, match=r"(?s)has 2 faults.*image_id 5.*four numbers"):
        load_coco_instances(write(coco(faulty)))


def test_real_truth_loads(data):
    truth = load_coco_instances(data / "coco_small" / "instances.json")
    assert len(truth.images) == 181
    assert truth.has_masks
    captions = load_captions(data / "coco_small" / "captions.json")
    assert len(captions.file_names) == 181
    semantic = load_semantic(data / "camvid" / "labels")
    assert semantic.classes is not None
    assert semantic.classes[0] == "Sky"


def test_captions_are_grouped_by_image(write):
    document = {
        "images": [IMAGE, {"id": 2, "file_name": "b.jpg"}, {"id": 3, "file_name": "bare.jpg"}],
        "annotations": [
            {"image_id": 2, "caption": "two"},
            {"image_id": 1, "caption": "one"},
            {"image_id": 2, "caption": "three"},
        ],
    }
    truth = load_captions(write(document))
    assert truth.file_names == ("a.jpg", "b.jpg")
    assert truth.captions == (("one",), ("two", "three"))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 9, "caption": "x"}, "image_id 9 is not in images"),
        ({"image_id": 1, "caption": " "}, "caption must be text"),
        ({"image_id": 1}, "caption must be text"),
    ],
)
def test_faulty_captions_are_refused(write, annotation, message):
    with pytest.raises(ValueError, match=message):
        load_captions(write({"images": [IMAGE], "annotations": [annotation]}))


def test_captions_need_annotations(write):
    with pytest.raises(ValueError, match="annotations is empty"):
        load_captions(write({"images": [IMAGE], "annotations": []}))


def test_label_maps_are_found_by_stem_with_their_classes(tmp_path):
    folder = tmp_path / "labels"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(folder / name)
    assert load_semantic(folder).classes is None
    (tmp_path / "classes.json").write_text('{"0": "road", "255": "void"}')
    truth = load_semantic(folder)
    assert sorted(truth.maps) == ["a", "sub/b"]
    assert truth.classes == {0: "road", 255: "void"}
    (folder / "classes.json").write_text('["sky", "road"]')
    assert load_semantic(folder).classes == {0: "sky", 1: "road"}


def test_faulty_label_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        load_semantic(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"no \*\.png"):
        load_semantic(tmp_path)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "classes.json").write_text('{"road": 1}')
    with pytest.raises(ValueError, match="expected"):
        load_semantic(tmp_path)


@pytest.mark.parametrize("kind", ["palette", "grey", "bilevel", "grey 16 bit"])
def test_label_values_are_palette_indices_or_grey_values(tmp_path, kind):
    labels = np.array([[0, 1, 1], [1, 0, 1]], dtype=np.uint8)
    image = Image.fromarray(labels)
    expected = labels
    if kind == "palette":
        image = Image.fromarray(labels, mode=None)
        image.putpalette([10, 20, 30, 200, 100, 50])
    elif kind == "bilevel":
        image = Image.fromarray(labels.astype(bool))
    elif kind == "grey 16 bit":
        expected = labels.astype(np.uint16) * 1000
        image = Image.fromarray(expected)
    image.save(tmp_path / "map.png")
    assert read_label_map(tmp_path / "map.png").tolist() == expected.tolist()


def test_coloured_label_maps_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "map.png")
    with pytest.raises(ValueError, match="convert colours"):
        read_label_map(tmp_path / "map.png")


def test_labels_are_read_from_csv(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("\ufefffile_name,label\na.jpg,cat\nb.jpg,dog\na.jpg,cat\n", encoding="utf-8")
    truth = load_labels(path)
    assert truth.labels == {"a.jpg": "cat", "b.jpg": "dog"}
    assert truth.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "no column file_name"),
        ("file_name,label\n", "no rows"),
        ("file_name,label\na.jpg\n", "line 2: file_name and label must not be empty"),
        ("file_name,label\na.jpg,cat\na.jpg,dog\n", "line 3: 'a.jpg' is 'dog' here and 'cat'"),
    ],
)
def test_faulty_csv_is_refused(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_labels(path)


def test_images_match_by_path_before_name():
    catalog = ["train/a.jpg", "a.jpg", "sub/b.jpg"]
    matches = match_images(["a.jpg", "images/b.jpg", "gone.jpg"], catalog)
    assert matches.paths == {"a.jpg": "a.jpg", "images/b.jpg": "sub/b.jpg"}
    assert matches.missing == ("gone.jpg",)


def test_ambiguous_names_are_missing():
    assert match_images(["x/a.jpg"], ["p/a.jpg", "q/a.jpg"]).missing == ("x/a.jpg",)
    assert match_images(["x/a.jpg", "y/a.jpg"], ["p/a.jpg"]).missing == ("x/a.jpg", "y/a.jpg")


def test_label_maps_match_without_suffix():
    catalog = ["sub/a.jpg", "b.c.png", "d.jpg", "d.png"]
    matches = match_images(["sub/a", "b.c", "d"], catalog, ignore_suffix=True)
    assert matches.paths == {"sub/a": "sub/a.jpg", "b.c": "b.c.png"}
    assert matches.missing == ("d",)
