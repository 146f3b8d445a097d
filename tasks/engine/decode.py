"""Encoded bytes to RGB pixels, or a stated reason why not.

Every format goes to the decoder that was measured to be right and fast for it: JPEG to simplejpeg
in strict mode, PNG, still WebP, still AVIF and HEIC to TorchCodec, BMP, TIFF, GIF and moving WebP
and AVIF to Pillow.

What is promised for all of them: the pixels are what `Image.convert("RGB")` gives (alpha is
dropped, not composited), but 16-bit samples are scaled (v / 257), which Pillow's convert clips to
white; the EXIF orientation is applied exactly once, and counts as 1 where it is damaged or not one
of 1 to 8; moving images give their first frame; colour profiles and comments are not read, so
damage in them does no harm. Nothing is allocated by what a header claims before the claim is
within the limits (AVIF and HEIC: their libraries have limits of their own for tiles that are larger
than the image says).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.engine.decode_jpeg import decode_jpeg, decode_jpeg_part
from pixelmill.tasks.engine.decode_pillow import PILLOW_DECODERS, Decoders
from pixelmill.tasks.engine.header import (
    DecodeError,
    DecodeReason,
    Header,
    ImageFormat,
    read_header,
)
from pixelmill.tasks.engine.limits import Limits, reason_of

__all__ = [
    "MAX_SIDE",
    "DecodeError",
    "DecodeReason",
    "DecodedImage",
    "Header",
    "ImageFormat",
    "TruncatedPolicy",
    "decode_image",
    "read_header",
]

Pixels = NDArray[np.uint8]
TruncatedPolicy = Literal["quarantine", "flag"]

MAX_SIDE = 65_535  # what JPEG can say


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image as the networks see it.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, C-contiguous, writable (PyTorch warns of others), as displayed
            (orientation applied).
        format: of the file, by its bytes.
        flags: `truncated`: a part of the pixels is missing, and filled in; `first_frame` of
            several was taken; `unverified`: a JPEG that only a decoder without damage reports
            could read.
        original_size: (H, W) of the whole image; larger than `pixels` after a scaled decode.
        scale: 1, 2, 4 or 8: a pixel stands for so many rows and columns of the original.
    """

    pixels: Pixels
    format: ImageFormat
    flags: tuple[str, ...]
    original_size: tuple[int, int]
    scale: int = 1


def decode_image(
    data: bytes,
    *,
    max_pixels: int,
    max_side: int = MAX_SIDE,
    truncated: TruncatedPolicy = "quarantine",
    scale: int = 1,
) -> DecodedImage:
    """Decode a whole file.

    Args:
        data: the encoded file.
        max_pixels: images whose header says more are refused before anything is allocated.
        max_side: images whose header says a longer side are refused likewise.
        truncated: what becomes of a file that ends early. "quarantine": it is not decoded; "flag":
            what there is of a JPEG, PNG, TIFF, BMP or GIF is decoded and flagged, the rest is
            black or grey (WebP, AVIF and HEIC have no decoder for a part).
        scale: 1, 2, 4 or 8: a JPEG is decoded at this fraction of its size, rounded up; other
            formats are always decoded in full.

    Raises:
        DecodeError: and nothing else, short of MemoryError.
    """
    limits = Limits(max_pixels, max_side)
    header = read_header(data)
    limits.check(header.width, header.height)
    if header.format != "jpeg":
        scale = 1
    decoders = _decoders_for(header, scale)
    try:
        pixels, flags = _decode_whole(data, header, limits, decoders)
    except DecodeError as err:
        if err.reason != "truncated" or truncated == "quarantine":
            raise
        pixels, flags = _decode_part(data, header, limits, decoders, err), ("truncated",)
    original_size = (header.height, header.width) if scale > 1 else pixels.shape[:2]
    return DecodedImage(
        np.require(pixels, requirements=("C", "W")), header.format, flags, original_size, scale
    )


def _decoders_for(header: Header, scale: int) -> Decoders:
    if header.format == "jpeg":
        size = _stored_size(header)
        return Decoders(
            lambda data, _: decode_jpeg(data, size, scale),
            lambda data, _: decode_jpeg_part(data, size, scale),
        )
    if header.format in PILLOW_DECODERS:
        return PILLOW_DECODERS[header.format]
    # It comes with torch, which takes seconds to load: who only looks at JPEGs does without
    from pixelmill.tasks.engine.decode_torchcodec import TORCHCODEC_DECODERS

    return TORCHCODEC_DECODERS[header.format]


def _decode_whole(
    data: bytes, header: Header, limits: Limits, decoders: Decoders
) -> tuple[Pixels, tuple[str, ...]]:
    try:
        pixels, flags = decoders.whole(data, limits)
    except (DecodeError, MemoryError):
        raise
    except Exception as err:
        # Decoders raise what they like; what they raise on has been sniffed, so it is damaged.
        raise DecodeError(reason_of(err), f"{header.format}: {err}") from err
    return _orient(pixels, header), flags


def _decode_part(
    data: bytes, header: Header, limits: Limits, decoders: Decoders, error: DecodeError
) -> Pixels:
    """What there is of a truncated file.

    Raises:
        DecodeError: the one given, if there is nothing, or no decoder for a part.
    """
    if decoders.part is None:
        raise error
    try:
        pixels = decoders.part(data, limits)
    except (DecodeError, MemoryError):
        raise
    except Exception as err:
        raise error from err
    if (pixels == pixels[0, 0]).all():  # nothing but filling
        raise error
    return _orient(pixels, header)


def _stored_size(header: Header) -> tuple[int, int]:
    """(width, height) before the orientation."""
    if header.orientation >= 5:
        return header.height, header.width
    return header.width, header.height


def _orient(pixels: Pixels, header: Header) -> Pixels:
    """Pixels as displayed, for an EXIF orientation of 1..8 (EXIF 3.0, tag 0x0112)."""
    orientation = header.orientation
    if header.format in ("tiff", "avif", "heic"):  # those decoders turn the image themselves
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
