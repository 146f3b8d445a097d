"""What the report says of the run before: rows of numbers, and each number's line through time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pixelmill.tasks.report.formats import format_count, format_interval, format_value
from pixelmill.tasks.report.history import Change, Number, Snapshot, changes_between, numbers_of
from pixelmill.tasks.report.plots import sparkline

__all__ = ["ChangeRow", "ChangeView", "change_view"]

_STATES = "images by state"


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """A number then and now, as text; `difference` is what the column is sorted by.

    Attributes:
        verdict: "outside" the earlier interval, "inside" it, or "" where there is none.
        line: the number through all runs.
    """

    model: str
    what: str
    before: str
    now: str
    interval: str
    difference: float
    difference_text: str
    verdict: str
    line: Markup


@dataclass(frozen=True, slots=True)
class ChangeView:
    """The section.

    Attributes:
        run_id: of the run before, None without one; `date` is its date.
        rows: numbers that changed; `num_same` counts the others.
        versions: models that are another version now, as "old → new".
        complaint: why the earlier numbers are not known, or "".
    """

    run_id: str | None
    date: str
    num_runs: int
    rows: tuple[ChangeRow, ...]
    num_same: int
    versions: tuple[str, ...]
    complaint: str


def change_view(
    history: Sequence[Snapshot],
    run_id: str | None,
    kind_titles: Mapping[str, str],
    complaint: str = "",
) -> ChangeView:
    """Compare a run with the one before it.

    Args:
        history: in the order of the runs.
        run_id: the report's; None without a run.
        kind_titles: kind of evaluation -> title.
        complaint: what to say of a history that could not be read.
    """
    place = next((i for i, each in enumerate(history) if each.run_id == run_id), 0)
    if place == 0:
        return ChangeView(None, "", len(history), (), 0, (), complaint)
    before, now = history[place - 1], history[place]
    changes = changes_between(before, now)
    changed = [change for change in changes if change.difference]
    return ChangeView(
        run_id=before.run_id,
        date=before.date,
        num_runs=place + 1,
        rows=tuple(_row(change, history[: place + 1], kind_titles) for change in changed),
        num_same=len(changes) - len(changed),
        versions=tuple(dict.fromkeys(change.version for change in changes if change.version)),
        complaint=complaint,
    )


def _row(change: Change, history: Sequence[Snapshot], kind_titles: Mapping[str, str]) -> ChangeRow:
    number, difference = change.after, change.difference
    kind = {"run": "", "images": _STATES}.get(number.kind) or kind_titles.get(number.kind, "")
    points = numbers_of(history, number.model, number.kind, number.metric)
    sign = "+" if difference > 0 else "\N{MINUS SIGN}"
    return ChangeRow(
        model=number.model or "all",
        what=f"{kind}: {number.metric}" if kind else number.metric,
        before=_text(change.before),
        now=_text(number),
        interval=format_interval(
            (number.low, number.high)
            if number.low is not None and number.high is not None
            else None
        ),
        difference=difference,
        difference_text=f"{sign}{_shown(number, abs(difference))}",
        verdict="" if change.outside is None else "outside" if change.outside else "inside",
        line=sparkline(points, title=number.metric),
    )


def _text(number: Number) -> str:
    return _shown(number, number.value)


def _shown(number: Number, value: float) -> str:
    is_count = number.kind == "images" or number.metric == "images"
    return format_count(value) if is_count else format_value(value)
