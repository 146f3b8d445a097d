"""Logs for programs: a line of JSON for each record, with the run, shard and worker it is of."""

import contextlib
import contextvars
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pixelmill.tasks.display import printable, redact
from pixelmill.tasks.store import ShardRef

__all__ = ["LOG_VARIABLE", "JsonLines", "json_log", "score_logged"]

LOG_VARIABLE = "PIXELMILL_LOG_JSON"

_shard: contextvars.ContextVar[ShardRef | None] = contextvars.ContextVar("shard", default=None)
_FIELDS = ("run", "shard", "worker", "images", "failed", "seconds", "device")


class JsonLines(logging.Formatter):
    """Records as JSON objects; what a record was given by `extra` stands beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": printable(redact(record.getMessage())),
        }
        for name in _FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                document[name] = value
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            document["error"] = printable(redact(f"{type(error).__name__}: {error}"))
        return json.dumps(document, ensure_ascii=False)


@contextlib.contextmanager
def json_log(place: str | None = None) -> Iterator[None]:
    """While it lasts, what this package logs here and on its workers is also written as JSON.

    Args:
        place: a file, which is appended to, or "-" for stderr; left out: PIXELMILL_LOG_JSON, and
            nothing is written without it.
    """
    place = place or os.environ.get(LOG_VARIABLE)
    if not place:
        yield
        return
    handler: logging.Handler = (
        logging.StreamHandler(sys.stderr)
        if place == "-"
        else logging.FileHandler(Path(place).expanduser(), encoding="utf-8")
    )
    handler.setFormatter(JsonLines())
    ours = logging.getLogger("pixelmill")
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)
        handler.close()


def score_logged(call: Callable[..., Any], shard: ShardRef, /, **hooks: Callable[[], Any]) -> Any:
    """Score a shard; what is logged meanwhile, in this thread, says of which run, shard and worker.

    Args:
        call: scores it, a `ShardCall`.
        shard: which.
        **hooks: of the call, such as `should_stop` and `on_scored`.
    """
    _label_records()
    token = _shard.set(shard)
    try:
        return call(shard, **hooks)
    finally:
        _shard.reset(token)


class _Labelled:
    """A factory of records that know of the shard at work; made once per process."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make
        self._worker = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, *arguments: Any, **options: Any) -> logging.LogRecord:
        record = self._make(*arguments, **options)
        shard = _shard.get()
        if shard is not None and record.name.startswith("pixelmill"):
            record.run, record.shard, record.worker = shard.run_id, shard.id, self._worker
        return record


def _label_records() -> None:
    make = logging.getLogRecordFactory()
    if not isinstance(make, _Labelled):
        logging.setLogRecordFactory(_Labelled(make))
