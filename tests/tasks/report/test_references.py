import json
from dataclasses import replace

import pytest

from pixelmill.tasks.report.references import load_references


@pytest.fixture
def truth(tmp_path, evaluation):
    images = [
        {"id": 1, "file_name": "0.png", "width": 64, "height": 48},
        {"id": 2, "file_name": "1.png", "width": 64, "height": 48},
    ]
    box = {"category_id": 1, "bbox": [16, 12, 32, 24]}
    instances = {
        "images": images,
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{"id": k, "image_id": k, **box} for k in (1, 2)],
    }
    captions = {"images": images, "annotations": [{"id": 1, "image_id": 1, "caption": "a quay"}]}
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    places = {kind: str(tmp_path / f"{kind}.json") for kind in ("instances", "captions")}
    return replace(evaluation, truth=places)


def test_truth_of_the_images_shown_is_read(truth, paths):
    found = load_references(truth, ["pier/0.png"], paths, dict)
    (box,) = found.boxes["pier/0.png"]
    assert (box.left, box.top, box.width, box.height, box.class_name) == (25, 25, 50, 50, "car")
    assert found.captions == {"pier/0.png": ("a quay",)}
    assert found.boxes.keys() == {"pier/0.png"}


def test_truth_that_moved_away_is_named(evaluation, paths):
    found = load_references(evaluation, ["pier/0.png"], paths, dict)
    assert found.boxes == {}
    assert found.absent == ("/nowhere/instances.json",)


def test_without_evaluation_nothing_is_known(paths):
    assert load_references(None, paths, paths, dict).absent == ()


def test_boxes_of_voc_files_are_shown_too(truth, tmp_path, paths):
    (tmp_path / "voc").mkdir()
    corners = "<xmin>17</xmin><ymin>13</ymin><xmax>48</xmax><ymax>36</ymax>"
    (tmp_path / "voc" / "0.xml").write_text(
        f"<a><object><name>car</name><bndbox>{corners}</bndbox></object></a>"
    )
    truth = replace(truth, truth={"instances": str(tmp_path / "voc")})
    found = load_references(truth, paths, paths, lambda: dict.fromkeys(paths, (48, 64)))
    (box,) = found.boxes["pier/0.png"]
    assert (box.left, box.top, box.width, box.height, box.class_name) == (25, 25, 50, 50, "car")
    assert found.absent == ()
