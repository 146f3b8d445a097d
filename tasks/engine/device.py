"""The device that networks run on: how batches get there, and what its errors mean.

On a GPU batches are copied from pinned memory on a stream of their own, and forward passes and
their reading have a stream each, so that all three overlap. On the CPU there are no streams, and
a batch is where it is needed already.
"""

import functools
import platform
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = [
    "Device",
    "DeviceLostError",
    "Upload",
    "is_device_lost",
    "is_out_of_memory",
    "pick_device",
]

# A CUDA context is unusable after these
_STICKY = ("CUDA error", "device-side assert")

# Batch sizes that are tried on a GPU, what a doubling has to bring, and batches that are timed
_SMALLEST, _LARGEST = 8, 256
_GAIN = 1.05
_ROUNDS = 3


class DeviceLostError(RuntimeError):
    """The device cannot be used by this process any more; a new process can."""


def pick_device() -> str:
    """The GPU that this process sees first, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the same images may succeed with more memory, or fewer at a time."""
    # PyTorch has a class for the GPU's memory only
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether an error leaves the device unusable, as an illegal access on a GPU does."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    accelerator_error = getattr(torch, "AcceleratorError", DeviceLostError)
    return isinstance(error, accelerator_error | DeviceLostError) or any(
        text in str(error) for text in _STICKY
    )


class Upload:
    """A batch on its device.

    Attributes:
        images: (B, H, W, 3) uint8.
        forward_s: seconds of the forward pass, once its outputs were waited for.
    """

    def __init__(self, images: Tensor, buffer: Tensor, copied: Any) -> None:
        self.images = images
        self.forward_s = 0.0
        self._buffer = buffer
        self._copied = copied
        self._started: Any = None
        self._ended: Any = None


class Device:
    """A CPU core or a GPU.

    Args:
        name: "cpu", "cuda", "cuda:1".

    Attributes:
        lock: for forward passes, one at a time also where a process works on several shards.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self.device = torch.device(name)
        self.is_gpu = self.device.type == "cuda"
        self._streams = {
            what: torch.cuda.Stream(self.device) if self.is_gpu else None
            for what in ("copy", "forward", "read_out")
        }
        self._buffer_lock = threading.Lock()
        self._buffers: dict[tuple[int, ...], list[Tensor]] = {}

    @property
    def label(self) -> str:
        """What batch sizes are remembered by: the kind of device, not this one."""
        if self.is_gpu:
            kind = torch.cuda.get_device_name(self.device)
        else:
            kind = f"cpu {processor_name()} {torch.get_num_threads()} threads"
        return "".join(char if char.isalnum() else "-" for char in kind).strip("-")

    def upload(self, canvases: list[NDArray[np.uint8]], size: int, to: torch.device) -> Upload:
        """Lay canvases side by side, filled up with empty ones, and copy them to a device.

        Args:
            canvases: (H, W, 3) each, of one size.
            size: of the batch.
            to: where the network wants them.
        """
        buffer = self._take_buffer((size, *canvases[0].shape))
        batch = buffer.numpy()
        np.stack(canvases, out=batch[: len(canvases)])
        batch[len(canvases) :] = 0
        if to.type != "cuda":
            return Upload(buffer, buffer, None)
        with self._stream("copy"):
            images = buffer.to(to, non_blocking=True)
            return Upload(images, buffer, self._event())

    def forward(self, network: Any, upload: Upload) -> Any:
        """Raw outputs of a network; on a GPU they may still be in the making."""
        if upload._copied is None:
            started = time.perf_counter()
            raw = network.forward(upload.images)
            upload.forward_s = time.perf_counter() - started
            return raw
        stream = self._streams["forward"]
        with self._stream("forward"):
            stream.wait_event(upload._copied)  # type: ignore[union-attr]
            upload.images.record_stream(stream)  # type: ignore[arg-type]
            upload._started = self._event()
            raw = network.forward(upload.images)
            upload._ended = self._event()
        return raw

    @contextmanager
    def reading(self, upload: Upload, raw: Any) -> Iterator[None]:
        """Within it, this thread may read raw outputs; after it, the batch's memory is free."""
        stream = self._streams["read_out"]
        with self._stream("read_out"):
            if upload._ended is not None:
                stream.wait_event(upload._ended)  # type: ignore[union-attr]
                for leaf in tree_leaves(raw):
                    if isinstance(leaf, Tensor) and leaf.is_cuda:
                        leaf.record_stream(stream)  # type: ignore[arg-type]
            yield
            if upload._ended is not None:
                upload._ended.synchronize()
                upload.forward_s = upload._started.elapsed_time(upload._ended) / 1000
        self.release(upload)

    def release(self, upload: Upload) -> None:
        """Give a batch's buffer back; it is not read any more."""
        with self._buffer_lock:
            self._buffers.setdefault(tuple(upload._buffer.shape), []).append(upload._buffer)

    def fastest_size(self, network: Any, canvas: NDArray[np.uint8]) -> int:
        """Double the batch until that brings no more images a second, or memory is half full."""
        best, best_rate, size = _SMALLEST, 0.0, _SMALLEST
        while size <= _LARGEST:
            try:
                rate = self._rate(network, [canvas] * size)
            except Exception as err:
                if not is_out_of_memory(err):
                    raise
                self.free_memory()
                break
            if rate < _GAIN * best_rate:
                break
            best, best_rate = size, rate
            free, total = torch.cuda.mem_get_info(self.device)
            if free < total / 2:
                break
            size *= 2
        return best

    def _rate(self, network: Any, canvases: list[NDArray[np.uint8]]) -> float:
        """Images a second, the best of some batches after one that is not counted."""
        best_s = float("inf")
        for _ in range(1 + _ROUNDS):
            upload = self.upload(canvases, len(canvases), network.device)
            torch.cuda.synchronize(self.device)
            started = time.perf_counter()
            raw = self.forward(network, upload)
            with self.reading(upload, raw):
                torch.cuda.synchronize(self.device)
            best_s = min(best_s, time.perf_counter() - started)
        return len(canvases) / best_s

    def free_memory(self) -> None:
        """Give back what is cached, after running out."""
        with self._buffer_lock:
            self._buffers.clear()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def _take_buffer(self, shape: tuple[int, ...]) -> Tensor:
        with self._buffer_lock:
            free = self._buffers.get(shape)
            if free:
                return free.pop()
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.is_gpu)

    def _stream(self, what: str) -> Any:
        stream = self._streams[what]
        return nullcontext() if stream is None else torch.cuda.stream(stream)

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@functools.cache
def processor_name() -> str:
    """What people call this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.machine()
