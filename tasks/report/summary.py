"""What a store says of one collection and run, in numbers: the report's first half."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.stage_table import StageLine, stage_lines
from pixelmill.tasks.engine.telemetry import bottleneck, sum_stats
from pixelmill.tasks.metrics.results import Evaluation
from pixelmill.tasks.store import Receipt, RunRecord, Store

__all__ = ["EngineUse", "FailureGroup", "ModelLedger", "RunSummary", "summarise_run"]

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class ModelLedger:
    """How many of the collection's images are in which state for one model.

    The four states are disjoint and add up to the collection's images.

    Attributes:
        name: the model's name without its digest.
        num_scored: with a published prediction that says something.
        num_empty: with a published prediction of no box, caption or label.
        num_failed: without prediction, and the newest try failed.
        num_missing: without prediction or failure.
    """

    model_key: str
    name: str
    task: str
    num_scored: int
    num_empty: int
    num_failed: int
    num_missing: int


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed tries of one stage for one reason.

    Attributes:
        num_tries: rows; num_images: different paths among them.
        num_open: of these paths, those that no later try has scored.
        example_paths: the first few by name, those still open first.
        message: of the newest.
    """

    stage: str
    reason: str
    num_tries: int
    num_images: int
    num_open: int
    retryable: bool
    example_paths: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True)
class EngineUse:
    """By which engine a model was run.

    Attributes:
        engine: with its precision.
        gate: how it compares with PyTorch in float32 there, or "reference": it is that.
        num_shards: of the run that were scored so.
    """

    model_key: str
    engine: str
    gate: str
    num_shards: int


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A collection as it stands, and what the run did.

    Attributes:
        run_id: None where the collection was never scored; the fields from `date` to
            `output_bytes` are then empty or zero.
        num_images: different paths of the collection.
        num_committed: shards with a receipt, of `num_shards`.
        num_inputs: images in these shards.
        images_per_second: median over the shards, per worker; None without record.
        stages: of all shards together.
        bottleneck: what bounds the throughput and what would relieve it; empty where the receipts
            do not tell.
        input_bytes: size of the collection's scored images.
        output_bytes: size of the tables and mask stores that the run's receipts name.
        engines: of each model of the run, the most used first.
    """

    collection: str
    run_id: str | None
    date: str
    source: str
    created_at: str
    num_images: int
    ledgers: tuple[ModelLedger, ...]
    failures: tuple[FailureGroup, ...]
    num_shards: int
    num_committed: int
    num_inputs: int
    images_per_second: float | None
    stages: tuple[StageLine, ...]
    bottleneck: str
    input_bytes: int
    output_bytes: int
    engines: tuple[EngineUse, ...] = ()


def find_run(store: Store, collection: str, run_id: str | None) -> RunRecord | None:
    """The run asked for, else the newest run of the collection, else None."""
    if run_id is not None:
        return store.run(run_id)
    for candidate in sorted(store.runs(), reverse=True):
        record = store.run(candidate)
        if record.collection == collection:
            return record
    return None


def find_models(
    store: Store, record: RunRecord | None, evaluation: Evaluation | None
) -> dict[str, ModelSpec]:
    """The run's models in its order, then any others that were evaluated, by key.

    Raises:
        KeyError: a model was evaluated that the store does not know.
    """
    models = {spec.key: spec for spec in record.models} if record else {}
    others = {result.model_key for result in evaluation.models} if evaluation else set()
    for key in sorted(others - models.keys()):
        published = store.models()
        if key not in published:
            raise KeyError(
                f"the evaluation speaks of model {key!r}, which {store.root!r} does not have; "
                "give the evaluation that was made of this store"
            )
        models[key] = published[key]
    return models


def collection_images(store: Store, collection: str) -> pd.DataFrame:
    """The collection's images as they were last seen.

    Returns:
        path, image_id (None where the bytes were never read), source_uri; one row per path, sorted
        by path.
        Failed paths that never reached the catalog are among them.
    """
    catalog = store.catalog(collection)[["path", "image_id", "source_uri"]]
    failures = _failures(store, collection)[["path", "image_id", "source_uri"]]
    # a known identity is worth more than a failure's row; of several, the last was seen last
    both = pd.concat([failures, catalog]).astype({"path": object, "image_id": object})
    last = both.drop_duplicates("path", keep="last").sort_values("path")
    last["image_id"] = last["image_id"].where(last["image_id"].notna(), None)
    return last.reset_index(drop=True)


def _failures(store: Store, collection: str) -> pd.DataFrame:
    failures = store.failures()
    return failures[failures["collection"] == collection].sort_values(
        ["failed_at", "path"], kind="stable"
    )


def _ledger(
    store: Store,
    images: pd.DataFrame,
    failures: pd.DataFrame,
    spec: ModelSpec,
) -> ModelLedger:
    columns = ["image_id", "n_detections", "n_captions"]
    published = store.table("images", model=spec.key, columns=columns).to_pandas()
    has_row = images["image_id"].isin(published["image_id"])
    counted = {
        "detection": "n_detections",
        "instance_segmentation": "n_detections",
        "captioning": "n_captions",
    }.get(spec.task)
    is_empty = pd.Series(False, index=images.index)
    if counted is not None:
        empty_ids = published.loc[published[counted] == 0, "image_id"]
        is_empty = images["image_id"].isin(empty_ids)
    of_model = failures["model_key"].isna() | (failures["model_key"] == spec.key)
    has_failed = ~has_row & images["path"].isin(failures.loc[of_model, "path"])
    return ModelLedger(
        model_key=spec.key,
        name=spec.name,
        task=spec.task,
        num_scored=int((has_row & ~is_empty).sum()),
        num_empty=int(is_empty.sum()),
        num_failed=int(has_failed.sum()),
        num_missing=int((~has_row & ~has_failed).sum()),
    )


def _group_failures(failures: pd.DataFrame, open_paths: set[str]) -> tuple[FailureGroup, ...]:
    groups = []
    for (stage, reason), rows in failures.groupby(["stage", "reason"], sort=True, dropna=False):
        paths = sorted(set(rows["path"]), key=lambda path: (path not in open_paths, path))
        newest = rows.iloc[-1]
        groups.append(
            FailureGroup(
                stage=str(stage),
                reason=str(reason),
                num_tries=len(rows),
                num_images=len(paths),
                num_open=len(open_paths.intersection(paths)),
                retryable=bool(newest["retryable"]),
                example_paths=tuple(paths[:_EXAMPLES]),
                message=str(newest["message"] or ""),
            )
        )
    return tuple(sorted(groups, key=lambda group: (-group.num_images, group.stage, group.reason)))


def open_failures(store: Store, collection: str, model_keys: Iterable[str]) -> pd.DataFrame:
    """Failures of paths that no later try has scored.

    Returns:
        The failures table's columns; the newest per path, sorted by path.
    """
    images = collection_images(store, collection)
    failures = _failures(store, collection)
    pending: set[str] = set()
    for model_key in model_keys:
        ids = store.table("images", model=model_key, columns=["image_id"]).to_pandas()["image_id"]
        done = set(images.loc[images["image_id"].isin(ids), "path"])
        of_model = failures["model_key"].isna() | (failures["model_key"] == model_key)
        pending |= set(failures.loc[of_model, "path"]) - done
    newest = failures[failures["path"].isin(pending)].drop_duplicates("path", keep="last")
    return newest.sort_values("path").reset_index(drop=True)


def _rate(receipts: Sequence[Receipt]) -> float | None:
    """Median over the shards of inputs per second of the shard's worker."""
    walls = [(receipt.num_inputs, receipt.stats.get("wall_s")) for receipt in receipts]
    rates = [count / wall for count, wall in walls if isinstance(wall, int | float) and wall > 0]
    return statistics.median(rates) if rates else None


def _engines(receipts: Sequence[Receipt], model_keys: Iterable[str]) -> tuple[EngineUse, ...]:
    """What the shards' workers said that they used."""
    used = []
    for key in model_keys:
        pairs = Counter(
            (str(receipt.stats[f"engine/{key}"]), str(receipt.stats.get(f"gate/{key}", "")))
            for receipt in receipts
            if f"engine/{key}" in receipt.stats
        )
        used += [EngineUse(key, *pair, count) for pair, count in pairs.most_common()]
    return tuple(used)


def _mask_bytes(store: Store, receipts: Sequence[Receipt]) -> int:
    """Size of the receipts' mask stores, by one listing per folder that holds them."""
    stores = {path for receipt in receipts for path in receipt.mask_stores.values()}
    total = 0
    for folder in sorted({path.rpartition("/")[0] for path in stores}):
        depth = folder.count("/") + 2
        for entry in store.backend.list(f"{folder}/"):
            if "/".join(entry.key.split("/")[:depth]) in stores:
                total += entry.size_bytes
    return total


def _input_bytes(store: Store, image_ids: pd.Series, model_keys: Iterable[str]) -> int:
    """Size of the scored images, each counted once."""
    columns = ["image_id", "size_bytes"]
    tables = [store.table("images", model=key, columns=columns).to_pandas() for key in model_keys]
    if not tables:
        return 0
    rows = pd.concat(tables).drop_duplicates("image_id")
    # a join of hashes; `isin` of text columns is ten times as slow
    return int(rows.merge(image_ids.dropna().drop_duplicates(), on="image_id")["size_bytes"].sum())


def summarise_run(
    store: Store,
    *,
    collection: str,
    run_id: str | None = None,
    evaluation: Evaluation | None = None,
) -> RunSummary:
    """Count a collection's images by state, and sum up a run from its receipts.

    Args:
        store: published tables are read, whole columns and no pictures.
        collection: name in the catalog; an unknown one has no images.
        run_id: None for the collection's newest run.
        evaluation: its models are counted beside the run's.

    Raises:
        KeyError: no such run, or an evaluated model that the store does not know.
    """
    record = find_run(store, collection, run_id)
    models = find_models(store, record, evaluation)
    images = collection_images(store, collection)
    failures = _failures(store, collection)
    still_open = set(open_failures(store, collection, models)["path"])
    receipts = store.receipts(record.run_id) if record else []
    ledgers = [_ledger(store, images, failures, spec) for spec in models.values()]
    stats = sum_stats(receipt.stats for receipt in receipts)
    table_bytes = sum(file.size_bytes for receipt in receipts for file in receipt.files)
    return RunSummary(
        collection=collection,
        run_id=record.run_id if record else None,
        date=record.date if record else "",
        source=record.source if record else "",
        created_at=record.created_at if record else "",
        num_images=len(images),
        ledgers=tuple(ledgers),
        failures=_group_failures(failures, still_open),
        num_shards=record.num_shards if record else 0,
        num_committed=len({receipt.shard_id for receipt in receipts}),
        num_inputs=sum(receipt.num_inputs for receipt in receipts),
        images_per_second=_rate(receipts),
        stages=stage_lines(stats),
        bottleneck=bottleneck(stats) if stats.get("num_decoded") else "",
        input_bytes=_input_bytes(store, images["image_id"], models),
        output_bytes=table_bytes + _mask_bytes(store, receipts),
        engines=_engines(receipts, models),
    )
