"""PNG, still WebP, still AVIF and HEIC by TorchCodec: faster than Pillow, and 16 bits right."""

# pyright: reportPrivateImportUsage=false
# (torchcodec.decoders documents its image decoders without exporting them; nor does mypy see them)

import struct
import zlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torchcodec import decoders

from pixelmill.tasks.engine import decode_pillow
from pixelmill.tasks.engine.decode_pillow import Decoders
from pixelmill.tasks.engine.header import (
    DecodeError,
    ImageFormat,
    heif_boxes,
    heif_sizes,
    png_chunks,
    webp_chunks,
    webp_frame_size,
)
from pixelmill.tasks.engine.limits import Limits

__all__ = [
    "TORCHCODEC_DECODERS",
    "decode_avif",
    "decode_heic",
    "decode_png",
    "decode_png_part",
    "decode_webp",
]

Pixels = NDArray[np.uint8]


def decode_png(data: bytes, limits: Limits) -> tuple[Pixels, tuple[str, ...]]:
    """Decode a whole PNG; of a moving one, its still image."""
    critical, is_moving = _critical_chunks(data)
    if critical[-8:-4] != b"IEND":
        raise DecodeError("truncated", "PNG ends without its IEND chunk")
    decoded = decoders.decode_png(_encoded(critical), mode="RGB")  # type: ignore[attr-defined]
    return _interleaved(decoded), ("first_frame",) if is_moving else ()


def decode_png_part(data: bytes, limits: Limits) -> Pixels:
    """What there is of a truncated PNG; the rest is black."""
    critical, _ = _critical_chunks(data)
    return decode_pillow.decode_png_part(bytes(critical), limits)


def _critical_chunks(data: bytes) -> tuple[bytearray, bool]:
    """The chunks that the pixels need, as far as they go, and whether the file is a moving one.

    Comments and profiles, which may be damaged or inflate to gigabytes, are not looked at: libpng
    prints about them on stderr.

    Raises:
        DecodeError: a chunk contradicts its checksum.
    """
    kept = bytearray(data[:8])
    is_moving = False
    for kind, start, end in png_chunks(data):
        is_moving |= kind == b"acTL"
        if not kind[:1].isupper():  # not critical, by the PNG naming convention
            continue
        kept += data[start - 8 : end + 4]
        # libpng would only warn of some damage that the checksum shows
        if end + 4 <= len(data) and (
            zlib.crc32(data[start - 4 : end]) != struct.unpack_from(">I", data, end)[0]
        ):
            raise DecodeError("corrupt", f"PNG chunk {kind!r} does not match its checksum")
        if kind == b"IEND":
            break
    return kept, is_moving


def decode_webp(data: bytes, limits: Limits) -> tuple[Pixels, tuple[str, ...]]:
    """Decode a whole WebP; of a moving one, the first frame."""
    if len(data) < int.from_bytes(data[4:8], "little") + 8:
        raise DecodeError("truncated", "WebP is shorter than its header says")
    for kind, start, end in webp_chunks(data):
        if kind == b"ANMF":
            return decode_pillow.decode_moving_webp(data, limits), ("first_frame",)
        if kind in (b"VP8 ", b"VP8L"):
            limits.check(*webp_frame_size(data, kind, start))
            # The bare bit stream: TorchCodec would apply an EXIF chunk, and alpha is dropped.
            chunk = data[start - 8 : end] + b"\0" * ((end - start) % 2)
            riff = struct.pack("<4sI4s", b"RIFF", len(chunk) + 4, b"WEBP") + chunk
            return _interleaved(decoders.decode_webp(_encoded(riff), mode="RGB")), ()  # type: ignore[attr-defined]
    raise DecodeError("corrupt", "WebP without an image")


def decode_avif(data: bytes, limits: Limits) -> tuple[Pixels, tuple[str, ...]]:
    """Decode a whole AVIF; of a moving one, the first frame."""
    _check_heif(data, limits)
    if b"avis" in data[8 : int.from_bytes(data[:4], "big")]:
        return decode_pillow.decode_moving_avif(data, limits), ("first_frame",)
    # Where there is alpha, "RGB" would multiply by it; where there is none, it costs 7 %
    mode: Literal["RGB_ALPHA", "RGB"] = "RGB_ALPHA" if b"auxC" in data else "RGB"
    return _interleaved(decoders.decode_avif(_encoded(data), mode=mode)), ()  # type: ignore[attr-defined]


def decode_heic(data: bytes, limits: Limits) -> tuple[Pixels, tuple[str, ...]]:
    """Decode a whole HEIC; of several images, the first."""
    _check_heif(data, limits)
    try:
        decoded = decoders.decode_heic(_encoded(data), mode="RGB_ALPHA")  # type: ignore[attr-defined]
    except ImportError as err:  # says that libheif has to be installed, and how
        raise DecodeError("unsupported", str(err)) from err
    return _interleaved(decoded), ("first_frame",) if decoded.ndim == 4 else ()


def _check_heif(data: bytes, limits: Limits) -> None:
    for kind, _, end in heif_boxes(data):
        if end > len(data):
            raise DecodeError("truncated", f"the file ends within its {kind!r} box")
    limits.check(*heif_sizes(data)[0])  # a small displayed part may be cut from it


def _encoded(data: bytes | bytearray) -> torch.Tensor:
    # A writable copy: TorchCodec's own way with bytes changes the warning filters of all threads.
    return torch.frombuffer(
        data if isinstance(data, bytearray) else bytearray(data), dtype=torch.uint8
    )


def _interleaved(decoded: torch.Tensor) -> Pixels:
    """(C, H, W), or (N, C, H, W) of which the first counts, to (H, W, 3); alpha is dropped."""
    first = decoded[0] if decoded.ndim == 4 else decoded
    return first[:3].permute(1, 2, 0).numpy()


TORCHCODEC_DECODERS: Mapping[ImageFormat, Decoders] = {
    "png": Decoders(decode_png, decode_png_part),
    "webp": Decoders(decode_webp, None),
    "avif": Decoders(decode_avif, None),
    "heic": Decoders(decode_heic, None),
}
