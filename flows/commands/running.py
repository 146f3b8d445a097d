"""Running a flow from the command line, and the exit code that tells how it went."""

import sys
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from pixelmill.tasks.display import printable, redact
from pixelmill.tasks.transient import explain_refusal

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State
    from rich.console import Console

__all__ = ["ExitCode", "console", "exit_code", "run_flow", "tell"]


class ExitCode(IntEnum):
    """What a scheduler is told."""

    COMPLETE = 0
    FAILED = 1
    USAGE = 2
    QUARANTINE = 3
    OUT_OF_TIME = 4
    UNHEALTHY = 5
    INTERRUPTED = 130
    TERMINATED = 143


def run_flow(flow: Callable[..., Any], params: object) -> "tuple[State[Any], Any]":
    """Run a flow here, with an embedded server unless PREFECT_API_URL names one.

    Returns:
        Its final state, and what it returned; None if it failed.
    """
    from pixelmill.flows.logs import json_log
    from pixelmill.flows.server import start_server

    start_server()
    with json_log():
        state = flow(params, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        told = explain_refusal(result) or f"{type(result).__name__}: {result}"
        tell(told)
        return state, None
    if not state.is_completed() or state.name in ("OutOfTime", "Skipped", "Unhealthy"):
        tell(state.message or "")
    return state, result


def tell(message: str) -> None:
    """Say what is wrong, without secrets and without what a terminal would obey."""
    shown = printable(redact(message), keep="\n")
    print(f"pixelmill: {shown}", file=sys.stderr)


def exit_code(state: "State[Any]") -> ExitCode:
    """What a flow's final state means to a scheduler."""
    if state.is_cancelled():
        by_sigterm = "SIGTERM" in (state.message or "")
        return ExitCode.TERMINATED if by_sigterm else ExitCode.INTERRUPTED
    if not state.is_completed():
        # The same command would end the same way: this one is for people
        return ExitCode.UNHEALTHY if state.name == "CanaryFailed" else ExitCode.FAILED
    codes = {
        "CompletedWithQuarantine": ExitCode.QUARANTINE,
        "OutOfTime": ExitCode.OUT_OF_TIME,
        "Unhealthy": ExitCode.UNHEALTHY,
    }
    return codes.get(state.name or "", ExitCode.COMPLETE)


def console() -> "Console":
    """The terminal; as wide as it is."""
    from rich.console import Console

    return Console()
