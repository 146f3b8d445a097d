"""Reading files ahead of the scorer, so that it never waits for a disk or network that keeps up."""

import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pixelmill.tasks.transient import is_transient

__all__ = ["FileBytes", "ReadLimits", "ReadStats", "identify", "read_ahead", "read_with_retries"]

_TRIES = 4
_FIRST_WAIT_S = 0.1


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """How far is read ahead.

    Attributes:
        threads: that read; 8 hide the latency of an object store (50 ms) from 100 images a second.
        files: held at most.
        num_bytes: held at most, by the listing; always one file.
    """

    threads: int = 8
    files: int = 32
    num_bytes: int = 256 * 2**20


@dataclass(slots=True)
class ReadStats:
    """What the reading threads did.

    Attributes:
        busy_s: the sum over the threads.
        num_bytes: read.
        num_retries: tries again after a transient error.
    """

    busy_s: float = 0.0
    num_bytes: int = 0
    num_retries: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, busy_s: float, num_bytes: int, num_retries: int) -> None:
        """Take one file."""
        with self._lock:
            self.busy_s += busy_s
            self.num_bytes += num_bytes
            self.num_retries += num_retries


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
    inputs: Iterable[Input],
    read: Callable[[str], bytes],
    limits: ReadLimits = ReadLimits(),
    stats: ReadStats | None = None,
) -> Iterator[tuple[Input, FileBytes | OSError]]:
    """Read and hash files in threads, in order.

    Args:
        inputs: what to read.
        read: source_uri -> bytes.
        limits: how far ahead.
        stats: is added to.

    Yields:
        Each input with its content, or with the reason why it could not be read.
    """
    stats = stats or ReadStats()
    waiting: deque[tuple[Input, Future[FileBytes]]] = deque()
    todo = iter(inputs)
    num_bytes = 0
    pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="pixelmill-read")
    try:
        following = next(todo, None)
        while waiting or following is not None:
            while following is not None and (
                not waiting
                or (
                    len(waiting) < limits.files
                    and num_bytes + following.size_bytes <= limits.num_bytes
                )
            ):
                future = pool.submit(_read_one, read, following.source_uri, stats)
                waiting.append((following, future))
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


def _read_one(read: Callable[[str], bytes], source_uri: str, stats: ReadStats) -> FileBytes:
    started = time.perf_counter()
    data, num_retries = read_with_retries(read, source_uri)
    image_id = identify(data)
    stats.add(time.perf_counter() - started, len(data), num_retries)
    return FileBytes(data, image_id)


def identify(data: bytes) -> str:
    """The image_id of encoded bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def read_with_retries(
    read: Callable[[str], bytes],
    source_uri: str,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[bytes, int]:
    """Read a file, again after errors of a disk or mount that may go away.

    The waits double, each drawn between half and all of it, so that many workers that were refused
    together do not come back together.

    Returns:
        The content, and the number of tries again.

    Raises:
        OSError: of the last try.
    """
    for number in range(_TRIES - 1):
        try:
            return read(source_uri), number
        except OSError as err:
            # Whoever raises a ConnectionError has been patient already: `tasks.objects`
            if not is_transient(err) or isinstance(err, ConnectionError):
                raise
        sleep(_FIRST_WAIT_S * 2**number * random.uniform(0.5, 1))
    return read(source_uri), _TRIES - 1
