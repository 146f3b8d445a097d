"""The canary of a backfill: a sample is scored first, and compared with the current model."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from pixelmill.flows.job import Job
from pixelmill.flows.neighbours import Neighbours
from pixelmill.flows.score import score_listings
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.canary import Canary, broken_gates, choose_sample, unmeasured
from pixelmill.tasks.comparison.compare import compare_models
from pixelmill.tasks.comparison.sides import Side
from pixelmill.tasks.ingest import Listing
from pixelmill.tasks.store import Store

__all__ = ["find_current", "judge_canary"]

# What else both models have scored counts too, on the second try all that the first has scored
_MOST_COMPARED = 5000


def judge_canary(
    neighbours: Neighbours,
    job: Job,
    parts: Mapping[str, Listing],
    dated: Callable[[str], Job],
) -> tuple[Canary | None, str]:
    """Score a sample of the parts, and hold the new models against the current ones.

    Args:
        neighbours: other runs on the store.
        job: of the backfill.
        parts: that it is to score.
        dated: the job of a part.

    Returns:
        The first canary with a broken gate, else the last one; None and why where there was
        nothing to do.
    """
    canary = job.config.backfill.canary
    if not canary.images or not canary.gates:
        return None, ""
    store = neighbours.store
    last: Canary | None = None
    measured: list[str] = []
    note = "no other model of the same task has scored the archive"
    for spec in job.specs:
        old = find_current(store, spec)
        if old is None:
            continue
        known = frozenset(digest.hex() for digest in store.published_ids(old))
        sample = choose_sample(parts, known, canary.images)
        if not sample:
            note = f"{old} has scored none of its images"
            continue
        work = [(dated(name), listing) for name, listing in sample.items()]
        _, scoring, _ = score_listings(neighbours, work, is_part=True)
        if scoring.ended != "done":
            return None, f"the sample was not scored to its end: {scoring.reason}"
        found = compare_models(
            Side(old, store, {old: store.models()[old]}),
            Side(spec.key, store, {spec.key: spec}),
            store.models()[old],
            spec,
            collection=job.collection,
            sample=max(canary.images, _MOST_COMPARED),
        )
        measures = {metric.name: metric.value for metric in found.headline}
        broken = broken_gates(measures, canary.gates)
        last = Canary(old, spec.key, found.num_images, measures, broken)
        if broken:
            return last, ""
        measured += measures
    if last is not None:
        return replace(last, broken=unmeasured(canary.gates, measured)), ""
    return None, note


def find_current(store: Store, spec: ModelSpec) -> str | None:
    """The model that another one is to replace.

    Returns:
        The promoted one of its task, else of those with the same name the one that was used last.
    """
    promoted = [key for key in store.current(spec.task) if key != spec.key]
    if promoted:
        return promoted[0]
    published = store.models()
    for run_id in reversed(store.runs()):
        for used in store.run(run_id).models:
            is_other = used.key != spec.key and used.key in published
            if is_other and (used.task, used.name) == (spec.task, spec.name):
                return used.key
    return None
