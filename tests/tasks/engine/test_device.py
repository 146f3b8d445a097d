import numpy as np
import pytest
import torch

from pixelmill.tasks.engine.device import Device, is_device_lost, is_out_of_memory


def canvas(colour: int):
    return np.full((8, 8, 3), colour, np.uint8)


@pytest.mark.parametrize(
    ("error", "short", "lost"),
    [
        (MemoryError(), True, False),
        (torch.OutOfMemoryError("CUDA out of memory"), True, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True, False),
        (RuntimeError("shape mismatch"), False, False),
        (ValueError("memory"), False, False),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), False, True),
    ],
)
def test_what_an_error_says_of_memory_and_device(error, short: bool, lost: bool):
    assert is_out_of_memory(error) == short
    assert is_device_lost(error) == lost


def test_a_batch_is_filled_up_with_empty_images_in_a_used_buffer_too():
    device = Device("cpu")
    used = device.upload([canvas(9)] * 4, 4, device.device)
    device.release(used)
    batch = device.upload([canvas(1), canvas(2)], 4, device.device)
    assert batch.images.data_ptr() == used.images.data_ptr()
    assert batch.images[:, 0, 0, 0].tolist() == [1, 2, 0, 0]


def test_a_buffer_is_not_used_again_before_its_batch_was_read():
    device = Device("cpu")
    first = device.upload([canvas(1)], 2, device.device)
    second = device.upload([canvas(2)], 2, device.device)
    assert first.images.data_ptr() != second.images.data_ptr()
    with device.reading(first, None):
        pass
    assert device.upload([canvas(3)], 2, device.device).images.data_ptr() == first.images.data_ptr()


def test_devices_of_one_kind_remember_batch_sizes_together():
    assert Device("cpu").label == Device("cpu").label
    assert "/" not in Device("cpu").label
