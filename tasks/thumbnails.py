"""Small pictures of image files, decoded no larger than they are shown."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelmill.tasks.engine.decode import DecodeError, decode_image, read_header
from pixelmill.tasks.sources import read_bytes

__all__ = ["Picture", "encode_webp", "fit", "load_picture", "make_thumbnail"]

_MAX_PIXELS = 400_000_000
# A JPEG is decoded at a fraction of its size as long as that is still so much larger than shown.
_SPARE = 1.5


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it will be shown, or why it cannot be.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, perhaps smaller than the original; None if unreadable.
        height: of the original in pixels, 0 if unknown; width likewise.
        reason: code and message of what is wrong, or "".
    """

    pixels: NDArray[np.uint8] | None
    height: int
    width: int
    reason: str = ""


def fit(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """(H, W) scaled down so that the long side is at most `edge`, each side at least 1."""
    scale = min(1.0, edge / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def load_picture(source_uri: str, edge: int) -> Picture:
    """Read and decode a file for a picture of at most `edge` pixels on its long side.

    A damaged file gives a reason, and the pixels that can be had of it; never an exception.
    """
    try:
        data = read_bytes(source_uri)
        header = read_header(data)
        longest = max(header.height, header.width)
        scale = next((each for each in (8, 4, 2) if longest >= each * edge * _SPARE), 1)
        decoded = decode_image(data, max_pixels=_MAX_PIXELS, truncated="flag", scale=scale)
    except DecodeError as err:
        return Picture(None, 0, 0, f"{err.reason}: {err}")
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else str(err)
        return Picture(None, 0, 0, f"unreadable: {why or type(err).__name__}")
    reason = "truncated: a part of it is missing" if "truncated" in decoded.flags else ""
    return Picture(decoded.pixels, *decoded.original_size, reason)


def encode_webp(pixels: NDArray[np.uint8], edge: int, *, quality: int = 80) -> bytes:
    """WebP of (H, W, 3) uint8 RGB pixels, scaled down to a long side of at most `edge`."""
    height, width = fit(pixels.shape[:2], edge)
    image = Image.fromarray(pixels)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=quality, method=4)
    return sink.getvalue()


def make_thumbnail(
    source_uri: str, edge: int, *, quality: int = 75
) -> tuple[bytes | None, Picture]:
    """WebP of a file and its size, or None and the reason; see `load_picture`."""
    picture = load_picture(source_uri, edge)
    if picture.pixels is None:
        return None, picture
    return encode_webp(picture.pixels, edge, quality=quality), picture
