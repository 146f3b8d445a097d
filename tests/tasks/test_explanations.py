from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pixelmill.configs.schema import (
    CaptionModel,
    CaptionPostprocess,
    ClassificationModel,
    DetectionModel,
    PreprocessConfig,
)
from pixelmill.models.build import resolve_model
from pixelmill.models.checkpoint import CheckpointMeta, save_checkpoint
from pixelmill.models.zoo import ARCHITECTURES
from pixelmill.tasks.explanations import (
    ExplainedModel,
    attention_maps,
    class_activation,
    heat_picture,
    load_explained,
    write_explanations,
)

WORDS = ("<pad>", "<start>", "<end>", "<unknown>", "a", "red", "cat", "sits")
# Mean 0 and deviation 1 / 255: the network sees bytes as they are
PLAIN = PreprocessConfig(
    canvases=((64, 96),), mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255), pad_value=0
)
BUILDERS = {
    "classifier": ("classification", {"num_classes": 3, "backbone": "mobilenet_v3_small"}),
    "localiser": ("detection", {"num_classes": 3, "backbone": "resnet18", "hidden": 8}),
    "retinamask": ("detection", {"num_classes": 3, "width": 8, "fpn_channels": 8}),
    "show_and_tell": (
        "captioning",
        {"vocabulary_size": 8, "backbone": "resnet18", "embed_dim": 8, "hidden_dim": 8},
    ),
    "show_attend_tell": (
        "captioning",
        {"vocabulary_size": 8, "width": 8, "embed_dim": 8, "hidden_dim": 16, "attention_dim": 8},
    ),
}


@pytest.fixture
def explained(tmp_path):
    """Function name -> small model of random weights, loaded from a file to be explained."""

    def load(name):
        task, arguments = BUILDERS[name]
        torch.manual_seed(0)
        module = cast("Any", ARCHITECTURES[name].build(**arguments))
        if name == "show_attend_tell":
            nn.init.normal_(module.classifier.weight, std=1.0)
            nn.init.normal_(module.attend_score.weight, std=3.0)
            nn.init.constant_(module.classifier.bias, 0.0)
        meta = CheckpointMeta(
            name=name,
            task=task,
            architecture=name,
            arguments=arguments,
            classes=() if task == "captioning" else ("cat", "red dog", "fox"),
            vocabulary=WORDS if task == "captioning" else (),
            preprocess=PLAIN,
        )
        save_checkpoint(tmp_path / f"{name}.safetensors", module, meta)
        models = {"classification": ClassificationModel, "detection": DetectionModel}
        changes = {}
        if task == "captioning":
            changes["postprocess"] = CaptionPostprocess(beam_size=1, max_tokens=5)
        kind = models.get(task, CaptionModel)
        config = kind(name=name.replace("_", "-"), weights=f"{name}.safetensors", **changes)
        return load_explained(resolve_model(config, tmp_path))

    return load


class Redness(nn.Module):
    """Class 1 is as probable as the image is red."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.AvgPool2d(8)

    def forward(self, images):
        red = self.cells(images[:, :1]).mean(dim=(1, 2, 3))
        return torch.stack((torch.zeros_like(red), red, -red), dim=1)


def photo(height, width, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(64, 96), (96, 144), (40, 120), (100, 30)])
def test_heat_lies_on_the_image_where_the_class_is(explained, size):
    model = ExplainedModel(explained("classifier").spec, Redness())
    image = np.zeros((*size, 3), np.uint8)
    height, width = size
    image[: height // 3, width // 2 :, 0] = 255
    heat = class_activation(model, image)
    assert heat.shape == size
    assert heat.dtype == np.float32
    assert heat.max() == 1.0
    assert heat.min() >= 0
    row, column = np.unravel_index(heat.argmax(), size)
    assert row < height / 3
    assert column >= width / 2
    # Far from the red nothing is hot
    assert heat[2 * height // 3 :, : width // 4].max() == 0


def test_a_class_that_nothing_speaks_for_is_cold_everywhere(explained):
    model = ExplainedModel(explained("classifier").spec, Redness())
    assert not class_activation(model, photo(64, 96), 2).any()


@pytest.mark.parametrize("name", ["classifier", "localiser"])
def test_classes_of_a_checkpoint_are_explained(explained, name):
    model = explained(name)
    image = photo(70, 90)
    heats = [class_activation(model, image, label) for label in range(3)]
    assert all(heat.shape == (70, 90) and heat.min() >= 0 for heat in heats)
    assert any(heat.any() for heat in heats)
    given = class_activation(model, image)
    assert any(np.array_equal(given, heat) for heat in heats)


def test_each_word_has_the_place_that_was_looked_at(explained):
    model = explained("show_attend_tell")
    found = attention_maps(model, photo(70, 90))
    assert 0 < len(found) <= 5
    for word, looked in found:
        assert word in WORDS[4:]
        assert looked.shape == (70, 90)
        assert looked.max() == 1.0
    assert np.ptp(found[0][1]) > 0


def test_what_looks_at_no_place_is_told(explained):
    with pytest.raises(ValueError, match="looks at no place"):
        attention_maps(explained("show_and_tell"), photo(64, 96))
    with pytest.raises(ValueError, match="looks at no place"):
        attention_maps(explained("classifier"), photo(64, 96))
    with pytest.raises(ValueError, match="expected class logits"):
        class_activation(explained("show_attend_tell"), photo(64, 96))
    with pytest.raises(ValueError, match="class of 3, got 3"):
        class_activation(explained("classifier"), photo(64, 96), 3)
    with pytest.raises(ValueError, match="can be explained, not detection"):
        explained("retinamask")


def test_a_heat_picture_is_grey_where_it_is_cold_and_coloured_where_it_is_hot():
    image = np.full((2, 2, 3), (200, 100, 0), np.uint8)
    heat = np.array([[0, 0], [0, 1]], np.float32)
    picture = heat_picture(image, heat)
    assert picture[0, 0].tolist() == [118, 118, 118]
    assert picture[1, 1].tolist() == [214, 80, 35]


@pytest.mark.parametrize("name", ["classifier", "show_attend_tell"])
def test_pictures_are_written_on_request(explained, tmp_path, name):
    Image.fromarray(photo(64, 96)).save(tmp_path / "yard.png")
    model = explained(name)
    written = write_explanations(model, tmp_path / "yard.png", tmp_path / "why" / name)
    assert written
    assert sorted(written) == sorted((tmp_path / "why" / name).iterdir())
    names = (
        [word for word, _ in attention_maps(model, photo(64, 96))] if name != "classifier" else ()
    )
    assert len(written) == (len(names) or 1)
    for path in written:
        assert path.name.startswith("yard.0")
        with Image.open(path) as picture:
            assert picture.size == (96, 64)
