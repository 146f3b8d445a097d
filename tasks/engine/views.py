"""How an image becomes canvases: whole, in tiles, mirrored, at several scales.

Every way of scoring is a list of placements. A `Placement` says which part of the original lies
where on a canvas; it draws the canvas, and it maps what the network found there back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelmill.configs.schema import AugmentationConfig, PreprocessConfig, TilingConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.header import Header

__all__ = [
    "Placement",
    "choose_canvas",
    "decode_scale",
    "draw_view",
    "place_whole",
    "plan_views",
    "to_original",
]

Size = tuple[int, int]

# Scaled canvases stay multiples of it, as feature pyramids need
_CANVAS_MULTIPLE = 32

# Least sides of a scaled decode in sides of what is drawn: from 1.5 on it differs from a full
# decode by 37 dB at worst and 45 dB in the middle of 150 photographs
_SCALE_MARGIN = 1.5


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a part of an image lies on a canvas. Sizes are (height, width).

    Attributes:
        image_size: of the original, after EXIF orientation.
        top: first row of the part, in the original.
        left: first column.
        source_size: of the part, original pixels; of a scaled decode that of its pixels together,
            which may reach up to `decode_scale - 1` beyond the image, right and below.
        resized: size that the part is brought to.
        crop_top: rows of the resized part above the canvas (center_crop).
        crop_left: columns left of it.
        canvas: size; what the part leaves free is padding, right and below.
        flip_x: mirrored left to right.
        flip_y: turned upside down.
        decode_scale: it is drawn from an image decoded at this part of its size.
    """

    image_size: Size
    top: int
    left: int
    source_size: Size
    resized: Size
    crop_top: int
    crop_left: int
    canvas: Size
    flip_x: bool = False
    flip_y: bool = False
    decode_scale: int = 1

    @property
    def content(self) -> Size:
        """Rows and columns of the canvas that show the image."""
        return (
            min(self.canvas[0], self.resized[0] - self.crop_top),
            min(self.canvas[1], self.resized[1] - self.crop_left),
        )

    @property
    def scale(self) -> tuple[float, float]:
        """Original pixels per canvas pixel, (y, x)."""
        return self.source_size[0] / self.resized[0], self.source_size[1] / self.resized[1]

    @property
    def region_xyxy(self) -> tuple[float, float, float, float]:
        """The part of the original that the canvas shows."""
        (scale_y, scale_x), (height, width) = self.scale, self.content
        top, left = self.top + self.crop_top * scale_y, self.left + self.crop_left * scale_x
        return left, top, left + width * scale_x, top + height * scale_y

    @property
    def cut(self) -> tuple[bool, bool, bool, bool]:
        """Whether the image goes on beyond the left, top, right and bottom edge of a tile."""
        bottom, right = self.top + self.source_size[0], self.left + self.source_size[1]
        return (
            self.left > 0,
            self.top > 0,
            right < self.image_size[1],
            bottom < self.image_size[0],
        )


def choose_canvas(image_size: Size, preprocess: PreprocessConfig) -> Size:
    """The canvas that the image fills most; of equally full ones the larger.

    Args:
        image_size: (height, width).
        preprocess: its `canvases` are (height, width).
    """

    def fill_and_area(canvas: Size) -> tuple[float, int]:
        # Share of the canvas that the letterboxed image covers: the ratio of the aspects. Of
        # integers, so that equal shares are equal numbers.
        across, along = image_size[1] * canvas[0], image_size[0] * canvas[1]
        return min(across, along) / max(across, along), canvas[0] * canvas[1]

    return max(preprocess.canvases, key=fill_and_area)


def plan_views(image_size: Size, spec: ModelSpec, decode_scale: int = 1) -> tuple[Placement, ...]:
    """All views of an image of (height, width) that a model wants, in a fixed order.

    Args:
        image_size: of the original.
        spec: of the model.
        decode_scale: of the pixels that the views will be drawn from, as `decode_scale` says.
    """
    if decode_scale == 1:
        parts = _parts(image_size, spec.tiling)
    else:
        parts = [_Part(0, 0, _covered(image_size, decode_scale))]
    return tuple(
        _place(image_size, part, spec.preprocess, scale, flip_x, flip_y, decode_scale)
        for part in parts
        for scale in spec.augmentation.scales
        for flip_x, flip_y in _flips(spec.augmentation)
    )


def decode_scale(header: Header, spec: ModelSpec) -> int:
    """At what part of its size, 1, 2, 4 or 8, an image is decoded for a model.

    It depends on the image and the model alone, so that no other model of a run changes a result:
    models with different answers for an image get a decode each.

    Args:
        header: of the image.
        spec: of the model; 1 unless its preprocess says `decode: scaled`, and for images that it
            tiles.
    """
    size = header.height, header.width
    if (
        spec.preprocess.decode != "scaled"
        or header.format != "jpeg"
        or len(_parts(size, spec.tiling)) > 1
    ):
        return 1
    for scale in (8, 4, 2):
        # The last rows and columns may be padding, which a mirrored image would have first
        ends_last = header.orientation in (1, 5)
        if (ends_last or _covered(size, scale) == size) and all(
            _SCALE_MARGIN * scale * resized <= side
            for view in plan_views(size, spec, scale)
            for resized, side in zip(view.resized, view.source_size, strict=True)
        ):
            return scale
    return 1


def _covered(size: Size, scale: int) -> Size:
    """Original rows and columns that the pixels of a scaled decode stand for."""
    height, width = (-(-side // scale) * scale for side in size)
    return height, width


def place_whole(image_size: Size, preprocess: PreprocessConfig) -> Placement:
    """The one view of an image of (height, width) without tiles or augmentation."""
    return _place(image_size, _Part(0, 0, image_size), preprocess, 1, False, False)


def draw_view(
    pixels: NDArray[np.uint8] | Tensor, placement: Placement, preprocess: PreprocessConfig
) -> NDArray[np.uint8]:
    """Lay an image on a new canvas.

    Args:
        pixels: (H, W, 3) uint8 RGB, the whole original, or decoded at 1 / `placement.decode_scale`.
            A tensor is resized where it is, within one grey level of what an array gives; bicubic,
            where an array is rounded and clipped between rows and columns, 0.3 on average of noise.
        placement: of that image.
        preprocess: its `pad_value`, `interpolation` and `antialias`; the rest is in the placement.

    Returns:
        (canvas height, canvas width, 3) RGB.

    Raises:
        ValueError: the pixels are not of the size that the placement was made for.
    """
    scale = placement.decode_scale
    if tuple(pixels.shape[:2]) != tuple(-(-side // scale) for side in placement.image_size):
        raise ValueError(
            f"expected the pixels of an image of {placement.image_size} decoded at 1/{scale}, got "
            f"{tuple(pixels.shape[:2])}"
        )
    height, width = placement.source_size
    part = pixels[placement.top :, placement.left :][:height, :width]
    rows, columns = placement.content
    canvas = np.empty((*placement.canvas, 3), np.uint8)
    content = canvas[:rows, :columns]
    mirrored = placement.flip_x or placement.flip_y
    if isinstance(part, Tensor):
        resized = _resize_tensor(part, placement.resized, preprocess)
        content[...] = _shown(resized, placement)
    elif (rows, columns) == placement.resized and content.flags.c_contiguous and not mirrored:
        _resize_into(content, part, preprocess)
    else:
        resized = np.empty((*placement.resized, 3), np.uint8)
        _resize_into(resized, part, preprocess)
        content[...] = _shown(resized, placement)
    canvas[rows:] = preprocess.pad_value
    canvas[:rows, columns:] = preprocess.pad_value
    return canvas


def _shown(resized: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    """What of a resized part is on the canvas, as it is there."""
    rows, columns = placement.content
    shown = resized[placement.crop_top :, placement.crop_left :][:rows, :columns]
    return shown[:: -1 if placement.flip_y else 1, :: -1 if placement.flip_x else 1]


def to_original(boxes_xyxy: Tensor, placement: Placement) -> Tensor:
    """Map (N, 4) boxes from canvas pixels to pixels of the original, not clipped."""
    (height, width), (scale_y, scale_x) = placement.content, placement.scale
    x_min, y_min, x_max, y_max = boxes_xyxy.unbind(1)
    if placement.flip_x:
        x_min, x_max = width - x_max, width - x_min
    if placement.flip_y:
        y_min, y_max = height - y_max, height - y_min
    left, top = placement.region_xyxy[:2]
    return torch.stack(
        (
            x_min * scale_x + left,
            y_min * scale_y + top,
            x_max * scale_x + left,
            y_max * scale_y + top,
        ),
        dim=1,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    top: int
    left: int
    size: Size


def _parts(image_size: Size, tiling: TilingConfig | None) -> list[_Part]:
    whole = _Part(0, 0, image_size)
    if tiling is None or image_size[0] * image_size[1] < tiling.min_pixels:
        return [whole]
    height, width = (min(side, tile) for side, tile in zip(image_size, tiling.tile, strict=True))
    tiles = [
        _Part(top, left, (height, width))
        for top, left in product(
            _starts(image_size[0], tiling.tile[0], tiling.overlap),
            _starts(image_size[1], tiling.tile[1], tiling.overlap),
        )
    ]
    if len(tiles) == 1:
        return [whole]
    return [whole, *tiles] if tiling.include_full else tiles


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of the tiles along one side; the last tile ends with the image."""
    if length <= tile:
        return [0]
    step = max(1, round(tile * (1 - overlap)))
    last = length - tile
    return [*range(0, last, step), last]


def _flips(augmentation: AugmentationConfig) -> list[tuple[bool, bool]]:
    flips = [(False, False)]
    if augmentation.horizontal_flip:
        flips.append((True, False))
    if augmentation.vertical_flip:
        flips.append((False, True))
    return flips


def _place(
    image_size: Size,
    part: _Part,
    preprocess: PreprocessConfig,
    scale: float,
    flip_x: bool,
    flip_y: bool,
    decode_scale: int = 1,
) -> Placement:
    canvas = _scaled(choose_canvas(part.size, preprocess), scale)
    resized, (crop_top, crop_left) = canvas, (0, 0)
    if preprocess.resize == "letterbox":
        ratio = min(canvas[0] / part.size[0], canvas[1] / part.size[1])
        resized = _rounded(part.size, ratio, canvas)
    elif preprocess.resize == "center_crop":
        shorter = cast("int", preprocess.crop_from)  # the config's validator has seen to it
        if scale != 1:
            shorter = round(shorter * scale)
        resized = _shorter_side_to(part.size, shorter)
        # As torchvision.transforms.v2.CenterCrop rounds
        crop_top = max(0, round((resized[0] - canvas[0]) / 2))
        crop_left = max(0, round((resized[1] - canvas[1]) / 2))
    return Placement(
        image_size=image_size,
        top=part.top,
        left=part.left,
        source_size=part.size,
        resized=resized,
        crop_top=crop_top,
        crop_left=crop_left,
        canvas=canvas,
        flip_x=flip_x,
        flip_y=flip_y,
        decode_scale=decode_scale,
    )


def _scaled(canvas: Size, scale: float) -> Size:
    if scale == 1:
        return canvas
    height, width = (
        max(_CANVAS_MULTIPLE, _CANVAS_MULTIPLE * round(side * scale / _CANVAS_MULTIPLE))
        for side in canvas
    )
    return height, width


def _rounded(size: Size, ratio: float, limit: Size) -> Size:
    """`size * ratio` in whole pixels, at least one and within the canvas."""
    height, width = (
        min(most, max(1, int(side * ratio + 0.5))) for side, most in zip(size, limit, strict=True)
    )
    return height, width


def _shorter_side_to(size: Size, shorter: int) -> Size:
    """As torchvision.transforms.v2.Resize rounds: the longer side is cut off."""
    height, width = size
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


# (interpolation, antialias) -> what `torch.nn.functional.interpolate` calls
_RESIZERS: Mapping[tuple[str, bool], Any] = {
    ("bilinear", True): torch.ops.aten._upsample_bilinear2d_aa,
    ("bilinear", False): torch.ops.aten.upsample_bilinear2d,
    ("bicubic", True): torch.ops.aten._upsample_bicubic2d_aa,
}


def _resize_into(
    out: NDArray[np.uint8], pixels: NDArray[np.uint8], preprocess: PreprocessConfig
) -> None:
    """Antialiased it is exact to Pillow's. HWC strides stay: 2x faster than CHW.

    `torch.nn.functional.interpolate` cannot write into a given place. That must be contiguous:
    into any other the wrong pixels are written (PyTorch 2.15).
    """
    if pixels.shape == out.shape:
        out[...] = pixels
        return
    source, target = (
        torch.from_numpy(array)[None].permute(0, 3, 1, 2)
        for array in (np.ascontiguousarray(pixels), out)
    )
    resize = _RESIZERS[preprocess.interpolation, preprocess.antialias]
    resize.out(source, list(out.shape[:2]), False, None, None, out=target)


def _resize_tensor(pixels: Tensor, size: Size, preprocess: PreprocessConfig) -> NDArray[np.uint8]:
    """On the device of the pixels; GPUs resize no integers, so it is rounded here."""
    if tuple(pixels.shape[:2]) != size:
        planes = torch.nn.functional.interpolate(
            pixels.permute(2, 0, 1)[None].float(),
            size,
            mode=preprocess.interpolation,
            antialias=preprocess.antialias,
        )
        pixels = planes[0].permute(1, 2, 0).round_().clamp_(0, 255).to(torch.uint8)
    return pixels.cpu().numpy()
