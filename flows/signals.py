"""Keeping the terminal's Ctrl-C from the processes that we start."""

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["sigint_masked"]


@contextlib.contextmanager
def sigint_masked() -> Iterator[None]:
    """Children started inside ignore the terminal's Ctrl-C: it is ours to handle.

    A child inherits the mask for good; here it is lifted at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
