"""How much may be held at a time, so that memory does not grow with the collection."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Budget", "ByteGate", "plan_budget"]

_MIB = 2**20
# Beside the networks: a large photo with its copies, and a batch with its activations
_LEAST_FREE = 256 * _MIB


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that each kind of data may take, whatever memory there is.

    Attributes:
        read: encoded files, read ahead.
        pixels: decoded images that are worked on at the same time; always one image.
        views: canvases on their way to a batch.
    """

    read: int = 256 * _MIB
    pixels: int = 1024 * _MIB
    views: int = 512 * _MIB


def plan_budget(memory: int, used: int) -> Budget:
    """Share out the memory of a worker; half of what is free is left to the networks.

    Args:
        memory: bytes that the process may have.
        used: bytes that it has, its networks loaded.

    Raises:
        ValueError: the networks leave too little.
    """
    free = memory - used
    if free < _LEAST_FREE:
        raise ValueError(
            f"compute.memory = {memory / _MIB:.0f} MiB, but a worker with its networks has "
            f"{used / _MIB:.0f} MiB before the first image; allow "
            f"{(used + _LEAST_FREE) / _MIB:.0f} MiB or more"
        )
    most = Budget()
    return Budget(
        read=min(most.read, free // 8),
        pixels=min(most.pixels, free // 4),
        views=min(most.views, free // 8),
    )


class ByteGate:
    """Lets threads in while what they hold together is below a limit; always one.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._may_enter = threading.Condition()

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator[None]:
        """Wait for room, and take it for as long as the context lasts."""
        with self._may_enter:
            self._may_enter.wait_for(
                lambda: not self._held or self._held + num_bytes <= self._limit
            )
            self._held += num_bytes
        try:
            yield
        finally:
            with self._may_enter:
                self._held -= num_bytes
                self._may_enter.notify_all()
