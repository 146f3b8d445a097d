"""Which version of a model is the current one for a task: promotions, in order, and their undoing.

Each is one object, created under the next number; who loses the race for a number looks again. So a
promotion is there or it is not, and what was current at any time can be told.
"""

import functools
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from pixelmill.configs.schema import TaskName
from pixelmill.tasks.store import layout
from pixelmill.tasks.store.backend import Backend

__all__ = ["CURRENT", "Promotion", "append_promotion", "promoted", "read_promotions", "task_of"]

CURRENT = "current:"


class Promotion(BaseModel):
    """A step in the history of what is current.

    Attributes:
        op: `promote` puts the model before all others of the task; `rollback` undoes the last
            promotion that is not undone, which was the model's.
        created_at: ISO 8601, UTC; for people.
        nonce: tells it from another with the same content.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: int
    op: Literal["promote", "rollback"]
    task: TaskName
    model_key: str
    created_at: str
    nonce: str


def task_of(model: str | None) -> TaskName | None:
    """The task in `current:<task>`; None if a model is named, or none.

    Raises:
        KeyError: no such task.
    """
    if model is None or not model.startswith(CURRENT):
        return None
    for task in get_args(TaskName):
        if task == model.removeprefix(CURRENT):
            return task
    raise KeyError(f"expected {CURRENT} and one of {', '.join(get_args(TaskName))}, got {model!r}")


def read_promotions(backend: Backend, dataset_id: str) -> list[Promotion]:
    """All promotions and rollbacks, in order."""
    keys = [entry.key for entry in backend.list(layout.CURRENT)]
    return [_load(backend, dataset_id, key) for key in sorted(keys, key=lambda key: Path(key).stem)]


def promoted(history: Sequence[Promotion], task: TaskName) -> tuple[str, ...]:
    """Keys of the task's promoted models, the current one first, then what it took over from."""
    states: list[tuple[str, ...]] = [()]
    for step in history:
        if step.task == task and step.op == "rollback":
            states.pop()
        elif step.task == task:
            older = tuple(key for key in states[-1] if key != step.model_key)
            states.append((step.model_key, *older))
    return states[-1]


def append_promotion(
    backend: Backend,
    history: Sequence[Promotion],
    op: Literal["promote", "rollback"],
    task: TaskName,
    model_key: str,
) -> Promotion | None:
    """Write the next step after `history`; None if another process has written one since."""
    step = Promotion(
        seq=len(history),
        op=op,
        task=task,
        model_key=model_key,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        nonce=secrets.token_hex(8),
    )
    key = layout.current_key(step.seq)
    return step if backend.create(key, step.model_dump_json().encode()) else None


@functools.lru_cache(maxsize=4096)
def _load(backend: Backend, dataset_id: str, key: str) -> Promotion:
    return Promotion.model_validate_json(backend.get(key))
