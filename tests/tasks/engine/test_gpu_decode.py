"""Which files the GPU decodes, and that the CPU takes the others; a fake stands for nvJPEG."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pixelmill.tasks.engine import gpu_decode
from pixelmill.tasks.engine.decode import DecodeError, decode_image
from pixelmill.tasks.engine.gpu_decode import (
    GpuImage,
    can_decode_on_gpu,
    decode_on_gpu,
    require_gpu_decoder,
)
from pixelmill.tasks.engine.header import is_plain_jpeg

CPU = torch.device("cpu")
LIMITS: dict[str, Any] = {"max_pixels": 10**6, "max_side": 10**4}


def encode(mode: str = "RGB", image_format: str = "JPEG", turn: int = 1, **options: Any) -> bytes:
    y, x = np.mgrid[0:48, 0:64]
    rgb = np.stack([4 * x, 5 * y, 2 * (x + y)], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    Image.fromarray(rgb).convert(mode).save(file, image_format, exif=exif, **options)
    return file.getvalue()


class FakeNvJpeg:
    """Decodes on the CPU, as stored, and remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def __call__(self, files: list[Tensor], device: torch.device) -> list[Tensor]:
        self.seen += [bytes(each.numpy()) for each in files]
        images = [Image.open(io.BytesIO(each.numpy().tobytes())).convert("RGB") for each in files]
        return [torch.from_numpy(np.array(image)).permute(2, 0, 1).to(device) for image in images]


PLAIN = {
    "baseline": encode(),
    "progressive": encode(progressive=True),
    "full colour": encode(subsampling=0),
    "half colour": encode(subsampling=1),
    "grey": encode("L"),
}
OTHERS = {
    "cmyk": encode("CMYK"),
    "rgb": encode(keep_rgb=True),
    "png": encode(image_format="PNG"),
    "webp": encode(image_format="WEBP"),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("turn", range(1, 9))
def test_plain_jpegs_are_decoded_by_the_gpu_and_turned(name, turn):
    options = {"baseline": {}, "progressive": {"progressive": True}, "grey": {"mode": "L"}}
    options |= {"full colour": {"subsampling": 0}, "half colour": {"subsampling": 1}}
    data = encode(turn=turn, **options[name])
    fake = FakeNvJpeg()
    (found,) = decode_on_gpu([data], CPU, decode_batch=fake, **LIMITS)
    assert isinstance(found, GpuImage)
    assert fake.seen == [data]
    expected = decode_image(data, **LIMITS)
    assert found.flags == ("unverified",)
    assert found.original_size == expected.original_size
    assert found.pixels.is_contiguous()
    assert (found.pixels.numpy() == expected.pixels).all()


@pytest.mark.parametrize("name", OTHERS)
def test_all_else_is_decoded_by_the_cpu(name):
    fake = FakeNvJpeg()
    (found,) = decode_on_gpu([OTHERS[name]], CPU, decode_batch=fake, **LIMITS)
    assert isinstance(found, GpuImage)
    assert fake.seen == []
    assert found.flags == ()
    assert (found.pixels.numpy() == decode_image(OTHERS[name], **LIMITS).pixels).all()


def test_unusual_sampling_is_not_plain():
    data = bytearray(encode(subsampling=1))
    data[data.index(b"\xff\xc0") + 11] = 0x31
    assert not is_plain_jpeg(bytes(data))


def test_a_batch_keeps_its_order_and_its_errors_are_of_single_files():
    whole, cut = PLAIN["baseline"], PLAIN["baseline"][:-40]
    files = [OTHERS["png"], whole, b"", cut, PLAIN["grey"]]
    fake = FakeNvJpeg()
    found = decode_on_gpu(files, CPU, decode_batch=fake, **LIMITS)
    assert fake.seen == [whole, PLAIN["grey"]]
    kinds = [each.reason if isinstance(each, DecodeError) else each.flags for each in found]
    assert kinds == [(), ("unverified",), "empty", "truncated", ("unverified",)]


def test_a_truncated_file_is_flagged_by_the_cpu_if_asked():
    (found,) = decode_on_gpu([PLAIN["baseline"][:-200]], CPU, truncated="flag", **LIMITS)
    assert isinstance(found, GpuImage)
    assert found.flags == ("truncated",)


def test_limits_are_asked_before_the_gpu():
    fake = FakeNvJpeg()
    (found,) = decode_on_gpu(
        [PLAIN["baseline"]], CPU, max_pixels=100, max_side=100, decode_batch=fake
    )
    assert isinstance(found, DecodeError)
    assert (found.reason, fake.seen) == ("too_many_pixels", [])


def test_a_batch_that_the_gpu_fails_on_is_decoded_by_the_cpu():
    def failing(files: list[Tensor], device: torch.device) -> list[Tensor]:
        raise RuntimeError("nvJPEG: bad bit stream")

    found = decode_on_gpu(list(PLAIN.values()), CPU, decode_batch=failing, **LIMITS)
    assert all(isinstance(each, GpuImage) and each.flags == () for each in found)


def test_a_file_that_the_gpu_fails_on_changes_no_other():
    bad = PLAIN["grey"]
    fake = FakeNvJpeg()

    def failing(files: list[Tensor], device: torch.device) -> list[Tensor]:
        if any(bytes(each.numpy()) == bad for each in files):
            raise RuntimeError("nvJPEG: bad bit stream")
        return fake(files, device)

    found = decode_on_gpu(list(PLAIN.values()), CPU, decode_batch=failing, **LIMITS)
    flags = [each.flags for each in found if isinstance(each, GpuImage)]
    assert flags == [() if name == "grey" else ("unverified",) for name in PLAIN]


def test_a_worker_without_the_decoder_refuses_and_says_what_to_do():
    with pytest.raises(ValueError, match=r"got device 'cpu'.*decode: full or scaled"):
        require_gpu_decoder(CPU)


def test_a_gpu_out_of_memory_is_for_the_caller():
    def failing(files: list[Tensor], device: torch.device) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        decode_on_gpu([PLAIN["baseline"]], CPU, decode_batch=failing, **LIMITS)


@pytest.mark.parametrize(("version", "expected"), [("0.16.1", False), ("0.17.0", True)])
def test_old_torchcodecs_are_not_let_near_a_gpu(monkeypatch, version, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_decode.importlib.metadata, "version", lambda name: version)
    assert can_decode_on_gpu() is expected


@pytest.mark.gpu
def test_the_gpus_pixels_are_near_those_of_the_cpu():
    if not can_decode_on_gpu():
        pytest.skip("no GPU, or a TorchCodec that is not safe on it")
    found = decode_on_gpu(list(PLAIN.values()), torch.device("cuda"), **LIMITS)
    for data, image in zip(PLAIN.values(), found, strict=True):
        assert isinstance(image, GpuImage)
        difference = image.pixels.cpu().numpy().astype(int) - decode_image(data, **LIMITS).pixels
        assert np.abs(difference).mean() < 1.5
