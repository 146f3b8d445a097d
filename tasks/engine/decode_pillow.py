"""BMP, TIFF, GIF and moving WebP and AVIF by Pillow, and what there is of a truncated file.

TorchCodec has no BMP or TIFF, decodes *all* frames of a moving image (memory without bound), and
mixes a GIF's transparency with black.
"""

import ctypes
import functools
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)

from pixelmill.tasks.engine.header import DecodeError, ImageFormat
from pixelmill.tasks.engine.limits import Limits, reason_of

__all__ = [
    "PILLOW_DECODERS",
    "Decoders",
    "decode_bmp",
    "decode_bmp_part",
    "decode_gif",
    "decode_gif_part",
    "decode_moving_avif",
    "decode_moving_webp",
    "decode_png_part",
    "decode_tiff",
    "decode_tiff_part",
]

Pixels = NDArray[np.uint8]


class Decoders(NamedTuple):
    """How a format is decoded.

    Attributes:
        whole: gives the pixels and what is to be said of them.
        part: what there is of a truncated file; None where nothing can do that.
    """

    whole: Callable[[bytes, Limits], tuple[Pixels, tuple[str, ...]]]
    part: Callable[[bytes, Limits], Pixels] | None


# Damaged files make Pillow warn and log; here they become a DecodeError and nothing else.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


def decode_bmp(data: bytes, limits: Limits) -> tuple[Pixels, tuple[str, ...]]:
    """Decode a whole BMP."""
    return _whole(BmpImagePlugin.BmpImageFile(io.BytesIO(data)), limits), ()


def decode_bmp_part(data: bytes, limits: Limits) -> Pixels:
    """What there is of a truncated BMP."""
    return _part(BmpImagePlugin.BmpImageFile(io.BytesIO(data)), limits)


def decode_tiff(data: bytes, limits: Limits) -> tuple[Pixels, tuple[str, ...]]:
    """Decode the first page of a TIFF, turned as its orientation says."""
    image = _open_tiff(data, limits)
    # Pages are not counted: a chain of a million directories takes minutes to follow
    flags = ("first_frame",) if image.is_animated else ()
    try:
        return _whole(image, limits), flags
    except OSError as err:
        if reason_of(err) == "corrupt" and _tiff_end(image) > len(data):
            raise DecodeError("truncated", f"tiff: pixels lie beyond the end: {err}") from err
        raise


def decode_tiff_part(data: bytes, limits: Limits) -> Pixels:
    """What there is of a truncated TIFF's first page."""
    return _part(_open_tiff(data, limits), limits)


def decode_gif(data: bytes, limits: Limits) -> tuple[Pixels, tuple[str, ...]]:
    """Decode the first frame of a whole GIF."""
    num_frames = _count_gif_frames(data)
    image = GifImagePlugin.GifImageFile(io.BytesIO(data))
    return _whole(image, limits), ("first_frame",) if num_frames > 1 else ()


def decode_gif_part(data: bytes, limits: Limits) -> Pixels:
    """What there is of a truncated GIF's first frame."""
    return _part(GifImagePlugin.GifImageFile(io.BytesIO(data)), limits)


def decode_png_part(data: bytes, limits: Limits) -> Pixels:
    """What there is of a truncated PNG; samples of 16 bits in colour are cut to their high byte."""
    return _part(PngImagePlugin.PngImageFile(io.BytesIO(data)), limits)


def decode_moving_webp(data: bytes, limits: Limits) -> Pixels:
    """The first frame."""
    return _whole(WebPImagePlugin.WebPImageFile(io.BytesIO(data)), limits)


def decode_moving_avif(data: bytes, limits: Limits) -> Pixels:
    """The first frame, turned."""
    image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
    limits.check(*image.size)
    turned = ImageOps.exif_transpose(image)  # Pillow gives the container's rotation as EXIF
    return np.asarray(turned.convert("RGB"))


def _whole(image: ImageFile.ImageFile, limits: Limits) -> Pixels:
    # Opened by its own class and not by Image.open: our pixel limit holds, not Pillow's.
    limits.check(*image.size)
    image.load()
    return _to_rgb(image)


def _part(image: ImageFile.ImageFile, limits: Limits) -> Pixels:
    limits.check(*image.size)
    try:
        image.load()
    except OSError:
        # The rows so far are in the image, which counts as loaded once no tiles are left to load.
        # Pillow's LOAD_TRUNCATED_IMAGES would be a switch of the whole process.
        if image.tile:
            image.tile = []
            image.load_end()
    return _to_rgb(image)


def _to_rgb(image: ImageFile.ImageFile) -> Pixels:
    if image.mode.startswith("I;16"):
        return _scaled_grey(image)
    if image.mode in ("I", "F"):
        raise DecodeError(
            "unsupported", f"samples of Pillow mode {image.mode} have no defined white"
        )
    image.info.pop("transparency", None)  # convert would warn of what it drops
    return np.asarray(image.convert("RGB"))


def _scaled_grey(image: Image.Image) -> Pixels:
    """9 to 16 bit grey to 8 bits, rounded; Pillow's convert clips it to white."""
    bits, white_is_zero = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = int(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0])
        white_is_zero = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    white = (1 << bits) - 1
    samples = np.asarray(image).astype(np.uint32)
    grey = ((samples * 255 + white // 2) // white).astype(np.uint8)
    if white_is_zero:
        grey = 255 - grey
    return np.repeat(grey[:, :, None], 3, axis=2)


# --- TIFF -----------------------------------------------------------------------------------------


class _Tiff(TiffImagePlugin.TiffImageFile):
    """As Pillow's, but without Pillow's pixel limit, which it would apply again here."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        ImageFile.ImageFile.load_prepare(self)


def _open_tiff(data: bytes, limits: Limits) -> _Tiff:
    _silence_libtiff()
    image = _Tiff(io.BytesIO(data))
    tile = image.tag_v2.get(TiffImagePlugin.TILEWIDTH), image.tag_v2.get(TiffImagePlugin.TILELENGTH)
    if tile != (None, None):
        # libtiff allocates a whole tile, however small the image is that lies in it
        limits.check(int(tile[0] or 0), int(tile[1] or 0))
    return image


def _tiff_end(image: _Tiff) -> int:
    """One past the last byte of the page's strips or tiles."""
    tags = image.tag_v2
    offsets = tags.get(TiffImagePlugin.STRIPOFFSETS) or tags.get(TiffImagePlugin.TILEOFFSETS, ())
    counts = tags.get(TiffImagePlugin.STRIPBYTECOUNTS)
    counts = counts or tags.get(TiffImagePlugin.TILEBYTECOUNTS, ())
    return max((start + count for start, count in zip(offsets, counts, strict=False)), default=0)


@functools.cache
def _silence_libtiff() -> None:
    """Take away libtiff's error handler, which prints; Pillow raises on its return codes."""
    library = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        setter = getattr(library, name, None)  # absent where libtiff is linked in statically
        if setter is not None:
            setter.argtypes = [ctypes.c_void_p]
            setter.restype = ctypes.c_void_p
            setter(None)


# --- GIF ------------------------------------------------------------------------------------------


def _count_gif_frames(data: bytes) -> int:
    """Walk the blocks to the trailer, which Pillow does not ask for.

    Raises:
        DecodeError: `truncated` if there is no trailer.
    """

    def skip_sub_blocks(at: int) -> int:
        while data[at]:
            at += data[at] + 1
        return at + 1

    def skip_table(at: int, flags: int) -> int:
        return at + (3 << (flags & 7) + 1 if flags & 0x80 else 0)

    num_frames = 0
    try:
        at = skip_table(13, data[10])
        while data[at] != 0x3B:
            if data[at] == 0x2C:
                num_frames += 1
                at = skip_sub_blocks(skip_table(at + 10, data[at + 9]) + 1)
            elif data[at] == 0x21:
                at = skip_sub_blocks(at + 2)
            else:
                raise DecodeError("corrupt", f"GIF has no block at byte {at}")
    except IndexError:
        raise DecodeError("truncated", "GIF ends without its trailer") from None
    return num_frames


PILLOW_DECODERS: Mapping[ImageFormat, Decoders] = {
    "bmp": Decoders(decode_bmp, decode_bmp_part),
    "tiff": Decoders(decode_tiff, decode_tiff_part),
    "gif": Decoders(decode_gif, decode_gif_part),
}
