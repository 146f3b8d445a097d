"""The canary of a backfill: a sample is scored first, and compared with the current model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pixelmill.flows.job import Job
from pixelmill.flows.neighbours import Neighbours
from pixelmill.flows.score import Scoring, score_listings
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.canary import (
    Canary,
    broken_gates,
    choose_sample,
    keep_canary,
    read_canary,
    sample_digest,
    unmeasured,
)
from pixelmill.tasks.comparison.compare import compare_models
from pixelmill.tasks.comparison.sides import Side
from pixelmill.tasks.ingest import Listing
from pixelmill.tasks.store import Store

__all__ = ["Trial", "find_current", "judge_canary"]

# What else both models have scored counts too, on the second try all that the first has scored
_MOST_COMPARED = 5000

# A measure of every model: images on which the new one failed are in no other
SCORED = "scored sample"


@dataclass(frozen=True, slots=True)
class Trial:
    """How the samples of all models came out.

    Attributes:
        canary: the first with a broken gate, else the last one; None: there was nothing to do.
        note: why there was nothing to do, if a canary was asked for.
        early: what ended the scoring of a sample before its end; None if nothing did.
        has_scored: whether a sample was scored just now.
    """

    canary: Canary | None = None
    note: str = ""
    early: Scoring | None = None
    has_scored: bool = False


def judge_canary(
    neighbours: Neighbours,
    job: Job,
    parts: Mapping[str, Listing],
    dated: Callable[[str], Job],
) -> Trial:
    """Score a sample of the parts, and hold the new models against the current ones.

    How a sample came out is kept in the store: one that was well is not compared again.

    Args:
        neighbours: other runs on the store.
        job: of the backfill.
        parts: that it is to score.
        dated: the job of a part.
    """
    wanted = job.config.backfill.canary
    if not wanted.images or not wanted.gates:
        return Trial()
    store = neighbours.store
    trial = Trial(note="no other model of the same task has scored the archive")
    measured: list[str] = []
    for spec in job.specs:
        old = find_current(store, spec, job.collection)
        if old is None:
            continue
        sample = choose_sample(parts, _scored_ids(store, old), wanted.images)
        if not sample:
            trial = replace(trial, note=f"{old} has scored none of its images")
            continue
        gates = {name: (gate.min, gate.max) for name, gate in wanted.gates.items()}
        canary = read_canary(store, job.collection, spec.key)
        asked = Canary(old, spec.key, 0, {}, (), gates, sample_digest(sample))
        if canary is None or not _is_the_same(canary, asked):
            work = [(dated(name), listing) for name, listing in sample.items()]
            _, scoring, _ = score_listings(neighbours, work, is_part=True)
            trial = replace(trial, has_scored=True)
            if scoring.ended != "done":
                reason = f"{scoring.reason}, in the canary of {spec.key}"
                return replace(trial, early=replace(scoring, reason=reason))
            canary = _compare(store, job, spec, asked, sample)
            keep_canary(store, job.collection, canary)
        trial = replace(trial, canary=canary, note="")
        if canary.broken:
            return trial
        measured += canary.measures
    last = trial.canary
    if last is not None and (missing := unmeasured(wanted.gates, measured)):
        last = replace(last, broken=missing)
        keep_canary(store, job.collection, last)
        trial = replace(trial, canary=last)
    return trial


def _is_the_same(canary: Canary, asked: Canary) -> bool:
    """Whether it was well, and would be judged of the same images by the same bounds."""
    return asked == replace(canary, num_images=asked.num_images, measures=asked.measures)


def _compare(
    store: Store, job: Job, spec: ModelSpec, asked: Canary, sample: Mapping[str, Listing]
) -> Canary:
    """The canary with its measures, and the gates that they break."""
    old, wanted = store.models()[asked.old], job.config.backfill.canary
    found = compare_models(
        Side(old.key, store, {old.key: old}),
        Side(spec.key, store, {spec.key: spec}),
        old,
        spec,
        collection=job.collection,
        sample=max(wanted.images, _MOST_COMPARED),
    )
    scored = _scored_ids(store, spec.key)
    ids = [each for part in sample.values() for each in part.images["image_id"].to_pylist()]
    share = sum(each in scored for each in ids) / len(ids)
    measures = {metric.name: metric.value for metric in found.headline} | {SCORED: share}
    broken = broken_gates(measures, wanted.gates)
    return replace(asked, num_images=found.num_images, measures=measures, broken=broken)


def _scored_ids(store: Store, model_key: str) -> frozenset[str]:
    # Joined, as an id of its own loses the zeros at its end
    raw = store.published_ids(model_key).tobytes().hex()
    return frozenset(raw[start : start + 32] for start in range(0, len(raw), 32))


def find_current(store: Store, spec: ModelSpec, collection: str) -> str | None:
    """The model that another one is to replace.

    Args:
        store: with the predictions of both.
        spec: of the other one.
        collection: models that its canary refused are not current.

    Returns:
        The promoted one of its task, else of those with the same name the one that was used last.
    """
    promoted = [key for key in store.current(spec.task) if key != spec.key]
    if promoted:
        return promoted[0]
    published = store.models()
    refused = {spec.key}
    for run_id in reversed(store.runs()):
        for used in store.run(run_id).models:
            if used.key in refused or used.key not in published:
                continue
            if (used.task, used.name) != (spec.task, spec.name):
                continue
            canary = read_canary(store, collection, used.key)
            if canary is None or not canary.broken:
                return used.key
            refused.add(used.key)
    return None
