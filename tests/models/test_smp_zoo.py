"""segmentation-models-pytorch's networks with random weights, against themselves."""

import json

import pytest
import torch
from torch.testing import assert_close

from pixelmill.configs.schema import PreprocessConfig, SemanticModel
from pixelmill.models import smp_zoo
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.interface import SemanticOutput

smp = pytest.importorskip("segmentation_models_pytorch")

SMALL = {"decoder_channels": (16, 8, 8, 4, 4), "encoder_name": "resnet18"}
PREPROCESS = PreprocessConfig(
    resize="stretch", canvases=((64, 64),), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


def config(weights: str, **changes) -> SemanticModel:
    known = {"name": "m", "weights": weights, "preprocess": PREPROCESS, "classes": ("a", "b", "c")}
    return SemanticModel.model_validate(known | changes)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return smp.Unet(encoder_weights=None, classes=3, **SMALL).eval()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8, generator=generator)


def check(network, model, images) -> None:
    with torch.no_grad():
        expected = model((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    for output, logits in zip(network.predict(images), expected, strict=True):
        assert isinstance(output, SemanticOutput)
        assert_close(output.logits, logits, atol=1e-3, rtol=1e-3)


def test_a_folder_and_a_state_dict_give_the_same_logits_as_the_network(
    tmp_path, model, images
) -> None:
    model.save_pretrained(tmp_path / "folder")
    spec = resolve_model(config("folder"), tmp_path)
    assert spec.architecture == "smp/unet"
    assert spec.arguments["encoder_name"] == "resnet18"
    check(build_network(spec), model, images)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    named = config("m.pt", architecture="smp/unet", arguments=SMALL)
    check(build_network(resolve_model(named, tmp_path)), model, images)


def test_one_output_is_a_choice_of_two(tmp_path, images) -> None:
    torch.manual_seed(0)
    model = smp.Unet(encoder_weights=None, classes=1, **SMALL).eval()
    model.save_pretrained(tmp_path / "folder")
    spec = resolve_model(config("folder", classes=("rest", "road")), tmp_path)
    assert spec.arguments["classes"] == 1
    with torch.no_grad():
        expected = model((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).sigmoid()
    for output, probs in zip(build_network(spec).predict(images), expected, strict=True):
        assert isinstance(output, SemanticOutput)
        assert_close(output.logits.softmax(dim=0)[1:], probs, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mean": [0.5, 0.4, 0.3], "std": [0.2] * 3, "input_range": [0, 1]}, (0.5, 0.4, 0.3)),
        ({"mean": [102.0, 51.0, 0.0], "std": [255.0] * 3, "input_range": [0, 255]}, (0.4, 0.2, 0)),
    ],
)
def test_the_encoder_says_how_images_are_prepared(monkeypatch, settings, expected) -> None:
    places = []
    monkeypatch.setattr(
        smp_zoo, "fetch_config", lambda place: places.append(place) or settings | {"x": 1}
    )
    preprocess = smp_zoo._preprocess("resnet18", "imagenet")
    assert preprocess.mean == pytest.approx(expected)
    assert all(height % 32 == 0 and width % 32 == 0 for height, width in preprocess.canvases)
    assert places[0].startswith("smp-hub/resnet18.imagenet@")


def test_what_cannot_be_looked_up_is_asked_for(tmp_path, model, monkeypatch) -> None:
    model.save_pretrained(tmp_path / "folder")  # whose encoder was not pretrained
    with pytest.raises(ValueError, match=r"was not pretrained, .*set preprocess:"):
        resolve_model(config("folder", preprocess=None), tmp_path)

    def fetch(place: str):
        raise OSError("no network")

    monkeypatch.setattr(smp_zoo, "fetch_config", fetch)
    content = json.loads((tmp_path / "folder" / "config.json").read_text())
    content["encoder_weights"] = "imagenet"
    (tmp_path / "folder" / "config.json").write_text(json.dumps(content))
    with pytest.raises(OSError, match=r"no network; or set preprocess: with mean and std"):
        resolve_model(config("folder", preprocess=None), tmp_path)


def test_names_are_theirs_without_case() -> None:
    assert "smp/unet" in smp_zoo.list_architectures()
    assert smp_zoo.architecture("smp/FPN").tasks == ("semantic_segmentation",)
    with pytest.raises(ValueError, match=r"has no 'vnet', but .*unet"):
        smp_zoo.architecture("smp/vnet")
    with pytest.raises(ValueError, match="has no encoder 'nothing'"):
        smp_zoo._preprocess("nothing", "imagenet")
