from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchvision.models import get_model
from torchvision.models.detection.roi_heads import paste_masks_in_image

from pixelmill.configs.schema import (
    BoxPostprocess,
    ClassificationModel,
    DetectionModel,
    InstanceModel,
    PreprocessConfig,
    SemanticModel,
)
from pixelmill.models import torchvision_zoo
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.interface import BoxOutput, ClassOutput, SemanticOutput

CANVAS = (128, 160)
CLASSES = ("a", "b", "c", "d")
# Everything torchvision keeps, so that the two can be compared one to one
POSTPROCESS = BoxPostprocess(
    score_threshold=0.02, iou_threshold=0.5, max_detections=300, pre_nms_top_k=100_000
)


def save(model: Any, folder) -> None:
    """Random weights, but no layer that does nothing."""
    layers: Any = [layer for layer in model.modules() if hasattr(layer, "running_var")]
    for layer in layers:
        layer.running_mean.normal_(0, 0.1)
        layer.running_var.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), folder / "weights.pth")


def picture(canvas: tuple[int, int], seed: int = 0) -> torch.Tensor:
    coarse = np.random.default_rng(seed).integers(0, 256, (canvas[0] // 16, canvas[1] // 16, 3))
    return torch.from_numpy(coarse.repeat(16, 0).repeat(16, 1).astype(np.uint8))


def reference(model: torch.nn.Module, image: torch.Tensor) -> dict:
    with torch.inference_mode():
        return model([image.permute(2, 0, 1).float() / 255])[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("builder", "num_outputs"),
    [
        ("ssdlite320_mobilenet_v3_large", 5),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 5),
        ("retinanet_resnet50_fpn", 4),
        ("fcos_resnet50_fpn", 4),
    ],
)
def test_candidates_are_those_of_torchvisions_own_path(tmp_path, builder, num_outputs) -> None:
    torch.manual_seed(0)
    own_path = {"score_thresh": 0.02, "nms_thresh": 1.0, "detections_per_img": 100_000}
    if builder.startswith("fasterrcnn"):
        own_path = {"box_" + name: value for name, value in own_path.items()}
    else:
        own_path["topk_candidates"] = 100_000
    model: Any = get_model(
        builder, weights=None, weights_backbone=None, num_classes=num_outputs, **own_path
    ).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("cls_logits.bias"):  # their prior of 0.01 would leave nothing to compare
            torch.nn.init.normal_(parameter, -4.5)
    save(model, tmp_path)
    canvas = (320, 320) if builder.startswith("ssd") else CANVAS
    model.transform.fixed_size = canvas[::-1]
    config = DetectionModel(
        name="m",
        architecture=f"torchvision/{builder}",
        weights="weights.pth",
        classes=CLASSES,
        postprocess=POSTPROCESS,
        preprocess=PreprocessConfig(
            canvases=(canvas,),
            mean=tuple(model.transform.image_mean),
            std=tuple(model.transform.image_std),
        ),
    )
    spec = resolve_model(config, tmp_path)
    assert spec.classes == CLASSES
    image = picture(canvas)
    expected = reference(model, image)
    # the second image of a batch, whose neighbour has other regions
    batch = torch.stack((picture(canvas, 1), image))
    output = build_network(spec).predict(batch)[1]
    assert isinstance(output, BoxOutput)
    assert len(output.scores) == len(expected["scores"]) > 20
    assert_close(output.scores, expected["scores"], rtol=0, atol=2e-4)
    label_offset = num_outputs - len(CLASSES)
    ours = {
        (int(label), round(float(score), 3))
        for label, score in zip(output.labels, output.scores, strict=True)
    }
    theirs = {
        (int(label) - label_offset, round(float(score), 3))
        for label, score in zip(expected["labels"], expected["scores"], strict=True)
    }
    assert len(ours & theirs) > 0.9 * len(theirs)
    distance = torch.cdist(output.boxes_xyxy, expected["boxes"], p=float("inf"))
    assert distance.min(dim=1).values.max() < 0.1


@pytest.mark.slow
def test_masks_are_those_of_torchvisions_own_path(tmp_path) -> None:
    torch.manual_seed(0)
    builder = "maskrcnn_resnet50_fpn"
    small = {"rpn_post_nms_top_n_test": 40, "box_score_thresh": 0.02, "weights_backbone": None}
    model: Any = get_model(builder, weights=None, num_classes=5, **small).eval()
    save(model, tmp_path)
    canvas = (96, 128)
    model.transform.fixed_size = canvas[::-1]
    config = InstanceModel(
        name="m",
        architecture=f"torchvision/{builder}",
        arguments={"rpn_post_nms_top_n_test": 40},
        weights="weights.pth",
        classes=("__background__", *CLASSES),
        postprocess=BoxPostprocess(score_threshold=0.02),
        preprocess=PreprocessConfig(canvases=(canvas,)),
    )
    spec = resolve_model(config, tmp_path)
    expected = reference(model, picture(canvas))
    (output,) = build_network(spec).predict(picture(canvas)[None])
    assert isinstance(output, BoxOutput)
    assert output.mask_probs is not None
    assert len(output.scores) == len(expected["scores"]) > 5
    assert_close(output.boxes_xyxy, expected["boxes"], rtol=0, atol=0.05)
    assert (output.labels + 1).tolist() == expected["labels"].tolist()
    pasted = paste_masks_in_image(output.mask_probs[:, None], output.boxes_xyxy, canvas)
    assert ((pasted > 0.5) == (expected["masks"] > 0.5)).float().mean() > 0.999


def test_a_segmenters_logits_are_those_before_torchvisions_upsampling(tmp_path) -> None:
    torch.manual_seed(0)
    builder = "lraspp_mobilenet_v3_large"
    model: Any = get_model(builder, weights=None, weights_backbone=None, num_classes=4).eval()
    save(model, tmp_path)
    config = SemanticModel(
        name="m", architecture=f"torchvision/{builder}", weights="weights.pth", classes=CLASSES
    )
    spec = resolve_model(config, tmp_path)
    assert spec.preprocess.canvases[0] == (520, 520)
    image = picture((128, 160))
    mean, std = torch.tensor(spec.preprocess.mean), torch.tensor(spec.preprocess.std)
    normal = ((image / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = model(normal)["out"][0]
    (output,) = build_network(spec).predict(image[None])
    assert isinstance(output, SemanticOutput)
    upsampled = torch.nn.functional.interpolate(
        output.logits[None], size=(128, 160), mode="bilinear", align_corners=False
    )
    assert_close(upsampled[0], expected, rtol=0, atol=1e-3)


def test_a_classifier_gives_probabilities(tmp_path) -> None:
    torch.manual_seed(0)
    model = get_model("resnet18", weights=None, num_classes=4).eval()
    save(model, tmp_path)
    config = ClassificationModel(
        name="m", architecture="torchvision/resnet18", weights="weights.pth", classes=CLASSES
    )
    spec = resolve_model(config, tmp_path)
    assert spec.preprocess.crop_from == 256
    assert spec.preprocess.canvases == ((224, 224),)
    (output,) = build_network(spec).predict(picture((224, 224))[None])
    assert isinstance(output, ClassOutput)
    assert output.probs.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    "builder",
    ["fasterrcnn_mobilenet_v3_large_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"],
)
def test_coco_labels_lose_placeholders_and_keep_their_numbers(builder: str) -> None:
    defaults = torchvision_zoo.find_defaults(f"torchvision/{builder}", {}, None, "DEFAULT")
    assert defaults.classes is not None
    assert len(defaults.classes) == 80
    assert "N/A" not in defaults.classes
    indices = defaults.arguments["class_indices"]
    assert isinstance(indices, tuple)
    # COCO's own category numbers, which have gaps
    assert dict(zip(defaults.classes, indices, strict=True))["toothbrush"] == 90
    assert defaults.classes[0] == "person"
    assert indices[0] == 1


def test_detectors_are_prepared_as_their_own_transform_would() -> None:
    name = "torchvision/ssdlite320_mobilenet_v3_large"
    preprocess = torchvision_zoo.find_defaults(name, {}, None, "DEFAULT").preprocess
    assert preprocess is not None
    assert preprocess.resize == "stretch"
    assert preprocess.canvases == ((320, 320),)
    assert preprocess.std == (0.5, 0.5, 0.5)
    name = "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"
    preprocess = torchvision_zoo.find_defaults(name, {}, None, "DEFAULT").preprocess
    assert preprocess is not None
    assert (320, 448) in preprocess.canvases
    assert all(side % 32 == 0 and side <= 640 for canvas in preprocess.canvases for side in canvas)


def test_every_listed_architecture_has_a_task_and_weights() -> None:
    listed = torchvision_zoo.list_architectures()
    assert listed["torchvision/maskrcnn_resnet50_fpn"] == ("instance_segmentation", "detection")
    assert listed["torchvision/deeplabv3_resnet50"] == ("semantic_segmentation",)
    assert listed["torchvision/resnet50"] == ("classification",)
    assert "torchvision/keypointrcnn_resnet50_fpn" not in listed
    assert "torchvision/raft_large" not in listed
    assert "torchvision/r3d_18" not in listed
    assert len(listed) > 80


def test_weights_that_cannot_be_fetched_say_what_to_do(tmp_path, monkeypatch) -> None:
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(OSError, match="pixelmill models fetch torchvision/resnet18"):
        torchvision_zoo.download_weights("torchvision/resnet18", "DEFAULT")


def test_weights_that_do_not_exist_are_named_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="IMAGENET1K_V1"):
        torchvision_zoo.download_weights("torchvision/resnet18", "COCO_V7")
