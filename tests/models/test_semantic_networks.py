import pytest
import torch
from torch import nn

from pixelmill.models.frrn import FRRN
from pixelmill.models.fully_convolutional import EncoderDecoder, FullResolutionNet
from pixelmill.models.gcn import GCN
from pixelmill.models.pspnet import PSPNet
from pixelmill.models.semantic_fpn import SemanticFPN
from pixelmill.models.unet import UNet
from pixelmill.models.unet_plus_plus import UNetPlusPlus

SMALL = {
    "full_resolution": lambda: FullResolutionNet(3, width=8, depth=3),
    "encoder_decoder": lambda: EncoderDecoder(3, width=4, depth=3),
    "unet": lambda: UNet(3, width=4, depth=3),
    "unet++": lambda: UNetPlusPlus(3, width=4, depth=3),
    "unet++ supervised": lambda: UNetPlusPlus(3, width=4, depth=3, deep_supervision=True),
    "pspnet": lambda: PSPNet(3, "resnet18", pool_channels=8),
    "gcn": lambda: GCN(3, "mobilenet_v2", kernel=5),
    "frrn a": lambda: FRRN(3, "A", width=4),
    "frrn b": lambda: FRRN(3, "B", width=4),
    "semantic fpn": lambda: SemanticFPN(3, "resnet18", pyramid_channels=16, channels=32),
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def conv(before: int, after: int, kernel: int = 3, *, bias: bool = False) -> int:
    return before * after * kernel**2 + (after if bias else 0)


def conv_bn(before: int, after: int, kernel: int = 3) -> int:
    return conv(before, after, kernel) + 2 * after


@pytest.mark.parametrize(
    ("build", "published"),
    [
        # milesial/Pytorch-UNet, 3 channels in: the paper's network with padding and batch norm
        (lambda: UNet(1, width=64), 31_037_633),
        (lambda: UNet(2, width=64), 31_037_698),
        # 4uiiurz1/pytorch-nested-unet; the paper says 9.04 M without batch norm
        (lambda: UNetPlusPlus(1), 9_163_329),
        (lambda: UNetPlusPlus(1, deep_supervision=True), 9_163_428),
        # zijundeng/pytorch-semantic-segmentation
        (lambda: PSPNet(21), 65_606_250),
        (lambda: PSPNet(12), 65_592_408),
        (lambda: GCN(21, kernel=7), 59_369_620),
        (lambda: GCN(12, kernel=7), 58_820_728),
    ],
)
def test_parameters_are_as_many_as_in_the_reference(build, published):
    with torch.device("meta"):
        assert count(build()) == published


@pytest.mark.parametrize(("variant", "millions"), [("A", 17.7), ("B", 24.8)])
def test_frrn_has_the_papers_number_of_parameters(variant, millions):
    # Table 1 counted by hand. The paper says 17.7 and 24.8 million; meetshah1995/pytorch-semseg
    # has 1,153,184 fewer in both.
    def unit(before: int, after: int) -> int:
        return conv_bn(before + 32, after) + conv_bn(after, after) + conv(after, 32, 1, bias=True)

    def stage(number: int, before: int, after: int) -> int:
        return unit(before, after) + (number - 1) * unit(after, after)

    down = stage(3, 48, 96) + stage(4, 96, 192) + stage(2, 192, 384) + stage(2, 384, 384)
    up = stage(2, 384, 192) + stage(2, 192, 192) + stage(2, 192, 96)
    if variant == "B":
        down += stage(2, 384, 384)
        up += stage(2, 192, 192)
    ends = (
        conv_bn(3, 48, 5)
        + 6 * 2 * conv_bn(48, 48)
        + conv(48, 32, 1, bias=True)
        + conv(96 + 32, 48, 1, bias=True)
        + conv(48, 19, 1, bias=True)
    )
    with torch.device("meta"):
        ours = count(FRRN(19, variant))
    assert ours == down + up + ends
    assert ours / 1e6 == pytest.approx(millions, abs=0.1)


def test_plain_networks_have_the_parameters_counted_by_hand():
    assert count(FullResolutionNet(5, width=32, depth=8)) == (
        conv_bn(3, 32) + 7 * conv_bn(32, 32) + conv(32, 5, 1, bias=True)
    )
    encoder = conv_bn(3, 16) + conv_bn(16, 32) + conv_bn(32, 64)
    decoder = sum(
        conv(before, after, 2, bias=True) + conv_bn(after, after)
        for before, after in ((64, 32), (32, 16))
    )
    assert count(EncoderDecoder(5, width=16, depth=2)) == (
        encoder + decoder + conv(16, 5, 1, bias=True)
    )


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(64, 96), (67, 93)])
def test_there_is_a_logit_for_every_pixel_of_odd_sizes_too(name, size):
    module = SMALL[name]().eval()
    with torch.no_grad():
        assert module(torch.zeros(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("name", SMALL)
def test_the_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    module = SMALL[name]().train()
    outputs = module(torch.randn(2, 3, 64, 64))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.stack([(each * torch.randn_like(each)).sum() for each in outputs]).sum().backward()
    without = [
        each
        for each, parameter in module.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    # A bias before batch normalisation has no effect, and no gradient
    assert [each for each in without if not each.endswith("bias")] == []


def test_a_large_kernel_sees_as_far_as_its_side_says():
    torch.manual_seed(0)
    large = GCN(2, "resnet18", kernel=7).global_convs[0]
    seen = torch.zeros(1, 64, 15, 15, requires_grad=True)
    large(seen)[0, 0, 7, 7].backward()
    assert seen.grad is not None
    rows, columns = seen.grad[0].abs().sum(0).nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 10, 4, 10)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="odd kernel"):
        GCN(2, "resnet18", kernel=8)
