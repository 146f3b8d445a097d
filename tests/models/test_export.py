"""Every architecture's trunk is a graph that torch.export holds, and computes the same.

What a trunk leaves to the read-out (proposals, suppression, the search for a sentence) is no part
of the graph: those steps depend on what is found.
"""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.engines.export import export_trunk, takes_any_batch
from pixelmill.models.engines.pixels import PixelTrunk
from pixelmill.models.zoo import ARCHITECTURES

BACKBONE = {"backbone": "resnet18"}  # few layers: tracing takes a while for each
SMALL = {
    "retinamask": {"mask_head": True, "width": 8, "fpn_channels": 8},
    "ssd": BACKBONE,
    "yolo_v1": {"variant": "tiny", "width": 8, "image_size": 64},
    "yolo_v2": {"variant": "tiny", "width": 4, "head_width": 8},
    "yolo_v3": {"variant": "tiny", "width": 4},
    "rcnn": BACKBONE | {"crop_size": 32, "context": 2},
    "fast_rcnn": BACKBONE | {"hidden": 8},
    "faster_rcnn": BACKBONE | {"hidden": 8},
    "mask_rcnn": BACKBONE | {"hidden": 8, "fpn_channels": 8, "mask_channels": 8},
    "full_resolution": {"width": 4, "depth": 3},
    "encoder_decoder": {"width": 4, "depth": 2},
    "unet": {"width": 4, "depth": 2},
    "unet_plus_plus": {"width": 4, "depth": 2, "deep_supervision": True},
    "pspnet": BACKBONE | {"pool_channels": 8},
    "gcn": BACKBONE | {"kernel": 5},
    "frrn": {"width": 4},
    "semantic_fpn": BACKBONE | {"pyramid_channels": 8, "channels": 32},
    "classifier": BACKBONE,
    "localiser": BACKBONE | {"hidden": 8},
    "show_and_tell": BACKBONE | {"embed_dim": 8, "hidden_dim": 8},
    "show_attend_tell": {"width": 8, "embed_dim": 8, "hidden_dim": 8, "attention_dim": 8},
}
CANVASES = {"ssd": (300, 300), "yolo_v1": (64, 64)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_exported_trunk_gives_the_modules_tensors_for_any_batch(name):
    torch.manual_seed(0)
    number = "vocabulary_size" if "tell" in name else "num_classes"
    module = ARCHITECTURES[name].build(**{number: 6}, **SMALL[name]).eval()
    canvas = CANVASES.get(name, (64, 96))
    trunk = PixelTrunk(module, PreprocessConfig(canvases=(canvas,))).eval()
    program = export_trunk(trunk, (3, *canvas, 3))
    assert takes_any_batch(program)
    images = torch.randint(256, (3, *canvas, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = tree_leaves(trunk(images)), tree_leaves(program.module()(images))
    # Whatever runs a trunk hands over tensors, and nothing else
    assert all(isinstance(each, torch.Tensor) for each in expected)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
