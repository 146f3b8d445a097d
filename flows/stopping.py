"""One flag for every way to stop a run: Ctrl-C, SIGTERM, and Cancel in Prefect."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Literal
from uuid import UUID

__all__ = ["StopFlag"]

Reason = Literal["Ctrl-C", "SIGTERM", "Prefect"]

POLL_S = 3.0


class StopFlag:
    """Whether the run should stop, and why.

    An exception raised by a signal in the middle of the submit loop can leave the cluster's client
    or Prefect's engine hanging; a flag that is looked at twice a second cannot.

    Args:
        flow_run_id: of a run whose cancellation on a Prefect server counts. A run that was started
            from a shell is not told of it, so it has to ask.
    """

    def __init__(self, flow_run_id: UUID | None = None) -> None:
        self.reason: Reason | None = None
        # Nobody else sees an embedded server, so nobody can cancel there.
        self._flow_run_id = flow_run_id if os.environ.get("PREFECT_API_URL") else None
        self._polled_at = time.monotonic()

    def __call__(self) -> bool:
        """Whether to stop; asks the Prefect server every three seconds."""
        if self.reason is None and self._is_cancelled():
            self.reason = "Prefect"
        return self.reason is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM set the flag; a second Ctrl-C interrupts as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread only
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGINT, self._on_sigint)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            raise KeyboardInterrupt
        self.reason = "Ctrl-C"

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self.reason = "SIGTERM"

    def _is_cancelled(self) -> bool:
        now = time.monotonic()
        if self._flow_run_id is None or now - self._polled_at < POLL_S:
            return False
        self._polled_at = now
        from prefect.client.orchestration import get_client

        # A server that does not answer has not cancelled us.
        with contextlib.suppress(Exception), get_client(sync_client=True) as client:
            state = client.read_flow_run(self._flow_run_id).state
            return state is not None and (state.is_cancelling() or state.is_cancelled())
        return False
