"""What a worker was at when it died: a note per attempt, overwritten before every batch.

A process that is killed by an image (a decoder's crash, memory) cannot say by which. So it says
beforehand what it is going to do. The next attempt finds the notes of the dead, does their images
one by one, and an image that was alone in progress at two deaths is not tried again. That is three
deaths per bad image, whatever the shard's size, and no shard is ever cut into others. A worker that
ends itself, because of a deadline or for want of memory, says why, and if it can by which image.
"""

import json
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pixelmill.tasks.store import Backend, LocalBackend
from pixelmill.tasks.store.backend import gone_away

__all__ = ["KILLED", "Crumbs", "Suspects", "Trail"]

KILLED = "killed_worker"

_FOLDER = "_commit/crumbs"
_MAX_LONE_DEATHS = 2
# A put to an object store takes as long as a batch, so it covers some batches more
_REMOTE_WINDOWS = 4


@dataclass(frozen=True, slots=True)
class Suspects:
    """Rows of the shard that were in progress when earlier attempts died.

    Attributes:
        alone: to be done one by one, in this order.
        guilty: to be left out, with the cause of death.
    """

    alone: tuple[int, ...]
    guilty: Mapping[int, str]


class Crumbs:
    """The notes of one shard.

    Args:
        backend: of the store.
        run_id: whose shard it is.
        shard_id: of the shard.
        attempt: name of this attempt, new for each.
    """

    def __init__(self, backend: Backend, run_id: str, shard_id: str, attempt: str) -> None:
        self._backend = backend
        self._folder = f"{_FOLDER}/{run_id}/{shard_id}"
        self._attempt = attempt
        self._lock = threading.Lock()
        self._rows: list[int] = []
        self._note = (
            _LocalNote(Path(backend.root), self._key) if isinstance(backend, LocalBackend) else None
        )

    @property
    def is_dear(self) -> bool:
        """Whether a note takes a request over a network."""
        return self._note is None

    def suspects(self) -> Suspects:
        """What the notes of other attempts say; one that ended in order has left none."""
        deaths: Counter[int] = Counter()
        lone_deaths: Counter[int] = Counter()
        causes: dict[int, str] = {}
        for entry in self._backend.list(self._folder):
            if Path(entry.key).stem == self._attempt:
                continue
            try:
                note = json.loads(self._backend.get(entry.key))
            except (FileNotFoundError, ValueError):  # a twin has just ended in order, or begun
                continue
            rows, cause = _from_ranges(note["rows"]), note["cause"]
            deaths.update(rows)
            if len(rows) == 1:
                lone_deaths[rows[0]] += 1
                if cause != KILLED:
                    causes[rows[0]] = cause
        guilty = {
            row: causes.get(row, KILLED)
            for row, count in lone_deaths.items()
            # Nobody may have meant the only image of a shard, so without a cause it takes three
            if count >= _MAX_LONE_DEATHS and (row in causes or deaths[row] > _MAX_LONE_DEATHS)
        }
        return Suspects(tuple(sorted(deaths.keys() - guilty.keys())), guilty)

    def at(self, rows: Iterable[int]) -> None:
        """Note that these rows of the shard are now in progress."""
        with self._lock:
            self._write(sorted(rows), KILLED)

    def last_words(self, cause: str, row: int | None) -> None:
        """Note why this process ends itself, and because of which row if that is known.

        The caller ends the process: no note is written after this one.
        """
        self._lock.acquire()  # for ever
        self._write(self._rows if row is None else [row], cause)

    def end(self) -> None:
        """Take this attempt's note away: it ends in order, if not in success."""
        with self._lock:
            self._close()
            self._backend.delete([self._key])

    def clear(self) -> None:
        """Take all notes of the shard away: it is committed."""
        with self._lock:
            self._close()
        self._backend.delete([entry.key for entry in self._backend.list(self._folder)])

    def _write(self, rows: list[int], cause: str) -> None:
        data = json.dumps({"rows": _to_ranges(rows), "cause": cause}).encode()
        if self._note is None:
            self._backend.put(self._key, data)
        else:
            self._note.write(data)
        self._rows = rows

    def _close(self) -> None:
        if self._note is not None:
            self._note.close()

    @property
    def _key(self) -> str:
        return f"{self._folder}/{self._attempt}.json"


class Trail:
    """Notes for rows that are taken window by window, where they are dear some windows ahead.

    A note is there before the first of its rows is taken. Where a note takes a request over a
    network, it covers some windows more, and the next is under way while those are worked on.

    Args:
        crumbs: the shard's notes.
        windows: rows in the order in which they will be taken.
        in_progress: rows that were taken and are not finished, at any time.
    """

    def __init__(
        self,
        crumbs: Crumbs,
        windows: Sequence[Collection[int]],
        in_progress: Callable[[], Collection[int]],
    ) -> None:
        self._crumbs = crumbs
        self._windows = windows
        self._in_progress = in_progress
        self._ahead = _REMOTE_WINDOWS if crumbs.is_dear else 1
        self._covered = 0
        self._coming: tuple[int, Future[None]] | None = None
        self._pool = ThreadPoolExecutor(1, "pixelmill-crumbs") if crumbs.is_dear else None

    def __enter__(self) -> "Trail":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def enter(self, number: int) -> None:
        """Return when a note covers the window of this number; they are entered in order."""
        if self._coming is not None and number >= self._covered:
            self._covered, done = self._coming
            self._coming = None
            done.result()
        if number >= self._covered:
            self._covered = number + self._ahead
            self._crumbs.at(self._rows(number, self._covered))
        if self._pool is None or self._coming is not None:
            return
        if number + self._ahead // 2 >= self._covered and self._covered < len(self._windows):
            until = self._covered + self._ahead
            rows = self._rows(number, until)
            self._coming = until, self._pool.submit(self._crumbs.at, rows)

    def _rows(self, start: int, end: int) -> set[int]:
        return {
            *self._in_progress(),
            *(row for window in self._windows[start:end] for row in window),
        }


class _LocalNote:
    """A file that is overwritten in place, not synced to disk.

    A note is about the death of a process, which the page cache survives; a sync before every
    batch would cost more than the batch on a slow disk, and a new file under the old name as much
    as decoding a small image. A kill cannot tear a write within a page.
    """

    def __init__(self, root: Path, key: str) -> None:
        self._root = root
        self._path = root / key
        self._close: weakref.finalize[..., _LocalNote] | None = None
        self._descriptor = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        if self._close is None:
            if not self._root.is_dir():  # gone, and not to be begun anew in its place
                raise gone_away(str(self._root))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            self._close = weakref.finalize(self, os.close, self._descriptor)
        # Spaces after the note, so that it never has to be cut
        self._size = max(self._size, len(data))
        os.pwrite(self._descriptor, data.ljust(self._size), 0)

    def close(self) -> None:
        if self._close is not None:
            self._close()
            self._close = None


def _to_ranges(rows: list[int]) -> list[list[int]]:
    """Sorted numbers as [first, last] of each run, since they mostly follow one another."""
    ranges: list[list[int]] = []
    for row in rows:
        if ranges and ranges[-1][1] == row - 1:
            ranges[-1][1] = row
        else:
            ranges.append([row, row])
    return ranges


def _from_ranges(ranges: list[list[int]]) -> list[int]:
    return [row for first, last in ranges for row in range(first, last + 1)]
