"""Backbones of torchvision as feature extractors of any output stride that they can have.

VGG: Simonyan and Zisserman, 2014, https://arxiv.org/abs/1409.1556. ResNet: He et al., 2015,
https://arxiv.org/abs/1512.03385. Inception-v3: Szegedy et al., 2015,
https://arxiv.org/abs/1512.00567. MobileNet v2 and v3: Sandler et al., 2018,
https://arxiv.org/abs/1801.04381, and Howard et al., 2019, https://arxiv.org/abs/1905.02244.

A smaller output stride replaces the strides of the last stages by dilations, which keeps the
weights meaningful: Chen et al., DeepLab, 2016, https://arxiv.org/abs/1606.00915, section 3.1.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

__all__ = ["EXTRACTORS", "FeatureExtractor", "build_extractor", "check_padded"]

STRIDES = (2, 4, 8, 16, 32)


class FeatureExtractor(nn.Module):
    """A backbone cut into five stages, one for each halving of the resolution.

    Args:
        stages: applied one after the other.
        channels: of each stage's features.
        output_stride: 8, 16 or 32; stages beyond it keep the resolution and dilate.

    Attributes:
        channels: of the features, by stage.
        strides: of the features, by stage.

    Raises:
        ValueError: no such output stride.
    """

    def __init__(
        self, stages: Sequence[nn.Module], channels: Sequence[int], output_stride: int = 32
    ) -> None:
        super().__init__()
        if output_stride not in STRIDES[2:]:
            raise ValueError(f"expected an output stride of 8, 16 or 32, got {output_stride}")
        self.channels = tuple(channels)
        self.strides = tuple(min(stride, output_stride) for stride in STRIDES)
        self.stages = nn.ModuleList(stages)
        for stage, stride in zip(self.stages, STRIDES, strict=True):
            if stride > output_stride:
                _dilate(stage, stride // output_stride)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> features by stage, (B, channels, about H / stride, about W / stride)."""
        features = []
        x = images
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return tuple(features)


def _dilate(stage: nn.Module, factor: int) -> None:
    """Take a stage's stride away.

    The layer that had the stride still sees its input at the old spacing, so its dilation is half
    of what the layers behind it need to keep their field of view.
    """
    half = factor // 2
    beside = {
        id(layer)
        for block in stage.modules()
        if isinstance(block, _Reduction)
        for layer in block.modules()
    }
    is_reduced = False
    for module in stage.modules():
        here = factor if is_reduced and id(module) not in beside else half
        if isinstance(module, nn.MaxPool2d):
            module.kernel_size, module.stride, is_reduced = 1, 1, True
        elif isinstance(module, _Pool):
            module.stride, module.dilation, is_reduced = 1, here, True
        elif isinstance(module, nn.Conv2d):
            if module.kernel_size != (1, 1):
                is_reduced = is_reduced or module.stride == (2, 2)
                module.dilation = (here, here)
                reach = [here * (size // 2) for size in module.kernel_size]
                module.padding = (reach[0], reach[1])
            module.stride = (1, 1)


class _Pool(nn.Module):
    """Maximum of 3 x 3 places: unpadded with a stride, of the same size without one."""

    stride = 2
    dilation = 1

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            # Not the pool's own padding, which may be no wider than half of the kernel
            x = F.pad(x, (self.dilation,) * 4, value=float("-inf"))
        return F.max_pool2d(x, 3, self.stride, dilation=self.dilation)


class _Reduction(nn.Module):
    """An Inception module that halves the resolution, with its pooling as a layer.

    In torchvision's it is a function, whose stride nobody can change.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, layer in block.named_children():
            self.add_module(name, layer)
        self.pool = _Pool()

    def forward(self, x: Tensor) -> Tensor:
        branches: dict[str, Tensor] = {}
        for name, layer in self.named_children():
            branch, *_ = name.split("_")  # branch3x3_1 and branch3x3_2 are one after the other
            branches[branch] = layer(branches.get(branch, x))
        return torch.cat(list(branches.values()), dim=1)


def _resnet(name: str) -> tuple[list[nn.Module], tuple[int, ...]]:
    net = cast("Any", torchvision.models.get_model(name, weights=None))
    first = nn.Sequential(net.conv1, net.bn1, net.relu)
    stages = [first, nn.Sequential(net.maxpool, net.layer1), net.layer2, net.layer3, net.layer4]
    wide = net.fc.in_features
    return stages, (64, wide // 8, wide // 4, wide // 2, wide)


def _vgg(name: str) -> tuple[list[nn.Module], tuple[int, ...]]:
    net = cast("Any", torchvision.models.get_model(name, weights=None, init_weights=False))
    layers = list(net.features)
    pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    # The convolutions at full resolution go with the first halving: a stage ends before the pool
    # that follows it, so that its features are the finest of their stride.
    ends = [*pools[1:], len(layers)]
    starts = [0, *pools[1:]]
    stages: list[nn.Module] = [
        nn.Sequential(*layers[start:end]) for start, end in zip(starts, ends, strict=True)
    ]
    return stages, (128, 256, 512, 512, 512)


def _mobilenet_v2(name: str) -> tuple[list[nn.Module], tuple[int, ...]]:
    net = cast("Any", torchvision.models.get_model(name, weights=None))
    layers = list(net.features)
    return _cut(layers, (0, 2, 4, 7, 14, 19)), (16, 24, 32, 96, 1280)


def _mobilenet_v3_large(name: str) -> tuple[list[nn.Module], tuple[int, ...]]:
    net = cast("Any", torchvision.models.get_model(name, weights=None))
    layers = list(net.features)
    return _cut(layers, (0, 2, 4, 7, 13, 17)), (16, 24, 40, 112, 960)


def _mobilenet_v3_small(name: str) -> tuple[list[nn.Module], tuple[int, ...]]:
    net = cast("Any", torchvision.models.get_model(name, weights=None))
    layers = list(net.features)
    return _cut(layers, (0, 1, 2, 4, 9, 13)), (16, 16, 24, 48, 576)


def _inception_v3(name: str) -> tuple[list[nn.Module], tuple[int, ...]]:
    net = cast(
        "Any",
        torchvision.models.get_model(name, weights=None, init_weights=False, aux_logits=False),
    )
    names = [
        ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
        ("maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
        ("maxpool2", "Mixed_5b", "Mixed_5c", "Mixed_5d"),
        ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
    ]
    net.Mixed_6a, net.Mixed_7a = _Reduction(net.Mixed_6a), _Reduction(net.Mixed_7a)
    stages: list[nn.Module] = [
        nn.Sequential(*(cast("nn.Module", getattr(net, each)) for each in group)) for group in names
    ]
    return stages, (64, 192, 288, 768, 2048)


def _cut(layers: Sequence[nn.Module], bounds: Sequence[int]) -> list[nn.Module]:
    return [nn.Sequential(*layers[start:end]) for start, end in pairwise(bounds)]


EXTRACTORS: Mapping[str, Callable[[str], tuple[list[nn.Module], tuple[int, ...]]]] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), _resnet),
    **dict.fromkeys(("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"), _resnet),
    **dict.fromkeys(("vgg16", "vgg16_bn", "vgg19", "vgg19_bn"), _vgg),
    "mobilenet_v2": _mobilenet_v2,
    "mobilenet_v3_small": _mobilenet_v3_small,
    "mobilenet_v3_large": _mobilenet_v3_large,
    "inception_v3": _inception_v3,
}


def build_extractor(name: str, output_stride: int = 32) -> FeatureExtractor:
    """A backbone with random weights.

    Args:
        name: of `EXTRACTORS`.
        output_stride: of the last stage; that of Inception-v3, whose first convolutions are not
            padded, is approximate.

    Raises:
        ValueError: no such backbone or output stride.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"expected a backbone of {', '.join(EXTRACTORS)}, got {name!r}")
    stages, channels = EXTRACTORS[name](name)
    return FeatureExtractor(stages, channels, output_stride)


def check_padded(name: str) -> None:
    """Refuse a backbone whose features do not lie on the grid of anchors.

    Raises:
        ValueError: it is Inception-v3.
    """
    if name == "inception_v3":
        raise ValueError(
            "inception_v3's convolutions are not padded, so that its cells lie at no whole stride; "
            "choose another backbone"
        )
