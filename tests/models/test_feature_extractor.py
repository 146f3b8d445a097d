from typing import cast

import pytest
import torch
import torchvision
from torch import nn

from pixelmill.models.feature_extractor import EXTRACTORS, build_extractor


@pytest.mark.parametrize("name", EXTRACTORS)
def test_features_have_the_channels_and_strides_that_are_told(name):
    with torch.device("meta"):
        extractor = build_extractor(name)
        features = extractor(torch.zeros(1, 3, 128, 96))
    assert tuple(each.shape[1] for each in features) == extractor.channels
    assert extractor.strides == (2, 4, 8, 16, 32)
    if name != "inception_v3":  # its convolutions are not padded
        for each, stride in zip(features, extractor.strides, strict=True):
            assert tuple(each.shape[2:]) == (128 // stride, 96 // stride)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    "name", ["resnet18", "resnext50_32x4d", "vgg16", "mobilenet_v2", "mobilenet_v3_small"]
)
def test_a_smaller_output_stride_keeps_the_resolution(name, output_stride):
    with torch.device("meta"):
        features = build_extractor(name, output_stride)(torch.zeros(1, 3, 64, 64))
    assert features[-1].shape[-1] == 64 // output_stride


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_resnet_equals_torchvisions_own(output_stride):
    torch.manual_seed(0)
    reference = torchvision.models.resnet50(
        weights=None, replace_stride_with_dilation=[False, output_stride == 8, True]
    ).eval()
    ours = build_extractor("resnet50", output_stride).eval()
    values = [value for name, value in reference.state_dict().items() if not name.startswith("fc.")]
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images))))
        for layer in (reference.layer1, reference.layer2, reference.layer3, reference.layer4):
            x = layer(x)
        torch.testing.assert_close(ours(images)[-1], x)


@pytest.mark.parametrize("index", [3, 4])
def test_inceptions_reductions_are_torchvisions_with_and_without_their_stride(index):
    torch.manual_seed(0)
    net = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=False).eval()
    block = (net.Mixed_6a, net.Mixed_7a)[index - 3]
    ours, dense = (
        cast("nn.Sequential", build_extractor("inception_v3", stride).eval().stages[index])[0]
        for stride in (32, 8)
    )
    for each in (ours, dense):
        each.load_state_dict(block.state_dict())
    x = torch.randn(1, (288, 768)[index - 3], 17, 19)
    # What each place sees is spread by the stride that was taken away before: 1, then 2
    gap = index - 2
    spread = torch.zeros(1, x.shape[1], 17 * gap, 19 * gap)
    spread[..., ::gap, ::gap] = x
    with torch.no_grad():
        expected = block(x)
        torch.testing.assert_close(ours(x), expected)
        # Unpadded it begins one place inside; without stride there is an answer for every place
        found = dense(spread)[..., ::gap, ::gap][..., 1:-1:2, 1:-1:2]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "output_stride", "told"),
    [
        ("resnet18", 4, "output stride of 8, 16 or 32"),
        ("alexnet", 32, "expected a backbone of resnet18"),
    ],
)
def test_what_cannot_be_built_is_told(name, output_stride, told):
    with pytest.raises(ValueError, match=told):
        build_extractor(name, output_stride)
