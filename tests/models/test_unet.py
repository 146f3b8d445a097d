import pytest
import torch

from pixelmill.models.losses import weighted_sum
from pixelmill.models.targets import SemanticTarget
from pixelmill.models.unet import UNet, semantic_loss, semantic_outputs


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


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = UNet(4, width=4, depth=2)
    targets = [SemanticTarget(torch.randint(0, 4, (20, 24))) for _ in range(2)]
    terms = semantic_loss(model, model(torch.rand(2, 3, 20, 24)), targets)
    weighted_sum(terms, {}).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_void_pixels_do_not_count():
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (8, 8), generator=torch.Generator().manual_seed(1))
    labels[:4] = 255
    other = logits.clone()
    other[:, :, :4] = 9
    torch.testing.assert_close(
        semantic_loss(UNet(3, width=4), logits, [SemanticTarget(labels)]),
        semantic_loss(UNet(3, width=4), other, [SemanticTarget(labels)]),
    )


def test_perfect_logits_cost_nothing():
    labels = torch.randint(0, 3, (8, 8), generator=torch.Generator().manual_seed(1))
    logits = 100.0 * torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1)[None]
    terms = semantic_loss(UNet(3, width=4), logits, [SemanticTarget(labels.to(torch.uint8))])
    assert all(abs(float(term)) < 1e-5 for term in terms.values())


def test_one_output_per_image(make_spec):
    logits = torch.randn(3, 2, 8, 8)
    outputs = semantic_outputs(UNet(2, width=4), logits, make_spec("semantic_segmentation"), (8, 8))
    assert torch.equal(torch.stack([each.logits for each in outputs]), logits)
