from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from pixelmill.flows.limits import Deadline, FailureBudget, Pace, parse_duration, seconds_until

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("now", "until", "hours"),
    [
        (datetime(2024, 5, 31, 22, 0, tzinfo=BERLIN), "06:00", 8),
        (datetime(2024, 5, 31, 5, 30, tzinfo=BERLIN), "06:00", 0.5),
        (datetime(2024, 5, 31, 6, 0, tzinfo=BERLIN), "06:00", 24),
        (datetime(2024, 10, 26, 22, 0, tzinfo=BERLIN), "06:00", 9),  # summer time ends
        (datetime(2024, 3, 30, 22, 0, tzinfo=BERLIN), "06:00", 7),  # summer time begins
        (datetime(2024, 12, 31, 22, 0, tzinfo=BERLIN), "6:00", 8),
    ],
)
def test_the_next_such_time_is_meant_in_hours_that_really_pass(now, until, hours):
    assert seconds_until(until, now) == hours * 3600


def test_the_local_clock_is_asked_if_none_is_given():
    assert 0 < seconds_until("06:00") <= 25 * 3600


@pytest.mark.parametrize("text", ["", "25:00", "6", "06:00:00", "six"])
def test_no_time_of_day_is_refused(text):
    with pytest.raises(ValueError, match="HH:MM"):
        seconds_until(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("2h", 7200), ("1.5H", 5400)]
)
def test_a_duration_has_a_unit(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "0h", "-1h", "2d", "h"])
def test_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="such as 45m"):
        parse_duration(text)


def test_a_deadline_counts_down_past_zero():
    now = [100.0]
    deadline = Deadline(60, lambda: now[0])
    assert deadline.left_s == 60
    now[0] += 90
    assert deadline.left_s == -30


def test_the_pace_is_what_was_expected_until_something_is_measured():
    assert Pace().estimate_s(100) == 0
    pace = Pace(0.1)
    assert pace.estimate_s(100) == pytest.approx(10)
    pace.add(50, 10.0)
    assert pace.estimate_s(100) == pytest.approx(20)


def test_the_pace_is_that_of_slow_shards_but_not_of_the_slowest():
    pace = Pace()
    for seconds in [1.0] * 8 + [2.0, 50.0]:
        pace.add(1, seconds)
    assert pace.estimate_s(1) == 2.0
    pace.add(0, 7.0)  # nothing was in it
    assert pace.estimate_s(1) == 2.0


@pytest.mark.parametrize(
    ("text", "num_failed", "num_inputs", "is_spent"),
    [
        ("3", 3, 1000, False),
        ("3", 4, 4, True),
        ("0", 1, 1, True),
        ("5%", 99, 99, False),
        ("5%", 5, 100, False),
        ("5%", 6, 100, True),
        ("0.5%", 6, 1000, True),
        ("100%", 1000, 1000, False),
    ],
)
def test_a_budget_is_spent_by_more_than_it_says(text, num_failed, num_inputs, is_spent):
    assert FailureBudget.parse(text).is_spent(num_failed, num_inputs) is is_spent
    assert str(FailureBudget.parse(text)) == text


@pytest.mark.parametrize("text", ["", "-1", "5 %", "101%", "many", "1.5"])
def test_no_budget_is_refused(text):
    with pytest.raises(ValueError, match="a share such as 5%"):
        FailureBudget.parse(text)
