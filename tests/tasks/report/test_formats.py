import math

from pixelmill.tasks.report.formats import (
    format_bytes,
    format_count,
    format_interval,
    format_moment,
    format_percent,
    format_seconds,
    format_share,
    format_value,
)


def test_units_are_readable():
    assert [format_bytes(n) for n in (0, 999, 1500, 123_456_789)] == [
        "0 B", "999 B", "1.5 kB", "123 MB",
    ]  # fmt: skip
    assert [format_seconds(s) for s in (1.25, 180, 9000)] == ["1.2 s", "3 min", "2 h 30 min"]
    assert format_moment("2026-01-01T01:30:00+01:00") == "2026-01-01 00:30 UTC"
    assert format_moment("yesterday") == "yesterday"
    assert [format_share(s) for s in (0.0, 0.001, 0.5)] == ["0 %", "< 1 %", "50 %"]
    assert [format_percent(v) for v in (0.0, 12.5, 33.333)] == ["0%", "12.5%", "33.33%"]


def test_numbers_are_short():
    assert [format_value(v) for v in (0.12345, 1234.5, math.nan, math.inf)] == [
        "0.123", "1,234.5", "\u2013", "∞",
    ]  # fmt: skip
    assert format_count(1234567) == "1\u202f234\u202f567"


def test_an_interval_is_two_short_numbers():
    assert format_interval((0.94149, 0.96777)) == "[0.941, 0.968]"
    assert format_interval(None) == ""
