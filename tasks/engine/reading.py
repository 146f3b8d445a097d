"""Reading files ahead of the scorer, so that it never waits for a disk or network that keeps up."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

__all__ = ["FileBytes", "read_ahead"]

# Enough to hide the latency of an object store (50 ms) from 100 images a second
_THREADS = 8
_FILES_AHEAD = 32
_BYTES_AHEAD = 256 * 2**20


class Listed(Protocol):
    """An input of a shard."""

    @property
    def source_uri(self) -> str:
        """What `read` takes."""
        ...

    @property
    def size_bytes(self) -> int:
        """As listed."""
        ...


Input = TypeVar("Input", bound=Listed)


@dataclass(frozen=True, slots=True)
class FileBytes:
    """A file's content and the identity of the image in it."""

    data: bytes
    image_id: str


def read_ahead(
    inputs: Iterable[Input], read: Callable[[str], bytes]
) -> Iterator[tuple[Input, FileBytes | OSError]]:
    """Read and hash files in threads, in order.

    Args:
        inputs: what to read.
        read: source_uri -> bytes.

    Yields:
        Each input with its content, or with the reason why it could not be read. At most 32 files
        or 256 MB are held, whichever comes first, but always one file.
    """
    waiting: deque[tuple[Input, Future[FileBytes]]] = deque()
    todo = iter(inputs)
    num_bytes = 0
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="pixelmill-read")
    try:
        following = next(todo, None)
        while waiting or following is not None:
            while following is not None and (
                not waiting
                or (
                    len(waiting) < _FILES_AHEAD and num_bytes + following.size_bytes <= _BYTES_AHEAD
                )
            ):
                waiting.append((following, pool.submit(_read_one, read, following.source_uri)))
                num_bytes += following.size_bytes
                following = next(todo, None)
            current, future = waiting.popleft()
            num_bytes -= current.size_bytes
            try:
                yield current, future.result()
            except OSError as err:
                yield current, err
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read_one(read: Callable[[str], bytes], source_uri: str) -> FileBytes:
    data = read(source_uri)
    return FileBytes(data, hashlib.sha256(data).hexdigest()[:32])
