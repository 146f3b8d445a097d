"""The report's numbers as data, kept from run to run: what changed since the last one."""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pixelmill.tasks.metrics.results import Evaluation
from pixelmill.tasks.report.summary import RunSummary
from pixelmill.tasks.store import Store

__all__ = [
    "Change",
    "Number",
    "Snapshot",
    "changes_between",
    "decode_history",
    "encode_history",
    "extend_history",
    "history_table",
    "numbers_of",
    "read_history",
    "take_snapshot",
]

_FORMAT = 1
_MOST_SNAPSHOTS = 400


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a report.

    Attributes:
        model: name without its digest, so that versions follow one another; "" for the collection.
        model_key: which version.
        kind: of the evaluation, or "images" (counts by state) or "run".
        low: end of its 95 % interval, None without one; high likewise.
    """

    model: str
    model_key: str
    kind: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The numbers as one run left them."""

    run_id: str
    date: str
    created_at: str
    numbers: tuple[Number, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A number in two snapshots.

    Attributes:
        version: keys of both versions if the model is another one, else "".
        outside: the new value is outside the old one's interval; None where there is none.
    """

    before: Number
    after: Number
    version: str
    outside: bool | None

    @property
    def difference(self) -> float:
        """After less before."""
        return self.after.value - self.before.value


def take_snapshot(summary: RunSummary, evaluation: Evaluation | None) -> Snapshot | None:
    """The numbers of a report; None where no run is recorded, and so nothing can follow."""
    if summary.run_id is None:
        return None
    numbers = [Number("", "", "run", "images", summary.num_images)]
    if summary.images_per_second is not None:
        rate = Number("", "", "run", "images/s per worker", summary.images_per_second)
        numbers.append(rate)
    names: dict[str, str] = {}
    for ledger in summary.ledgers:
        names[ledger.model_key] = ledger.name
        for state, count in (
            ("scored", ledger.num_scored),
            ("nothing found", ledger.num_empty),
            ("failed", ledger.num_failed),
            ("missing", ledger.num_missing),
        ):
            numbers.append(Number(ledger.name, ledger.model_key, "images", state, count))
    for result in evaluation.models if evaluation else ():
        for metric in result.headline:
            low, high = metric.interval or (None, None)
            key = result.model_key
            numbers.append(
                Number(names.get(key, key), key, result.kind, metric.name, metric.value, low, high)
            )
    return Snapshot(summary.run_id, summary.date, summary.created_at, tuple(numbers))


def extend_history(history: Sequence[Snapshot], now: Snapshot | None) -> tuple[Snapshot, ...]:
    """The snapshots in the order of their runs, one per run, the newest few hundred."""
    if now is None:
        return tuple(history)
    # a report made again of the same run takes the place of the first
    others = [each for each in history if each.run_id != now.run_id]
    return tuple(sorted((*others, now), key=lambda each: each.run_id))[-_MOST_SNAPSHOTS:]


def changes_between(before: Snapshot, after: Snapshot) -> tuple[Change, ...]:
    """The numbers that both have, in the order of the newer."""
    old = {(number.model, number.kind, number.metric): number for number in before.numbers}
    changes = []
    for number in after.numbers:
        earlier = old.get((number.model, number.kind, number.metric))
        if earlier is None:
            continue
        outside = None
        if earlier.low is not None and earlier.high is not None:
            outside = not earlier.low <= number.value <= earlier.high
        is_other = earlier.model_key != number.model_key
        version = f"{earlier.model_key} → {number.model_key}" if is_other else ""
        changes.append(Change(earlier, number, version, outside))
    return tuple(changes)


def numbers_of(
    history: Iterable[Snapshot], model: str, kind: str, metric: str
) -> tuple[tuple[str, float], ...]:
    """(date, value) of one number through the snapshots that have it."""
    return tuple(
        (snapshot.date, number.value)
        for snapshot in history
        for number in snapshot.numbers
        if (number.model, number.kind, number.metric) == (model, kind, metric)
    )


def encode_history(collection: str, history: Sequence[Snapshot]) -> str:
    """JSON, newest run last."""
    runs = [asdict(snapshot) for snapshot in history]
    document = {"format": _FORMAT, "collection": collection, "runs": runs}
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1)


def decode_history(text: str | bytes) -> tuple[Snapshot, ...]:
    """What `encode_history` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        document: Any = json.loads(text)
        if document["format"] != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}, got {document['format']!r}")
        return tuple(
            Snapshot(**{**run, "numbers": tuple(Number(**number) for number in run["numbers"])})
            for run in document["runs"]
        )
    except (KeyError, TypeError) as err:
        raise ValueError(f"not the numbers of a report: {err}") from err


def read_history(store: Store, collection: str) -> tuple[Snapshot, ...]:
    """The numbers that the collection's report in the store has; none without one.

    Raises:
        ValueError: the file there is something else.
    """
    key = f"reports/{collection}/report.json"
    try:
        text = store.backend.get(key)
    except FileNotFoundError:
        return ()
    try:
        return decode_history(text)
    except ValueError as err:
        raise ValueError(
            f"{store.root}/{key}: {err}; remove it, and the next report begins a new history"
        ) from err


def history_table(history: Iterable[Snapshot]) -> bytes:
    """Parquet, one row per run and number."""
    rows = [
        {"run_id": each.run_id, "date": each.date, "created_at": each.created_at, **asdict(number)}
        for each in history
        for number in each.numbers
    ]
    text, real = pa.string(), pa.float64()
    names = ("run_id", "date", "created_at", "model", "model_key", "kind", "metric")
    schema = pa.schema(
        [(name, text) for name in names] + [(name, real) for name in ("value", "low", "high")]
    )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue()
