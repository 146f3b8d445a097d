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
    found = align_regions([features], [1 / 8], rois, torch.zeros(60, dtype=torch.int64), size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_each_region_is_read_from_its_level() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [
        torch.randn(2, 5, 48 // 2**index, 64 // 2**index, generator=generator) for index in range(3)
    ]
    scales = [1 / 8, 1 / 16, 1 / 32]
    rois, level_of_roi = make_rois(40, generator), torch.arange(40) % 3
    found = align_regions(levels, scales, rois, level_of_roi, 7)
    for index, (features, scale) in enumerate(zip(levels, scales, strict=True)):
        here = level_of_roi == index
        expected = roi_align(features, rois[here], 7, scale, 2, aligned=True)
        torch.testing.assert_close(found[here], expected, rtol=0, atol=1e-4)


def test_far_boxes_and_no_boxes_give_zeros_and_nothing() -> None:
    features = torch.ones(1, 3, 8, 8)
    far = torch.tensor([[0.0, 900, 900, 950, 950], [0, -300, -300, -200, -200]])
    level = torch.zeros(2, dtype=torch.int64)
    assert align_regions([features], [1.0], far, level, 7).count_nonzero() == 0
    none = align_regions([features], [1.0], torch.zeros(0, 5), level[:0], 7)
    assert none.shape == (0, 3, 7, 7)


def test_what_is_to_be_learnt_gets_its_gradient() -> None:
    features = torch.randn(1, 2, 8, 8, requires_grad=True)
    roi, level = torch.tensor([[0.0, 1, 1, 6, 6]]), torch.zeros(1, dtype=torch.int64)
    align_regions([features], [1.0], roi, level, 7).sum().backward()
    assert features.grad is not None
    assert features.grad.count_nonzero() > 0
