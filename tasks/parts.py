"""How the parts of a collection stand, read from the store alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pixelmill.configs.schema import RunConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.ingest import Listing, find_rows
from pixelmill.tasks.partition import join_parts
from pixelmill.tasks.plan import plan_run
from pixelmill.tasks.store import Store

__all__ = ["PartStatus", "Status", "part_statuses"]

Status = Literal["done", "partial", "missing", "failed"]

# A plan of a million takes 0.8 GB
_IMAGES_AT_ONCE = 1_000_000


@dataclass(frozen=True, slots=True)
class PartStatus:
    """How a part stands.

    Attributes:
        status: done; failed: nothing to do but some images failed for good; missing: nothing has
            been scored; partial: the rest.
        num_missing: images that lack a prediction of some model, and did not fail for good.
        num_failed: images that failed for good, and have not changed since.
    """

    part: str
    status: Status
    num_images: int
    num_missing: int
    num_failed: int


def part_statuses(
    store: Store,
    parts: Mapping[str, Listing],
    specs: Sequence[ModelSpec],
    config: RunConfig,
    *,
    collection: str,
) -> tuple[PartStatus, ...]:
    """What each part lacks; several parts are planned at once, as a plan reads the store.

    Args:
        store: to be called after `publish`.
        parts: in this order.
        specs: models that are to have scored all.
        config: of the run.
        collection: of the parts.
    """
    plan = partial(plan_run, store, collection=collection, source="", date="1970-01-01")
    found: list[PartStatus] = []
    for names, listing in join_parts(parts, _IMAGES_AT_ONCE):
        missing = plan(listing, specs, config, reprocess="missing").rows
        failed = plan(listing, specs, config, reprocess="failed").rows
        sizes = [parts[name].images.num_rows for name in names]
        part_of = np.repeat(np.arange(len(names)), sizes)
        num_missing = _count(missing, listing, part_of, len(names))
        num_either = _count(failed, listing, part_of, len(names))
        is_whole = missing["model_mask"].to_numpy() == (1 << len(specs)) - 1
        num_untouched = _count(missing.filter(pa.array(is_whole)), listing, part_of, len(names))
        for index, name in enumerate(names):
            of_both = int(num_either[index] - num_missing[index])
            is_untouched = num_untouched[index] == sizes[index]
            status = _name_status(int(num_missing[index]), of_both, bool(is_untouched))
            found.append(PartStatus(name, status, sizes[index], int(num_missing[index]), of_both))
    return tuple(found)


def _count(
    planned: pa.Table, listing: Listing, part_of: NDArray[np.int64], num_parts: int
) -> NDArray[np.int64]:
    """(num_parts,) inputs of each part that are planned."""
    row = find_rows(planned, listing.images).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.bincount(part_of[row], minlength=num_parts)


def _name_status(num_missing: int, num_failed: int, is_untouched: bool) -> Status:
    if not num_missing:
        return "failed" if num_failed else "done"
    return "missing" if is_untouched else "partial"
