"""timm's networks with random weights, against timm's own evaluation."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from pixelmill.configs.schema import ClassificationModel, PreprocessConfig
from pixelmill.models import timm_zoo
from pixelmill.models.architectures import list_architectures
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.interface import ClassOutput
from pixelmill.tasks.engine.views import draw_view, place_whole

timm = pytest.importorskip("timm")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=3).eval()


def config(weights: str, **changes) -> ClassificationModel:
    return ClassificationModel.model_validate({"name": "m", "weights": weights} | changes)


@pytest.mark.slow
def test_a_folder_says_everything_and_answers_as_timm_does(tmp_path, model) -> None:
    timm.models.save_for_hf(
        model, tmp_path, safe_serialization=True, model_config={"label_names": ["a", "b", "c"]}
    )
    spec = resolve_model(config(str(tmp_path)), tmp_path)
    data = timm.data.resolve_model_data_config(model)
    assert spec.architecture == "timm/resnet10t"
    assert spec.classes == ("a", "b", "c")
    assert spec.preprocess.canvases == (data["input_size"][1:],)
    assert spec.preprocess.interpolation == data["interpolation"]
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    image = image.repeat(8, 0).repeat(8, 1)
    placement = place_whole(image.shape[:2], spec.preprocess)
    canvas = torch.from_numpy(draw_view(image, placement, spec.preprocess))
    (output,) = build_network(spec).predict(canvas[None])
    pixels = timm.data.create_transform(**data)(Image.fromarray(image))
    with torch.no_grad():
        expected = model(pixels[None]).softmax(dim=1)[0]
    assert isinstance(output, ClassOutput)
    assert_close(output.probs, expected, atol=1e-3, rtol=0)


def test_a_state_dict_takes_its_preprocessing_from_the_name(tmp_path, model) -> None:
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "m.pth")
    asked = config("m.pth", architecture="timm/resnet10t", classes=("a", "b", "c"))
    spec = resolve_model(asked, tmp_path)
    known = timm.get_pretrained_cfg("resnet10t")
    assert spec.arguments == {"num_classes": 3}
    assert spec.preprocess.mean == known.mean
    assert spec.preprocess.canvases == (known.input_size[1:],)
    build_network(spec)
    small = asked.model_copy(update={"preprocess": PreprocessConfig(canvases=((64, 64),))})
    changed = resolve_model(small, tmp_path).preprocess
    assert changed.mean == spec.preprocess.mean
    assert changed.resize == "center_crop"


def test_imagenets_classes_are_named(tmp_path) -> None:
    defaults = timm_zoo.find_defaults("timm/resnet18.a1_in1k", {}, None, None)
    assert defaults.classes is not None
    assert defaults.classes[:2] == ("tench", "goldfish")
    assert len(defaults.classes) == 1000
    assert timm_zoo.find_defaults("timm/resnet18", {"num_classes": 7}, None, None).classes is None


def test_default_weights_are_a_place_on_the_hub() -> None:
    assert timm_zoo.name_weights("timm/resnet18.a1_in1k") == "hf:timm/resnet18.a1_in1k"
    assert timm_zoo.name_weights("timm/resnet18") == "hf:timm/resnet18.a1_in1k"


def test_what_does_not_fit_is_refused_with_a_remedy(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"did you mean .*resnet18"):
        timm_zoo.architecture("timm/resnet_18")
    with pytest.raises(ValueError, match=r"crop_mode 'border'.* set preprocess"):
        timm_zoo._preprocess("timm/m", {"crop_mode": "border", "input_size": (3, 8, 8)})
    with pytest.raises(ValueError, match="interpolation 'lanczos'"):
        timm_zoo._preprocess("timm/m", {"interpolation": "lanczos", "crop_mode": "center"})
    with pytest.raises(ValueError, match="expected weights: timm:DEFAULT with architecture: timm/"):
        resolve_model(config("timm:DEFAULT", architecture="unet"), tmp_path)


def test_squashed_images_fill_their_canvas() -> None:
    squash = {"crop_mode": "squash", "crop_pct": 1.0, "input_size": (3, 8, 6)}
    preprocess = timm_zoo._preprocess("timm/m", squash)
    assert preprocess.resize == "stretch"
    assert preprocess.canvases == ((8, 6),)


def test_names_are_listed_where_they_are_asked_for() -> None:
    assert "timm/resnet18" in list_architectures(foreign=True)
    assert "timm/resnet18" not in list_architectures()
