import pytest
import torch
from torchvision.ops import roi_align

from pixelmill.models.ops.regions import align_regions


def make_rois(count: int, generator: torch.Generator) -> torch.Tensor:
    """Some reach beyond the image, some have no area."""
    corner = 340 * torch.rand(count, 2, generator=generator) - 40
    sides = 200 * torch.rand(count, 2, generator=generator) ** 2
    sides[:3] = 0
    image = torch.randint(0, 2, (count, 1), generator=generator).float()
    return torch.cat((image, corner, corner + sides), dim=1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [7, 14])
def test_regions_are_those_of_torchvision(size: int, memory_format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(size)
    features = torch.randn(2, 5, 30, 40, generator=generator).to(memory_format=memory_format)
    rois = make_rois(60, generator)
    expected = roi_align(features, rois, size, 1 / 8, 2, aligned=True)
    torch.testing.assert_close(
        align_regions(features, rois, size, 1 / 8), expected, rtol=0, atol=1e-4
    )


def test_far_boxes_and_no_boxes_give_zeros_and_nothing() -> None:
    features = torch.ones(1, 3, 8, 8)
    far = torch.tensor([[0.0, 900, 900, 950, 950], [0, -300, -300, -200, -200]])
    assert align_regions(features, far, 7, 1.0).count_nonzero() == 0
    assert align_regions(features, torch.zeros(0, 5), 7, 1.0).shape == (0, 3, 7, 7)


def test_what_is_to_be_learnt_gets_its_gradient() -> None:
    features = torch.randn(1, 2, 8, 8, requires_grad=True)
    align_regions(features, torch.tensor([[0.0, 1, 1, 6, 6]]), 7, 1.0).sum().backward()
    assert features.grad is not None
    assert features.grad.count_nonzero() > 0
