"""Every format and mode against Pillow; damage of every kind; orientation; limits."""

import base64
import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pixelmill.tasks.engine import decode_pillow, decode_torchcodec
from pixelmill.tasks.engine.decode import DecodeError, decode_image, read_header

MAX_PIXELS = 10_000_000
HEIGHT, WIDTH = 45, 64
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# 64 x 48, R = 4x, G = 5y, B = 2(x + y); written by pillow-heif at quality 30
HEIC = base64.b85decode(
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004fZDn*}000000000XXk=`10000000000aA{+700000000000000000000"
    "B57=IV*mgE07O6l0RRC200001p#T8@00000002Y)001LtX>Mi!000000RR916=`l}WdZ;I000310BCk&F#rGn01j|zbZr0t"
    "000010002}X>f9I0002pX>en20001XXm(>m0RwOV0058x000009`FGC{rLC*01pFT0096PKmiN^|NjGU00093kN^M!00093"
    "9=ZZRVE_RDDnbDP18@KU0|1Z!00RI30{|YNAb|yz>g1-mxCm%4AOHXZ10VnZ0{|gn00967L;=Bbz=;3=025<xY;ta6Y<K_x"
    "01W^JfB*mh6lrsCWdHyG00000KmY&$KmY&$C}V74Z~y=RKmY&$0RR91FaQ7m0RR91000000{{R2@Bjb+0ssI25O8UDX#fBK"
    "00RgJ2mk;87-?{AVE_OC000000RRC7fdT^sga7~lOl@RgbN~PVKqvvP8G!FkMLr<>IG%IGt9$IK)^N-7Z*H$|-irlNzjvyb"
    "2)W-imm>ON%X9%9AkYdUy9!nM?XGcF)wMfAU;"
)  # fmt: skip


def smooth_image(mode: str = "RGB", height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Not symmetric in any way, and smooth, so that lossy formats keep it."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack(
        [255 * x / (width - 1), 255 * y / (height - 1), 255 * (x * y) / (height * width)], -1
    )
    image = Image.fromarray(rgb.round().astype(np.uint8))
    if mode in ("RGBA", "LA"):
        alpha = Image.fromarray((255 * (x + y) / (height + width)).astype(np.uint8))
        image = image.convert(mode)
        image.putalpha(alpha)
        return image
    return image.convert(mode)


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def pillow_rgb(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def decode(data: bytes) -> np.ndarray:
    return decode_image(data, max_pixels=MAX_PIXELS).pixels


def difference(pixels: np.ndarray, expected: np.ndarray) -> int:
    assert pixels.shape == expected.shape
    return int(np.abs(pixels.astype(int) - expected.astype(int)).max())


def test_every_format_gives_contiguous_rgb_and_says_what_it_was():
    for name in FORMATS:
        image = decode_image(encode(smooth_image(), name), max_pixels=MAX_PIXELS)
        assert image.format == name.lower()
        assert image.pixels.dtype == np.uint8
        assert image.pixels.flags.c_contiguous
        assert image.pixels.flags.writeable
        assert image.original_size == image.pixels.shape[:2] == (HEIGHT, WIDTH)
        assert image.flags == ()


MODES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "JPEG": [
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"keep_rgb": True}),
        ("L", {}),
        ("CMYK", {"quality": 95}),
    ],
    "PNG": [(mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")],
    "WEBP": [
        ("RGB", {}),
        ("RGB", {"lossless": True}),
        ("RGBA", {}),
        ("RGBA", {"lossless": True, "exact": True}),
        ("L", {}),
    ],
    "GIF": [("P", {}), ("L", {}), ("1", {}), ("RGB", {"transparency": 3})],
    "BMP": [(mode, {}) for mode in ("RGB", "RGBA", "L", "P", "1")],
    "TIFF": [
        *((mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK")),
        *(("RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        ("RGB", {"big_tiff": True}),
    ],
    "AVIF": [("RGB", {}), ("RGBA", {}), ("L", {})],
}


@pytest.mark.parametrize(
    ("image_format", "mode", "options"),
    [(name, mode, options) for name, cases in MODES.items() for mode, options in cases],
)
def test_pixels_equal_pillows_convert_rgb(image_format, mode, options):
    data = encode(smooth_image(mode), image_format, **options)
    # CMYK: another rounding of the same formula
    assert difference(decode(data), pillow_rgb(data)) <= (1 if mode == "CMYK" else 0)


def test_alpha_is_dropped_and_not_composited():
    for name in ("PNG", "BMP", "TIFF"):
        data = encode(smooth_image("RGBA"), name)
        assert difference(decode(data), np.asarray(smooth_image())) == 0


def test_inverted_cmyk_jpeg_shows_the_same_picture_as_its_rgb_original():
    # Adobe stores CMYK inverted, and so does Pillow
    data = encode(smooth_image("CMYK"), "JPEG", quality=100)
    assert b"Adobe" in data
    assert np.abs(decode(data).astype(int) - np.asarray(smooth_image())).mean() < 3


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(image_format):
    grey = (np.arange(HEIGHT * WIDTH, dtype=np.uint16) * 22).reshape(HEIGHT, WIDTH)
    pixels = decode(encode(Image.fromarray(grey), image_format))
    assert difference(pixels[..., 0], np.round(grey / 257).astype(np.uint8)) == 0
    assert (pixels[..., :1] == pixels).all()


def test_16_bit_white_is_zero_tiff_is_inverted():
    grey = (np.arange(HEIGHT * WIDTH, dtype=np.uint16) * 22).reshape(HEIGHT, WIDTH)
    data = encode(Image.fromarray(grey), "TIFF", tiffinfo={262: 0})
    assert difference(decode(data)[..., 0], 255 - np.round(grey / 257).astype(np.uint8)) == 0


def png_of(samples: np.ndarray, bit_depth: int, colour_type: int) -> bytes:
    """A PNG by hand, for what Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(
        ">IIBBBBB", samples.shape[1], samples.shape[0], bit_depth, colour_type, 0, 0, 0
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4)])
def test_16_bit_colour_is_scaled(colour_type, channels):
    samples = np.random.default_rng(0).integers(0, 65536, (9, 7, channels)).astype(np.uint16)
    pixels = decode(png_of(samples, 16, colour_type))
    assert difference(pixels, np.round(samples[..., :3] / 257).astype(np.uint8)) == 0


def test_float_tiff_is_unsupported_because_its_white_is_not_known():
    data = encode(Image.fromarray(np.zeros((4, 5), np.float32)), "TIFF")
    with pytest.raises(DecodeError, match="no defined white") as caught:
        decode(data)
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_exactly_once(image_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 95} if image_format != "PNG" else {}
    data = encode(smooth_image(), image_format, exif=exif, **options)
    pixels = decode(data)
    as_stored = decode(encode(smooth_image(), image_format, **options))
    turns: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: np.rot90(a, 2),
        lambda a: a[::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.rot90(a, -1),
        lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        lambda a: np.rot90(a, 1),
    ]
    assert difference(pixels, turns[orientation - 1](as_stored)) == 0
    assert difference(pixels, pillow_rgb(data)) == 0
    header = read_header(data)
    assert (header.height, header.width) == pixels.shape[:2]


def test_exif_of_an_avif_is_ignored_as_its_standard_demands():
    exif = Image.Exif()
    exif[0x0103] = 6  # another tag of the same type, renamed below
    data = encode(smooth_image(), "AVIF", exif=exif)
    renamed = data.replace(b"\x03\x01\x03\x00", b"\x12\x01\x03\x00")
    renamed = renamed.replace(b"\x01\x03\x00\x03", b"\x01\x12\x00\x03")
    assert renamed != data
    assert decode(renamed).shape == (HEIGHT, WIDTH, 3)


def test_exif_after_the_pixels_of_a_png_counts():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(smooth_image(), "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    assert difference(decode(late), decode(data)) == 0


def test_heic_gives_its_pixels():
    y, x = np.mgrid[0:48, 0:64]
    expected = np.stack([4 * x, 5 * y, 2 * (x + y)], -1).astype(np.uint8)
    try:
        pixels = decode(HEIC)
    except DecodeError as err:
        if err.reason == "unsupported":
            pytest.skip(str(err))
        raise
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 4
    assert (read_header(HEIC).height, read_header(HEIC).width) == (48, 64)


def test_heic_without_libheif_is_unsupported_and_says_what_to_install(monkeypatch):
    def missing(*args: Any, **options: Any) -> None:
        raise ImportError("HEIC decoding requires libheif: `apt install libheif1`")

    monkeypatch.setattr(decode_torchcodec.decoders, "decode_heic", missing)
    with pytest.raises(DecodeError, match="apt install libheif1") as caught:
        decode(HEIC)
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_of_several_frames_the_first_is_taken_and_flagged(image_format):
    first, second = smooth_image(), smooth_image().transpose(Image.Transpose.ROTATE_180)
    data = encode(first, image_format, save_all=True, append_images=[second])
    image = decode_image(data, max_pixels=MAX_PIXELS)
    assert image.flags == ("first_frame",)
    assert difference(image.pixels, pillow_rgb(data)) <= (2 if image_format == "AVIF" else 0)
    assert np.abs(image.pixels.astype(int) - np.asarray(first)).mean() < 10


# --- Damage ---------------------------------------------------------------------------------------


def damaged_examples() -> dict[str, bytes]:
    noisy = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    )
    examples = {name.lower(): encode(noisy, name) for name in FORMATS}
    examples["lossless webp"] = encode(noisy, "WEBP", lossless=True)
    examples["progressive jpeg"] = encode(noisy, "JPEG", progressive=True)
    examples["lzw tiff"] = encode(noisy, "TIFF", compression="tiff_lzw")
    examples["moving gif"] = encode(noisy, "GIF", save_all=True, append_images=[smooth_image()])
    examples["moving webp"] = encode(noisy, "WEBP", save_all=True, append_images=[smooth_image()])
    examples["heic"] = HEIC
    return examples


EXAMPLES = damaged_examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_truncated_file_is_never_taken_for_a_whole_one(name):
    data = EXAMPLES[name]
    cuts = {*range(40), *range(len(data) - 5, len(data)), *range(40, len(data), len(data) // 60)}
    reasons = []
    for cut in sorted(cuts):
        with pytest.raises(DecodeError) as caught:
            decode(data[:cut])
        reasons.append(caught.value.reason)
    assert reasons[0] == "empty"
    assert reasons[-1] == "truncated"
    assert reasons.count("truncated") > len(reasons) / 2


@pytest.mark.parametrize("name", ["jpeg", "png"])
def test_corrupt_pixels_are_reported(name):
    data = bytearray(EXAMPLES[name])
    middle = len(data) // 2
    data[middle : middle + 30] = bytes(range(1, 31))
    with pytest.raises(DecodeError) as caught:
        decode(bytes(data))
    assert caught.value.reason == "corrupt"


@pytest.mark.parametrize("name", EXAMPLES)
def test_damaged_bytes_raise_decode_error_or_nothing(name):
    rng = np.random.default_rng(2)
    for _ in range(60):
        data = bytearray(EXAMPLES[name])
        for place in rng.integers(4, len(data), rng.integers(1, 6)):
            data[place] = rng.integers(0, 256)
        try:
            pixels = decode(bytes(data))
        except DecodeError:
            continue
        assert pixels.ndim == 3


@settings(max_examples=300, deadline=None)
@given(
    magic=st.sampled_from([data[:40] for data in EXAMPLES.values()] + [b""]),
    keep=st.integers(0, 40),
    rest=st.binary(max_size=200),
)
def test_random_bytes_raise_decode_error_or_nothing(magic, keep, rest):
    with contextlib.suppress(DecodeError):
        decode(magic[:keep] + rest)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html><body>404</body></html>", "unknown_format"),
        (b"%PDF-1.7 and so on and so on", "unknown_format"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xe0\0\x02\0\0\0\0", "corrupt"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIDATxxxxxxxxxxxxxxxxxxx", "corrupt"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "unknown_format"),
    ],
)
def test_what_is_no_image_has_a_reason(data, reason):
    with pytest.raises(DecodeError) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_12_bit_jpeg_is_unsupported():
    data = bytearray(EXAMPLES["jpeg"])
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(DecodeError, match="12 bits") as caught:
        decode(bytes(data))
    assert caught.value.reason == "unsupported"


def test_jpeg_with_unusual_sampling_is_flagged_because_its_damage_would_not_show():
    data = bytearray(encode(smooth_image(), "JPEG", subsampling=1))
    data[data.index(b"\xff\xc0") + 11] = 0x31  # 3x1: TurboJPEG has no name for it
    assert decode_image(bytes(data), max_pixels=MAX_PIXELS).flags == ("unverified",)


@pytest.mark.parametrize("num_zeros", [1, 2, 3, 10, 1000])
def test_zeros_before_the_end_of_a_jpeg_are_padding(num_zeros):
    data = EXAMPLES["jpeg"]
    padded = data[:-2] + b"\0" * num_zeros + data[-2:]
    assert difference(decode(padded), decode(data)) == 0


def test_a_marker_that_no_jpeg_has_is_damage():
    data = EXAMPLES["jpeg"]
    middle = (data.index(b"\xff\xda") + len(data)) // 2
    with pytest.raises(DecodeError, match="Unsupported marker") as caught:
        decode(data[:middle] + b"\xff\x02" + data[middle:])
    assert caught.value.reason == "corrupt"


def test_other_bytes_before_the_end_of_a_jpeg_are_damage():
    data = EXAMPLES["jpeg"]
    with pytest.raises(DecodeError, match="extraneous bytes") as caught:
        decode(data[:-2] + b"\0\0padding" + data[-2:])
    assert caught.value.reason == "corrupt"


def test_bytes_after_the_image_do_no_harm():
    for name in ("jpeg", "png", "gif", "bmp", "webp"):
        data = EXAMPLES[name]
        assert difference(decode(data + b"\0" * 50), decode(data)) == 0


# --- What there is of a truncated file ------------------------------------------------------------


def partial_examples() -> dict[str, bytes]:
    picture = smooth_image("RGB", 96, 128)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "jpeg": encode(picture, "JPEG", quality=95),
        "turned jpeg": encode(picture, "JPEG", quality=95, exif=turned),
        "progressive jpeg": encode(picture, "JPEG", quality=95, progressive=True),
        "png": encode(picture, "PNG"),
        "turned png": encode(picture, "PNG", exif=turned),
        "palette png": encode(picture.convert("P"), "PNG"),
        "grey png": encode(picture.convert("L"), "PNG"),
        "gif": encode(picture, "GIF"),
        "bmp": encode(picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM), "BMP"),
        "tiff": encode(picture, "TIFF"),
        "turned tiff": encode(picture, "TIFF", exif=turned),
    }


PARTIAL = partial_examples()


def decode_flagged(data: bytes, scale: int = 1):
    return decode_image(data, max_pixels=MAX_PIXELS, truncated="flag", scale=scale)


@pytest.mark.parametrize("name", PARTIAL)
def test_what_there_is_of_a_truncated_file_is_flagged_and_in_its_place(name):
    data = PARTIAL[name]
    whole = decode(data)
    image = decode_flagged(data[: len(data) * 3 // 4])
    assert image.flags == ("truncated",)
    assert image.original_size == image.pixels.shape[:2] == whole.shape[:2]
    # The first rows as stored; a turn to the right makes them the last columns
    first = np.s_[:, -16:] if "turned" in name else np.s_[:16]
    first = np.s_[-16:] if name == "bmp" else first
    if name == "progressive jpeg":  # every scan is of the whole picture
        assert 0 < difference(image.pixels, whole) < 30
    else:
        assert difference(image.pixels[first], whole[first]) == 0
        assert difference(image.pixels, whole) > 30


@pytest.mark.parametrize("name", PARTIAL)
def test_a_whole_file_is_not_flagged_as_truncated(name):
    image = decode_flagged(PARTIAL[name])
    assert image.flags == ()
    assert difference(image.pixels, decode(PARTIAL[name])) == 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_flagging_decodes_no_file_of_which_nothing_is_left(name):
    for cut in (0, 5, 20, 40):
        with pytest.raises(DecodeError):
            decode_flagged(EXAMPLES[name][:cut])


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_cut_file_under_the_flag_policy_is_flagged_or_refused(name):
    data = EXAMPLES[name]
    for cut in range(40, len(data), len(data) // 40):
        with contextlib.suppress(DecodeError):
            assert "truncated" in decode_flagged(data[:cut]).flags


@pytest.mark.parametrize("name", ["webp", "avif", "lossless webp"])
def test_formats_without_a_decoder_for_a_part_stay_quarantined(name):
    with pytest.raises(DecodeError) as caught:
        decode_flagged(EXAMPLES[name][:-9])
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("name", ["jpeg", "png"])
def test_the_flag_policy_does_not_accept_corrupt_pixels(name):
    data = bytearray(EXAMPLES[name])
    middle = len(data) // 2
    data[middle : middle + 30] = bytes(range(1, 31))
    with pytest.raises(DecodeError) as caught:
        decode_flagged(bytes(data))
    assert caught.value.reason == "corrupt"


def test_16_bit_grey_of_a_truncated_png_is_scaled():
    grey = (np.arange(64 * 64, dtype=np.uint16) * 15).reshape(64, 64)
    data = encode(Image.fromarray(grey), "PNG")
    pixels = decode_flagged(data[: len(data) // 2]).pixels
    assert difference(pixels[:8, :, 0], np.round(grey[:8] / 257).astype(np.uint8)) == 0


def test_a_truncated_jpeg_is_decoded_at_a_scale_too():
    data = PARTIAL["jpeg"]
    image = decode_flagged(data[: len(data) * 3 // 4], scale=2)
    assert (image.flags, image.scale) == (("truncated",), 2)
    whole = decode_image(data, max_pixels=MAX_PIXELS, scale=2).pixels
    assert difference(image.pixels[:8], whole[:8]) == 0


def test_strips_beyond_the_end_of_a_compressed_tiff_are_truncation():
    # libtiff says only that it failed
    data = tiff_with_directory_first(b"\x80\x0b\x60\x50\x38", strip_bytes=5000, compression=5)
    with pytest.raises(DecodeError) as caught:
        decode(data)
    assert caught.value.reason == "truncated"


# --- Limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_too_many_pixels_are_refused(name):
    with pytest.raises(DecodeError, match=r"ingest\.max_pixels") as caught:
        decode_image(EXAMPLES[name], max_pixels=100)
    assert caught.value.reason == "too_many_pixels"


def test_a_bomb_is_refused_before_anything_is_allocated():
    bomb = png_of(np.zeros((1, 1, 3)), 16, 2)
    size = struct.pack(">II", 2_000_000_000, 2_000_000_000)
    with pytest.raises(DecodeError, match="4000000000000000000 pixels"):
        decode(bomb[:16] + size + bomb[24:])


def test_a_gif_frame_larger_than_its_screen_does_not_pass_the_limit():
    data = bytearray(EXAMPLES["gif"])
    data[6:10] = struct.pack("<HH", 1, 1)
    frame = data.index(b"\x2c", 13 + 768)
    data[frame + 5 : frame + 9] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(DecodeError) as caught:
        decode(bytes(data))
    assert caught.value.reason == "too_many_pixels"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_pillows_own_limit_does_not_count(image_format, monkeypatch):
    data = encode(smooth_image(), image_format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(data).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_side_that_is_too_long_is_refused(name):
    with pytest.raises(DecodeError, match=r"ingest\.max_side") as caught:
        decode_image(EXAMPLES[name], max_pixels=MAX_PIXELS, max_side=63)
    assert caught.value.reason == "side_too_long"


def tiff_with_directory_first(
    pixels: bytes, *, strip_bytes: int | None = None, compression: int = 1, **tags: int
) -> bytes:
    """A grey TIFF of 64 x 45 pixels by hand; `tags` as _322=17 are added."""
    entries = {
        256: 64, 257: 45, 258: 8, 259: compression, 262: 1, 277: 1, 278: 45,
        273: 0, 279: strip_bytes or len(pixels),
    }  # fmt: skip
    entries |= {int(name.removeprefix("_")): value for name, value in tags.items()}
    if 322 in entries:  # tiles have tags of their own for where they are
        del entries[278]
        entries[324], entries[325] = entries.pop(273), entries.pop(279)
    place = 324 if 324 in entries else 273
    entries[place] = 8 + 2 + 12 * len(entries) + 4
    directory = b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items())
    )
    count = struct.pack("<H", len(entries))
    return b"II*\0" + struct.pack("<I", 8) + count + directory + bytes(4) + pixels


def test_a_tiff_by_hand_is_read():
    assert (decode(tiff_with_directory_first(bytes([7]) * 64 * 45)) == 7).all()


def test_the_tiles_of_a_small_tiff_may_not_be_huge():
    data = tiff_with_directory_first(b"x" * 100, compression=5, _322=60_000, _323=60_000)
    with pytest.raises(DecodeError, match="60000 x 60000") as caught:
        decode(data)
    assert caught.value.reason == "too_many_pixels"


def test_the_pages_of_a_deep_tiff_are_not_followed(monkeypatch):
    seen = []
    seek = decode_pillow.TiffImagePlugin.TiffImageFile._seek
    monkeypatch.setattr(
        decode_pillow.TiffImagePlugin.TiffImageFile,
        "_seek",
        lambda self, frame: seen.append(frame) or seek(self, frame),
    )
    page = tiff_with_directory_first(bytes(64 * 45))
    directory = page[8 : 8 + 2 + 12 * 9]
    num_pages = 1000
    deep = bytearray(page)
    link = 8 + len(directory)
    for _ in range(num_pages):
        deep[link : link + 4] = struct.pack("<I", len(deep))
        link = len(deep) + len(directory)
        deep += directory + bytes(4)
    image = decode_image(bytes(deep), max_pixels=MAX_PIXELS)
    assert image.flags == ("first_frame",)
    assert set(seen) == {0}


def test_a_bigtiff_directory_of_a_million_tags_is_corrupt():
    data = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1_000_000) + bytes(20 * 1_000_000)
    with pytest.raises(DecodeError, match="1000000 tags") as caught:
        decode(data)
    assert caught.value.reason == "corrupt"


def with_png_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("cut", [0, 200])
def test_a_bomb_in_a_comment_or_profile_is_not_inflated(kind, cut):
    prefix = b"name\0\1\0\0\0" if kind == b"iTXt" else b"name\0\0"
    bomb = prefix + zlib.compress(bytes(50_000_000))
    data = with_png_chunk(EXAMPLES["png"], kind, bomb)
    tracemalloc.start()
    image = decode_flagged(data[: len(data) - cut])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert image.flags == (("truncated",) if cut else ())
    assert peak < 5_000_000
    if not cut:
        assert difference(image.pixels, decode(EXAMPLES["png"])) == 0


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_profile_that_is_none_does_no_harm(name):
    options: dict[str, Any] = {"quality": 95} if name != "PNG" else {}
    data = encode(smooth_image(), name, icc_profile=b"no profile" * 30, **options)
    assert difference(decode(data), decode(encode(smooth_image(), name, **options))) == 0


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", ["noise", "cut", "0", "9", "65535"])
def test_exif_that_is_damaged_or_out_of_range_turns_nothing(name, exif):
    block = Image.Exif()
    block[0x0112] = int(exif) if exif.isdigit() else 6
    body = block.tobytes()
    body = body[:-12] if exif == "cut" else body
    body = b"Exif\0\0" + b"\xff" * 40 if exif == "noise" else body
    options: dict[str, Any] = {"quality": 95} if name != "PNG" else {}
    data = encode(smooth_image(), name, exif=body, **options)
    assert difference(decode(data), decode(encode(smooth_image(), name, **options))) == 0


def test_a_jpeg_that_repeats_its_scans_without_end_is_refused():
    data = encode(smooth_image(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    data = data[:-2] + data[last:-2] * 1000 + data[-2:]
    with pytest.raises(DecodeError, match="scans") as caught:
        decode(data)
    assert caught.value.reason == "unsupported"


# --- Scaled decoding ------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_pixel_of_a_scaled_jpeg_is_the_mean_of_those_it_stands_for(scale, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(smooth_image("RGB", 480, 640), "JPEG", exif=exif, quality=95)
    full = decode(data)
    image = decode_image(data, max_pixels=MAX_PIXELS, scale=scale)
    assert (image.original_size, image.scale) == (full.shape[:2], scale)
    height, width = full.shape[0] // scale, full.shape[1] // scale
    means = full.reshape(height, scale, width, scale, 3).mean(axis=(1, 3))
    assert np.abs(image.pixels - means).mean() < 2


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_sides_of_a_scaled_jpeg_are_rounded_up(scale):
    usual = encode(smooth_image("RGB", 61, 107), "JPEG", subsampling=1)
    unusual = bytearray(usual)
    unusual[unusual.index(b"\xff\xc0") + 11] = 0x31  # 3x1: decoded by Pillow
    for data in (usual, bytes(unusual)):
        pixels = decode_image(data, max_pixels=MAX_PIXELS, scale=scale).pixels
        assert pixels.shape[:2] == (-(-61 // scale), -(-107 // scale))


def test_formats_without_a_scaled_decoder_are_decoded_in_full():
    image = decode_image(EXAMPLES["png"], max_pixels=MAX_PIXELS, scale=4)
    assert (image.scale, image.pixels.shape[:2]) == (1, image.original_size)


# --- Silence --------------------------------------------------------------------------------------


def test_nothing_is_printed_about_damaged_files(tmp_path):
    script = tmp_path / "decode_all.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from pixelmill.tasks.engine.decode import DecodeError, decode_image\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try:\n"
        "        decode_image(path.read_bytes(), max_pixels=10**7)\n"
        "    except DecodeError:\n"
        "        pass\n"
    )
    folder = tmp_path / "damaged"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for name, example in EXAMPLES.items():
        for number in range(40):
            data = bytearray(example)
            for place in rng.integers(8, len(data), 3):
                data[place] = rng.integers(0, 256)
            (folder / f"{name}-{number}").write_bytes(data[: len(data) if number % 2 else -9])
    profile = encode(smooth_image(), "PNG", icc_profile=b"no profile" * 30)
    (folder / "bad profile.png").write_bytes(profile)
    result = subprocess.run(
        [sys.executable, "-P", script, folder],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.stdout == ""
    assert result.stderr == ""


def test_decode_error_survives_a_process_border():
    copy = pickle.loads(pickle.dumps(DecodeError("corrupt", "two heads")))
    assert (copy.reason, str(copy)) == ("corrupt", "two heads")


def test_real_photographs_equal_pillow():
    folder = Path(__file__).parents[4] / "shared" / "data" / "coco_small" / "images"
    if not folder.is_dir():
        pytest.skip("real data not present")
    for path in sorted(folder.iterdir())[:20]:
        data = path.read_bytes()
        assert difference(decode(data), pillow_rgb(data)) == 0
        header = read_header(data[:65_536])
        assert (header.height, header.width) == decode(data).shape[:2]
