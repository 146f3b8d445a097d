"""Numbers and times as people read them, and digests as browsers do."""

import base64
import hashlib
import math
from datetime import UTC, datetime

__all__ = [
    "content_digest",
    "format_bytes",
    "format_count",
    "format_interval",
    "format_moment",
    "format_percent",
    "format_seconds",
    "format_share",
    "format_value",
]


def content_digest(text: str) -> str:
    """Source expression of a content security policy for an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def format_value(value: float) -> str:
    """A metric as shown: three decimals, fewer when it is large, a dash when undefined."""
    if math.isnan(value):
        return "\u2013"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def format_interval(interval: tuple[float, float] | None) -> str:
    """Both ends in brackets, as they follow a value; nothing where there is none."""
    return f"[{format_value(interval[0])}, {format_value(interval[1])}]" if interval else ""


def format_count(value: float) -> str:
    """A count with thousands separated by a thin space, which no language reads as a decimal."""
    return f"{value:,.0f}".replace(",", "\u202f")


def format_bytes(size: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def format_seconds(seconds: float) -> str:
    """Seconds, or hours and minutes of many."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_moment(text: str) -> str:
    """ISO 8601 to the minute, in UTC; anything else as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    if moment.tzinfo is None:
        return f"{moment:%Y-%m-%d %H:%M}"
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def format_share(share: float) -> str:
    """A share in [0, 1] in whole per cent."""
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else "< 1 %"


def format_percent(value: float) -> str:
    """A length in SVG: per cent to two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"
