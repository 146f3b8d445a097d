"""The ledger of a run: every listed input is, for every model, in exactly one state.

Computed from what the store holds, not from what the run believes: the plan says what was to be
scored, `images` and `failures` what came of it, the receipts which shards were committed. An input
of which none of them knows anything is missing, and a run with a missing one is not complete.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.digests import input_keys
from pixelmill.tasks.store.publish import published_shards
from pixelmill.tasks.store.reader import Store
from pixelmill.tasks.store.runs import ModelCounts, RunEnd, RunRecord, SkipReason, shard_id

__all__ = ["LEDGER_SCHEMA", "Ledger", "end_run", "run_ledger"]

State = Literal["scored", "scored_empty", "failed", "skipped", "missing"]
_WORD = pa.dictionary(pa.int32(), pa.string())

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("model_key", _WORD, nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("state", _WORD, nullable=False),
        pa.field("stage", _WORD),
        pa.field("reason", _WORD),
        pa.field("retryable", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What became of a run's inputs.

    Attributes:
        counts: by model key, over all listed inputs.
        rows: LEDGER_SCHEMA, one row per planned input and model. `stage` and `retryable` are those
            of a failure; `reason` is that of a failure or a skip, or says how a missing one was
            lost.
    """

    run_id: str
    counts: Mapping[str, ModelCounts]
    rows: pa.Table

    @property
    def is_complete(self) -> bool:
        """Whether the counts add up for every model."""
        return all(counts.adds_up for counts in self.counts.values())

    @property
    def missing(self) -> pa.Table:
        """Those of `rows` that are lost."""
        return self.rows.filter(pc.equal(self.rows["state"].cast(pa.string()), "missing"))


class _Outcome(NamedTuple):
    """What a row of the ledger says beside its place."""

    state: State
    stage: str | None = None
    reason: str | None = None
    retryable: bool | None = None


class _Entries:
    """The inputs planned for one model; each is settled once, by the first who knows of it."""

    def __init__(self, is_planned: NDArray[np.bool_]) -> None:
        self.open = is_planned.copy()
        self._rows = np.flatnonzero(is_planned)
        self._codes = np.zeros(len(is_planned), np.int32)
        self._outcomes: dict[_Outcome, int] = {}

    def settle(self, which: NDArray[np.bool_], outcome: _Outcome) -> None:
        """Say what became of those of (N,) `which` that are open."""
        which = which & self.open
        if which.any():
            self._codes[which] = self._outcomes.setdefault(outcome, len(self._outcomes))
            self.open[which] = False

    def count(self) -> dict[_Outcome, int]:
        """How many inputs have each outcome."""
        numbers = np.bincount(self._codes[self._rows], minlength=len(self._outcomes)).tolist()
        return dict(zip(self._outcomes, numbers, strict=True))

    def table(self, model_key: str, plan: pa.Table) -> pa.Table:
        """As rows of the ledger."""
        codes = self._codes[self._rows]
        state, stage, reason, retryable = (
            zip(*self._outcomes, strict=True) if len(codes) else [()] * 4
        )
        words = [pa.array(each, pa.string()).dictionary_encode() for each in (state, stage, reason)]
        planned = plan.select(["shard", "path"]).take(pa.array(self._rows))
        model = pa.DictionaryArray.from_arrays(np.zeros(len(codes), np.int32), [model_key])
        values = [
            *(model, planned["shard"], planned["path"]),
            *(pc.take(word, codes) for word in words),
            pc.take(pa.array(retryable, pa.bool_()), codes),
        ]
        return pa.table(values, schema=LEDGER_SCHEMA)


def run_ledger(
    store: Store,
    run_id: str,
    *,
    stopped_by: Literal["stopped", "deadline"] | None = None,
    given_up: Mapping[int, str] | None = None,
    elsewhere: Collection[int] = (),
) -> Ledger:
    """Reconcile a run's plan with what is published.

    To be called after `publish`: what is committed and not published counts as missing.

    Args:
        store: that has the run.
        run_id: of it.
        stopped_by: why shards may lack a receipt; their inputs are then skipped, not missing.
        given_up: shards that failed as a whole, with a short reason; their inputs failed, and the
            next run tries them again.
        elsewhere: shards that were left to another run.

    Raises:
        KeyError: no such run.
    """
    run = store.run(run_id)
    with store.backend.open(layout.plan_key(run_id)) as file:
        plan = pq.read_table(file).combine_chunks()
    shards, masks = plan["shard"].to_numpy(), plan["model_mask"].to_numpy()
    committed = sorted(store.committed_shards(run_id))
    published = published_shards(store)
    is_published = np.isin(shards, [i for i in committed if shard_id(run_id, i) in published])
    inputs = _Inputs(store, run, plan)
    counts, tables = {}, []
    for bit, spec in enumerate(run.models):
        entries = _Entries((masks >> bit & 1).astype(np.bool_))
        inputs.settle(entries, spec.key)
        entries.settle(is_published, _Outcome("missing", reason="gone from the tables"))
        entries.settle(
            np.isin(shards, committed), _Outcome("missing", reason="committed, not published")
        )
        for index, reason in (given_up or {}).items():
            entries.settle(shards == index, _Outcome("failed", "shard", reason, True))
        entries.settle(np.isin(shards, sorted(elsewhere)), _Outcome("skipped", reason="other_run"))
        if stopped_by is not None:
            entries.settle(entries.open, _Outcome("skipped", reason=stopped_by))
        entries.settle(entries.open, _Outcome("missing", reason="its shard is not committed"))
        counts[spec.key] = _counts(run, spec.key, entries.count())
        tables.append(entries.table(spec.key, plan))
    return Ledger(run_id, counts, pa.concat_tables([LEDGER_SCHEMA.empty_table(), *tables]))


def end_run(
    store: Store, ledger: Ledger, *, stopped_by: str | None = None, error: str | None = None
) -> RunEnd:
    """Record how a run ended.

    Args:
        store: that has the run.
        ledger: of the run.
        stopped_by: what ended it early; None if nothing did.
        error: why it failed, though its ledger may add up: shards that were given up, say.
    """
    state: Literal["complete", "incomplete", "stopped", "failed"] = "complete"
    reason: str | None = None
    if error is not None:
        state, reason = "failed", error
    elif not ledger.is_complete:
        lost = sum(sum(counts.missing.values()) for counts in ledger.counts.values())
        state, reason = "incomplete", f"nothing is known of {lost} predictions"
    elif stopped_by is not None:
        state, reason = "stopped", stopped_by
    end = RunEnd(
        run_id=ledger.run_id,
        ended_at=datetime.now(UTC).isoformat(timespec="seconds"),
        state=state,
        reason=reason,
        ledger=dict(ledger.counts),
    )
    store.backend.put(layout.end_key(ledger.run_id), end.model_dump_json().encode())
    return end


def _counts(run: RunRecord, model_key: str, planned: Mapping[_Outcome, int]) -> ModelCounts:
    """Planned inputs by outcome, and those that the planner left out by its reasons."""
    by_state: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    skipped: Counter[SkipReason] = Counter()
    missing: Counter[str] = Counter()
    retryable = 0
    for outcome, number in planned.items():
        by_state[outcome.state] += number
        if outcome.state == "failed":
            failed[f"{outcome.stage}/{outcome.reason}"] += number
            retryable += number if outcome.retryable else 0
        elif outcome.state == "skipped":
            skipped[cast("SkipReason", outcome.reason)] += number
        elif outcome.state == "missing":
            missing[str(outcome.reason)] += number
    for reason in get_args(SkipReason):
        skipped[reason] += run.listing.get(f"skipped/{model_key}/{reason}", 0)
    num_planned = sum(planned.values())
    listed = run.listing.get("listed", num_planned)
    unexplained = listed - sum(by_state.values()) - sum(skipped.values()) + by_state["skipped"]
    if unexplained:
        missing["listed, but neither planned nor skipped"] = unexplained
    return ModelCounts(
        listed=listed,
        scored=by_state["scored"],
        scored_empty=by_state["scored_empty"],
        failed=dict(failed),
        retryable=retryable,
        skipped={reason: number for reason, number in skipped.items() if number},
        missing=dict(missing),
    )


class _Inputs:
    """What the tables say of a run's inputs."""

    def __init__(self, store: Store, run: RunRecord, plan: pa.Table) -> None:
        self._store, self._run, self._plan = store, run, plan
        self._of_run = [("run_id", "=", run.run_id), ("date", "=", run.date)]
        self._image_ids = self._find_image_ids()
        failures = store.table(
            "failures",
            columns=[
                *("path", "size_bytes", "modified", "image_id", "model_key"),
                *("stage", "reason", "retryable", "failed_at"),
            ],
            filters=[*self._of_run, ("collection", "=", run.collection)],
        )
        self._failures = failures.sort_by([("failed_at", "descending")])

    def settle(self, entries: _Entries, model_key: str) -> None:
        """Settle what the tables know of."""
        own = self._store.table(
            "images",
            model=model_key,
            columns=["path", "image_id", "n_detections", "n_captions", "semantic_array"],
            filters=self._of_run,
        )
        row = pc.index_in(self._plan["path"], value_set=own["path"])
        is_own = row.is_valid().to_numpy()
        is_empty = pc.take(self._are_empty(own, model_key), row).fill_null(False).to_numpy()
        entries.settle(is_own & is_empty, _Outcome("scored_empty"))
        entries.settle(is_own, _Outcome("scored"))
        if entries.open.any():
            is_copy = pc.is_in(self._image_ids, value_set=own["image_id"], skip_nulls=True)
            entries.settle(is_copy.to_numpy(), _Outcome("skipped", reason="duplicate"))
        if entries.open.any():
            self._settle_others(entries, model_key)
        if entries.open.any() and self._failures.num_rows:
            self._settle_failures(entries, model_key)

    def _are_empty(self, own: pa.Table, model_key: str) -> pa.ChunkedArray:
        """Which images have neither boxes, captions, a label map nor classes."""
        is_empty = pc.and_(
            pc.and_(pc.equal(own["n_detections"], 0), pc.equal(own["n_captions"], 0)),
            pc.is_null(own["semantic_array"]),
        )
        if not pc.any(is_empty).as_py():
            return is_empty
        labels = self._store.table(
            "labels",
            model=model_key,
            columns=["image_id"],
            filters=[("date", "=", self._run.date), ("rank", "=", 0)],
        )
        return pc.and_not(is_empty, pc.is_in(own["image_id"], value_set=labels["image_id"]))

    def _settle_others(self, entries: _Entries, model_key: str) -> None:
        """Inputs whose image another run has scored: before this one was planned, or since."""
        others = self._store.table(
            "images",
            model=model_key,
            columns=["image_id", "scored_at"],
            filters=[("run_id", "!=", self._run.run_id)],
        )
        row = pc.index_in(self._image_ids, value_set=others["image_id"], skip_nulls=True)
        scored_at = pc.take(others["scored_at"], row)
        planned_at = pa.scalar(datetime.fromisoformat(self._run.created_at), scored_at.type)
        is_later = pc.greater(scored_at, planned_at).fill_null(False).to_numpy()
        entries.settle(is_later, _Outcome("skipped", reason="other_run"))
        entries.settle(row.is_valid().to_numpy(), _Outcome("skipped", reason="predicted"))

    def _settle_failures(self, entries: _Entries, model_key: str) -> None:
        of_model = self._failures["model_key"]
        table = self._failures.filter(
            pc.or_kleene(pc.is_null(of_model), pc.equal(of_model, model_key))
        )
        row = pc.coalesce(  # by the file, else by a copy of its bytes; the first is the newest
            pc.index_in(input_keys(self._plan), value_set=input_keys(table)),
            pc.index_in(self._image_ids, value_set=table["image_id"], skip_nulls=True),
        )
        kinds = pc.binary_join_element_wise(
            table["stage"], table["reason"], table["retryable"].cast(pa.string()), "\0"
        )
        kinds = kinds.combine_chunks().dictionary_encode()
        kind_of = pc.take(kinds.indices, row).fill_null(-1).to_numpy()
        for number, text in enumerate(kinds.dictionary.to_pylist()):
            stage, reason, retryable = text.split("\0")
            outcome = _Outcome("failed", stage, reason, retryable == "true")
            entries.settle(kind_of == number, outcome)

    def _find_image_ids(self) -> pa.ChunkedArray:
        """Of each input, as planned or, for a file that was new, as catalogued since."""
        image_ids = self._plan["image_id"]
        if not image_ids.null_count:
            return image_ids
        catalog = self._store.table(
            "catalog",
            columns=["path", "size_bytes", "modified", "image_id"],
            filters=[("collection", "=", self._run.collection)],
        )
        catalog = catalog.filter(pc.is_in(catalog["path"], value_set=self._plan["path"]))
        row = pc.index_in(input_keys(self._plan), value_set=input_keys(catalog))
        return pc.coalesce(image_ids, pc.take(catalog["image_id"], row))
