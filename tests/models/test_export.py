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

CANVASES = {"ssd": (300, 300), "yolo_v1": (64, 64)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_exported_trunk_gives_the_modules_tensors_for_any_batch(name, small_arguments):
    torch.manual_seed(0)
    number = "vocabulary_size" if "tell" in name else "num_classes"
    module = ARCHITECTURES[name].build(**{number: 6}, **small_arguments[name]).eval()
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
