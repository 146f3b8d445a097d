"""Encoded bytes to RGB pixels, or a stated reason why not.

Every format goes to the decoder that was measured to be right and fast for it:

- JPEG: simplejpeg in strict mode, the only decoder that reports damaged data (others fill in grey
  or garbage without a word).
- PNG, still WebP, still AVIF, HEIC: TorchCodec (1.25 to 1.4 times Pillow's speed, 16 bits right).
- BMP, TIFF, GIF and moving WebP and AVIF: Pillow. TorchCodec has no BMP or TIFF, decodes *all*
  frames of a moving image (memory without bound), and mixes a GIF's transparency with black.

What is promised for all of them: the pixels are what `Image.convert("RGB")` gives (alpha is
dropped, not composited), but 16-bit samples are scaled (v / 257), which Pillow's convert clips to
white; the EXIF orientation is applied exactly once; moving images give their first frame; colour
profiles are ignored.
"""

# pyright: reportPrivateImportUsage=false
# (torchcodec.decoders documents its image decoders without exporting them)

import ctypes
import functools
import io
import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)
from torchcodec.decoders import (  # type: ignore[attr-defined] # public, but not in an __all__
    decode_avif,
    decode_heic,
    decode_png,
    decode_webp,
)

from pixelmill.tasks.engine.header import (
    DecodeError,
    DecodeReason,
    Header,
    ImageFormat,
    heif_boxes,
    heif_sizes,
    png_chunks,
    read_header,
    sniff_format,
    webp_chunks,
    webp_frame_size,
)

__all__ = [
    "DecodeError",
    "DecodeReason",
    "DecodedImage",
    "Header",
    "ImageFormat",
    "decode_image",
    "read_header",
]

Pixels = NDArray[np.uint8]

# Damaged files make Pillow warn and log; here they become a DecodeError and nothing else.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

_SCALE_MARGIN = 1.5  # times the target: 43 dB at worst against a full decode, 33 dB at 1.0


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image as the networks see it.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, C-contiguous, as displayed (orientation applied).
        format: of the file, by its bytes.
        flags: `first_frame` of several was taken; `unverified`: a JPEG that only a decoder
            without damage reports could read.
        original_size: (H, W) of the whole image; larger than `pixels` after a scaled decode.
    """

    pixels: Pixels
    format: ImageFormat
    flags: tuple[str, ...]
    original_size: tuple[int, int]


def decode_image(
    data: bytes, *, max_pixels: int, target: tuple[int, int] | None = None
) -> DecodedImage:
    """Decode a whole file.

    Args:
        data: the encoded file.
        max_pixels: images whose header says more are refused before anything is allocated.
        target: (H, W) that the image will be resized to, as displayed. Where given, a JPEG may be
            decoded at a fraction of its size (never below 1.5 times the target, which costs
            nothing visible and saves most of the time).

    Raises:
        DecodeError: and nothing else, short of MemoryError.
    """
    try:
        header = read_header(data)
        _check_pixels(header.width, header.height, max_pixels)
        if header.format == "jpeg":
            pixels, flags = _decode_jpeg(data, header, target)
        else:
            pixels, flags = _DECODERS[header.format](data, max_pixels)
    except (DecodeError, MemoryError):
        raise
    except Exception as err:
        # Decoders raise what they like; what they raise on has been sniffed, so it is damaged.
        raise DecodeError(_reason(err), f"{sniff_format(data)}: {err}") from err
    if header.format not in ("tiff", "avif", "heic"):  # those decoders turn the image themselves
        pixels = _orient(pixels, header.orientation)
    is_scaled = target is not None and header.format == "jpeg"
    original_size = (header.height, header.width) if is_scaled else pixels.shape[:2]
    return DecodedImage(np.ascontiguousarray(pixels), header.format, flags, original_size)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(
            "too_many_pixels",
            f"{width} x {height} is {width * height} pixels, more than ingest.max_pixels = "
            f"{max_pixels}",
        )


def _reason(err: Exception) -> DecodeReason:
    if isinstance(err, Image.DecompressionBombError):  # a GIF frame that outgrows its screen
        return "too_many_pixels"
    message = str(err).lower()
    if "truncated" in message or "premature end" in message or isinstance(err, EOFError):
        return "truncated"
    if "unsupported" in message or "not supported" in message or "not implemented" in message:
        return "unsupported"
    return "corrupt"


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels as displayed, for an EXIF orientation of 1..8 (EXIF 3.0, tag 0x0112)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


# --- JPEG -----------------------------------------------------------------------------------------


def _decode_jpeg(
    data: bytes, header: Header, target: tuple[int, int] | None
) -> tuple[Pixels, tuple[str, ...]]:
    least_height = least_width = 0
    factor = 1
    if target is not None:
        least_height, least_width = (math.ceil(side * _SCALE_MARGIN) for side in target)
        if header.orientation >= 5:  # the decoder sees the image as stored
            least_height, least_width = least_width, least_height
        factor = 2  # 7/8 .. 5/8 cost more than the full size
    decode = functools.partial(
        simplejpeg.decode_jpeg,
        colorspace="RGB",
        min_height=least_height,
        min_width=least_width,
        min_factor=factor,
    )
    try:
        return decode(data), ()
    except ValueError as err:
        unpadded = _without_padding(data, str(err))
        if unpadded is None:
            return _decode_odd_jpeg(data, err), ("unverified",)
        return decode(unpadded), ()


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


def _decode_odd_jpeg(data: bytes, err: ValueError) -> Pixels:
    """A JPEG that simplejpeg refuses: pixels if it is only unusual, else the reason.

    Unusual are sampling factors that TurboJPEG has no name for, and arithmetic coding.
    """
    message = str(err)
    unusual = "subsampling" in message or "arithmetic" in message.lower()
    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        image.load()
    except MemoryError:
        raise
    except Exception as pillow_err:
        reason = _reason(pillow_err)
        if reason == "corrupt":
            reason = _reason(err)
        raise DecodeError(reason, f"jpeg: {message}") from err
    if not unusual:
        raise DecodeError(_reason(err), f"jpeg: {message}") from err
    return np.asarray(image.convert("RGB"))


# --- TorchCodec: PNG, WebP, AVIF, HEIC ------------------------------------------------------------


def _encoded(data: bytes | bytearray) -> torch.Tensor:
    # A writable copy: TorchCodec's own way with bytes changes the warning filters of all threads.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _interleaved(decoded: torch.Tensor) -> Pixels:
    """(C, H, W), or (N, C, H, W) of which the first counts, to (H, W, 3); alpha is dropped."""
    first = decoded[0] if decoded.ndim == 4 else decoded
    return first[:3].permute(1, 2, 0).numpy()


def _decode_png(data: bytes, max_pixels: int) -> tuple[Pixels, tuple[str, ...]]:
    """The pixels' chunks only: libpng prints about damaged comments and profiles on stderr."""
    kept = bytearray(data[:8])
    flags: tuple[str, ...] = ()
    for kind, start, end in png_chunks(data):
        if end + 4 > len(data):
            raise DecodeError("truncated", f"PNG ends within its {kind!r} chunk")
        if kind == b"acTL":
            flags = ("first_frame",)
        if kind[:1].isupper():  # critical, by the PNG naming convention
            # libpng would only warn of some damage that the checksum shows
            if zlib.crc32(data[start - 4 : end]) != struct.unpack_from(">I", data, end)[0]:
                raise DecodeError("corrupt", f"PNG chunk {kind!r} does not match its checksum")
            kept += data[start - 8 : end + 4]
        if kind == b"IEND":
            break
    else:
        raise DecodeError("truncated", "PNG ends without its IEND chunk")
    return _interleaved(decode_png(_encoded(kept), mode="RGB")), flags


def _decode_webp(data: bytes, max_pixels: int) -> tuple[Pixels, tuple[str, ...]]:
    if len(data) < int.from_bytes(data[4:8], "little") + 8:
        raise DecodeError("truncated", "WebP is shorter than its header says")
    for kind, start, end in webp_chunks(data):
        if kind == b"ANMF":
            image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
            return _from_pillow(image, max_pixels), ("first_frame",)
        if kind in (b"VP8 ", b"VP8L"):
            _check_pixels(*webp_frame_size(data, kind, start), max_pixels)
            # The bare bit stream: TorchCodec would apply an EXIF chunk, and alpha is dropped.
            chunk = data[start - 8 : end] + b"\0" * ((end - start) % 2)
            riff = struct.pack("<4sI4s", b"RIFF", len(chunk) + 4, b"WEBP") + chunk
            return _interleaved(decode_webp(_encoded(riff), mode="RGB")), ()
    raise DecodeError("corrupt", "WebP without an image")


def _check_heif(data: bytes, max_pixels: int) -> None:
    for kind, _, end in heif_boxes(data):
        if end > len(data):
            raise DecodeError("truncated", f"the file ends within its {kind!r} box")
    _check_pixels(*heif_sizes(data)[0], max_pixels)  # a small displayed part may be cut from it


def _decode_avif(data: bytes, max_pixels: int) -> tuple[Pixels, tuple[str, ...]]:
    _check_heif(data, max_pixels)
    if b"avis" in data[8 : int.from_bytes(data[:4], "big")]:
        image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
        _check_pixels(*image.size, max_pixels)
        turned = ImageOps.exif_transpose(image)  # Pillow gives the container's rotation as EXIF
        return np.asarray(turned.convert("RGB")), ("first_frame",)
    # mode="RGB" would multiply by alpha
    return _interleaved(decode_avif(_encoded(data), mode="RGB_ALPHA")), ()


def _decode_heic(data: bytes, max_pixels: int) -> tuple[Pixels, tuple[str, ...]]:
    _check_heif(data, max_pixels)
    try:
        decoded = decode_heic(_encoded(data), mode="RGB_ALPHA")
    except ImportError as err:  # says that libheif has to be installed, and how
        raise DecodeError("unsupported", str(err)) from err
    return _interleaved(decoded), ("first_frame",) if decoded.ndim == 4 else ()


# --- Pillow: BMP, TIFF, GIF -----------------------------------------------------------------------


def _from_pillow(image: ImageFile.ImageFile, max_pixels: int) -> Pixels:
    # Opened by its own class and not by Image.open: our pixel limit holds, not Pillow's.
    _check_pixels(*image.size, max_pixels)
    image.load()
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


def _decode_bmp(data: bytes, max_pixels: int) -> tuple[Pixels, tuple[str, ...]]:
    return _from_pillow(BmpImagePlugin.BmpImageFile(io.BytesIO(data)), max_pixels), ()


class _Tiff(TiffImagePlugin.TiffImageFile):
    """As Pillow's, but without Pillow's pixel limit, which it would apply again here."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        ImageFile.ImageFile.load_prepare(self)


def _decode_tiff(data: bytes, max_pixels: int) -> tuple[Pixels, tuple[str, ...]]:
    _silence_libtiff()
    image = _Tiff(io.BytesIO(data))
    flags = ("first_frame",) if getattr(image, "n_frames", 1) > 1 else ()
    return _from_pillow(image, max_pixels), flags


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


def _decode_gif(data: bytes, max_pixels: int) -> tuple[Pixels, tuple[str, ...]]:
    num_frames = _count_gif_frames(data)
    image = GifImagePlugin.GifImageFile(io.BytesIO(data))
    return _from_pillow(image, max_pixels), ("first_frame",) if num_frames > 1 else ()


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


_DECODERS: dict[ImageFormat, Callable[[bytes, int], tuple[Pixels, tuple[str, ...]]]] = {
    "png": _decode_png,
    "webp": _decode_webp,
    "avif": _decode_avif,
    "heic": _decode_heic,
    "bmp": _decode_bmp,
    "tiff": _decode_tiff,
    "gif": _decode_gif,
}
