"""JPEG by simplejpeg in strict mode, the only decoder that reports damaged data."""

import io
import re
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from pixelmill.tasks.engine.header import DecodeError, is_progressive_jpeg
from pixelmill.tasks.engine.limits import reason_of

__all__ = ["decode_jpeg", "decode_jpeg_part"]

Pixels = NDArray[np.uint8]

# A progressive file may repeat scans of the whole image without end; encoders write about ten
_MAX_SCANS = 500


class _Size(NamedTuple):
    """Of the stored image: before the orientation."""

    width: int
    height: int

    def scaled(self, scale: int) -> "_Size":
        return _Size(-(-self.width // scale), -(-self.height // scale))


def decode_jpeg(
    data: bytes, size: tuple[int, int], scale: int = 1
) -> tuple[Pixels, tuple[str, ...]]:
    """Decode a whole JPEG.

    Args:
        data: the file.
        size: (width, height) as stored, which its header has said.
        scale: 1, 2, 4 or 8: the part of the sides that is decoded, rounded up.

    Raises:
        DecodeError: also for damage that other decoders fill with grey.
        ValueError: of simplejpeg, for what it refuses.
    """
    _check_scans(data)
    try:
        return _decode(data, _Size(*size).scaled(scale), scale, strict=True), ()
    except ValueError as err:
        unpadded = _without_padding(data, str(err))
        if unpadded is None:
            return _decode_odd_jpeg(data, _Size(*size), scale, err), ("unverified",)
        return _decode(unpadded, _Size(*size).scaled(scale), scale, strict=True), ()


def decode_jpeg_part(data: bytes, size: tuple[int, int], scale: int = 1) -> Pixels:
    """What there is of a truncated JPEG; the rest is grey. Arguments as of `decode_jpeg`."""
    _check_scans(data)
    return _decode(data, _Size(*size).scaled(scale), scale, strict=False)


def _check_scans(data: bytes) -> None:
    if not is_progressive_jpeg(data):  # the others have a scan per component at most
        return
    num_scans = data.count(b"\xff\xda")
    if num_scans > _MAX_SCANS:
        raise DecodeError("unsupported", f"JPEG of {num_scans} scans, more than {_MAX_SCANS}")


def _decode(data: bytes, least: _Size, scale: int, *, strict: bool) -> Pixels:
    return simplejpeg.decode_jpeg(
        data,
        colorspace="RGB",
        min_height=least.height,
        min_width=least.width,
        min_factor=scale,
        strict=strict,
    )


def _without_padding(data: bytes, message: str) -> bytes | None:
    """A JPEG without the zeros before its end marker that some cameras write; None if it has none.

    To libjpeg they are damage, and lost pixel data looks the same to it, but is not all zeros.
    """
    match = re.search(r"(\d+) extraneous bytes before marker 0xd9", message)
    end = data.rfind(b"\xff\xd9")
    padding = data[end - int(match[1]) : end] if match else b""
    if not padding or padding.strip(b"\0"):
        return None
    return data[: end - len(padding)] + data[end:]


def _decode_odd_jpeg(data: bytes, size: _Size, scale: int, err: ValueError) -> Pixels:
    """A JPEG that simplejpeg refuses: pixels if it is only unusual, else the reason.

    Unusual are sampling factors that TurboJPEG has no name for, and arithmetic coding.
    """
    message = str(err)
    unusual = "subsampling" in message or "arithmetic" in message.lower()
    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        # Pillow takes the largest scale at which no side is smaller
        image.draft(None, (max(1, size.width // scale), max(1, size.height // scale)))
        image.load()
    except MemoryError:
        raise
    except Exception as pillow_err:
        reason = reason_of(pillow_err)
        if reason == "corrupt":
            reason = reason_of(err)
        raise DecodeError(reason, f"jpeg: {message}") from err
    if not unusual:
        raise DecodeError(reason_of(err), f"jpeg: {message}") from err
    return np.asarray(image.convert("RGB"))
