"""Files that mean harm, made by code, each with what has to become of it; for test_hostile.py."""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

# What the decoder of `PLANTED_DECODER` does with a file that has such a comment
PLANTED = {how: b"planted: %s\n" % how.encode() for how in ("abort", "hang", "hoard")}

# Stands before the real simplejpeg on the path of all worker processes
PLANTED_DECODER = '''
"""simplejpeg, but it counts, and misbehaves where a file's comment says so, after logging that."""

import importlib.machinery
import importlib.util
import os
import sys
import time
from pathlib import Path

here = str(Path(__file__).parents[1])
spec = importlib.machinery.PathFinder.find_spec("simplejpeg", [p for p in sys.path if p != here])
module = importlib.util.module_from_spec(spec)
sys.modules["simplejpeg"] = module
spec.loader.exec_module(module)
decode_jpeg = module.decode_jpeg


def misbehave(how):
    with open(os.environ["PLANTED_LOG"], "a") as log:
        log.write(how + "\\n")
    if how == "abort":
        os.abort()
    hoard = []
    while True:
        time.sleep(0.01)
        if how == "hoard":
            hoard.append(b"1" * (64 << 20))


def planted_decode_jpeg(data, *args, **options):
    if "DECODED_LOG" in os.environ:
        with open(os.environ["DECODED_LOG"], "a") as log:
            log.write(".")
    before, found, how = bytes(data[:64]).partition(b"planted: ")
    if found:
        misbehave(how.partition(b"\\n")[0].decode())
    return decode_jpeg(data, *args, **options)


module.decode_jpeg = planted_decode_jpeg
'''


@dataclass(frozen=True, slots=True)
class Hostile:
    """A hostile file.

    Attributes:
        path: relative to the images' folder, as bytes for names that are no text.
        make: puts it there.
        status: of its rows in `images`; None if it has none.
        failure: stage, reason, retryable of its row in `failures`; None if it has none.
        problem: why it is not listed; None if it is.
        max_deaths: of workers because of it.
    """

    path: str | bytes
    make: Callable[[Path], object]
    status: str | None = None
    failure: tuple[str, str, bool] | None = None
    problem: str | None = None
    max_deaths: int = 0


def corpus(*, has_limits: bool) -> Iterator[Hostile]:
    """All of them.

    Args:
        has_limits: file permissions hold for this user, as they do not for root.
    """
    jpeg, png = encode("JPEG", seed=1), encode("PNG", seed=2)
    for name, data, reason in (
        ("empty.jpg", b"", "empty"),
        ("text.jpg", b"these are no pixels\n" * 9, "unknown_format"),
        ("zeros.png", bytes(4096), "unknown_format"),
        ("half.jpg", jpeg[: len(jpeg) // 2], "truncated"),
        ("a byte short.jpg", encode("JPEG", seed=3)[:-1], "truncated"),
        ("header only.jpg", jpeg[:24], "truncated"),
        ("half.png", png[: len(png) // 2], "truncated"),
        ("half.tiff", cut(encode("TIFF", seed=4)), "truncated"),
        ("half.webp", cut(encode("WEBP", seed=5)), "truncated"),
        ("half.gif", cut(encode("GIF", seed=6)), "truncated"),
        ("rotten.jpg", rot(encode("JPEG", seed=7, size=(160, 120))), "corrupt"),
        ("rotten.png", rot(encode("PNG", seed=8)), "corrupt"),
        ("bomb.png", png_of(60_000, 60_000, zlib.compress(bytes(1000))), "too_many_pixels"),
        ("bomb.jpg", with_jpeg_size(encode("JPEG", seed=9), 65_000, 65_000), "too_many_pixels"),
        ("bomb.gif", with_gif_size(encode("GIF", seed=10), 65_535, 65_535), "too_many_pixels"),
        ("bomb.bmp", with_bmp_size(encode("BMP", seed=11), 60_000, 60_000), "too_many_pixels"),
        ("ribbon.png", png_of(100_000, 1, zlib.compress(bytes(300_001))), "side_too_long"),
        ("nothing.png", png_of(0, 0, b""), "corrupt"),
        ("scans.jpg", endless_scans(), "unsupported"),
        ("float.tiff", encode("TIFF", seed=12, mode="F"), "unsupported"),
    ):
        yield Hostile(name, writer(data), failure=("decode", reason, False))

    scored = {
        "really a png.jpg": encode("PNG", seed=20),
        "really a jpeg.png": encode("JPEG", seed=21),
        "one pixel.png": encode("PNG", seed=22, size=(1, 1)),
        "thin.jpg": encode("JPEG", seed=23, size=(9000, 2)),
        "bad icc.jpg": encode("JPEG", seed=24, icc_profile=b"no profile" * 99),
        "bad icc.png": encode("PNG", seed=25, icc_profile=b"no profile" * 99),
        "bad exif.jpg": encode("JPEG", seed=26, exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(9)),
        "turned 9.jpg": encode("JPEG", seed=27, exif=exif_orientation(9)),
        "profile bomb.png": with_chunk(encode("PNG", seed=28), b"iCCP", b"b\0\0" + zip_bomb()),
        "text bomb.png": with_chunk(encode("PNG", seed=29), b"zTXt", b"b\0\0" + zip_bomb()),
        "16 bits.tiff": encode("TIFF", seed=30, mode="I;16"),
        f"{'n' * 251}.jpg": encode("JPEG", seed=31),
        "new\nline.jpg": encode("JPEG", seed=32),
        "<b onclick='x'>&amp;\".jpg": encode("JPEG", seed=33),
        "-rf.jpg": encode("JPEG", seed=34),
        "\u202egpj.exe.jpg": encode("JPEG", seed=36),
        "album.jpg/inside.jpg": encode("JPEG", seed=37),
    }
    for name, data in scored.items():
        yield Hostile(name, writer(data), status="ok")
    yield Hostile("pages.tiff", writer(pages(60)), status="first_frame")
    yield Hostile("endless.tiff", writer(endless_pages()), status="ok")

    yield Hostile("dangling.jpg", lambda path: path.symlink_to("nowhere"), problem="broken_link")
    yield Hostile(
        "circle.jpg", lambda path: path.symlink_to("circle.jpg"), problem="unreadable_file"
    )
    yield Hostile("pipe.jpg", os.mkfifo, problem="not_a_file")
    yield Hostile(b"caf\xe9.jpg", writer(encode("JPEG", seed=40)), problem="unreadable_name")
    if has_limits:
        yield Hostile("locked.jpg", locked, failure=("read", "unreadable", True))
        yield Hostile("locked folder", locked_folder, problem="unreadable_folder")

    reasons = {"abort": "killed_worker", "hang": "deadline", "hoard": "memory"}
    for seed, (how, comment) in enumerate(PLANTED.items(), start=50):
        data = with_comment(encode("JPEG", seed=seed), comment)
        yield Hostile(
            f"{how}.jpg", writer(data), failure=("worker", reasons[how], False), max_deaths=3
        )


def encode(form: str, seed: int, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options):
    """Encoded noise; another one for each seed."""
    width, height = size
    rng = np.random.default_rng(seed)
    if mode == "RGB":
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))
    elif mode == "F":
        image = Image.fromarray(rng.random((height, width), np.float32))
    else:
        image = Image.fromarray(rng.integers(0, 65_535, (height, width), np.uint16))
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def writer(data: bytes) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    return write


def locked(path: Path) -> None:
    path.write_bytes(encode("JPEG", seed=41))
    path.chmod(0)


def locked_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside.jpg").write_bytes(encode("JPEG", seed=42))
    path.chmod(0)


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def rot(data: bytes) -> bytes:
    """Some bytes in the middle are zero, which is no marker in a JPEG."""
    middle = len(data) // 2
    return data[:middle] + bytes(40) + data[middle + 40 :]


def chunk(kind: bytes, content: bytes) -> bytes:
    """Of a PNG."""
    return (
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )  # fmt: skip


def png_of(width: int, height: int, data: bytes) -> bytes:
    """A PNG that says it has so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def with_chunk(data: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG with a chunk more, after its header."""
    return data[:33] + chunk(kind, content) + data[33:]


def zip_bomb() -> bytes:
    """A quarter of a megabyte that inflates to 256 MB."""
    packer = zlib.compressobj(9)
    zeros = bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(256)) + packer.flush()


def with_comment(data: bytes, comment: bytes) -> bytes:
    """A JPEG with a comment, first of all."""
    return data[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + data[2:]


def with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def with_gif_size(data: bytes, width: int, height: int) -> bytes:
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def with_bmp_size(data: bytes, width: int, height: int) -> bytes:
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def endless_scans() -> bytes:
    """A progressive JPEG that repeats its last scan 2,000 times."""
    data = encode("JPEG", seed=13, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 2000 + b"\xff\xd9"


def exif_orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def pages(number: int) -> bytes:
    first, *rest = [Image.new("RGB", (64, 48), (index, 90, 90)) for index in range(number)]
    buffer = io.BytesIO()
    first.save(buffer, "TIFF", save_all=True, append_images=rest)
    return buffer.getvalue()


def endless_pages() -> bytes:
    """A TIFF whose first page says that it is its own next page."""
    data = bytearray(encode("TIFF", seed=14))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    return bytes(data)
