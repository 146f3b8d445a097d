import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.checkpoint import CheckpointMeta, save_checkpoint
from pixelmill.models.interface import BoxOutput, CaptionOutput, SemanticOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks import holdout
from pixelmill.tasks.datasets import DataSource
from pixelmill.tasks.engine.views import place_whole
from pixelmill.tasks.predictions import Detections, ImagePrediction
from pixelmill.tasks.scenes import (
    CLASSES,
    SEMANTIC_CLASSES,
    render_scene,
    scene_seed,
    write_scenes,
)

# pycocotools 2.0.11 decodes run lengths with what NumPy 2 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

INDICES, SEED = (0, 2, 3), 5
PREPROCESS = PreprocessConfig(canvases=((240, 320), (320, 240)))
ARCHITECTURES = {
    "instance_segmentation": ("retinamask", "instances.json"),
    "semantic_segmentation": ("unet", "semantic"),
    "captioning": ("show_attend_tell", "captions.json"),
}


class Oracle:
    """Knows the scenes, in the order in which it will be asked."""

    def __init__(self, task):
        self.scenes = [render_scene(scene_seed(SEED, index)) for index in INDICES]
        self.task = task

    def predict(self, images):
        scene = self.scenes.pop(0)
        placement = place_whole(scene.size, PREPROCESS)
        assert tuple(images.shape) == (1, *placement.canvas, 3)
        if self.task == "captioning":
            return [CaptionOutput(scene.captions[1], -1.0, 9)]
        if self.task == "semantic_segmentation":
            labels = torch.from_numpy(scene.semantic.astype(np.int64))
            one_hot = F.one_hot(labels, len(SEMANTIC_CLASSES)).permute(2, 0, 1)[None].float()
            logits = F.interpolate(one_hot, size=placement.resized, mode="nearest-exact")[0]
            height, width = placement.canvas
            padding = (0, width - logits.shape[2], 0, height - logits.shape[1])
            return [SemanticOutput(F.pad(logits, padding))]
        boxes_xyxy = torch.from_numpy(scene.boxes_xyxy)
        scale_y, scale_x = placement.scale
        probs = [
            F.interpolate(
                torch.from_numpy(mask[int(top) : int(bottom), int(left) : int(right)])[
                    None, None
                ].float(),
                size=(28, 28),
                mode="area",
            )[0, 0]
            for mask, (left, top, right, bottom) in zip(scene.masks, scene.boxes_xyxy, strict=True)
        ]
        return [
            BoxOutput(
                boxes_xyxy / torch.tensor([scale_x, scale_y, scale_x, scale_y]),
                torch.full((len(boxes_xyxy),), 0.9),
                torch.from_numpy(scene.labels),
                torch.stack(probs) if probs else torch.zeros(0, 28, 28),
            )
        ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 4, SEED)
    return folder


def check(folder, tmp_path, monkeypatch, task):
    architecture, truth = ARCHITECTURES[task]
    classes = {"instance_segmentation": CLASSES, "semantic_segmentation": SEMANTIC_CLASSES}
    metadata = CheckpointMeta(
        name="oracle",
        task=task,
        architecture=architecture,
        arguments={},
        classes=classes.get(task, ()),
        preprocess=PREPROCESS,
    )
    weights = tmp_path / "oracle.safetensors"
    save_checkpoint(weights, nn.Linear(1, 1), metadata)
    monkeypatch.setattr(holdout, "build_network", lambda spec: Oracle(spec.task))
    source = DataSource(folder / "images", folder / truth)
    names = [f"{index:06d}.jpg" for index in INDICES]
    return holdout.check_held_out(weights, source, names)


def test_who_knows_the_truth_finds_every_object(folder, tmp_path, monkeypatch):
    metrics = check(folder, tmp_path, monkeypatch, "instance_segmentation")
    assert metrics.keys() == {"box AP", "box AP50", "mask AP", "mask AP50"}
    assert metrics["box AP"] > 0.999
    assert metrics["mask AP50"] > 0.999


def test_who_knows_the_truth_labels_every_pixel(folder, tmp_path, monkeypatch):
    metrics = check(folder, tmp_path, monkeypatch, "semantic_segmentation")
    assert metrics["mIoU"] > 0.9
    assert metrics["pixel accuracy"] > 0.98


def test_who_knows_the_truth_beats_the_commonest_caption(folder, tmp_path, monkeypatch):
    metrics = check(folder, tmp_path, monkeypatch, "captioning")
    assert metrics["CIDEr-D"] > 2 * metrics["CIDEr-D baseline"]


def test_nothing_kept_apart_gives_no_numbers(tmp_path):
    source = DataSource(tmp_path, tmp_path)
    assert holdout.check_held_out(tmp_path / "none.safetensors", source, []) == {}


@pytest.mark.parametrize("names", ["cat\ndog\n", "cat\nbird\n"])
def test_truth_in_yolo_files_is_compared_by_the_classes_that_it_has(tmp_path, names):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "labels" / "classes.txt").write_text(names)
    found = Detections(
        boxes_xyxy=np.array([[10, 5, 30, 15], [0, 0, 5, 5]], np.float32),
        scores=np.array([0.9, 0.8], np.float32),
        labels=np.array([0, 1], np.int32),
        masks=None,
    )
    source = DataSource(tmp_path / "images", tmp_path / "labels")
    spec = ModelSpec(
        name="m",
        task="detection",
        architecture="-",
        arguments={},
        weights_path="-",
        weights_sha256="0" * 64,
        # the second one may be none of the truth's: its boxes are neither right nor wrong
        classes=("cat", "dog"),
        preprocess=PREPROCESS,
        precision="fp32",
    )
    reached = holdout.score_predictions({"a.png": ImagePrediction(detections=found)}, source, spec)
    assert reached == pytest.approx({"box AP": 1.0, "box AP50": 1.0})
