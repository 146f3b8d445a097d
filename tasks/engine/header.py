"""What an encoded image says of itself before it is decoded: format, size and orientation.

Pillow needs whole files for some formats, so the few bytes that matter are parsed here; the first
64 KiB of a file are nearly always enough. Nothing in this module allocates by what a header claims.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "DecodeError",
    "DecodeReason",
    "Header",
    "ImageFormat",
    "is_plain_jpeg",
    "is_progressive_jpeg",
    "read_header",
]

ImageFormat = Literal["jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "heic"]
DecodeReason = Literal[
    "empty",
    "unknown_format",
    "truncated",
    "corrupt",
    "too_many_pixels",
    "side_too_long",
    "unsupported",
]

_ORIENTATION_TAG = 0x0112
_WIDTH_TAG = 0x0100
_HEIGHT_TAG = 0x0101
_HEIC_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
)  # fmt: skip


class DecodeError(ValueError):
    """An input that cannot be decoded whole.

    Attributes:
        reason: `truncated` ends early; `corrupt` contradicts itself; `unsupported` may be a good
            image, but not one that is read here.
    """

    def __init__(self, reason: DecodeReason, message: str) -> None:
        super().__init__(message)
        self.reason: DecodeReason = reason

    def __reduce__(self) -> tuple[type["DecodeError"], tuple[DecodeReason, str]]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes say.

    Attributes:
        width: pixels, as displayed: after the orientation.
        height: the same.
        orientation: EXIF value 1..8 as stored. It is 1 for AVIF and HEIC, whose container has its
            own rotation (EXIF must be ignored there: ISO/IEC 23008-12, 6.5.10).
    """

    format: ImageFormat
    width: int
    height: int
    orientation: int = 1


def read_header(data: bytes) -> Header:
    """Format, displayed size and orientation of an encoded image.

    Args:
        data: the file, or its beginning.

    Raises:
        DecodeError: `truncated` if the answer lies beyond the end of `data`.
    """
    image_format = sniff_format(data)
    try:
        header = _PARSERS[image_format](data)
    except (struct.error, IndexError) as err:
        raise DecodeError(
            "truncated", f"{image_format} header is not within the first {len(data)} bytes"
        ) from err
    if header.width <= 0 or header.height <= 0:
        raise DecodeError(
            "corrupt", f"{image_format} header says {header.width} x {header.height} pixels"
        )
    if header.orientation >= 5:  # the four that exchange rows and columns
        return replace(header, width=header.height, height=header.width)
    return header


def sniff_format(data: bytes) -> ImageFormat:
    """The format by magic bytes; file names are not asked.

    Raises:
        DecodeError: `empty` or `unknown_format`.
    """
    if not data:
        raise DecodeError("empty", "the file has no bytes")
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":  # the reserved bytes: "BM" is little proof
        return "bmp"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        if brands & {b"avif", b"avis"}:
            return "avif"
        if brands & _HEIC_BRANDS:
            return "heic"
    raise DecodeError(
        "unknown_format", f"begins with {data[:12]!r}, which is no known image format"
    )


def _brands(data: bytes) -> set[bytes]:
    end = int.from_bytes(data[:4], "big")
    brands = data[8:12] + data[16:end]  # 12..16 is the minor version
    return {brands[i : i + 4] for i in range(0, len(brands), 4)}


# --- JPEG -----------------------------------------------------------------------------------------


def _read_jpeg(data: bytes) -> Header:
    size = None
    orientation = None
    for marker, body in _jpeg_segments(data):
        if marker == 0xE1 and orientation is None and data[body : body + 6] == b"Exif\0\0":
            length = int.from_bytes(data[body - 2 : body], "big") - 2
            orientation = exif_orientation(data[body + 6 : body + length])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision, height, width = struct.unpack_from(">BHH", data, body)
            if precision != 8:
                raise DecodeError("unsupported", f"JPEG of {precision} bits per sample")
            if height == 0:
                raise DecodeError("unsupported", "JPEG that gives its height after the pixels")
            size = width, height
    if size is None:
        raise DecodeError("corrupt", "JPEG without a frame header before its scan")
    return Header("jpeg", *size, orientation or 1)


def is_progressive_jpeg(data: bytes) -> bool:
    """Whether a JPEG has scans that each sharpen the whole image."""
    return any(marker in (0xC2, 0xC6, 0xCA, 0xCE) for marker, _ in _jpeg_segments(data))


def is_plain_jpeg(data: bytes) -> bool:
    """Whether a JPEG is of the kinds that every decoder reads alike.

    Baseline or progressive, grey or YCbCr, colours sampled at most half as often along a side. Not
    RGB, CMYK or YCCK, arithmetic or lossless coding, nor unusual sampling.
    """
    is_rgb, plain = False, False
    for marker, body in _jpeg_segments(data):
        if marker == 0xEE and data[body : body + 5] == b"Adobe":
            is_rgb = data[body + 11] == 0  # the colour transform: none
        elif marker in (0xC0, 0xC1, 0xC2):
            components = [data[body + 6 + 3 * i : body + 9 + 3 * i] for i in range(data[body + 5])]
            names, samplings = [[part[at] for part in components] for at in (0, 1)]
            is_rgb |= bytes(names) == b"RGB"
            plain = len(components) == 1 or (
                samplings[0] in (0x11, 0x21, 0x12, 0x22) and samplings[1:] == [0x11, 0x11]
            )
            if len(components) == 1:
                is_rgb = False
    return plain and not is_rgb


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers up to the first scan, each with the offset of its body after the length."""
    seen_frame = False
    at = 2
    while True:
        if seen_frame and at + 4 > len(data):
            return
        if data[at] != 0xFF:
            raise DecodeError("corrupt", f"JPEG has no marker at byte {at}")
        while data[at] == 0xFF:  # any number of fill bytes
            at += 1
        marker = data[at]
        at += 1
        if marker in (0xDA, 0xD9):
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # no length
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if length < 2:
            raise DecodeError("corrupt", f"JPEG segment of length {length} at byte {at}")
        yield marker, at + 2
        seen_frame = seen_frame or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC))
        at += length


# --- PNG ------------------------------------------------------------------------------------------


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Chunks of a PNG: type, first and one past the last byte of the body; as far as they go."""
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, at + 8 + length
        at += 12 + length


def _read_png(data: bytes) -> Header:
    if data[12:16] not in (b"IHDR", b""):
        kind = data[12:16]
        raise DecodeError("corrupt", f"PNG begins with the chunk {kind!r} instead of IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    orientation = 1
    for kind, start, end in png_chunks(data):
        if kind == b"eXIf":
            orientation = exif_orientation(data[start:end])
            break
    return Header("png", width, height, orientation)


# --- WebP -----------------------------------------------------------------------------------------


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Chunks of a WebP: type, first and one past the last byte of the body; as far as they go."""
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, at + 8, at + 8 + length
        at += 8 + length + length % 2


def webp_frame_size(data: bytes, kind: bytes, start: int) -> tuple[int, int]:
    """(width, height) that a `VP8 ` or `VP8L` bit stream states (RFC 6386 9.1, RFC 9649 3.4)."""
    if kind == b"VP8L":
        signature, bits = struct.unpack_from("<BI", data, start)
        if signature != 0x2F:
            raise DecodeError("corrupt", "WebP lossless stream without its signature")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    sync, width, height = struct.unpack_from("<3sHH", data, start + 3)
    if sync != b"\x9d\x01\x2a":
        raise DecodeError("corrupt", "WebP lossy stream without its start code")
    return width & 0x3FFF, height & 0x3FFF


def _read_webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind in (b"VP8 ", b"VP8L"):
        return Header("webp", *webp_frame_size(data, kind, 20))
    if kind != b"VP8X":
        if len(data) < 16:
            raise IndexError
        raise DecodeError("corrupt", f"WebP begins with the chunk {kind!r}")
    flags, width, height = data[20], data[24:27], data[27:30]
    if len(height) < 3:
        raise IndexError
    size = int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    if not flags & 0x08:
        return Header("webp", *size)
    for kind, start, end in webp_chunks(data):  # EXIF is one of the last chunks
        if kind == b"EXIF" and end <= len(data):
            exif = data[start:end].removeprefix(b"Exif\0\0")  # some writers leave JPEG's prefix
            return Header("webp", *size, exif_orientation(exif))
    if len(data) < int.from_bytes(data[4:8], "little") + 8:
        raise IndexError
    return Header("webp", *size)


# --- GIF, BMP -------------------------------------------------------------------------------------


def _read_gif(data: bytes) -> Header:
    return Header("gif", *struct.unpack_from("<HH", data, 6))


def _read_bmp(data: bytes) -> Header:
    (header_size,) = struct.unpack_from("<I", data, 14)
    if header_size == 12:  # OS/2 1.x
        return Header("bmp", *struct.unpack_from("<HH", data, 18))
    width, height = struct.unpack_from("<ii", data, 18)
    return Header("bmp", width, abs(height))  # negative: rows from top to bottom


# --- TIFF and EXIF --------------------------------------------------------------------------------


def exif_orientation(exif: bytes) -> int:
    """Orientation 1..8 in an EXIF block (a small TIFF); 1 where it has none or is damaged."""
    try:
        value = _first_directory(exif, (_ORIENTATION_TAG,)).get(_ORIENTATION_TAG, 1)
    except (struct.error, IndexError, DecodeError):
        return 1
    return value if 1 <= value <= 8 else 1


def _read_tiff(data: bytes) -> Header:
    tags = _first_directory(data, (_WIDTH_TAG, _HEIGHT_TAG, _ORIENTATION_TAG))
    orientation = tags.get(_ORIENTATION_TAG, 1)
    return Header(
        "tiff",
        tags.get(_WIDTH_TAG, 0),
        tags.get(_HEIGHT_TAG, 0),
        orientation if 1 <= orientation <= 8 else 1,
    )


def _first_directory(data: bytes, wanted: tuple[int, ...]) -> dict[int, int]:
    """Integer values of some tags in the first directory of a TIFF or BigTIFF."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise DecodeError("corrupt", f"TIFF byte order is {data[:2]!r}, not II or MM")
    (version,) = struct.unpack_from(order + "H", data, 2)
    big = version == 43
    offset_format, count_format, entry_format = ("QQ", "Q", "HHQ") if big else ("II", "H", "HHI")
    (at,) = struct.unpack_from(order + offset_format[0], data, 8 if big else 4)
    (count,) = struct.unpack_from(order + count_format, data, at)
    if count > 0xFFFF:  # what a TIFF can say; a BigTIFF could keep us busy for minutes
        raise DecodeError("corrupt", f"TIFF directory of {count} tags")
    at += struct.calcsize(count_format)
    entry_size = 20 if big else 12
    found: dict[int, int] = {}
    for _ in range(count):
        tag, kind, num_values = struct.unpack_from(order + entry_format, data, at)
        value_format = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        if tag in wanted and value_format and num_values == 1:
            value_at = at + struct.calcsize("=" + entry_format)
            (found[tag],) = struct.unpack_from(order + value_format, data, value_at)
        at += entry_size
    return found


# --- AVIF and HEIC (ISO base media files) ---------------------------------------------------------


def _read_avif(data: bytes) -> Header:
    return Header("avif", *heif_sizes(data)[1])


def _read_heic(data: bytes) -> Header:
    return Header("heic", *heif_sizes(data)[1])


def heif_boxes(
    data: bytes, start: int = 0, end: int | None = None
) -> Iterator[tuple[bytes, int, int]]:
    """Boxes of [start, end): type, first and one past the last byte of the body.

    Raises:
        DecodeError: `truncated` or `corrupt`, by the sizes that the boxes state.
    """
    end = len(data) if end is None else end
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        elif size == 0:
            size = end - start
        if size < body - start:
            raise DecodeError("corrupt", f"box {kind!r} of {size} bytes at byte {start}")
        yield kind, body, start + size
        start += size


def _find_box(data: bytes, start: int, end: int, wanted: bytes) -> tuple[int, int]:
    box_end = start
    for kind, body, box_end in heif_boxes(data, start, end):
        if box_end > len(data):
            break
        if kind == wanted:
            return body, box_end
    if box_end > len(data):
        raise IndexError
    raise DecodeError("unsupported", f"no {wanted.decode()} box: not a still image")


def heif_sizes(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of the primary item: as coded, and as displayed (ISO/IEC 23008-12, 6.5)."""
    start, end = _find_box(data, 0, len(data), b"meta")
    start += 4
    pitm, _ = _find_box(data, start, end, b"pitm")
    (primary,) = struct.unpack_from(">I" if data[pitm] else ">H", data, pitm + 4)
    iprp = _find_box(data, start, end, b"iprp")
    properties = list(heif_boxes(data, *_find_box(data, *iprp, b"ipco")))
    coded = width, height = 0, 0
    for index in _associated_properties(data, _find_box(data, *iprp, b"ipma")[0], primary):
        if not 1 <= index <= len(properties):  # 0 says "none"
            continue
        kind, body, _ = properties[index - 1]
        if kind == b"ispe":
            coded = width, height = struct.unpack_from(">II", data, body + 4)
        elif kind == b"clap":
            width_n, width_d, height_n, height_d = struct.unpack_from(">4I", data, body)
            width, height = width_n // max(width_d, 1), height_n // max(height_d, 1)
        elif kind == b"irot" and data[body] & 1:
            width, height = height, width
    return coded, (width, height)


def _associated_properties(data: bytes, ipma: int, item: int) -> list[int]:
    """1-based indices into `ipco` of one item's properties."""
    version = data[ipma]
    wide = data[ipma + 3] & 1
    (num_items,) = struct.unpack_from(">I", data, ipma + 4)
    at = ipma + 8
    for _ in range(num_items):
        (item_id,) = struct.unpack_from(">H" if version < 1 else ">I", data, at)
        at += 2 if version < 1 else 4
        count = data[at]
        at += 1
        if item_id == item:
            if wide:
                return [value & 0x7FFF for value in struct.unpack_from(f">{count}H", data, at)]
            return [value & 0x7F for value in data[at : at + count]]
        at += count * (2 if wide else 1)
    return []


_PARSERS: dict[ImageFormat, Callable[[bytes], Header]] = {
    "jpeg": _read_jpeg,
    "png": _read_png,
    "webp": _read_webp,
    "gif": _read_gif,
    "bmp": _read_bmp,
    "tiff": _read_tiff,
    "avif": _read_avif,
    "heic": _read_heic,
}
