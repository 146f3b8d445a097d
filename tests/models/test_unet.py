import pytest
import torch

from pixelmill.models.unet import UNet


def test_parameter_count():
    # milesial/Pytorch-UNet (bilinear=False, n_classes=2): the paper's widths, batch-normalised
    assert sum(p.numel() for p in UNet(2, width=64).parameters()) == 31_037_698
    assert sum(p.numel() for p in UNet(10, width=16).parameters()) == 1_942_730


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (1, 5)])
def test_output_is_as_large_as_the_input(size):
    assert UNet(3, width=4).eval()(torch.zeros(1, 3, *size)).shape == (1, 3, *size)


def test_padding_below_and_right_does_not_shift_the_output():
    torch.manual_seed(0)
    model = UNet(3, width=4, depth=2).eval()
    images = torch.rand(1, 3, 64, 64)
    images[..., 61:, :] = images[..., 60:61, :]
    with torch.no_grad():
        cut = model(images[..., :61, :])
        torch.testing.assert_close(cut, model(images)[..., :61, :])
