"""A thread that ends a worker which an image has hung, or taken beyond its memory.

Neither a decoder that never returns nor one that eats memory can be stopped from outside. So the
process ends itself, after saying in its breadcrumbs why: it is started again, and the next attempt
knows what to leave out. Only a process that somebody starts again may do this.
"""

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["EXIT_CODE", "OverdueError", "Watchdog", "peak_rss_bytes", "rss_bytes"]

logger = logging.getLogger(__name__)

# Of a process that ended itself; EX_TEMPFAIL of sysexits.h
EXIT_CODE = 75

_TICK_S = 0.25
_REARM_S = 5.0


class OverdueError(Exception):
    """An image took longer than its deadline, and came back after all."""


class Watchdog:
    """Watches the images of one shard while they are decoded, and the memory of the process.

    Args:
        max_decode_s: that one image may take.
        memory: bytes that the process may have; None: it is not looked at.
        last_words: called with the cause, and with the row to blame where it is known.
        may_exit: whether the process may end itself; else an image that came back too late raises
            `OverdueError`, and that is all.
    """

    def __init__(
        self,
        *,
        max_decode_s: float,
        memory: int | None,
        last_words: Callable[[str, int | None], None],
        may_exit: bool,
    ) -> None:
        self._max_decode_s = max_decode_s
        self._memory = memory
        self._last_words = last_words
        self._may_exit = may_exit
        self._watched: dict[int, tuple[int, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pixelmill-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._may_exit:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._may_exit:
            self._thread.join()

    @contextlib.contextmanager
    def watching(self, row: int, *, factor: float = 1.0) -> Iterator[None]:
        """Watch what this thread does for a row of the shard.

        Args:
            row: to blame.
            factor: of `max_decode_s` that it may take.

        Raises:
            OverdueError: it took longer.
        """
        started = time.monotonic()
        limit_s = factor * self._max_decode_s
        thread, outer = threading.get_ident(), self._watched.get(threading.get_ident())
        self._watched[thread] = row, started + limit_s
        try:
            yield
        finally:
            if outer is None:
                del self._watched[thread]
            else:
                self._watched[thread] = outer
        elapsed_s = time.monotonic() - started
        if elapsed_s > limit_s:
            raise OverdueError(
                f"took {elapsed_s:.1f} s, more than ingest.max_decode_s = {self._max_decode_s:g}"
                + (f" x {factor:g} for the whole image" if factor != 1 else "")
            )

    def _watch(self) -> None:
        armed_at = -_REARM_S
        try:
            while not self._stop.wait(_TICK_S):
                now = time.monotonic()
                if now - armed_at >= _REARM_S:
                    self._arm()
                    armed_at = now
                for row, due in list(self._watched.values()):
                    if now > due:
                        self._die("deadline", row)
                if self._memory is not None and (rss_bytes() or 0) > self._memory:
                    rows = {row for row, _ in list(self._watched.values())}
                    self._die("memory", rows.pop() if len(rows) == 1 else None)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        """Have the process ended by C code, should this thread not run for so long.

        A decoder that hangs without releasing the GIL stops this thread too.
        """
        if sys.__stderr__ is not None:
            with contextlib.suppress(ValueError, OSError):  # it is closed
                faulthandler.dump_traceback_later(
                    self._max_decode_s + 2 * _REARM_S, exit=True, file=sys.__stderr__
                )

    def _die(self, cause: str, row: int | None) -> None:
        """Say why, and end the process without ado: its other threads may never return."""
        logger.error("this worker ends itself (%s), because of row %s of its shard", cause, row)
        try:
            self._last_words(cause, row)
        finally:
            os._exit(EXIT_CODE)


def rss_bytes() -> int | None:
    """Memory that this process has now; None where the system does not say."""
    with contextlib.suppress(OSError):
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")
    return None


def peak_rss_bytes() -> int | None:
    """Memory that this process had at most; None where the system does not say."""
    with contextlib.suppress(OSError, StopIteration):
        # ru_maxrss would do, but Linux starts it with the peak of the process that called exec
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return None
