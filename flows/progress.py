"""How far a run is: a bar in the terminal, an artifact in Prefect, and the workers' log."""

import contextlib
import logging
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["PlainLines", "RunProgress", "TerminalBar", "collected_logs", "show_progress"]

ARTIFACT_EVERY_S = 2.0
LINE_EVERY_S = 10.0

LoggerLike = logging.Logger | logging.LoggerAdapter[logging.Logger]


class TerminalBar:
    """A bar that moves, for people."""

    def __init__(self, title: str, total: int, stream: TextIO) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(file=stream), transient=True)
        self._task: TaskID = self._progress.add_task(title, total=total, detail="")
        self._progress.start()

    def show(self, done: int, detail: str) -> None:
        """Move to `done`."""
        self._progress.update(self._task, completed=done, detail=detail)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


class PlainLines:
    """A line every ten seconds, for log files."""

    def __init__(self, title: str, total: int, stream: TextIO) -> None:
        self._title, self._total, self._stream = title, total, stream
        self._shown_at = time.monotonic()

    def show(self, done: int, detail: str) -> None:
        """Write a line if the last one is old."""
        if time.monotonic() - self._shown_at < LINE_EVERY_S:
            return
        self._shown_at = time.monotonic()
        print(f"{self._title}: {done} of {self._total} {detail}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to undo."""


class RunProgress:
    """Counts images, and tells the terminal and Prefect at their own pace.

    Args:
        title: what is going on.
        total: images to score.
        terminal: where people see it.
        artifact_key: of the progress artifact; lower case, digits and dashes.
    """

    def __init__(
        self, title: str, total: int, terminal: TerminalBar | PlainLines, artifact_key: str
    ) -> None:
        self.total = total
        self.done = 0
        self._terminal = terminal
        self._started = self._sent_at = time.monotonic()
        artifact = create_progress_artifact(0.0, key=artifact_key, description=title)
        assert isinstance(artifact, UUID)
        self._artifact = artifact

    @property
    def seconds(self) -> float:
        """Since the start, model loading included."""
        return time.monotonic() - self._started

    @property
    def images_per_s(self) -> float:
        """Over those seconds."""
        return self.done / max(self.seconds, 1e-9)

    def tick(self, detail: str = "") -> None:
        """Show what has changed."""
        rate = f"images, {self.images_per_s:.1f}/s" if self.done else "images"
        self._terminal.show(self.done, f"{rate}{detail}")
        if time.monotonic() - self._sent_at >= ARTIFACT_EVERY_S:
            self._send(100.0 * self.done / max(1, self.total))

    def finish(self) -> None:
        """The artifact says how far it came."""
        self._send(100.0 * self.done / max(1, self.total))

    def _send(self, percent: float) -> None:
        self._sent_at = time.monotonic()
        # Progress is not worth a run: a server that is away is told later or never.
        with contextlib.suppress(Exception):
            update_progress_artifact(self._artifact, min(100.0, percent))


@contextlib.contextmanager
def show_progress(title: str, total: int, artifact_key: str) -> Iterator[RunProgress]:
    """A bar where there is a terminal, else lines."""
    stream = sys.stderr
    terminal = (TerminalBar if stream.isatty() else PlainLines)(title, total, stream)
    try:
        progress = RunProgress(title, total, terminal, artifact_key)
        yield progress
        progress.finish()
    finally:
        terminal.close()


class _Queued(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.put(record)


class _Drain:
    """Passes collected records on, in the thread that knows its Prefect run."""

    def __init__(self, handler: _Queued, target: LoggerLike) -> None:
        self._records, self._target = handler.records, target

    def __call__(self) -> None:
        while not self._records.empty():
            record = self._records.get()
            self._target.log(record.levelno, "%s: %s", record.name, record.getMessage())


class _Collecting:
    """Runs of this process that collect records; the last to end leaves the logger as it was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0
        self._before = (True, logging.NOTSET)

    @contextlib.contextmanager
    def only_here(self, logger: logging.Logger) -> Iterator[None]:
        """Records of a logger go to its own handlers only, from INFO on."""
        with self._lock:
            if not self._number:
                self._before = (logger.propagate, logger.level)
            self._number += 1
            logger.propagate = False
            logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            with self._lock:
                self._number -= 1
                if not self._number:
                    logger.propagate, level = self._before
                    logger.setLevel(level)


_collecting = _Collecting()


@contextlib.contextmanager
def collected_logs(target: LoggerLike) -> Iterator[_Drain]:
    """What this package logs in any thread, or on forwarding workers, goes to `target`.

    Prefect's run logger works only in the task's own thread, so records wait in a queue until the
    yielded function is called there.
    """
    ours, handler = logging.getLogger("pixelmill"), _Queued()
    with _collecting.only_here(ours):
        ours.addHandler(handler)
        drain = _Drain(handler, target)
        try:
            yield drain
        finally:
            drain()
            ours.removeHandler(handler)
