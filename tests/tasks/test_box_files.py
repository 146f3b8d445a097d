import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelmill.tasks.box_files import FolderSizes, load_boxes
from pixelmill.tasks.truth import load_coco_instances

# pycocotools 2.0.11 decodes run lengths with what NumPy 2 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def folder(tmp_path):
    """Two images of 40 x 20, one in a subfolder."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "truth" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.jpg"):
        Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / "images" / name)
    return tmp_path


def load(folder, classes=None):
    return load_boxes(folder / "truth", FolderSizes(folder / "images"), classes)


def by_image(truth):
    names = {image.id: image.file_name for image in truth.images}
    classes = {category.id: category.name for category in truth.categories}
    found = {name: [] for name in names.values()}
    for note in truth.annotations:
        entry = (classes[note["category_id"]], note["bbox"], note["iscrowd"])
        found[names[note["image_id"]]].append(entry)
    return found


def voc(*objects):
    def one(name, corners, difficult):
        keys = ("xmin", "ymin", "xmax", "ymax")
        box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
        return (
            f"<object><name>{name}</name><difficult>{difficult}</difficult>"
            f"<bndbox>{box}</bndbox></object>"
        )

    return f"<annotation>{''.join(one(*each) for each in objects)}</annotation>"


def test_voc_corners_count_from_one_and_difficult_objects_are_crowds(folder):
    (folder / "truth" / "a.xml").write_text(
        voc(("dog", (1, 1, 40, 20), 0), ("cat", (11, 5, 20, 8), 1))
    )
    (folder / "truth" / "sub" / "b.xml").write_text(voc())
    truth = load(folder)
    assert [category.name for category in truth.categories] == ["cat", "dog"]
    assert by_image(truth) == {
        "a.png": [("dog", [0, 0, 40, 20], 0), ("cat", [10, 4, 10, 4], 1)],
        "sub/b.jpg": [],
    }
    assert (truth.images[0].width, truth.images[0].height) == (40, 20)
    assert not truth.has_masks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "not XML"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>', "remove the DOCTYPE"),
        (voc(("", (1, 1, 2, 2), 0)), "no name"),
        (voc(("dog", (5, 1, 4, 2), 0)), "no inside"),
        (voc(("dog", (1, 1, 50, 2), 0)), "leaves the image of 40 x 20"),
        (voc(("dog", ("x", 1, 4, 2), 0)), "must have the numbers"),
    ],
)
def test_faults_of_voc_files_are_named(folder, text, message):
    (folder / "truth" / "a.xml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_yolo_boxes_and_polygons_are_shares_of_the_image(folder):
    (folder / "truth" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n\n0 0 0 0.5 0 0.5 1 0 1\n")
    (folder / "truth" / "sub" / "b.txt").write_text("")
    truth = load(folder, ("cat", "dog"))
    assert by_image(truth) == {
        "a.png": [("dog", [15, 5, 10, 10], 0), ("cat", [0, 0, 20, 20], 0)],
        "sub/b.jpg": [],
    }
    assert truth.annotations[1]["area"] == 400
    assert not truth.has_masks
    (folder / "truth" / "a.txt").write_text("0 0 0 0.5 0 0.5 1 0 1\n")
    assert load(folder, ("cat", "dog")).has_masks


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("truth/classes.txt", "cat\ndog\n"),
        ("data.yaml", "names: {0: cat, 1: dog}\n"),
        ("data.yaml", "names: [cat, dog]\n"),
    ],
    ids=["classes", "numbered", "listed"],
)
def test_yolo_classes_are_named_in_a_file_beside_the_labels(folder, name, text):
    (folder / "truth" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (folder / name).write_text(text)
    assert by_image(load(folder))["a.png"][0][0] == "dog"


def test_yolo_classes_may_be_named_above_the_labels_of_a_part(folder):
    (folder / "truth" / "sub" / "b.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (folder / "data.yaml").write_text("names: [cat, dog]\n")
    truth = load_boxes(folder / "truth" / "sub", FolderSizes(folder / "images"))
    assert by_image(truth)["sub/b.jpg"][0][0] == "dog"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2 has no name"),
        ("0 0.5 0.5 0.1", "expected 4 numbers"),
        ("0 30 10 4 4", r"shares of the image in \[0, 1\]"),
        ("0 0.5 0.5 nan 0.1", "shares of the image"),
        ("cat 0.5 0.5 0.1 0.1", "class number"),
        ("0 0.5 0.5 0 0.1", "no inside"),
    ],
)
def test_faults_of_yolo_lines_are_named(folder, line, message):
    (folder / "truth" / "a.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(ValueError, match=f"line 2: .*{message}"):
        load(folder, ("cat", "dog"))


def test_labels_without_names_or_images_are_faults(folder):
    (folder / "truth" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(ValueError, match=r"name them in classes\.txt .*data\.yaml"):
        load(folder)
    (folder / "truth" / "z.txt").write_text("")
    with pytest.raises(ValueError, match=r"z\.txt: no image z\.\*"):
        load(folder, ("cat",))


def test_labels_in_another_folder_belong_to_the_only_image_of_their_name(folder):
    (folder / "truth" / "sub" / "a.xml").write_text(voc(("dog", (1, 1, 40, 20), 0)))
    assert by_image(load(folder)) == {"a.png": [("dog", [0, 0, 40, 20], 0)]}
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(folder / "images" / "a.jpg")
    with pytest.raises(ValueError, match=r"sub/a\.xml: no image sub/a\.\*, or several"):
        load(folder)


def test_labels_of_images_that_nobody_knows_are_kept_where_a_size_is_given(folder):
    (folder / "truth" / "sub" / "c.xml").write_text(voc(("dog", (1, 1, 400, 200), 0)))
    truth = load_boxes(folder / "truth", {}, unknown=(20, 40))
    # Nothing says that its image is so small
    assert by_image(truth) == {"sub/c.xml": [("dog", [0, 0, 400, 200], 0)]}


def test_a_damaged_image_is_a_fault_of_its_label(folder):
    (folder / "truth" / "a.xml").write_text(voc(("dog", (1, 1, 40, 20), 0)))
    (folder / "images" / "a.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"a\.xml: image a\.png: "):
        load(folder)


def test_labels_do_not_lead_out_of_their_folder(folder):
    (folder / "secret.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (folder / "truth" / "a.txt").symlink_to(folder / "secret.txt")
    with pytest.raises(ValueError, match="link out of"):
        load(folder, ("cat",))


def test_a_folder_of_something_else_is_refused(folder):
    with pytest.raises(ValueError, match=r"COCO JSON file, or a folder of Pascal VOC"):
        load(folder)
    (folder / "truth.json").write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(ValueError, match="nothing to evaluate against"):
        load_boxes(folder / "truth.json", {})


@pytest.mark.skipif(not SHARED.exists(), reason="no real data beside the repository")
def test_voc_files_of_bccd_say_what_its_coco_file_says():
    truth = load_boxes(SHARED / "bccd" / "voc", FolderSizes(SHARED / "bccd" / "images"))
    expected = load_coco_instances(SHARED / "bccd" / "instances.json")

    # the COCO file leaves out two boxes of a single pixel
    def boxes(truth):
        return {
            name: sorted(
                (label, *map(float, box)) for label, box, _ in entries if box[2:] != [1, 1]
            )
            for name, entries in by_image(truth).items()
        }

    assert boxes(truth) == boxes(expected)
