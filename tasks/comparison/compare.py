"""Compare two sides, model by model, without truth and where there is truth with it."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.comparison.boxes import BoxTally
from pixelmill.tasks.comparison.labels import LabelTally
from pixelmill.tasks.comparison.results import Comparison, ImageChange, ModelComparison
from pixelmill.tasks.comparison.sentences import CaptionTally
from pixelmill.tasks.comparison.sides import (
    KIND_OF_TASK,
    ModelRows,
    Side,
    chunks,
    pair_models,
    scored_ids,
)
from pixelmill.tasks.comparison.walks import Pair, walk_of
from pixelmill.tasks.settings import flatten_settings, setting_differences
from pixelmill.tasks.slices import TruthComparison
from pixelmill.tasks.stage import stage

__all__ = ["ImageSink", "TruthReader", "compare_models", "compare_sides", "compare_task"]

# (model A, model B, changes of some images): called with every image, chunk by chunk
ImageSink = Callable[[str, str, Sequence[ImageChange]], None]
# keys of model A and model B -> their numbers with truth
TruthReader = Callable[[str, str], tuple[TruthComparison, ...]]

_KEPT_IMAGES = 200


def compare_sides(
    a: Side,
    b: Side,
    *,
    collection: str | None = None,
    sample: int | None = None,
    with_masks: bool = True,
    sink: ImageSink | None = None,
    read_truth: TruthReader | None = None,
) -> Comparison:
    """Compare every model of A with its counterpart in B, on the images that both have scored.

    Args:
        a: one side.
        b: the other; numbers are B's less A's.
        collection: only its images; None: all.
        sample: at most so many images, the same on every call; None: all.
        with_masks: read instance masks too, which takes most of the time; label maps are read
            anyway.
        sink: is given every image's change; the result holds the largest only.
        read_truth: compares two models by truth, such as `compare_by_truth`; None: there is none.

    Raises:
        ValueError: no model of A has a counterpart in B, or they share no image.
    """
    pairs, skipped = pair_models(a, b)
    if not pairs:
        raise ValueError(
            f"no model of {a.name} ({', '.join(a.models) or 'none'}) can be compared with one of "
            f"{b.name} ({', '.join(b.models) or 'none'}): give two of one task, by --model where "
            "there are several"
        )
    compared = tuple(
        compare_models(
            a, b, first, second, collection=collection, sample=sample, with_masks=with_masks,
            sink=sink,
        )
        for first, second in pairs
    )  # fmt: skip
    if not any(pair.num_images for pair in compared):
        raise ValueError(
            f"{a.name} and {b.name} share no image, so there is nothing to pair; "
            "`pixelmill health` compares nights of different images"
        )
    if read_truth is not None:
        compared = tuple(
            replace(pair, truth=read_truth(pair.model_a, pair.model_b)) for pair in compared
        )
    return Comparison(
        a=a.name,
        b=b.name,
        root_a=a.store.root,
        root_b=b.store.root,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        pairs=compared,
        skipped=skipped,
    )


def compare_models(
    a: Side,
    b: Side,
    spec_a: ModelSpec,
    spec_b: ModelSpec,
    *,
    collection: str | None = None,
    sample: int | None = None,
    with_masks: bool = True,
    sink: ImageSink | None = None,
) -> ModelComparison:
    """Compare one model of A with one of B; arguments as of `compare_sides`."""
    ids_a, ids_b = scored_ids(a, spec_a.key, collection), scored_ids(b, spec_b.key, collection)
    common = np.intersect1d(ids_a, ids_b, assume_unique=True)
    compared = common[:sample]  # ids are digests: the first are a random sample
    kind = KIND_OF_TASK[spec_a.task]
    rows_a = ModelRows(a.store, spec_a.key, compared)
    rows_b = ModelRows(b.store, spec_b.key, compared)
    pair = Pair(rows_a, rows_b, spec_a, spec_b)
    walk = walk_of(kind, pair, with_masks)
    largest: list[tuple[float, str, ImageChange]] = []
    for image_ids in chunks(compared):
        changes = list(walk.compare(pair, image_ids))
        if sink is not None:
            sink(spec_a.key, spec_b.key, changes)
        for change in changes:
            if change.change > 0:
                heapq.heappush(largest, (change.change, change.image_id, change))
                if len(largest) > _KEPT_IMAGES:
                    heapq.heappop(largest)
    tally = walk.tally
    notes = []
    if len(compared) < len(common):
        notes.append(f"a sample of {len(compared):,} of {len(common):,} common images")
    return ModelComparison(
        kind=kind,
        model_a=spec_a.key,
        model_b=spec_b.key,
        num_images=len(compared),
        only_a=len(ids_a) - len(common),
        only_b=len(ids_b) - len(common),
        recipe=_recipe(spec_a, spec_b),
        headline=tally.headline() if len(compared) else (),
        findings=tally.findings(),
        per_class=tally.per_class(),
        images=tuple(one for _, _, one in sorted(largest, key=lambda item: (-item[0], item[1]))),
        flips=None if isinstance(tally, CaptionTally) else tally.confusion(),
        scores=tally.score_shift() if isinstance(tally, BoxTally | LabelTally) else None,
        notes=(*notes, *walk.notes),
    )


def _recipe(a: ModelSpec, b: ModelSpec) -> tuple[tuple[str, str, str], ...]:
    """Settings in which two descriptions differ, as dotted names."""
    hidden = {"weights_path", "decode_path", "quantized_path", "engine_note", "batch_size", "trust"}
    flat_a, flat_b = (
        flatten_settings(spec.model_dump(mode="json", exclude=hidden)) for spec in (a, b)
    )
    return tuple(
        (name, _shortened(first), _shortened(second))
        for name, first, second in sorted(setting_differences(flat_a, flat_b))
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


compare_task = stage("compare")(compare_sides)
