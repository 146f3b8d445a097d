import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelmill.configs.schema import PreprocessConfig, TrainConfig
from pixelmill.models.targets import BoxTarget, CaptionTarget, SemanticTarget
from pixelmill.tasks.datasets import load_dataset, locate_data, split_names

# pycocotools 2.0.11 decodes run lengths with what NumPy 2 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHARED = Path(__file__).parents[3] / "shared" / "data"


def make_config(task, **changes):
    settings = {
        "name": "tiny",
        "task": task,
        "architecture": "-",
        "preprocess": PreprocessConfig(canvases=((48, 64),)),
        "images": "images",
        "train_fraction": 1.0,
    }
    return TrainConfig(**{**settings, **changes})


def boxes_of(example):
    (target,) = example.targets
    assert isinstance(target, BoxTarget)
    return target


def masks_of(example):
    masks = boxes_of(example).masks
    assert masks is not None
    return masks


@pytest.fixture
def folder(tmp_path):
    """Two images, 96 x 64: one with a white square on black, one grey."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    square = np.zeros((96, 64, 3), np.uint8)
    square[30:60, 20:50] = 255
    for name, pixels in (("a", square), ("b", np.full_like(square, 128))):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(pixels[..., 0] // 255 * 3).save(tmp_path / "labels" / f"{name}.png")
    images = [
        {"id": 5, "file_name": "a.png", "width": 64, "height": 96},
        {"id": 7, "file_name": "b.png", "width": 64, "height": 96},
    ]
    polygon = [[20, 30, 50, 30, 50, 60, 20, 60]]
    note = {"image_id": 5, "category_id": 9, "area": 900, "bbox": [20, 30, 30, 30]}
    notes = [
        {**note, "id": 1, "iscrowd": 0, "segmentation": polygon},
        {**note, "id": 2, "iscrowd": 1, "segmentation": {"size": [96, 64], "counts": [6144]}},
    ]
    categories = [{"id": 4, "name": "other"}, {"id": 9, "name": "square"}]
    (tmp_path / "instances.json").write_text(
        json.dumps({"images": images, "annotations": notes, "categories": categories})
    )
    texts = [(5, "a white square"), (5, "a square"), (7, "a grey square")]
    captions = [
        {"id": index, "image_id": image_id, "caption": text}
        for index, (image_id, text) in enumerate(texts)
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return tmp_path


def test_boxes_and_masks_lie_where_the_image_shows_the_object(folder):
    config = make_config("instance_segmentation", truth="instances.json")
    dataset = load_dataset(config, folder)
    assert dataset.classes == ("other", "square")
    first, second = dataset.examples
    # 96 x 64 letterboxed to 48 rows: half the size; the crowd is left out
    assert boxes_of(first).boxes_xyxy.tolist() == [[10, 15, 25, 30]]
    assert boxes_of(first).labels.tolist() == [1]
    white = first.image[0] > 127
    assert torch.equal(masks_of(first)[0].bool(), white & (torch.arange(64) < 32))
    assert boxes_of(second).boxes_xyxy.shape == (0, 4)
    assert masks_of(second).shape == (0, 48, 64)


def test_a_detector_is_given_no_masks(folder):
    dataset = load_dataset(make_config("detection", truth="instances.json"), folder)
    assert boxes_of(dataset.examples[0]).masks is None


def test_label_maps_are_laid_as_the_image_is_and_padding_is_void(folder):
    config = make_config("semantic_segmentation", truth="labels", classes=("a", "b", "c", "d"))
    example = load_dataset(config, folder).examples[0]
    (target,) = example.targets
    assert isinstance(target, SemanticTarget)
    labels = target.labels
    assert torch.equal(labels[:, :32] == 3, example.image[0, :, :32] > 127)
    assert labels[:, 32:].unique().tolist() == [255]


def test_every_caption_of_an_image_is_a_target(folder):
    dataset = load_dataset(make_config("captioning", truth="captions.json"), folder)
    assert dataset.vocabulary[4:] == ("a", "square")
    assert [len(example.targets) for example in dataset.examples] == [2, 1]
    second = dataset.examples[0].targets[1]
    assert isinstance(second, CaptionTarget)
    assert second.tokens.tolist() == [1, 4, 5, 2]


def test_the_split_by_name_is_stable_and_about_as_large_as_asked():
    names = [f"{index:04d}.jpg" for index in range(2000)]
    config = make_config("detection", train_fraction=0.8)
    trained, held_out = split_names(names, config, Path())
    assert 1550 < len(trained) < 1650
    assert set(trained) | set(held_out) == set(names)
    assert not set(trained) & set(held_out)
    # other names move nothing
    assert set(split_names(names[:100], config, Path())[0]) <= set(trained)


def test_a_split_file_names_the_stems_to_train_on(tmp_path):
    (tmp_path / "train.txt").write_text("0001.png\nsub/0003\n")
    config = make_config("detection", split="train.txt")
    trained, held_out = split_names(["0001.jpg", "0002.jpg", "0003.jpg"], config, tmp_path)
    assert trained == ("0001.jpg", "0003.jpg")
    assert held_out == ("0002.jpg",)


@pytest.mark.parametrize(
    ("task", "truth"),
    [
        ("instance_segmentation", "instances.json"),
        ("semantic_segmentation", "semantic"),
        ("captioning", "captions.json"),
    ],
)
def test_scenes_are_rendered_once(tmp_path, task, truth):
    config = make_config(task, images="scenes:2:3")
    source = locate_data(config, tmp_path)
    assert source.truth.name == truth
    image = source.images / "000000.jpg"
    modified = image.stat().st_mtime_ns
    assert len(load_dataset(config, tmp_path).examples) == 2
    assert image.stat().st_mtime_ns == modified


def test_a_misspelt_scenes_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="scenes:<count>:<seed>"):
        locate_data(make_config("detection", images="scenes:many"), tmp_path)


def test_missing_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="truth must name"):
        locate_data(make_config("detection"), tmp_path)
    with pytest.raises(FileNotFoundError, match="images"):
        locate_data(make_config("detection", truth="instances.json"), tmp_path)


def test_masks_cannot_be_learnt_from_boxes(folder):
    document = json.loads((folder / "instances.json").read_text())
    for note in document["annotations"]:
        del note["segmentation"]
    (folder / "instances.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="boxes without masks"):
        load_dataset(make_config("instance_segmentation", truth="instances.json"), folder)


def test_semantic_classes_must_be_named(folder):
    with pytest.raises(ValueError, match="classes must list"):
        load_dataset(make_config("semantic_segmentation", truth="labels"), folder)


@pytest.mark.skipif(not SHARED.exists(), reason="no real data beside the repository")
def test_no_official_validation_frame_of_camvid_is_trained_on():
    names = [path.name for path in sorted((SHARED / "camvid/images").iterdir())]
    config = make_config("semantic_segmentation", split="camvid/official_split/train.txt")
    trained, held_out = split_names(names, config, SHARED)
    official = (SHARED / "camvid/official_split/val.txt").read_text().split()
    assert len(trained) == 367
    assert {Path(name).stem for name in held_out} == {Path(name).stem for name in official}
