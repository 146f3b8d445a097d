"""How far a backfill is, as a heat map: a row per month, year or run of folders."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixelmill.tasks.store import Store

__all__ = ["BackfillView", "Cell", "HeatRow", "backfill_key", "read_backfill"]

# As the report's colours of images are named
_CSS = {
    "done": "state-scored",
    "partial": "state-empty",
    "failed": "state-failed",
    "missing": "state-missing",
}
_FOLDERS_A_ROW = 24


@dataclass(frozen=True, slots=True)
class Cell:
    """A part: its place in the row, its colour's CSS class, and what is told of it."""

    column: int
    css: str
    title: str


@dataclass(frozen=True, slots=True)
class HeatRow:
    """A month of days, a year of months, or some folders."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class BackfillView:
    """A heat map, ready to draw.

    Attributes:
        counts: (status, CSS class, number of parts), of those that there are.
        columns: of the widest row.
    """

    by: str
    looked_at: str
    models: tuple[str, ...]
    columns: int
    rows: tuple[HeatRow, ...]
    counts: tuple[tuple[str, str, int], ...]
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
    parts = document["parts"]
    rows = tuple(_rows(document["by"], parts))
    counts = Counter(part["status"] for part in parts)
    return BackfillView(
        by=document["by"],
        looked_at=document["looked_at"],
        models=tuple(document["models"]),
        columns=max((cell.column + 1 for row in rows for cell in row.cells), default=0),
        rows=rows,
        counts=tuple((name, css, counts[name]) for name, css in _CSS.items() if counts[name]),
        num_images=sum(part["num_images"] for part in parts),
        num_missing=sum(part["num_missing"] for part in parts),
    )


def _rows(by: str, parts: Sequence[Mapping[str, Any]]) -> Iterator[HeatRow]:
    dated: dict[str, list[Cell]] = {}
    others: list[Mapping[str, Any]] = []
    for part in sorted(parts, key=lambda part: part["part"]):
        # 2024-05-31 is the 31st cell of 2024-05, 2024-05 the fifth of 2024
        label, _, last = part["part"].rpartition("-")
        if by in ("day", "month") and label and last.isdecimal():
            dated.setdefault(label, []).append(_cell(part, int(last) - 1))
        else:
            others.append(part)
    for label, cells in dated.items():
        yield HeatRow(label, tuple(cells))
    for start in range(0, len(others), _FOLDERS_A_ROW):
        chosen = others[start : start + _FOLDERS_A_ROW]
        cells = [_cell(part, column) for column, part in enumerate(chosen)]
        yield HeatRow(chosen[0]["part"], tuple(cells))


def _cell(part: Mapping[str, Any], column: int) -> Cell:
    told = f"{part['part']}: {part['status']}, {part['num_images']:,} images"
    for name in ("missing", "failed"):
        if part[f"num_{name}"]:
            told += f", {part[f'num_{name}']:,} {name}"
    return Cell(column, _CSS[part["status"]], told)
