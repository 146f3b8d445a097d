"""What is missing, cut into shards: the one operation behind a run, a retry and a backfill."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pixelmill.configs.schema import PreprocessConfig, RunConfig, ShardConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.ingest import Listing
from pixelmill.tasks.sharing import OpenRun, Wanted, adopt_shards
from pixelmill.tasks.software import describe_software
from pixelmill.tasks.store import PLAN, RunRecord, ShardRef, SkipReason, Store, new_run_id
from pixelmill.tasks.store.digests import Digests, contains, image_digests, input_keys

__all__ = ["Plan", "Reprocess", "cut_shards", "plan_run", "save_plan"]

Reprocess = Literal["missing", "failed", "all"]

_MAX_MODELS = 63  # bits of an int64 model mask that keep it positive
# Where there are several workers, small runs are cut finer than max_images, so that all of them
# get some; below this many images a shard's own costs (a receipt, a few files) begin to show.
_MIN_SHARD_IMAGES = 16
_SHARDS_PER_WORKER = 2
# What failed in as many runs is tried again all the same, but a person should look at it.
_MANY_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that is not stored yet, and why it is as it is. Counts are inputs of the listing.

    Attributes:
        record: None if nothing is missing: then no run is created.
        rows: schema PLAN, sorted by shard.
        num_listed: files found.
        num_problems: entries that could not be listed.
        num_new: not in the catalog with this size and modification: will be read, and may prove
            to be images that are known under another path.
        num_duplicates: known copies of an image that another row of the plan has.
        num_quarantined: skipped for at least one model, because they, or copies of them, failed
            for good and have not changed since.
        num_retried: planned for at least one model whose newest try failed.
        num_stubborn: of these, failed in three runs or more.
        num_missing: by model key: inputs to score.
        num_reused: by model key: inputs whose predictions are published.
        num_skipped: by model key and reason (see `SkipReason`): inputs that are not planned for it.
        num_bytes: of the files to read.
        adopted: shards of other runs that are scored together with them, or in their stead.
        seconds_estimated: from the throughput of earlier runs; None if a model has none yet.
    """

    record: RunRecord | None
    rows: pa.Table
    num_listed: int
    num_problems: int
    num_new: int
    num_duplicates: int
    num_quarantined: int
    num_retried: int
    num_stubborn: int
    num_missing: dict[str, int]
    num_reused: dict[str, int]
    num_skipped: dict[str, dict[SkipReason, int]]
    num_bytes: int
    num_shards: int
    adopted: tuple[ShardRef, ...]
    seconds_estimated: float | None

    @property
    def num_unchanged(self) -> int:
        """Inputs that the catalog knows: they are not hashed again."""
        return self.num_listed - self.num_new

    @property
    def num_planned(self) -> int:
        """Inputs to read and score by one model at least."""
        return self.rows.num_rows

    @property
    def num_adopted(self) -> int:
        """Inputs of the adopted shards."""
        return sum(shard.num_images for shard in self.adopted)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to score."""
        return not self.num_planned and not self.adopted


def plan_run(
    store: Store,
    listing: Listing,
    specs: Sequence[ModelSpec],
    config: RunConfig,
    *,
    collection: str,
    source: str,
    date: str,
    reprocess: Reprocess = "missing",
    num_workers: int = 1,
    open_runs: Sequence[OpenRun] = (),
) -> Plan:
    """Find what the models have not scored, and cut it into shards.

    To be called after `publish`: what is committed and not published would be planned again.
    Nothing is written. The same store, listing and arguments give the same rows.

    Args:
        store: whose published predictions count.
        listing: of the source, joined to the store's catalog of the collection.
        specs: models; the first one's canvases decide which images share a shard.
        config: its `shard` limits hold; the whole is kept in the record.
        collection: slug under which the catalog knows the source.
        source: kept in the record.
        date: logical date of the batch, YYYY-MM-DD.
        reprocess: `missing`: what has no published prediction and did not fail for good; `failed`:
            that, and what failed for good; `all`: every input, of which the store then drops what
            was published before.
        num_workers: for the estimate, and to give all workers a shard of a small run.
        open_runs: what is in their shards is not planned again.

    Raises:
        ValueError: no model, more than 63, or two with the same key.
    """
    keys = [spec.key for spec in specs]
    if not 1 <= len(keys) <= _MAX_MODELS or len(set(keys)) < len(keys):
        raise ValueError(
            f"expected 1 to {_MAX_MODELS} models with different keys, got {len(keys)}: "
            f"{', '.join(keys)}"
        )
    images = listing.images
    is_known, digests = _digests(images["image_id"])
    failures = _Failures(store, collection, images)
    model_mask = np.zeros(images.num_rows, np.int64)
    quarantined = np.zeros(images.num_rows, np.bool_)
    retried = np.zeros(images.num_rows, np.bool_)
    num_tries = np.zeros(images.num_rows, np.int64)
    num_reused: dict[str, int] = {}
    num_skipped: dict[str, dict[SkipReason, int]] = {key: {} for key in keys}
    for bit, key in enumerate(keys):
        is_published = np.zeros(images.num_rows, np.bool_)
        is_published[is_known] = contains(store.published_ids(key), digests)
        num_reused[key] = int(is_published.sum())
        missing = np.ones_like(is_published) if reprocess == "all" else ~is_published
        num_skipped[key]["predicted"] = int((~missing).sum())
        tries, for_good = failures.newest(key)
        if reprocess == "missing":
            quarantined |= missing & for_good
            num_skipped[key]["quarantined"] = int((missing & for_good).sum())
            missing &= ~for_good
        retried |= missing & (tries > 0) & ~is_published
        num_tries = np.maximum(num_tries, tries)
        model_mask[missing] |= 1 << bit
    is_copy = _repeats(is_known, digests, model_mask)
    for bit, key in enumerate(keys):
        num_skipped[key]["duplicate"] = int((model_mask[is_copy] >> bit & 1).sum())
    model_mask[is_copy] = 0
    wanted = Wanted(
        images, model_mask, tuple(specs), collection, date, config.model_dump(mode="json")
    )
    adopted, brought = adopt_shards(store, open_runs, wanted)
    for bit, key in enumerate(keys):
        num_skipped[key]["other_run"] = int((brought >> bit & 1).sum())
    model_mask &= ~brought
    planned = model_mask != 0
    rows = _plan_rows(
        images.filter(pa.array(planned)),
        model_mask[planned],
        specs[0].preprocess,
        config.shard,
        num_workers,
    )
    num_missing = {key: int((model_mask >> bit & 1).sum()) for bit, key in enumerate(keys)}
    plan = Plan(
        record=None,
        rows=rows,
        num_listed=images.num_rows,
        num_problems=listing.problems.num_rows,
        num_new=images.num_rows - int(is_known.sum()),
        num_duplicates=int(is_copy.sum()),
        num_quarantined=int(quarantined.sum()),
        num_retried=int((retried & planned).sum()),
        num_stubborn=int((retried & planned & (num_tries >= _MANY_FAILURES)).sum()),
        num_missing=num_missing,
        num_reused=num_reused,
        num_skipped=num_skipped,
        num_bytes=pc.sum(rows["size_bytes"]).as_py() or 0,
        num_shards=rows["shard"][-1].as_py() + 1 if rows.num_rows else 0,
        adopted=adopted,
        seconds_estimated=_estimate(num_missing, store.throughput(), num_workers),
    )
    if not rows.num_rows:
        return plan
    run_id = new_run_id(after=next(reversed(store.runs()), None))
    return replace(plan, record=_record(run_id, plan, specs, config, collection, source, date))


def save_plan(store: Store, plan: Plan, session: str = "") -> RunRecord:
    """Write a plan to the store: from then on its run exists.

    Args:
        store: that it was made for.
        plan: with something missing.
        session: that works on it; without one, other runs take it for dead.

    Raises:
        ValueError: nothing is missing, so there is no run.
    """
    if plan.record is None:
        raise ValueError("nothing is missing, so there is no run to create; look at plan.record")
    record = plan.record.model_copy(update={"session": session})
    store.create_run(record, plan.rows)
    return record


def _record(
    run_id: str,
    plan: Plan,
    specs: Sequence[ModelSpec],
    config: RunConfig,
    collection: str,
    source: str,
    date: str,
) -> RunRecord:
    return RunRecord(
        run_id=run_id,
        date=date,
        collection=collection,
        source=source,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config.model_dump(mode="json"),
        models=tuple(specs),
        num_images=plan.num_planned,
        num_shards=plan.num_shards,
        software=describe_software(),
        listing={
            "listed": plan.num_listed,
            "problems": plan.num_problems,
            "new": plan.num_new,
            "unchanged": plan.num_unchanged,
            "duplicates": plan.num_duplicates,
            "quarantined": plan.num_quarantined,
            "retried": plan.num_retried,
            "bytes": plan.num_bytes,
        }
        | {f"missing/{key}": number for key, number in plan.num_missing.items()}
        | {f"reused/{key}": number for key, number in plan.num_reused.items()}
        | {
            f"skipped/{key}/{reason}": number
            for key, reasons in plan.num_skipped.items()
            for reason, number in reasons.items()
        },
    )


def _estimate(
    num_missing: dict[str, int], images_per_second: dict[str, float], num_workers: int
) -> float | None:
    seconds = 0.0
    for key, number in num_missing.items():
        if number and key not in images_per_second:
            return None
        if number:
            seconds += number / images_per_second[key]
    return seconds / num_workers


# --- What is missing ------------------------------------------------------------------------------


def _digests(image_id: pa.ChunkedArray) -> tuple[NDArray[np.bool_], Digests]:
    """Which rows have an id, and the digests of those ids."""
    return image_id.is_valid().to_numpy(), image_digests(image_id.drop_null())


def _repeats(
    is_known: NDArray[np.bool_], digests: NDArray[np.bytes_], model_mask: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Planned rows whose image an earlier row has, for the same models."""
    repeats = np.zeros(len(is_known), np.bool_)
    rows = np.flatnonzero(is_known)
    is_planned = model_mask[rows] != 0
    rows, halves = rows[is_planned], digests[is_planned].view(">u8").reshape(-1, 2)
    masks = model_mask[rows]
    order = np.lexsort((masks, halves[:, 1], halves[:, 0]))  # stable: the first path stays first
    same = masks[order[1:]] == masks[order[:-1]]
    same &= (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    repeats[rows[order[1:][same]]] = True
    return repeats


class _Failures:
    """The newest failure of each input in its present state, or of a copy of its bytes.

    A worker tries the bytes of an image once, so of several copies only one may have the failure.
    """

    def __init__(self, store: Store, collection: str, images: pa.Table) -> None:
        columns = ["path", "size_bytes", "modified", "image_id", "model_key", "retryable", "run_id"]
        of_collection = [("collection", "=", collection)]
        table = store.table("failures", columns=columns, filters=of_collection)
        # By the order of publication, which does not go back when a clock does
        self._table = table.take(pa.array(np.arange(table.num_rows)[::-1]))
        self._inputs = input_keys(images) if table.num_rows else None
        self._image_ids = images["image_id"]

    def newest(self, model_key: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """In how many runs inputs failed, before or in this model, and which the last for good."""
        if self._inputs is None:
            number = len(self._image_ids)
            return np.zeros(number, np.int64), np.zeros(number, np.bool_)
        of_model = self._table["model_key"]
        table = self._table.filter(
            pc.or_kleene(pc.is_null(of_model), pc.equal(of_model, model_key))
        )
        failed = input_keys(table)
        row = pc.min_element_wise(  # the first, so the newest
            pc.index_in(self._inputs, value_set=failed),
            pc.index_in(self._image_ids, value_set=table["image_id"], skip_nulls=True),
        )
        retryable = pc.take(table["retryable"], row)
        by_input = pa.table({"input": failed, "run_id": table["run_id"]})
        by_input = by_input.group_by("input").aggregate([("run_id", "count_distinct")])
        place = pc.index_in(self._inputs, value_set=by_input["input"])
        num_runs = pc.take(by_input["run_id_count_distinct"], place)
        num_runs = pc.coalesce(num_runs, row.is_valid().cast(pa.int64()))  # a copy's failure is one
        for_good = pc.equal(retryable, False).fill_null(False)
        return num_runs.to_numpy(), for_good.to_numpy()


# --- Shards ---------------------------------------------------------------------------------------

_UNKNOWN_PIXELS = 2_000_000  # taken for an image whose header could not be read


def _plan_rows(
    images: pa.Table,
    model_mask: NDArray[np.int64],
    preprocess: PreprocessConfig,
    limits: ShardConfig,
    num_workers: int,
) -> pa.Table:
    """Inputs of the same models and canvas side by side, in the order of their paths."""
    width = images["width"].fill_null(0).to_numpy().astype(np.int64)
    height = images["height"].fill_null(0).to_numpy().astype(np.int64)
    order = np.lexsort((_canvas_index(width, height, preprocess), model_mask))
    pixels = np.where(width > 0, width * height, _UNKNOWN_PIXELS)[order]
    max_images = limits.max_images
    if num_workers > 1:
        share = math.ceil(len(order) / (num_workers * _SHARDS_PER_WORKER))
        max_images = min(max_images, max(_MIN_SHARD_IMAGES, share))
    rows = images.take(pa.array(order))
    rows = rows.append_column("shard", pa.array(cut_shards(pixels, max_images, limits.max_pixels)))
    rows = rows.append_column("model_mask", pa.array(model_mask[order]))
    return rows.select(PLAN.names).cast(PLAN)


def _canvas_index(
    width: NDArray[np.int64], height: NDArray[np.int64], preprocess: PreprocessConfig
) -> NDArray[np.int64]:
    """The canvas that each image fills most, as `choose_canvas` of the engine; a sort key only."""
    canvases = sorted(preprocess.canvases, key=lambda canvas: -canvas[0] * canvas[1])
    shares = np.empty((len(canvases), len(width)))
    for share, (canvas_height, canvas_width) in zip(shares, canvases, strict=True):
        across, along = width * canvas_height, height * canvas_width
        np.divide(np.minimum(across, along), np.maximum(np.maximum(across, along), 1), out=share)
    return np.where(width > 0, shares.argmax(axis=0), len(canvases))


def cut_shards(pixels: NDArray[np.int64], max_images: int, max_pixels: int) -> NDArray[np.int32]:
    """The shard of each row: consecutive, each as long as both limits allow, never empty.

    Args:
        pixels: (N,) of each image.
        max_images: per shard.
        max_pixels: per shard; an image that has more is alone.
    """
    ends = np.cumsum(pixels)
    shards = np.empty(len(pixels), np.int32)
    start, shard, before = 0, 0, 0
    while start < len(pixels):
        full = int(np.searchsorted(ends, before + max_pixels, side="right"))
        end = max(start + 1, min(full, start + max_images))
        shards[start:end] = shard
        start, shard, before = end, shard + 1, int(ends[end - 1])
    return shards
