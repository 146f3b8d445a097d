"""The canary of a backfill: a sample is scored first, and compared with the current model."""

from collections.abc import Callable, Mapping

from pixelmill.flows.job import Job
from pixelmill.flows.neighbours import Neighbours
from pixelmill.flows.score import score_listings
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.canary import Canary, broken_gates, choose_sample
from pixelmill.tasks.ingest import Listing
from pixelmill.tasks.store import Store

__all__ = ["find_current", "judge_canary"]


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
        measures = compare_sample(store, old, spec.key, sample)
        broken = broken_gates(measures, canary.gates)
        num_images = sum(listing.images.num_rows for listing in sample.values())
        last = Canary(old, spec.key, num_images, measures, broken)
        if broken:
            break
    return last, "" if last else note


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


def compare_sample(
    store: Store, old: str, new: str, sample: Mapping[str, Listing]
) -> dict[str, float]:
    """What `pixelmill compare` measures of two models on a sample, by name."""
    raise NotImplementedError(store, old, new, sample)
