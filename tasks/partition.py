"""Parts of a collection that a backfill goes through one after the other."""

import functools
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Literal

import numpy as np
import pyarrow as pa

from pixelmill.tasks.ingest import Listing

__all__ = [
    "UNDATED",
    "By",
    "compile_pattern",
    "join_parts",
    "listing_since",
    "partition_listing",
    "partition_of",
]

By = Literal["day", "month", "folder"]

UNDATED = "undated"

_DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_./]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")
_MONTH = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_./](0[1-9]|1[0-2])(?!\d)")

# What of strptime's language names a day or a month in paths
_DIRECTIVES = {"%Y": r"\d{4}", "%y": r"\d{2}", "%m": r"\d{1,2}", "%d": r"\d{1,2}", "%j": r"\d{3}"}


def partition_of(path: str, by: By, pattern: str | None = None) -> str:
    """The part that a file belongs to.

    Args:
        path: relative to the source, with '/' between the parts.
        by: `folder`: the first folder, "." for files outside of any. `day`, `month`: a date in the
            path.
        pattern: where that is, as in `compile_pattern`; left out: the first that looks like one,
            such as 2024/05/31, 2024-05-31 or IMG_20240531_x.jpg.

    Returns:
        The folder, YYYY-MM-DD, YYYY-MM, or "undated".

    Raises:
        ValueError: the pattern does not say the day or the month.
    """
    if by == "folder":
        return path.partition("/")[0] if "/" in path else "."
    if pattern is not None:
        return _match(path, by, pattern)
    day = _DAY.search(path)
    if by == "day":
        return f"{day[1]}-{day[3]}-{day[4]}" if day else UNDATED
    if day:
        return f"{day[1]}-{day[3]}"
    month = _MONTH.search(path)
    return f"{month[1]}-{month[2]}" if month else UNDATED


@functools.lru_cache(maxsize=16)
def compile_pattern(pattern: str, by: By) -> tuple[re.Pattern[str], str]:
    """A pattern of dates in paths, as an expression and what `strptime` makes of its groups.

    Args:
        pattern: %Y (or %y), %m and %d, or %j (day of the year), and other text as it is, but for
            `*`: any characters within a name. It may be anywhere in the path, between names.
        by: what has to be said.

    Raises:
        ValueError: it does not say the day or the month, or has another directive.
    """
    found = re.findall(r"%.?", pattern)
    unknown = [each for each in found if each not in _DIRECTIVES]
    if unknown or len(set(found)) < len(found):
        raise ValueError(
            f"expected each of {', '.join(_DIRECTIVES)} at most once in the pattern of dates, got "
            f"{pattern!r}"
        )
    says_year = "%Y" in found or "%y" in found
    says_day = "%j" in found or ("%m" in found and "%d" in found)
    if not says_year or not (says_day or (by == "month" and "%m" in found)):
        raise ValueError(f"the pattern of dates {pattern!r} does not say the year and {by}")
    text = ""
    for token in re.findall(r"%.|\*|[^%*]+", pattern):
        known = _DIRECTIVES.get(token)
        text += f"({known})" if known else "[^/]*" if token == "*" else re.escape(token)
    return re.compile(rf"(?<![^/]){text}"), " ".join(found)


def _match(path: str, by: By, pattern: str) -> str:
    expression, directives = compile_pattern(pattern, by)
    match = expression.search(path)
    if match is None:
        return UNDATED
    try:
        date = datetime.strptime(" ".join(match.groups()), directives)
    except ValueError:  # the 31st of February
        return UNDATED
    return f"{date:%Y-%m-%d}" if by == "day" else f"{date:%Y-%m}"


def partition_listing(listing: Listing, by: By, pattern: str | None = None) -> dict[str, Listing]:
    """A listing cut into its parts, in their order; each keeps the order of the paths.

    What could not be listed is told with the first part only.
    """
    paths = listing.images["path"].to_pylist()
    keys = np.array([partition_of(path, by, pattern) for path in paths], "U")
    # Once over all rows: a filter for each of ten years' days would read them 3650 times
    names, place = np.unique(keys, return_inverse=True)
    order = np.argsort(place, kind="stable")
    ends = np.cumsum(np.bincount(place, minlength=len(names))).tolist()
    images = listing.images.take(pa.array(order))
    parts: dict[str, Listing] = {}
    problems, start = listing.problems, 0
    for name, end in zip(names.tolist(), ends, strict=True):
        parts[name] = Listing(images.slice(start, end - start), problems)
        problems, start = problems.slice(0, 0), end
    return parts


def listing_since(listing: Listing, first_day: str, pattern: str | None = None) -> Listing:
    """The files of a day and later ones, and those without a date: nobody else would do them."""
    days = [partition_of(path, "day", pattern) for path in listing.images["path"].to_pylist()]
    is_recent = [day == UNDATED or day >= first_day for day in days]
    return Listing(listing.images.filter(pa.array(is_recent, pa.bool_())), listing.problems)


def join_parts(
    parts: Mapping[str, Listing], max_images: int
) -> Iterator[tuple[list[str], Listing]]:
    """Parts side by side in one listing, so many that they have no more images.

    Yields:
        The names of the parts, and their rows in that order.
    """
    names: list[str] = []
    num_images = 0

    def joined() -> tuple[list[str], Listing]:
        chosen = [parts[name] for name in names]
        images = pa.concat_tables([part.images for part in chosen])
        return names, Listing(images, chosen[0].problems.slice(0, 0))

    for name, part in parts.items():
        if names and num_images + part.images.num_rows > max_images:
            yield joined()
            names, num_images = [], 0
        names.append(name)
        num_images += part.images.num_rows
    if names:
        yield joined()
