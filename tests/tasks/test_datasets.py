import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelmill.configs.schema import PixelWeights, PreprocessConfig, TrainConfig
from pixelmill.models.targets import BoxTarget, CaptionTarget, ClassTarget, SemanticTarget
from pixelmill.tasks.datasets import class_frequencies, load_dataset, locate_data, split_names

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


def examples_of(dataset):
    return [dataset.read(name) for name in dataset.names]


def test_boxes_and_masks_lie_where_the_image_shows_the_object(folder):
    config = make_config("instance_segmentation", truth="instances.json")
    dataset = load_dataset(config, folder)
    assert dataset.classes == ("other", "square")
    assert dataset.sizes() == [(96, 64), (96, 64)]
    first, second = examples_of(dataset)
    # the crowd is left out
    assert boxes_of(first).boxes_xyxy.tolist() == [[20, 30, 50, 60]]
    assert boxes_of(first).labels.tolist() == [1]
    assert torch.equal(masks_of(first)[0].bool(), first.image[0] > 127)
    assert boxes_of(second).boxes_xyxy.shape == (0, 4)
    assert masks_of(second).shape == (0, 96, 64)


def test_a_detector_is_given_no_masks(folder):
    dataset = load_dataset(make_config("detection", truth="instances.json"), folder)
    assert boxes_of(dataset.read("a.png")).masks is None


def semantic_config(**changes):
    return make_config(
        "semantic_segmentation", truth="labels", classes=("a", "b", "c", "d"), **changes
    )


def test_label_maps_are_read_as_they_are(folder):
    dataset = load_dataset(semantic_config(), folder)
    example = dataset.read("a.png")
    (target,) = example.targets
    assert isinstance(target, SemanticTarget)
    assert torch.equal(target.labels == 3, example.image[0] > 127)
    assert target.weights is None
    square = 30 * 30
    assert class_frequencies(dataset).tolist() == [2 * 96 * 64 - square, 0, 0, square]


def test_pixels_between_objects_weigh_more(folder):
    labels = np.zeros((96, 64), np.uint8)
    labels[10:40, 10:30] = labels[10:40, 34:54] = 3
    Image.fromarray(labels).save(folder / "labels" / "a.png")
    config = semantic_config(pixel_weights=PixelWeights(background="a", border_weight=4, sigma=3))
    (target,) = load_dataset(config, folder).read("a.png").targets
    assert isinstance(target, SemanticTarget)
    assert target.weights is not None
    # in the middle of the gap of four pixels, and far from all
    assert target.weights[25, 32] == pytest.approx(1 + 4 * np.exp(-((2 + 3) ** 2) / 18), abs=2e-3)
    assert target.weights[90, 5] == 1
    assert (target.weights[labels == 3] == 1).all()
    with pytest.raises(ValueError, match="background must be one of a, b, c, d"):
        load_dataset(semantic_config(pixel_weights=PixelWeights(background="z")), folder)


def test_every_caption_of_an_image_is_a_target(folder):
    dataset = load_dataset(make_config("captioning", truth="captions.json"), folder)
    assert dataset.vocabulary[4:] == ("a", "square")
    first, second = examples_of(dataset)
    assert [len(first.targets), len(second.targets)] == [2, 1]
    target = first.targets[1]
    assert isinstance(target, CaptionTarget)
    assert target.tokens.tolist() == [1, 4, 5, 2]


def test_classes_of_whole_images_come_from_a_table(folder):
    (folder / "labels.csv").write_text("file_name,label\na.png,square\nb.png,grey\n")
    dataset = load_dataset(make_config("classification", truth="labels.csv"), folder)
    assert dataset.classes == ("grey", "square")
    (target,) = dataset.read("a.png").targets
    assert isinstance(target, ClassTarget)
    assert int(target.label) == 1


def test_truth_of_another_size_is_refused(folder):
    document = json.loads((folder / "instances.json").read_text())
    document["images"][1]["width"] = 65
    (folder / "instances.json").write_text(json.dumps(document))
    dataset = load_dataset(make_config("detection", truth="instances.json"), folder)
    with pytest.raises(ValueError, match="64 x 96 pixels, its truth is of 65 x 96"):
        dataset.read("b.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "labels" / "b.png")
    with pytest.raises(ValueError, match="draw it at the image's size"):
        load_dataset(semantic_config(), folder).read("b.png")


def test_an_image_that_is_not_there_is_named_before_training(folder):
    (folder / "images" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images .* first 'b.png'"):
        load_dataset(make_config("detection", truth="instances.json"), folder)


def test_a_dataset_can_be_sent_to_other_processes(folder):
    dataset = load_dataset(make_config("instance_segmentation", truth="instances.json"), folder)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(masks_of(copy.read("a.png")), masks_of(dataset.read("a.png")))


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
    assert len(load_dataset(config, tmp_path).names) == 2
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
