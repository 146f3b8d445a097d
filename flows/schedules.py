"""Schedules of a machine without a Prefect server: a systemd service and timer, or a cron line."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

__all__ = ["DEFAULT_CRON", "Schedule", "cron_to_calendar", "format_schedule", "own_command"]

Schedule = Literal["service", "timer", "cron"]

DEFAULT_CRON = "0 2 * * *"

_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_FIELD = re.compile(r"(?:\*|\d+(?:-\d+)?)(?:/\d+)?")
_RANGES = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))

# 3 and 4 are no failures: images were quarantined, or time ran out. 2 and 5 are for people: the
# same command would end the same way.
_SERVICE = """\
[Unit]
Description=Pixelmill: nightly run of {name}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=6h
StartLimitBurst=3

[Service]
Type=oneshot
WorkingDirectory={folder}
EnvironmentFile=-{folder}/pixelmill.env
ExecStart={command}
SuccessExitStatus=3 4
Restart=on-failure
RestartPreventExitStatus=2 5
RestartSec=5min
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec=2min
Nice=5
"""
_TIMER = """\
[Unit]
Description=Pixelmill: when the nightly run of {name} starts

[Timer]
OnCalendar={calendar}
Persistent=true
RandomizedDelaySec=2min

[Install]
WantedBy=timers.target
"""


def own_command() -> tuple[str, ...]:
    """How this installation is started, from anywhere."""
    script = Path(sys.executable).with_name("pixelmill")
    if script.exists():
        return (str(script),)
    return (sys.executable, "-P", "-m", "pixelmill.flows.cli")


def format_schedule(
    kind: Schedule, arguments: Sequence[str], *, name: str, folder: Path, cron: str = DEFAULT_CRON
) -> str:
    """The file or line that has a command run by the machine's own scheduler.

    Args:
        kind: a systemd service, the timer that starts it, or a line for crontab.
        arguments: of `pixelmill`; paths in it are absolute.
        name: of the configuration, for people.
        folder: where it runs; the service reads variables from `pixelmill.env` in it.
        cron: when, in the machine's local time: minute, hour, day, month, weekday.

    Raises:
        ValueError: no such time.
    """
    calendar = cron_to_calendar(cron)
    command = (*own_command(), *arguments)
    if kind == "timer":
        return _TIMER.format(name=_escape_unit(name), calendar=calendar)
    if kind == "service":
        return _SERVICE.format(
            name=_escape_unit(name),
            folder=_escape_unit(str(folder)),
            command=" ".join(map(_quote_unit, command)),
        )
    # A % in a crontab ends the command, crontab(5)
    line = f"cd {shlex.quote(str(folder))} && {shlex.join(command)} >>pixelmill-nightly.log 2>&1"
    return f"{cron} {line.replace('%', chr(92) + '%')}\n"


def cron_to_calendar(cron: str) -> str:
    """The systemd calendar of a cron expression.

    Args:
        cron: five fields of numbers, ranges, lists and steps.

    Raises:
        ValueError: it is none, or has both days of the month and of the week: cron means either of
            them, systemd both.
    """
    fields = cron.split()
    if len(fields) != len(_RANGES):
        raise ValueError(
            f"expected minute, hour, day, month and weekday such as '{DEFAULT_CRON}', got {cron!r}"
        )
    for field, (unit, low, high) in zip(fields, _RANGES, strict=True):
        for part in field.split(","):
            numbers = [int(number) for number in re.findall(r"\d+", part.partition("/")[0])]
            is_known = _FIELD.fullmatch(part) and all(low <= each <= high for each in numbers)
            if not is_known or part.endswith("/0"):
                raise ValueError(f"expected a {unit} of {low} to {high} in {cron!r}, got {part!r}")
    minute, hour, day, month, weekday = fields
    if weekday != "*" and day != "*":
        raise ValueError(f"name days of the month or of the week, not both: {cron!r}")
    days = f"{_weekdays(weekday)} " if weekday != "*" else ""
    return f"{days}*-{_steps(month, 1)}-{_steps(day, 1)} {_steps(hour)}:{_steps(minute)}:00"


def _steps(field: str, first: int = 0) -> str:
    """In systemd's words: `..` between ends, and a start before each step."""
    parts = [
        f"{first}{part[1:]}" if part.startswith("*/") else part.replace("-", "..")
        for part in field.split(",")
    ]
    return ",".join(parts)


def _weekdays(field: str) -> str:
    """Each day by its name: Sunday is 0 and 7 in cron, and the end of systemd's week."""
    chosen: set[str] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        low, _, high = span.partition("-")
        first, last = (0, 6) if low == "*" else (int(low), int(high or (low if not step else 6)))
        if first > last:
            raise ValueError(f"expected a weekday range from low to high, got {part!r}")
        chosen |= {_DAYS[day] for day in range(first, last + 1, int(step or 1))}
    return ",".join(day for day in _DAYS[1:] if day in chosen)


def _escape_unit(text: str) -> str:
    return text.replace("%", "%%").replace("\n", " ")


def _quote_unit(argument: str) -> str:
    """As systemd.service(5) reads it: $ and % are doubled, the rest is as in C."""
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    quoted = f'"{escaped}"' if re.search(r"[\s'\"\\;]", argument) or not argument else escaped
    return _escape_unit(quoted)
