"""From small masks and coarse class scores to pixels of the original image.

Neither ever holds full-size planes of floats for all objects or classes: an instance mask is
resized within its box only, a label map is made in bands of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Axis", "PlacedScores", "label_map", "linear_axis", "paste_mask", "settled"]

# Rows resized at once: a band of a 1920 px wide plane stays in a core's cache
_BAND = 64
# Columns resized at once where classes that cannot win there are left out
_TILE_WIDTH = 256
# Pixels per element of the scores from which on it pays to look for such classes
_MIN_PRUNED_SCALE = 32
# Scores resized at once on a GPU: 64 MB
_GPU_BAND_VALUES = 2**24

_PASTE_PADDING = 1


@dataclass(frozen=True, slots=True)
class Axis:
    """Linear interpolation along one side.

    Attributes:
        low: (n,) int64 index of the source element before each position.
        high: (n,) int64 index of the one after it.
        weight: (n,) float32 share of the latter.
    """

    low: Tensor
    high: Tensor
    weight: Tensor

    def part(self, start: int, stop: int) -> "Axis":
        """The positions from `start` up to `stop`."""
        return Axis(self.low[start:stop], self.high[start:stop], self.weight[start:stop])

    def to(self, device: torch.device) -> "Axis":
        """The same where the scores are; a GPU is not waited for."""
        low, high, weight = (
            each.to(device, non_blocking=True) for each in (self.low, self.high, self.weight)
        )
        return Axis(low, high, weight)


@dataclass(frozen=True, slots=True)
class PlacedScores:
    """The class scores of one view, and where they belong in the original.

    Attributes:
        scores: (K, h, w) float32: logits, or probabilities if there are several views.
        top: first original row that the view shows.
        left: first original column.
        rows: one position per original row from `top` on.
        columns: one position per original column from `left` on.
        row_weight: (number of rows,) float32 say of the view.
        column_weight: (number of columns,) float32.
    """

    scores: Tensor
    top: int
    left: int
    rows: Axis
    columns: Axis
    row_weight: Tensor
    column_weight: Tensor


def linear_axis(
    start: int, stop: int, length: int, *, scale: float, offset: float = 0.0, limit: float = -1.0
) -> Axis:
    """Where pixels `start` up to `stop` lie in a source of `length` elements.

    Pixel i, whose centre is at i + 0.5, lies at `(i + 0.5) * scale + offset` in the source; as in
    `torch.nn.functional.interpolate(..., align_corners=False)` for offset 0.

    Args:
        start: first pixel.
        stop: pixel after the last.
        length: elements of the source.
        scale: source elements per pixel; negative where the source is mirrored.
        offset: source coordinate of the pixels' origin.
        limit: source coordinate where the picture ends; positions stop half an element before.
    """
    pixels = torch.arange(start, stop, dtype=torch.float32)
    end = length if limit < 0 else limit
    position = (scale * (pixels + 0.5) + (offset - 0.5)).clamp(min=0, max=max(0.0, end - 0.5))
    low = position.to(torch.int64).clamp(max=length - 1)
    return Axis(low, (low + 1).clamp(max=length - 1), position - low)


def paste_mask(
    probs: Tensor, box_xyxy: Tensor, image_size: tuple[int, int], threshold: float
) -> tuple[int, int, Tensor]:
    """Resize a mask into its box, within the image only.

    The pixels are those of torchvision's `paste_masks_in_image`, which makes a full-size plane of
    floats of each mask instead.

    Args:
        probs: (M, M) float32 in [0, 1] over the box.
        box_xyxy: (4,) float32, pixels of the image; may reach beyond it.
        image_size: (height, width).
        threshold: a pixel is inside where its probability is larger.

    Returns:
        Top row, left column and the (h, w) bool mask without empty rows and columns around it;
        (0, 0) where nothing is inside.

    Source: He et al., Mask R-CNN, 2017; torchvision/models/detection/roi_heads.py.
    """
    side = probs.shape[-1]
    padded = F.pad(probs, (_PASTE_PADDING,) * 4)
    centre, half = (box_xyxy[:2] + box_xyxy[2:]) * 0.5, (box_xyxy[2:] - box_xyxy[:2]) * 0.5
    half = half * ((side + 2 * _PASTE_PADDING) / side)
    left, top = (centre - half).to(torch.int64).tolist()
    right, bottom = (centre + half).to(torch.int64).tolist()
    rows = _pasted_axis(top, bottom, image_size[0], len(padded))
    columns = _pasted_axis(left, right, image_size[1], len(padded))
    inside = _interpolate(padded, rows, columns) > threshold
    return _trimmed(inside, max(top, 0), max(left, 0))


def _pasted_axis(first: int, last: int, limit: int, length: int) -> Axis:
    """Pixels of the image from `first` up to and with `last`, over which a mask is spread."""
    extent = max(last - first + 1, 1)
    start, stop = max(first, 0), min(last + 1, limit)
    return linear_axis(start - first, max(stop, start) - first, length, scale=length / extent)


def _interpolate(plane: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Bilinear: (..., h, w) -> (..., rows, columns)."""
    # Columns first: on the few source rows, not on the many rows of the result
    wide = torch.lerp(plane[..., columns.low], plane[..., columns.high], columns.weight)
    weight = rows.weight[:, None]
    return torch.lerp(wide[..., rows.low, :], wide[..., rows.high, :], weight)


def _trimmed(mask: Tensor, top: int, left: int) -> tuple[int, int, Tensor]:
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    if not len(rows):
        return top, left, mask[:0, :0]
    first_row, last_row = int(rows[0]), int(rows[-1])
    first_column, last_column = int(columns[0]), int(columns[-1])
    crop = mask[first_row : last_row + 1, first_column : last_column + 1]
    return top + first_row, left + first_column, crop.contiguous()


def settled(scores: Tensor) -> Tensor:
    """The scores of a batch, made: labels may be asked of them in another thread or stream."""
    if scores.is_cuda:
        torch.cuda.current_stream(scores.device).synchronize()
    return scores


def label_map(
    views: Sequence[PlacedScores], image_size: tuple[int, int], void: int, dtype: torch.dtype
) -> Tensor:
    """The best class of every pixel of the original.

    One view that shows the whole image: equal to upsampling its logits and taking the argmax. With
    several, their probabilities are averaged by weight. It is done where the scores are, and only
    labels leave a GPU. Memory is that of a band of rows, whatever the image's height.

    Args:
        views: all scores with the same K.
        image_size: (height, width).
        void: label of pixels that no view shows.
        dtype: of the labels; it has to hold K - 1 and `void`.

    Returns:
        (H, W) of `dtype` on the CPU.
    """
    height, width = image_size
    device = views[0].scores.device
    labels = torch.full((height, width), void, dtype=dtype, device=device)
    band = _BAND
    if device.type != "cpu":
        band = max(1, _GPU_BAND_VALUES // (len(views[0].scores) * width))
    elif len(views) == 1:
        _fill_from_one(labels, views[0])
        return labels
    for start in range(0, height, band):
        _fill_from_many(labels, views, start, min(start + band, height))
    return labels.cpu()


def _cut(scores: Tensor, rows: Axis, columns: Axis) -> tuple[Tensor, Axis, Axis]:
    """The part of (K, h, w) scores that some pixels are made of, and their axes into it."""
    axes = []
    for side, axis in ((1, rows), (2, columns)):
        low, high = int(axis.low.min()), int(axis.high.max())
        scores = scores.narrow(side, low, high + 1 - low)
        axes.append(Axis(axis.low - low, axis.high - low, axis.weight))
    return scores, axes[0], axes[1]


def _fill_from_one(labels: Tensor, view: PlacedScores) -> None:
    """Class by class: 9x faster than the argmax over all planes, and two planes of memory."""
    height, width = len(view.rows.low), len(view.columns.low)
    may_win = None
    if _MIN_PRUNED_SCALE * view.scores[0].numel() <= height * width:
        may_win = _may_win(view.scores)
    shown = labels[view.top : view.top + height, view.left : view.left + width]
    tile_width = width if may_win is None else _TILE_WIDTH
    for top in range(0, height, _BAND):
        rows = view.rows.part(top, top + _BAND)
        for left in range(0, width, tile_width):
            columns = view.columns.part(left, left + tile_width)
            classes: Sequence[int] = range(len(view.scores))
            if may_win is not None:
                cells, _, _ = _cut(may_win, rows, columns)
                classes = cells.flatten(1).any(dim=1).nonzero()[:, 0].tolist()
            tile = shown[top : top + _BAND, left : left + tile_width]
            _fill_tile(tile, view.scores, rows, columns, classes)


def _fill_tile(
    labels: Tensor, scores: Tensor, rows: Axis, columns: Axis, classes: Sequence[int]
) -> None:
    """The best of some classes, in rising order, at every pixel of a tile."""
    labels.fill_(classes[0])
    if len(classes) == 1:
        return
    scores, rows, columns = _cut(scores, rows, columns)
    best = _interpolate(scores[classes[0]], rows, columns)
    for index in classes[1:]:
        plane = _interpolate(scores[index], rows, columns)
        labels.masked_fill_(plane > best, index)
        torch.maximum(best, plane, out=best)


def _may_win(scores: Tensor) -> Tensor | None:
    """(K, h, w) bool: whether class k can be the best between an element and the next ones.

    Interpolated scores stay within those of the four elements around: a class whose highest of
    them is below another's lowest loses everywhere between. None if there are scores of no number.
    """
    margin = 1e-5 * scores.abs().amax()  # more than what rounding adds
    if not torch.isfinite(margin):
        return None
    padded = F.pad(scores[None], (0, 1, 0, 1), mode="replicate")[0]
    pairs = padded[:, :, :-1], padded[:, :, 1:]
    highest, lowest = torch.maximum(*pairs), torch.minimum(*pairs)
    highest = torch.maximum(highest[:, :-1], highest[:, 1:])
    lowest = torch.minimum(lowest[:, :-1], lowest[:, 1:])
    return highest >= lowest.amax(dim=0) - margin


def _fill_from_many(labels: Tensor, views: Sequence[PlacedScores], start: int, stop: int) -> None:
    """Rows `start` up to `stop`, by the sum of all views' planes."""
    width = labels.shape[1]
    device = labels.device
    total = torch.zeros(len(views[0].scores), stop - start, width, device=device)
    seen = torch.zeros(stop - start, width, dtype=torch.bool, device=device)
    for view in views:
        first, last = _band(view, start, stop)
        if first == last:
            continue
        scores, rows, columns = _cut(view.scores, view.rows.part(first, last), view.columns)
        weight = view.row_weight[first:last, None] * view.column_weight
        place = (
            slice(view.top + first - start, view.top + last - start),
            slice(view.left, view.left + len(view.columns.low)),
        )
        planes = _interpolate(scores, rows.to(device), columns.to(device))
        total[:, *place] += planes * weight.to(device, non_blocking=True)
        seen[place] = True
    best = total.argmax(dim=0).to(labels.dtype)
    labels[start:stop] = torch.where(seen, best, labels[start:stop])


def _band(view: PlacedScores, start: int, stop: int) -> tuple[int, int]:
    """Rows of the view, counted from its own top, within original rows `start` up to `stop`."""
    num_rows = len(view.rows.low)
    first = min(max(start - view.top, 0), num_rows)
    return first, max(min(stop - view.top, num_rows), first)
