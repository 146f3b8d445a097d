from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from pixelmill.models.fold import fold_batch_norm


def randomise(module: Any) -> Any:
    torch.manual_seed(0)
    layers: Any = [layer for layer in module.modules() if hasattr(layer, "running_var")]
    for layer in layers:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.normal_(layer.bias)
    return module.eval()


def count(module: nn.Module) -> int:
    norms = nn.BatchNorm2d | FrozenBatchNorm2d
    return sum(isinstance(layer, norms) for layer in module.modules())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_a_folded_network_computes_the_same_without_normalisation(norm) -> None:
    module = randomise(resnet18(norm_layer=norm))
    images = torch.randn(2, 3, 64, 64)
    folded = fold_batch_norm(module, images[:1])
    assert count(module) == 20
    assert count(folded) == 0
    with torch.inference_mode():
        expected = module(images)
        assert_close(folded(images), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_convolution_that_something_else_reads_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, images: Tensor) -> Tensor:
            raw = self.conv(images)
            return self.norm(raw) + raw

    module = randomise(Shared())
    assert fold_batch_norm(module, torch.randn(1, 3, 9, 9)) is module


def test_a_convolution_with_two_normalisations_is_not_folded() -> None:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

        def forward(self, images: Tensor) -> list[Tensor]:
            return [norm(self.conv(images)) for norm in self.norms]

    module = randomise(Levels())
    assert fold_batch_norm(module, torch.randn(1, 3, 9, 9)) is module


def test_nothing_to_fold_is_no_copy() -> None:
    module = nn.Conv2d(3, 4, 3).eval()
    assert fold_batch_norm(module, torch.randn(1, 3, 9, 9)) is module
