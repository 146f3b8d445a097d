"""Parts of a collection that a backfill goes through one after the other."""

import re
from typing import Literal

import numpy as np
import pyarrow as pa

from pixelmill.tasks.ingest import Listing

__all__ = ["UNDATED", "By", "partition_listing", "partition_of"]

By = Literal["day", "month", "folder"]

UNDATED = "undated"

_DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_./]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")
_MONTH = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_./](0[1-9]|1[0-2])(?!\d)")


def partition_of(path: str, by: By) -> str:
    """The part that a file belongs to.

    Args:
        path: relative to the source, with '/' between the parts.
        by: `folder`: the first folder, "." for files outside of any. `day`, `month`: the first
            date in the path, such as 2024/05/31, 2024-05-31 or IMG_20240531_x.jpg.

    Returns:
        The folder, YYYY-MM-DD, YYYY-MM, or "undated".
    """
    if by == "folder":
        return path.partition("/")[0] if "/" in path else "."
    day = _DAY.search(path)
    if by == "day":
        return f"{day[1]}-{day[3]}-{day[4]}" if day else UNDATED
    if day:
        return f"{day[1]}-{day[3]}"
    month = _MONTH.search(path)
    return f"{month[1]}-{month[2]}" if month else UNDATED


def partition_listing(listing: Listing, by: By) -> dict[str, Listing]:
    """A listing cut into its parts, in their order; each keeps the order of the paths.

    What could not be listed is told with the first part only.
    """
    keys = np.array([partition_of(path, by) for path in listing.images["path"].to_pylist()], "U")
    parts: dict[str, Listing] = {}
    problems = listing.problems
    for key in np.unique(keys):
        images = listing.images.filter(pa.array(keys == key))
        parts[str(key)] = Listing(images, problems)
        problems = problems.slice(0, 0)
    return parts
