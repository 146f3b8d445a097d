"""When a run ends before its work does: a deadline, or too many failures."""

import math
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

__all__ = ["Deadline", "FailureBudget", "Pace", "parse_duration", "seconds_until"]

# A share of fewer inputs says little: the first of a folder may be its only bad ones.
_MIN_INPUTS = 100
_RECENT_SHARDS = 64
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Deadline:
    """A moment that a clock which is set does not move.

    Args:
        seconds: from now.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock() + seconds

    @property
    def left_s(self) -> float:
        """Seconds until then; negative after it."""
        return self._at - self._clock()


def seconds_until(time_of_day: str, now: datetime | None = None) -> float:
    """Seconds to the next such local time.

    Args:
        time_of_day: HH:MM.
        now: left out: the clock's local time.

    Raises:
        ValueError: no such time.
    """
    try:
        wanted = datetime.strptime(time_of_day, "%H:%M").time()
    except ValueError as err:
        raise ValueError(f"expected a time of day as HH:MM, got {time_of_day!r}") from err
    now = now or datetime.now()
    then = datetime.combine(now.date(), wanted, tzinfo=now.tzinfo)
    if then <= now:
        then += timedelta(days=1)
    # Not `then - now`, which counts wall hours: the night in which summer time ends has one more
    return then.timestamp() - now.timestamp()


def parse_duration(text: str) -> float:
    """Seconds of a duration such as 45m, 2h or 90s.

    Raises:
        ValueError: it is none, or 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip().lower())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise ValueError(f"expected a duration such as 45m, 2h or 90s, got {text!r}")
    return seconds


class Pace:
    """How long a shard takes: by what this run has measured, before that by what it is told.

    Args:
        seconds_per_image: from earlier runs; None if there were none.
    """

    def __init__(self, seconds_per_image: float | None = None) -> None:
        self._expected = seconds_per_image
        self._measured: deque[float] = deque(maxlen=_RECENT_SHARDS)

    def add(self, num_images: int, seconds: float) -> None:
        """A shard took that long on its worker."""
        if num_images and seconds > 0:
            self._measured.append(seconds / num_images)

    def estimate_s(self, num_images: int) -> float:
        """Seconds that nine of ten such shards stay below; 0 if nothing is known."""
        if self._measured:
            rates = sorted(self._measured)
            return num_images * rates[math.ceil(0.9 * len(rates)) - 1]
        return num_images * (self._expected or 0.0)


@dataclass(frozen=True, slots=True)
class FailureBudget:
    """How many failures a run may have before it is taken for broken.

    Attributes:
        limit: failures, or their share of the inputs done so far.
    """

    limit: float
    is_share: bool

    @classmethod
    def parse(cls, text: str) -> "FailureBudget":
        """From `25` or `5%`.

        Raises:
            ValueError: it is neither.
        """
        match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text.strip())
        if match is None or (match[2] and float(match[2]) > 100):
            raise ValueError(f"expected a number of failures or a share such as 5%, got {text!r}")
        return cls(float(match[1]), False) if match[1] else cls(float(match[2]) / 100, True)

    def is_spent(self, num_failed: int, num_inputs: int) -> bool:
        """Whether more has failed than may; a share counts from 100 inputs on."""
        if self.is_share:
            return num_inputs >= _MIN_INPUTS and num_failed > self.limit * num_inputs
        return num_failed > self.limit

    def __str__(self) -> str:
        return f"{self.limit:.6g}" if not self.is_share else f"{100 * self.limit:.6g}%"
