"""How a step becomes a Prefect task."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from pixelmill.tasks.transient import is_transient

__all__ = ["stage"]

P = ParamSpec("P")
R = TypeVar("R")


def stage(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task over a step: tried again after storage errors, nothing cached.

    What is done is known by the store, which travels with the data; Prefect's own cache would stay
    on the machine that ran the flow.

    Args:
        name: as Prefect shows it.
    """
    return task(
        name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=[5, 30],
        retry_condition_fn=_failed_by_storage,
    )


def _failed_by_storage(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, BaseException) and is_transient(state.data)
