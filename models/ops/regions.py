"""Regions of feature maps, resampled to one size: RoIAlign.

Source: He et al., Mask R-CNN, 2017, section 3.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

__all__ = ["align_regions"]

# Per cell and side
_SAMPLES = 2


def align_regions(
    levels: Sequence[Tensor],
    scales: Sequence[float],
    rois: Tensor,
    level_of_roi: Tensor,
    size: int,
) -> Tensor:
    """`torchvision.ops.roi_align(..., sampling_ratio=2, aligned=True)`, each region of its level.

    On a CPU that one goes channel by channel. Where nothing is learnt, all channels of a place and
    the regions of all levels are taken at once here, which is 5 times as fast on channels-last
    maps; the sums are in another order, and differ by rounding.

    Args:
        levels: (B, C, H, W) each.
        scales: of each level: its elements per pixel.
        rois: (N, 5) float32, on the CPU or where the levels are: index of the image, then x_min,
            y_min, x_max, y_max in its pixels.
        level_of_roi: (N,) int64, where the regions are.
        size: cells of a region along each side.

    Returns:
        (N, C, size, size) float32, channels last.
    """
    learns = torch.is_grad_enabled() and any(each.requires_grad for each in levels)
    if levels[0].device.type != "cpu" or learns:
        return _level_by_level(levels, scales, rois, level_of_roi, size)
    num_images, channels = levels[0].shape[:2]
    heights, widths = (
        torch.tensor([each.shape[side] for each in levels], dtype=torch.int32) for side in (2, 3)
    )
    elements = heights * widths
    begins = num_images * (elements.cumsum(0, dtype=torch.int32) - elements)
    height, width = heights[level_of_roi], widths[level_of_roi]
    scale = torch.tensor(scales, dtype=torch.float32)[level_of_roi]
    rows, row_weights = _taps(rois[:, 2], rois[:, 4], height, size, scale)
    columns, column_weights = _taps(rois[:, 1], rois[:, 3], width, size, scale)
    origin = begins[level_of_roi] + rois[:, 0].to(torch.int32) * elements[level_of_roi]
    rows = origin[:, None, None] + rows * width[:, None, None]
    # (N, cells down, cells across, taps down, taps across)
    places = rows[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    num_taps = (2 * _SAMPLES) ** 2
    pooled = F.embedding_bag(
        places.view(-1, num_taps),
        torch.cat([each.permute(0, 2, 3, 1).reshape(-1, channels).float() for each in levels]),
        mode="sum",
        per_sample_weights=weights.view(-1, num_taps),
    )
    return pooled.view(len(rois), size, size, channels).permute(0, 3, 1, 2)


def _level_by_level(
    levels: Sequence[Tensor],
    scales: Sequence[float],
    rois: Tensor,
    level_of_roi: Tensor,
    size: int,
) -> Tensor:
    """By torchvision; asked of regions on the CPU, this does not wait for a GPU."""
    device = levels[0].device
    shape = len(rois), size, size, levels[0].shape[1]
    pooled = torch.zeros(shape, dtype=torch.float32, device=device).permute(0, 3, 1, 2)
    for index, (features, scale) in enumerate(zip(levels, scales, strict=True)):
        (here,) = torch.nonzero(level_of_roi == index, as_tuple=True)
        pooled[here.to(device, non_blocking=True)] = roi_align(
            features.float(),
            rois[here].to(device, non_blocking=True),
            size,
            scale,
            _SAMPLES,
            aligned=True,
        )
    return pooled


def _taps(
    first: Tensor, last: Tensor, length: Tensor, size: int, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Which elements of a side are read for each cell of each region, and with what weight.

    Args:
        first: (N,) where the regions begin along it, pixels.
        last: (N,) where they end.
        length: (N,) int32 elements of the map.
        size: cells of a region.
        scale: (N,) elements per pixel.

    Returns:
        (N, size, 4) int32 and float32.
    """
    step = (last - first) * (scale / (size * _SAMPLES))
    end = length[:, None]
    position = (first * scale - 0.5)[:, None] + step[:, None] * (
        torch.arange(size * _SAMPLES) + 0.5
    )
    is_near = (position >= -1) & (position <= end)  # beyond an element's width there is nothing
    position = torch.minimum(position.clamp_(min=0), end - 1)
    low = position.to(torch.int32)
    share = position - low
    places = torch.stack((low, torch.minimum(low + 1, end - 1)), dim=-1)
    weights = torch.stack((1 - share, share), dim=-1) * (is_near / _SAMPLES)[..., None]
    return places.view(-1, size, 2 * _SAMPLES), weights.view(-1, size, 2 * _SAMPLES)
