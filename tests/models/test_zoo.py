import pytest
import torch

from pixelmill.configs.schema import BoxPostprocess, CaptionPostprocess
from pixelmill.models.interface import BoxOutput, CaptionOutput, ClassOutput, SemanticOutput
from pixelmill.models.zoo import ARCHITECTURES

OUTPUTS = {
    "retinamask": (BoxOutput, {"num_classes": 3, "width": 8}, BoxPostprocess()),
    "ssd": (BoxOutput, {"num_classes": 3, "backbone": "mobilenet_v3_large"}, BoxPostprocess()),
    "yolo_v1": (
        BoxOutput,
        {"num_classes": 3, "variant": "tiny", "width": 16, "image_size": 64},
        BoxPostprocess(),
    ),
    "yolo_v2": (BoxOutput, {"num_classes": 3, "variant": "tiny", "width": 4}, BoxPostprocess()),
    "yolo_v3": (BoxOutput, {"num_classes": 3, "variant": "tiny", "width": 4}, BoxPostprocess()),
    "rcnn": (
        BoxOutput,
        {"num_classes": 3, "backbone": "mobilenet_v3_large", "crop_size": 64},
        BoxPostprocess(),
    ),
    "fast_rcnn": (
        BoxOutput,
        {"num_classes": 3, "backbone": "mobilenet_v3_large", "hidden": 8},
        BoxPostprocess(),
    ),
    "faster_rcnn": (
        BoxOutput,
        {"num_classes": 3, "backbone": "mobilenet_v3_large", "hidden": 8},
        BoxPostprocess(),
    ),
    "mask_rcnn": (
        BoxOutput,
        {"num_classes": 3, "backbone": "mobilenet_v3_large", "fpn_channels": 8, "hidden": 8},
        BoxPostprocess(),
    ),
    "full_resolution": (SemanticOutput, {"num_classes": 3, "width": 4}, None),
    "encoder_decoder": (SemanticOutput, {"num_classes": 3, "width": 4}, None),
    "unet": (SemanticOutput, {"num_classes": 3, "width": 4}, None),
    "unet_plus_plus": (
        SemanticOutput,
        {"num_classes": 3, "width": 4, "deep_supervision": True},
        None,
    ),
    "pspnet": (
        SemanticOutput,
        {"num_classes": 3, "backbone": "resnet18", "pool_channels": 8},
        None,
    ),
    "gcn": (SemanticOutput, {"num_classes": 3, "backbone": "mobilenet_v2", "kernel": 5}, None),
    "frrn": (SemanticOutput, {"num_classes": 3, "width": 4}, None),
    "semantic_fpn": (
        SemanticOutput,
        {"num_classes": 3, "backbone": "resnet18", "channels": 32},
        None,
    ),
    "classifier": (ClassOutput, {"num_classes": 3, "backbone": "resnet18"}, None),
    "localiser": (BoxOutput, {"num_classes": 3, "backbone": "resnet18"}, BoxPostprocess()),
    "show_and_tell": (
        CaptionOutput,
        {"vocabulary_size": 6, "backbone": "resnet18", "embed_dim": 8, "hidden_dim": 8},
        CaptionPostprocess(max_tokens=3),
    ),
    "show_attend_tell": (
        CaptionOutput,
        {"vocabulary_size": 6, "width": 8},
        CaptionPostprocess(max_tokens=3),
    ),
}


CANVASES = {"ssd": (300, 300), "yolo_v1": (64, 64)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_built_is_read_out_as_its_task_needs(name, make_spec):
    architecture = ARCHITECTURES[name]
    kind, arguments, postprocess = OUTPUTS[name]
    spec = make_spec(
        architecture.tasks[0], postprocess=postprocess, vocabulary=("", "", "", "", "one", "two")
    )
    torch.manual_seed(0)
    module = architecture.build(**arguments).eval()
    with torch.no_grad():
        canvas = CANVASES.get(name, (64, 96))
        outputs = module(torch.zeros(2, 3, *canvas))
        found = architecture.read_out(module, outputs, spec, canvas)
    assert [type(each) for each in found] == [kind, kind]


def test_ours_can_be_trained():
    assert all(each.trainable for each in ARCHITECTURES.values())
