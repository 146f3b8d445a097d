"""Telling people how a run went: by Apprise (webhooks, mail, chat), or by a program of theirs."""

import json
import logging
import os
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from pixelmill.configs.schema import NotifyConfig, Outcome
from pixelmill.tasks.display import printable, redact

__all__ = ["Notice", "NoticeFailure", "describe_notice", "send_notice"]

# A receiver that hangs must not hold up the night.
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Notice:
    """What is told.

    Attributes:
        title: one line.
        text: the sentences below it.
        facts: the same in figures, for programs.
    """

    outcome: Outcome
    title: str
    text: str
    facts: Mapping[str, str | int | float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoticeFailure:
    """A notice that did not arrive; neither has the address in it.

    Attributes:
        target: name of the variable, or of the program.
    """

    target: str
    reason: str


def send_notice(
    targets: Sequence[NotifyConfig], notice: Notice, environ: Mapping[str, str] = os.environ
) -> tuple[NoticeFailure, ...]:
    """Tell all who asked to be told of such an outcome.

    Args:
        targets: who, and of what.
        notice: shown without secrets, and without what a terminal would obey.
        environ: has the addresses.

    Returns:
        Who could not be told, and why; never raised, as a run's result stands without it.
    """
    failures: list[NoticeFailure] = []
    for target in targets:
        if notice.outcome not in target.outcomes:
            continue
        if target.command is not None:
            reason = _run_command(target.command, notice)
            name = target.command[0]
        else:
            name = target.url_variable or ""
            url = environ.get(name)
            reason = _send(url, notice) if url else "the environment variable is not set"
        if reason is not None:
            failures.append(NoticeFailure(name, reason))
    return tuple(failures)


def describe_notice(notice: Notice) -> dict[str, object]:
    """The notice as JSON has it, clean."""
    return {
        name: _clean(value) if isinstance(value, str) else value
        for name, value in (asdict(notice) | {"facts": _clean_facts(notice.facts)}).items()
    }


def _clean(text: str) -> str:
    return printable(redact(text), keep="\n")


def _clean_facts(facts: Mapping[str, str | int | float | None]) -> dict[str, object]:
    return {
        name: _clean(value) if isinstance(value, str) else value for name, value in facts.items()
    }


def _run_command(command: Sequence[str], notice: Notice) -> str | None:
    content = json.dumps(describe_notice(notice))
    try:
        done = subprocess.run(
            command, input=content, text=True, capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it did not end within {TIMEOUT_S:.0f} s"
    except OSError as err:
        return str(err)
    if done.returncode:
        told = _clean(done.stderr.strip()[-200:])
        return f"it ended with {done.returncode}" + (f": {told}" if told else "")
    return None


def _send(url: str, notice: Notice) -> str | None:
    import apprise  # a third of a second that nobody else needs

    kinds = {
        "complete": apprise.NotifyType.SUCCESS,
        "quarantine": apprise.NotifyType.WARNING,
        "out_of_time": apprise.NotifyType.WARNING,
        "unhealthy": apprise.NotifyType.WARNING,
        "failed": apprise.NotifyType.FAILURE,
    }
    with _silent():
        receiver = apprise.Apprise()
        # A service that Apprise knows by its address, or else JSON to a webhook
        is_known = receiver.add(url) or receiver.add(f"json{url.removeprefix('http')}")
        if not is_known:
            return "it holds neither a webhook nor a URL of Apprise"
        has_arrived = receiver.notify(
            title=_clean(notice.title),
            body=_clean(notice.text),
            notify_type=kinds[notice.outcome],
        )
    return None if has_arrived else "it was not accepted"


@contextmanager
def _silent() -> Iterator[None]:
    """Apprise and the client below it log addresses, with the tokens in them: nobody hears them."""
    loggers = [logging.getLogger(name) for name in ("apprise", "urllib3.connectionpool")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            # Its plugins import modules that newer Pythons do not have
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, was_disabled in zip(loggers, before, strict=True):
            logger.disabled = was_disabled
