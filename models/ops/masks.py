"""From small masks and coarse class scores to pixels of the original image.

Neither ever holds full-size planes of floats for all objects or classes: an instance mask is
resized within its box only, a label map is made in bands of rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Axis",
    "PastedMask",
    "PlacedScores",
    "label_map",
    "linear_axis",
    "paste_masks",
    "settled",
]

# Rows resized at once: a band of a 1920 px wide plane stays in a core's cache
_BAND = 64
# Columns resized at once where classes that cannot win there are left out
_TILE_WIDTH = 256
# Pixels per element of the scores from which on it pays to look for such classes
_MIN_PRUNED_SCALE = 32
# Scores resized at once on a GPU: 64 MB
_GPU_BAND_VALUES = 2**24

_PASTE_PADDING = 1
# Pixels pasted at once, of masks smaller than that: they stay in a core's cache
_PASTED_PIXELS = 2**18


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


class PastedMask(NamedTuple):
    """Where an instance is.

    Attributes:
        top: first row in the image.
        left: first column.
        mask: (h, w) bool without empty rows and columns around it; (0, 0) where nothing is inside.
    """

    top: int
    left: int
    mask: Tensor


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


def paste_masks(
    probs: Tensor, boxes_xyxy: Tensor, image_size: tuple[int, int], threshold: float
) -> list[PastedMask]:
    """Resize the masks of an image into their boxes, within the image only.

    The pixels are those of torchvision's `paste_masks_in_image`, which makes a full-size plane of
    floats of each mask instead. Boxes of about the same area are resized at once, by two products
    of matrices each; of a large box little more than itself is in memory.

    Args:
        probs: (N, M, M) float32 in [0, 1] over the boxes.
        boxes_xyxy: (N, 4) float32, pixels of the image; may reach beyond it.
        image_size: (height, width).
        threshold: a pixel is inside where its probability is larger; from 0 on.

    Source: He et al., Mask R-CNN, 2017; torchvision/models/detection/roi_heads.py.
    """
    if not len(probs):
        return []
    side = probs.shape[-1]
    padded = F.pad(probs, (_PASTE_PADDING,) * 4)
    centre = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) * 0.5
    half = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * 0.5
    half = half * ((side + 2 * _PASTE_PADDING) / side)
    first, last = (centre - half).to(torch.int64), (centre + half).to(torch.int64)
    extent = (last - first + 1).clamp(min=1)
    start = first.clamp(min=0)
    count = torch.minimum(last + 1, torch.tensor(image_size[::-1])) - start
    count = count.clamp(min=0)
    found: list[PastedMask | None] = [None] * len(probs)
    for chunk in _chunks(count):
        columns, rows = (
            _hats(start[chunk, axis] - first[chunk, axis], count[chunk, axis], extent[chunk, axis],
                  padded.shape[-1])
            for axis in (0, 1)
        )  # fmt: skip
        inside = rows @ (padded[chunk] @ columns.mT) > threshold
        crops = _trimmed(inside, start[chunk])
        for index, crop in zip(chunk.tolist(), crops, strict=True):
            found[index] = crop
    return cast("list[PastedMask]", found)


def _chunks(count: Tensor) -> Iterator[Tensor]:
    """Indices of boxes of (N, 2) pixels, the largest first, that fill a plane together or alone."""
    order = count.prod(dim=1).sort(descending=True, stable=True).indices
    sizes = count[order].tolist()
    begin, width, height = 0, 0, 0
    for index, (columns, rows) in enumerate(sizes):
        wider, higher = max(width, columns), max(height, rows)
        if index > begin and (index + 1 - begin) * wider * higher > _PASTED_PIXELS:
            yield order[begin:index]
            begin, wider, higher = index, columns, rows
        width, height = wider, higher
    yield order[begin:]


def _hats(offset: Tensor, count: Tensor, extent: Tensor, length: int) -> Tensor:
    """Bilinear interpolation along one side as a matrix for each of N boxes.

    Args:
        offset: (N,) first pixel that is wanted, counted from where the mask begins.
        count: (N,) of pixels that are wanted.
        extent: (N,) pixels over which the mask is spread.
        length: its elements.

    Returns:
        (N, largest count, length) float32: say of each element in each pixel; none after `count`.
    """
    pixels = torch.arange(max(1, int(count.max())))
    scale = (length / extent.double()).float()[:, None]
    position = scale * ((offset[:, None] + pixels).float() + 0.5) - 0.5
    position = position.clamp(min=0, max=length - 1)
    position[pixels >= count[:, None]] = -1  # more than an element away from all
    return (position[..., None] - torch.arange(length)).abs_().neg_().add_(1).clamp_(min=0)


def _interpolate(plane: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Bilinear: (..., h, w) -> (..., rows, columns)."""
    # Columns first: on the few source rows, not on the many rows of the result. As rows, which are
    # copied whole: columns would be gathered number by number
    turned = plane.transpose(-1, -2).contiguous()
    wide = _blend(turned, columns).transpose(-1, -2).contiguous()
    return _blend(wide, rows)


def _blend(plane: Tensor, axis: Axis) -> Tensor:
    """(..., h, w) -> (..., positions of the axis, w)."""
    low, high = plane.index_select(-2, axis.low), plane.index_select(-2, axis.high)
    return torch.lerp(low, high, axis.weight[:, None])


def _trimmed(inside: Tensor, start: Tensor) -> Iterator[PastedMask]:
    """(N, h, w) bool, and (N, 2) the column and row at which they start, without empty borders."""
    pixels = inside.numpy()  # whose `any` takes a seventh of the time
    in_rows, in_columns = (torch.from_numpy(pixels.any(axis=axis)) for axis in (2, 1))
    rows, columns = in_rows.byte().argmax(dim=1), in_columns.byte().argmax(dim=1)
    end_rows = rows + _extent_within(in_rows)
    end_columns = columns + _extent_within(in_columns)
    top, left = (start[:, 1] + rows).tolist(), (start[:, 0] + columns).tolist()
    spans = zip(
        rows.tolist(), end_rows.tolist(), columns.tolist(), end_columns.tolist(), strict=True
    )
    for index, (row, end_row, column, end_column) in enumerate(spans):
        mask = inside[index, row:end_row, column:end_column]
        yield PastedMask(top[index], left[index], mask.contiguous())


def _extent_within(marked: Tensor) -> Tensor:
    """(N,) from the first to the last True of each row of (N, n) bool; 0 without any."""
    marks = marked.byte()
    last = marked.shape[1] - marks.flip(1).argmax(dim=1)
    return (last - marks.argmax(dim=1)) * marked.any(dim=1)


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
    at_once = device.type != "cpu"
    if len(views) == 1 and not at_once:
        _fill_from_one(labels, views[0])
        return labels
    band = max(1, _GPU_BAND_VALUES // (len(views[0].scores) * width)) if at_once else _BAND
    for start in range(0, height, band):
        _fill_from_many(labels, views, start, min(start + band, height), at_once=at_once)
    return labels.cpu()


def _cut(axis: Axis) -> tuple[slice, Axis]:
    """The elements that some positions are made of, and the positions counted from the first."""
    low, high = int(axis.low.min()), int(axis.high.max())
    return slice(low, high + 1), Axis(axis.low - low, axis.high - low, axis.weight)


def _fill_from_one(labels: Tensor, view: PlacedScores) -> None:
    """In tiles, of the classes that may win there."""
    height, width = len(view.rows.low), len(view.columns.low)
    may_win = None
    if _MIN_PRUNED_SCALE * view.scores[0].numel() <= height * width:
        may_win = _may_win(view.scores)
    shown = labels[view.top : view.top + height, view.left : view.left + width]
    tile_width = width if may_win is None else _TILE_WIDTH
    lefts = range(0, width, tile_width)
    parts = [_cut(view.columns.part(left, left + tile_width)) for left in lefts]
    for top in range(0, height, _BAND):
        near_rows, rows = _cut(view.rows.part(top, top + _BAND))
        for left, (near_columns, columns) in zip(lefts, parts, strict=True):
            near = (slice(None), near_rows, near_columns)
            classes: Sequence[int] = range(len(view.scores))
            if may_win is not None:
                classes = may_win[near].flatten(1).any(dim=1).nonzero()[:, 0].tolist()
            tile = shown[top : top + _BAND, left : left + tile_width]
            plane_of = partial(_plane_of, view.scores[near], rows, columns)
            _fill_tile(tile, plane_of, classes)


def _plane_of(scores: Tensor, rows: Axis, columns: Axis, index: int) -> Tensor:
    return _interpolate(scores[index], rows, columns)


def _fill_tile(labels: Tensor, plane_of: Callable[[int], Tensor], classes: Sequence[int]) -> None:
    """The best of some classes, in rising order, at every pixel; `plane_of` has their scores.

    On a CPU up to 9x faster than the argmax over all planes, and two planes of memory.
    """
    labels.fill_(classes[0])
    if len(classes) == 1:
        return
    best = plane_of(classes[0])
    for index in classes[1:]:
        plane = plane_of(index)
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


class _Share(NamedTuple):
    """What a view adds to a band of rows.

    Attributes:
        scores: (K, h, w) that its pixels there are made of.
        rows: of them.
        columns: of them.
        weight: (rows, columns) float32.
        place: where in the band they are.
    """

    scores: Tensor
    rows: Axis
    columns: Axis
    weight: Tensor
    place: tuple[slice, slice]


def _fill_from_many(
    labels: Tensor, views: Sequence[PlacedScores], start: int, stop: int, *, at_once: bool
) -> None:
    """Rows `start` up to `stop`, by the sum of all views' planes, class by class or at once."""
    shares = list(_shares(views, start, stop, labels.device))
    shown = labels[start:stop]
    seen = torch.zeros(shown.shape, dtype=torch.bool, device=labels.device)
    for share in shares:
        seen[share.place] = True

    def sum_of(classes: int | slice) -> Tensor:
        """(..., rows, columns) of one class, or of several."""
        total = torch.zeros(
            (*views[0].scores[classes].shape[:-2], *shown.shape), device=labels.device
        )
        for scores, rows, columns, weight, place in shares:
            total[..., *place] += _interpolate(scores[classes], rows, columns) * weight
        return total

    if at_once:
        best = sum_of(slice(None)).argmax(dim=0).to(labels.dtype)
    else:
        best = torch.empty_like(shown)
        _fill_tile(best, sum_of, range(len(views[0].scores)))
    labels[start:stop] = torch.where(seen, best, shown)


def _shares(
    views: Sequence[PlacedScores], start: int, stop: int, device: torch.device
) -> Iterator[_Share]:
    """Of the views that show any of rows `start` up to `stop`."""
    for view in views:
        first, last = _band(view, start, stop)
        if first == last:
            continue
        near_rows, rows = _cut(view.rows.part(first, last))
        near_columns, columns = _cut(view.columns)
        weight = view.row_weight[first:last, None] * view.column_weight
        yield _Share(
            view.scores[:, near_rows, near_columns],
            rows.to(device),
            columns.to(device),
            weight.to(device, non_blocking=True),
            (
                slice(view.top + first - start, view.top + last - start),
                slice(view.left, view.left + len(view.columns.low)),
            ),
        )


def _band(view: PlacedScores, start: int, stop: int) -> tuple[int, int]:
    """Rows of the view, counted from its own top, within original rows `start` up to `stop`."""
    num_rows = len(view.rows.low)
    first = min(max(start - view.top, 0), num_rows)
    return first, max(min(stop - view.top, num_rows), first)
