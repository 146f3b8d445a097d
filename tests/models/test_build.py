import numpy as np
import pytest
import torch

from pixelmill.configs.schema import CaptionModel, DetectionModel, PreprocessConfig, SemanticModel
from pixelmill.models.build import (
    build_network,
    list_architectures,
    load_network,
    locate_weights,
    resolve_model,
)
from pixelmill.models.interface import SemanticOutput

PREPROCESS = PreprocessConfig(canvases=((32, 32),))


@pytest.fixture
def folder(tmp_path, write_unet):
    """With unet.safetensors, a checkpoint of ours."""
    write_unet(tmp_path / "unet.safetensors", PREPROCESS.canvases)
    return tmp_path


def segmenter(**changes) -> SemanticModel:
    return SemanticModel.model_validate({"name": "s", "weights": "unet.safetensors"} | changes)


def test_a_checkpoint_of_ours_says_everything(folder) -> None:
    spec = resolve_model(segmenter(), folder)
    assert spec.architecture == "unet"
    assert spec.arguments == {"num_classes": 3, "width": 4, "depth": 1}
    assert spec.classes == ("a", "b", "c")
    assert spec.preprocess == PREPROCESS
    assert spec.weights_path == str(folder / "unet.safetensors")


def test_what_the_config_says_wins(folder) -> None:
    other = PreprocessConfig(canvases=((64, 64),))
    spec = resolve_model(segmenter(preprocess=other, classes=("x", "y", "z")), folder)
    assert spec.preprocess == other
    assert spec.classes == ("x", "y", "z")


def test_the_place_of_the_weights_and_the_batch_size_are_not_in_the_key(folder, tmp_path) -> None:
    there = tmp_path / "elsewhere"
    there.mkdir()
    (there / "copy.safetensors").write_bytes((folder / "unet.safetensors").read_bytes())
    spec = resolve_model(segmenter(), folder)
    copy = resolve_model(segmenter(weights="copy.safetensors", batch_size=2), there)
    assert copy.key == spec.key
    assert resolve_model(segmenter(precision="bf16"), folder).key != spec.key


def test_a_network_is_kept_for_the_next_shard(folder) -> None:
    spec = resolve_model(segmenter(), folder)
    assert load_network(spec) is load_network(spec.model_copy())
    assert build_network(spec) is not build_network(spec)


def test_bf16_gives_nearly_the_same(folder) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    exact = build_network(resolve_model(segmenter(), folder)).predict(images)
    rough = build_network(resolve_model(segmenter(precision="bf16"), folder)).predict(images)
    for one, other in zip(exact, rough, strict=True):
        assert isinstance(one, SemanticOutput)
        assert isinstance(other, SemanticOutput)
        assert not torch.equal(one.logits, other.logits)
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=0.1)


def test_weights_that_changed_since_planning_are_refused(folder) -> None:
    spec = resolve_model(segmenter(), folder)
    (folder / "unet.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="is not the file that the run was planned with"):
        build_network(spec)


def test_weights_that_do_not_fit_the_architecture_are_refused(folder) -> None:
    spec = resolve_model(segmenter(arguments={"width": 8}), folder)
    with pytest.raises(ValueError, match="do not fit unet"):
        build_network(spec)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (segmenter(weights="gone.safetensors"), FileNotFoundError, "gone"),
        (segmenter(weights="embedded:gone"), FileNotFoundError, "no embedded weights 'gone'"),
        (segmenter(weights="torchvision:DEFAULT"), ValueError, "need architecture: torchvision/"),
        (segmenter(weights="state.pt"), ValueError, "set architecture"),
        (segmenter(weights="state.pt", architecture="vgg"), ValueError, "no architecture 'vgg'"),
        (
            segmenter(weights="state.pt", architecture="torchvision/resnet18"),
            ValueError,
            "can do classification, not semantic_segmentation",
        ),
        (
            DetectionModel(name="d", weights="unet.safetensors"),
            ValueError,
            "unet can do semantic_segmentation, not detection",
        ),
        (CaptionModel(name="c", weights="m.onnx"), ValueError, "set preprocess"),
        (segmenter(weights="m.onnx", preprocess=PREPROCESS), ValueError, "set classes"),
        (segmenter(decode="decode"), ValueError, r"must be file\.py:function"),
        (segmenter(decode="gone.py:decode"), FileNotFoundError, r"gone\.py"),
    ],
)
def test_what_is_missing_is_said_with_its_remedy(folder, config, error, message: str) -> None:
    for name in ("state.pt", "m.onnx"):
        (folder / name).write_bytes(b"")
    with pytest.raises(error, match=message):
        resolve_model(config, folder)


def test_all_architectures_are_listed_with_their_tasks() -> None:
    listed = list_architectures()
    assert listed["unet"] == ("semantic_segmentation",)
    assert listed["torchvision/ssd300_vgg16"] == ("detection",)


def test_missing_weights_on_a_worker_say_where_they_should_be(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="at the same path"):
        locate_weights(str(tmp_path / "gone.pt"))
