"""Pruning: predictions of models that are retired, or of dates long past, leave the tables."""

from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow.parquet as pq

from pixelmill.configs.schema import TaskName
from pixelmill.tasks.store import layout
from pixelmill.tasks.store.change import Change
from pixelmill.tasks.store.publish import publish
from pixelmill.tasks.store.reader import Store
from pixelmill.tasks.store.schemas import TABLES

__all__ = ["Pruned", "prune"]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What left the tables of one model.

    Attributes:
        dates: logical dates, sorted.
        num_images: rows of images.
        num_parts: files of all its tables.
        num_mask_stores: Zarr stores that no row names any more; `collect_garbage` deletes them.
    """

    model_key: str
    dates: tuple[str, ...]
    num_images: int
    num_parts: int
    num_mask_stores: int


def prune(
    store: Store,
    *,
    model: str | None = None,
    before: str | None = None,
    promoted: Literal["refuse", "keep", "remove"] = "refuse",
    dry_run: bool = False,
) -> list[Pruned]:
    """Remove predictions.

    One step for each model: `Store` shows all of its rows or none; who lists folders sees rows of
    images go first. Masks stay until they are garbage, so that a reader that has just found their
    rows can read them. The images then count as not scored by that model, should it be run again.
    Failures stay.

    Args:
        store: whose predictions.
        model: a key, or the name that several versions have in common; None for all.
        before: a logical date, YYYY-MM-DD: only what is older.
        promoted: what to do if a promoted model is among them: `refuse`, `keep` or `remove` it.
        dry_run: only tell.

    Returns:
        What was removed, by model.

    Raises:
        KeyError: nothing is published of such a model.
        ValueError: neither `model` nor `before` is given, or a promoted model is among them.
    """
    if model is None and before is None:
        raise ValueError("name a model or a date: everything is not pruned at once")
    if not dry_run:
        publish(store)  # what is committed now would come back with the next publication
    published = {part.partitions["model"] for part in store.parts("images")}
    keys = sorted(key for key in published if model in (None, key, key.rpartition("-")[0]))
    if not keys and model is not None:
        raise KeyError(
            f"nothing is published of a model {model!r}; there are: {', '.join(sorted(published))}"
        )
    tasks = {key: task for task in get_args(TaskName) for key in store.current(task)}
    current = [key for key in keys if key in tasks and _parts(store, key, before)]
    if current and promoted == "refuse":
        raise ValueError(
            f"promoted models are among them: {', '.join(current)}; keep them, roll them back "
            "first, or say that they shall go too"
        )
    if promoted == "keep":
        keys = [key for key in keys if key not in current]
    found = (_prune_model(store, key, before, dry_run) for key in keys)
    return [pruned for pruned in found if pruned is not None]


def _prune_model(store: Store, key: str, before: str | None, dry_run: bool) -> Pruned | None:
    while True:
        parts = _parts(store, key, before)
        if not parts:
            return None
        images = [part for part in parts if part.table == "images"]
        try:
            masks = [_mask_stores(store, part) for part in images]
        except FileNotFoundError:  # merged with others meanwhile
            continue
        named = {path for column in masks for path in column if path is not None}
        if dry_run or Change(store, "prune", parts, mask_stores=sorted(named)).commit():
            return Pruned(
                model_key=key,
                dates=tuple(sorted({part.partitions["date"] for part in parts})),
                num_images=sum(len(column) for column in masks),
                num_parts=len(parts),
                num_mask_stores=len(named),
            )


def _parts(store: Store, key: str, before: str | None) -> list[layout.Part]:
    """All parts of a model's predictions that are older than a date."""
    return [
        part
        for name, table in TABLES.items()
        if "model" in table.partitions
        for part in store.parts(name, model=key)
        if before is None or part.partitions["date"] < before
    ]


def _mask_stores(store: Store, part: layout.Part) -> list[str | None]:
    """The mask store of each of a part's images."""
    with store.backend.open(part.path) as file:
        column: list[str | None] = pq.read_table(file, columns=["mask_store"])[0].to_pylist()
    return column
