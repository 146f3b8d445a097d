"""What a worker was at when it died: a note per attempt, overwritten before every batch.

A process that is killed by an image (a decoder's crash, memory) cannot say by which. So it says
beforehand what it is going to do. The next attempt finds the notes of the dead, does their images
one by one, and an image that was alone in progress at two deaths is not tried again. That is three
deaths per bad image, whatever the shard's size, and no shard is ever cut into others.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pixelmill.tasks.store import Backend, LocalBackend

__all__ = ["Crumbs", "Suspects"]

_FOLDER = "_commit/crumbs"
_MAX_LONE_DEATHS = 2


@dataclass(frozen=True, slots=True)
class Suspects:
    """Rows of the shard that were in progress when earlier attempts died.

    Attributes:
        alone: to be done one by one, in this order.
        guilty: to be left out.
    """

    alone: tuple[int, ...]
    guilty: frozenset[int]


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

    def suspects(self) -> Suspects:
        """What the notes of other attempts say; one that ended in order has left none."""
        seen: set[int] = set()
        lone_deaths: Counter[int] = Counter()
        for entry in self._backend.list(self._folder):
            if Path(entry.key).stem == self._attempt:
                continue
            try:
                rows: list[int] = json.loads(self._backend.get(entry.key))
            except FileNotFoundError:  # a twin has just ended in order
                continue
            seen.update(rows)
            if len(rows) == 1:
                lone_deaths[rows[0]] += 1
        guilty = frozenset(row for row, count in lone_deaths.items() if count >= _MAX_LONE_DEATHS)
        return Suspects(tuple(sorted(seen - guilty)), guilty)

    def at(self, rows: Iterable[int]) -> None:
        """Note that these rows of the shard are now in progress."""
        data = json.dumps(sorted(rows)).encode()
        if isinstance(self._backend, LocalBackend):
            _write_unsynced(Path(self._backend.root, self._key), data)
        else:
            self._backend.put(self._key, data)

    def end(self) -> None:
        """Take this attempt's note away: it ends in order, if not in success."""
        self._backend.delete([self._key])

    def clear(self) -> None:
        """Take all notes of the shard away: it is committed."""
        self._backend.delete([entry.key for entry in self._backend.list(self._folder)])

    @property
    def _key(self) -> str:
        return f"{self._folder}/{self._attempt}.json"


def _write_unsynced(path: Path, data: bytes) -> None:
    """Replace a file as other processes see it.

    Not synced to disk: a note is about the death of a process, which the page cache survives; a
    sync before every batch would cost more than the batch on a slow disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(path)
