"""No truth file, list or link of others leads out of its folder."""

import json

import pytest

from pixelmill.configs.schema import EvaluationConfig, TrainConfig
from pixelmill.tasks.datasets import load_dataset, split_names
from pixelmill.tasks.evaluate import evaluate
from pixelmill.tasks.names import name_fault, place_inside
from pixelmill.tasks.truth import load_captions, load_coco_instances, load_labels, load_semantic

ESCAPES = [
    "../secret.png",
    "a/../../secret.png",
    "/etc/passwd",
    "//host/share/x.png",
    "C:\\secret.png",
    "c:/secret.png",
    "\\\\host\\share\\x.png",
    "\\windows\\x.png",
    "a\\..\\..\\secret.png",
    "..",
    "a\0.png",
]
HARMLESS = [
    "a.png",
    "a/b.png",
    "a b/é+%2e%2e/x.png",
    "..a/b..png",
    "...",
    "C.png",
    "~a.png",
    "c:..",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_out_are_told(name, tmp_path):
    assert repr(name) in (name_fault(name) or "")
    with pytest.raises(ValueError, match=r"relative|remove it"):
        place_inside(tmp_path, name)


@pytest.mark.parametrize("name", HARMLESS)
def test_names_that_stay_are_taken(name, tmp_path):
    assert name_fault(name) is None
    assert place_inside(tmp_path, name) == tmp_path / name


def test_links_out_of_the_folder_are_told(tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret.png").touch()
    (inside / "real.png").touch()
    (inside / "out.png").symlink_to("../secret.png")
    (inside / "up").symlink_to("..")
    (inside / "alias.png").symlink_to("real.png")
    assert place_inside(inside, "alias.png") == inside / "alias.png"
    for name in ("out.png", "up/secret.png"):
        with pytest.raises(ValueError, match="is a link out of"):
            place_inside(inside, name)
    (tmp_path / "linked").symlink_to("in")
    assert place_inside(tmp_path / "linked", "real.png").exists()


def write(path, document):
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("name", ESCAPES)
def test_truth_files_with_such_names_are_refused(tmp_path, name):
    images = [{"id": 1, "file_name": name, "width": 4, "height": 4}]
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    with pytest.raises(ValueError, match=r"images\[0\]: file_name"):
        load_coco_instances(write(tmp_path / "instances.json", coco))
    texts = {"images": images, "annotations": [{"image_id": 1, "caption": "a"}]}
    with pytest.raises(ValueError, match=r"images\[0\]: file_name"):
        load_captions(write(tmp_path / "captions.json", texts))
    if "\0" not in name:
        (tmp_path / "labels.csv").write_text(f"file_name,label\na.png,x\n{name},y\n")
        with pytest.raises(ValueError, match="line 3: file_name"):
            load_labels(tmp_path / "labels.csv")


def test_label_maps_that_are_links_out_are_refused(tmp_path):
    folder = tmp_path / "semantic"
    folder.mkdir()
    (tmp_path / "other.png").touch()
    (folder / "a.png").symlink_to("../other.png")
    with pytest.raises(ValueError, match=r"'a\.png' is a link out of"):
        load_semantic(folder)


def test_lists_with_such_names_are_refused(tmp_path, bare_truth):
    (tmp_path / "list.txt").write_text("a.png\n../../b.png\n")
    config = EvaluationConfig(labels=str(bare_truth), subset="list.txt")
    with pytest.raises(ValueError, match=r"list\.txt, line 2: '\.\./\.\./b\.png' leads out"):
        evaluate(None, config, base=tmp_path, collection="c")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leads out of its folder"):
        split_names(("a.png",), train_config(split="list.txt"), tmp_path)


@pytest.fixture
def bare_truth(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("file_name,label\na.png,x\n")
    return path


def train_config(**changes):
    known = {
        "name": "t",
        "task": "captioning",
        "architecture": "show_attend_tell",
        "preprocess": {"canvases": [[32, 32]]},
        "images": "images",
        "truth": "captions.json",
    }
    return TrainConfig.model_validate(known | changes)


def test_training_opens_no_file_outside_of_its_images(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(b"not to be read")
    (tmp_path / "images/a.png").symlink_to("../secret.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "caption": "a cat"}],
    }
    write(tmp_path / "captions.json", document)
    with pytest.raises(ValueError, match="is a link out of"):
        load_dataset(train_config(train_fraction=1.0), tmp_path)
