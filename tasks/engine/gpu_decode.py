"""JPEGs decoded by the GPU, a batch at a time, where its decoder can be trusted with them.

For machines whose CPU cores cannot keep the GPU busy. TorchCodec's nvJPEG decoder reports no damage
and fills it in, so a file must at least end as a JPEG does to get there, and what it gives is
flagged `unverified`. All that is not a plain JPEG, or fails there, is decoded by the CPU as always
and copied.

The pixels are not those of the CPU to the last bit (another inverse transform and upsampling), so a
model that is fed from here must be another model to the store than one that is not.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torchcodec import decoders

from pixelmill.tasks.engine.decode import DecodedImage, DecodeError, TruncatedPolicy, decode_image
from pixelmill.tasks.engine.header import Header, is_plain_jpeg, read_header
from pixelmill.tasks.engine.limits import Limits

__all__ = ["GpuImage", "can_decode_on_gpu", "decode_on_gpu", "require_gpu_decoder"]

# Older ones write into the GPU memory of others (pytorch/vision#9606, meta-pytorch/torchcodec#1634)
_MIN_TORCHCODEC = (0, 17)
_END = b"\xff\xd9"

DecodeBatch = Callable[[list[Tensor], torch.device], list[Tensor]]


@dataclass(frozen=True, slots=True)
class GpuImage:
    """As `DecodedImage`, with its pixels on a GPU.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, as displayed.
        flags: as of `DecodedImage`; also `unverified` for all that the GPU has decoded.
        original_size: (H, W).
    """

    pixels: Tensor
    flags: tuple[str, ...]
    original_size: tuple[int, int]


def can_decode_on_gpu() -> bool:
    """Whether there is a GPU, and a TorchCodec whose decoder is safe to use on it."""
    found = importlib.metadata.version("torchcodec").split(".")[:2]
    return torch.cuda.is_available() and tuple(map(int, found)) >= _MIN_TORCHCODEC


def require_gpu_decoder(device: torch.device) -> None:
    """Refuse to go on without a decoder that gives the pixels of `decode: gpu`.

    Raises:
        ValueError: those of another decoder would be stored under this model's key.
    """
    if device.type != "cuda" or not can_decode_on_gpu():
        raise ValueError(
            "preprocess.decode: gpu needs workers with a CUDA GPU and TorchCodec 0.17 or newer, "
            f"got device {str(device)!r} and TorchCodec {importlib.metadata.version('torchcodec')};"
            " start a new run with preprocess.decode: full or scaled, or score on such workers"
        )


def _nvjpeg(files: list[Tensor], device: torch.device) -> list[Tensor]:
    decode = decoders.decode_jpeg  # type: ignore[attr-defined] # public, but not in an __all__
    return cast("list[Tensor]", decode(files, mode="RGB", device=device))


def decode_on_gpu(
    files: Sequence[bytes],
    device: torch.device,
    *,
    max_pixels: int,
    max_side: int,
    truncated: TruncatedPolicy = "quarantine",
    decode_batch: DecodeBatch = _nvjpeg,
) -> list[GpuImage | DecodeError]:
    """Decode whole files to the memory of a GPU.

    Args:
        files: encoded images of any format.
        device: where the pixels go.
        max_pixels: as of `decode_image`; the sum over the batch is for the caller to bound.
        max_side: as of `decode_image`.
        truncated: as of `decode_image`.
        decode_batch: files and device -> (3, H, W) uint8 RGB each, as stored.

    Returns:
        For each file, its pixels or why there are none.
    """
    limits = Limits(max_pixels, max_side)
    headers = [_plain_header(data, limits) for data in files]
    plain = [index for index, header in enumerate(headers) if header is not None]
    encoded = [torch.frombuffer(bytearray(files[i]), dtype=torch.uint8) for i in plain]
    decoded = _decode_plain(encoded, device, decode_batch)
    results: dict[int, GpuImage | DecodeError] = {}
    for index, pixels in zip(plain, decoded, strict=True):
        header = headers[index]
        if pixels is None or header is None:
            continue
        turned = _oriented(pixels.permute(1, 2, 0), header.orientation)
        if turned.shape == (header.height, header.width, 3):
            size = header.height, header.width
            results[index] = GpuImage(turned.contiguous(), ("unverified",), size)
    for index, data in enumerate(files):
        if index not in results:
            try:
                image = decode_image(
                    data, max_pixels=max_pixels, max_side=max_side, truncated=truncated
                )
                results[index] = _copied(image, device)
            except DecodeError as err:
                results[index] = err
    return [results[index] for index in range(len(files))]


def _decode_plain(
    files: list[Tensor], device: torch.device, decode_batch: DecodeBatch
) -> list[Tensor | None]:
    """Pixels, or None for a file that the GPU fails on, whatever files are beside it."""
    if not files:
        return []
    try:
        return [*decode_batch(files, device)]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # it does not say by which file
        if len(files) == 1:
            return [None]
        return [_decode_plain([each], device, decode_batch)[0] for each in files]


def _plain_header(data: bytes, limits: Limits) -> Header | None:
    """The header of a JPEG that the GPU may decode; None for all else, damaged files included."""
    try:
        header = read_header(data)
        limits.check(header.width, header.height)
    except DecodeError:
        return None
    if header.format != "jpeg" or not is_plain_jpeg(data):
        return None
    # It may end in zeros that a camera or a file system has added
    return header if data.rstrip(b"\0").endswith(_END) else None


def _oriented(pixels: Tensor, orientation: int) -> Tensor:
    """(H, W, 3) as displayed, for an EXIF orientation of 1..8 (EXIF 3.0, tag 0x0112)."""
    if orientation >= 5:
        pixels = pixels.transpose(0, 1)
    flips = []
    if orientation in (3, 4, 7, 8):
        flips.append(0)
    if orientation in (2, 3, 6, 7):
        flips.append(1)
    return pixels.flip(flips) if flips else pixels


def _copied(image: DecodedImage, device: torch.device) -> GpuImage:
    pixels = torch.from_numpy(image.pixels).to(device, non_blocking=True)
    return GpuImage(pixels, image.flags, image.original_size)
