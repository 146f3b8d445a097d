import csv
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pixelmill.tasks.scenes import CLASSES, render_scene, scene_seed, write_scenes


def _digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 8, 3)
    return folder


def test_two_processes_at_once_write_the_same_bytes(folder, tmp_path):
    code = (
        "import sys; from pathlib import Path; from pixelmill.tasks.scenes import write_scenes;"
        "write_scenes(Path(sys.argv[1]), 8, 3)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert _digests(tmp_path) == _digests(folder)


def test_a_longer_series_begins_with_the_shorter_one(folder, tmp_path):
    write_scenes(tmp_path, 4, 3)
    longer, shorter = _digests(folder), _digests(tmp_path)
    pixels = {name for name in shorter if "/" in name}
    assert len(pixels) == 8
    assert all(shorter[name] == longer[name] for name in pixels)
    for name in ("instances.json", "captions.json"):
        long, short = (json.loads((root / name).read_text()) for root in (folder, tmp_path))
        assert long["annotations"][: len(short["annotations"])] == short["annotations"]


def test_parts_of_a_series_are_those_of_the_whole(folder, tmp_path):
    write_scenes(tmp_path, 2, 3, start=5)
    whole, part = _digests(folder), _digests(tmp_path)
    pixels = {name for name in part if "/" in name}
    assert {name for name in pixels if name.startswith("images/")} == {
        "images/000005.jpg",
        "images/000006.jpg",
    }
    assert all(part[name] == whole[name] for name in pixels)


def test_series_do_not_share_scenes():
    seeds = {scene_seed(seed, index) for seed in range(20) for index in range(500)}
    assert len(seeds) == 10_000


def test_prefix_starts_the_file_names(tmp_path):
    write_scenes(tmp_path, 1, 0, prefix="demo-")
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["demo-000000.jpg"]
    assert [path.name for path in (tmp_path / "semantic").iterdir()] == ["demo-000000.png"]


# pycocotools 2.0.11 is compiled against the array protocol of numpy 1
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_instances_are_those_of_the_scenes(folder):
    truth = json.loads((folder / "instances.json").read_text())
    assert [category["name"] for category in truth["categories"]] == list(CLASSES)
    assert len({row["id"] for row in truth["annotations"]}) == len(truth["annotations"])
    for index, image in enumerate(truth["images"]):
        scene = render_scene(scene_seed(3, index))
        assert (image["height"], image["width"]) == scene.size
        rows = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        assert [row["category_id"] - 1 for row in rows] == scene.labels.tolist()
        for row, mask, box_xyxy in zip(rows, scene.masks, scene.boxes_xyxy, strict=True):
            np.testing.assert_array_equal(coco_mask.decode(row["segmentation"]), mask)
            assert row["area"] == mask.sum()
            x, y, width, height = row["bbox"]
            assert (x, y, x + width, y + height) == tuple(box_xyxy)


def test_semantic_maps_are_stored_without_loss(folder):
    for index in range(8):
        with Image.open(folder / "semantic" / f"{index:06d}.png") as stored:
            expected = render_scene(scene_seed(3, index)).semantic
            np.testing.assert_array_equal(np.asarray(stored), expected)


def test_jpegs_show_the_scene(folder):
    for index in range(8):
        with Image.open(folder / "images" / f"{index:06d}.jpg") as stored:
            assert stored.format == "JPEG"
            error = np.asarray(stored, float) - render_scene(scene_seed(3, index)).image
            assert np.sqrt((error**2).mean()) < 10


def test_captions_and_labels_name_the_images(folder):
    captions = json.loads((folder / "captions.json").read_text())
    with (folder / "labels.csv").open(newline="") as file:
        labels = list(csv.DictReader(file))
    for index, (image, row) in enumerate(zip(captions["images"], labels, strict=True)):
        scene = render_scene(scene_seed(3, index))
        assert image["file_name"] == row["file_name"] == f"{index:06d}.jpg"
        assert row["label"] == scene.place
        rows = [a["caption"] for a in captions["annotations"] if a["image_id"] == image["id"]]
        assert tuple(rows) == scene.captions


def test_nothing_but_whole_files_is_left(folder):
    assert not list(folder.rglob(".*"))
    assert {path.name for path in folder.iterdir()} == {
        "images",
        "semantic",
        "instances.json",
        "captions.json",
        "labels.csv",
    }


@pytest.mark.parametrize(("count", "start"), [(-1, 0), (1, -1)])
def test_negative_numbers_are_refused(tmp_path, count, start):
    with pytest.raises(ValueError, match="at least 0"):
        write_scenes(tmp_path, count, 0, start=start)
