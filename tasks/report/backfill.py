"""How far a backfill is, as a heat map: a row per month, year or run of folders."""

import calendar
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixelmill.tasks.store import Store

__all__ = [
    "BackfillView",
    "Bar",
    "CanaryView",
    "Cell",
    "GateRow",
    "HeatBlock",
    "HeatRow",
    "backfill_key",
    "read_backfill",
]

# As the report's colours of images are named; of a partial part some are missing
_CSS = {
    "done": "state-scored",
    "partial": "half",
    "failed": "state-failed",
    "missing": "state-missing",
}
_FOLDERS_A_ROW = 24

# Pixels, as in the template: a cell with its gap, a cell, what is always seen of a state, the ticks
_STEP, _CELL, _LEAST, _TOP = 14, 12, 3, 18
# Of the labels: months of a year of days, or years and folders
_LEFT = {True: 34, False: 96}


@dataclass(frozen=True, slots=True)
class Bar:
    """Images of a part in one state: pixels from the top of its cell."""

    css: str
    top: int
    height: int


@dataclass(frozen=True, slots=True)
class Cell:
    """A part: where in its row, what is told of it, and its images by state."""

    column: int
    title: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class HeatRow:
    """A month of days, a year of months, or some folders."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class HeatBlock:
    """A year of days, or all that there is.

    Attributes:
        title: empty where there is only one.
        left: pixels of the labels.
        ticks: above the columns.
        width: pixels.
        height: pixels.
    """

    title: str
    rows: tuple[HeatRow, ...]
    left: int
    ticks: tuple[int, ...]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class GateRow:
    """A measure of a canary; `holds` is None where no gate asks for it."""

    name: str
    value: float | None
    least: float | None
    most: float | None
    holds: bool | None


@dataclass(frozen=True, slots=True)
class CanaryView:
    """How the sample of a model came out; `broken` says which gates do not hold."""

    old: str
    new: str
    num_images: int
    broken: tuple[str, ...]
    rows: tuple[GateRow, ...]


@dataclass(frozen=True, slots=True)
class BackfillView:
    """A heat map, ready to draw.

    Attributes:
        counts: (status, CSS class, number of parts), of those that there are.
    """

    by: str
    looked_at: str
    models: tuple[str, ...]
    blocks: tuple[HeatBlock, ...]
    counts: tuple[tuple[str, str, int], ...]
    canaries: tuple[CanaryView, ...]
    num_images: int
    num_missing: int


def backfill_key(collection: str) -> str:
    """Where the newest status of a collection's parts is in its store."""
    return f"reports/{collection}/backfill.json"


def read_backfill(store: Store, collection: str) -> BackfillView | None:
    """The heat map of a collection's newest backfill; None if there was none."""
    try:
        data = store.backend.get(backfill_key(collection))
    except FileNotFoundError:
        return None
    document: Mapping[str, Any] = json.loads(data)
    by, parts = document["by"], document["parts"]
    counts = Counter(part["status"] for part in parts)
    return BackfillView(
        by=by,
        looked_at=document["looked_at"],
        models=tuple(document["models"]),
        blocks=tuple(_blocks(by, parts)),
        counts=tuple((name, css, counts[name]) for name, css in _CSS.items() if counts[name]),
        canaries=tuple(_canary(each) for each in document.get("canaries", ())),
        num_images=sum(part["num_images"] for part in parts),
        num_missing=sum(part["num_missing"] for part in parts),
    )


def _blocks(by: str, parts: Sequence[Mapping[str, Any]]) -> Iterator[HeatBlock]:
    dated: dict[str, dict[str, list[Cell]]] = {}
    others: list[Mapping[str, Any]] = []
    for part in sorted(parts, key=lambda part: part["part"]):
        # 2024-05-31 is the 31st cell of May in the block 2024, 2024-05 the fifth of the row 2024
        match = re.fullmatch(r"(?:(\d{4})-)?(\d+)-(\d\d)", part["part"])
        if by in ("day", "month") and match:
            rows = dated.setdefault(match[1] or "", {})
            rows.setdefault(match[2], []).append(_cell(part, int(match[3]) - 1))
        else:
            others.append(part)
    for title, rows in dated.items():
        named = [
            HeatRow(calendar.month_abbr[int(label)] if title else label, tuple(cells))
            for label, cells in rows.items()
        ]
        yield _block(title, named, columns=31 if title else 12, every=7 if title else 1)
    named = []
    for start in range(0, len(others), _FOLDERS_A_ROW):
        chosen = others[start : start + _FOLDERS_A_ROW]
        cells = tuple(_cell(part, column) for column, part in enumerate(chosen))
        named.append(HeatRow(chosen[0]["part"], cells))
    if named:
        yield _block("", named, columns=min(len(others), _FOLDERS_A_ROW))


def _block(title: str, rows: Sequence[HeatRow], columns: int, every: int = 0) -> HeatBlock:
    """Rows one below the other, with a number above every so many columns."""
    left = _LEFT[bool(title)]
    return HeatBlock(
        title=title,
        rows=tuple(rows),
        left=left,
        ticks=tuple(range(0, columns, every)) if every else (),
        width=left + _STEP * columns,
        height=_TOP + _STEP * len(rows),
    )


def _cell(part: Mapping[str, Any], column: int) -> Cell:
    total, missing, failed = (part[f"num_{name}"] for name in ("images", "missing", "failed"))
    told = f"{part['part']}: {part['status']}, {total:,} images"
    for name, number in (("missing", missing), ("failed", failed)):
        if number:
            told += f", {number:,} {name}"
    numbers = {
        "state-missing": missing,
        "state-failed": failed,
        "state-scored": total - missing - failed,
    }
    return Cell(column, told, tuple(_bars(numbers)))


def _bars(numbers: Mapping[str, int]) -> Iterator[Bar]:
    """Heights as the numbers are, but for few of many: one failure is seen, too."""
    total = max(1, sum(numbers.values()))
    heights = {
        css: max(_LEAST, round(_CELL * number / total)) for css, number in numbers.items() if number
    }
    if heights:
        heights[max(heights, key=heights.__getitem__)] += _CELL - sum(heights.values())
    top = 0
    for css, height in heights.items():
        yield Bar(css, top, height)
        top += height


def _canary(document: Mapping[str, Any]) -> CanaryView:
    """Measures with gates first."""
    gates, measures = document["gates"], document["measures"]
    rows = []
    for name in [*gates, *(name for name in measures if name not in gates)]:
        value, (least, most) = measures.get(name), gates.get(name, (None, None))
        holds = None
        if name in gates:
            is_above = least is None or (value is not None and value >= least)
            is_below = most is None or (value is not None and value <= most)
            holds = name in measures and is_above and is_below
        rows.append(GateRow(name, value, least, most, holds))
    return CanaryView(
        old=document["old"],
        new=document["new"],
        num_images=document["num_images"],
        broken=tuple(document["broken"]),
        rows=tuple(rows),
    )
