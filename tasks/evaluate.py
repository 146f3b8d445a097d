"""Compare what a store holds with truth: one `ModelEvaluation` per model and kind of truth."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pixelmill.configs.schema import EvaluationConfig
from pixelmill.tasks.evaluation.captions import compare_captions
from pixelmill.tasks.evaluation.context import (
    CollectionImages,
    Comparison,
    Context,
    choose_models,
    images_of,
    read_collection,
    with_intervals,
)
from pixelmill.tasks.evaluation.instances import compare_instances
from pixelmill.tasks.evaluation.labels import compare_labels
from pixelmill.tasks.evaluation.panoptic import compare_panoptic
from pixelmill.tasks.evaluation.semantic import compare_semantic
from pixelmill.tasks.evaluation.truths import Truths, load_truths
from pixelmill.tasks.metrics.results import Evaluation
from pixelmill.tasks.stage import stage
from pixelmill.tasks.store import Store

__all__ = ["compare_models", "evaluate", "evaluate_task"]


def evaluate(
    store: Store,
    config: EvaluationConfig,
    *,
    base: Path,
    collection: str,
    models: Sequence[str] | None = None,
) -> Evaluation:
    """Score the models of a collection against all truth that the config names.

    Detection models are compared by boxes, instance segmentation by boxes and masks, the others by
    their own kind of truth; a model of instances and one of label maps together also by panoptic
    quality. Truth images that were never scored, or failed, count as empty predictions and are
    listed. What is found out about single images is kept in the store, so that an evaluation looks
    only at images that are new or have changed; the numbers are those of looking at all.

    Args:
        store: with published predictions.
        config: where truth is.
        base: folder that relative paths in `config` start from.
        collection: whose images are evaluated.
        models: keys or names; None: every model that has scored an image of the collection.

    Raises:
        ValueError: the config names no truth, a truth file has faults, or the collection or the
            models have no predictions.
        FileNotFoundError: a truth file is not there.
        KeyError: a model is not in the store.
    """
    truth = load_truths(config, base, store, collection)
    found, skipped = compare_models(store, config, truth, collection=collection, models=models)
    return Evaluation(
        collection=collection,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        models=tuple(with_intervals(one, config.bootstrap) for one in found),
        truth=truth.sources,
        skipped=skipped,
    )


def compare_models(
    store: Store,
    config: EvaluationConfig,
    truth: Truths,
    *,
    collection: str,
    models: Sequence[str] | None = None,
) -> tuple[tuple[Comparison, ...], dict[str, str]]:
    """What `evaluate` makes its results of, with what each image adds to the numbers.

    Args:
        store: with published predictions.
        config: how truth is compared.
        truth: as `load_truths` gives it.
        collection: whose images are evaluated.
        models: keys or names; None: every model that has scored an image of the collection.

    Returns:
        One comparison per model and kind of truth; model key -> why it has none of some kind.
    """
    images = read_collection(store, collection)
    found: list[Comparison] = []
    skipped: dict[str, str] = {}
    contexts = dict(_contexts(store, config, images, models))
    for key, context in contexts.items():
        if context.scored.empty:
            skipped[key] = f"has scored no image of collection {collection}"
            continue
        results = [compare() for compare in _comparisons(context, truth)]
        found += [one for one in results if isinstance(one, Comparison)]
        if reasons := [one for one in results if isinstance(one, str)]:
            skipped[key] = "; ".join(reasons)
    found += _panoptic(contexts, truth)
    return tuple(found), skipped


def _contexts(
    store: Store,
    config: EvaluationConfig,
    images: CollectionImages,
    models: Sequence[str] | None,
) -> Iterator[tuple[str, Context]]:
    for key, spec in choose_models(store, models).items():
        yield key, Context(store, spec, images_of(store, key, images), images, config)


def _comparisons(context: Context, truth: Truths) -> Iterator[Callable[[], Comparison | str]]:
    """What can be compared of a model, or why nothing can."""
    task, iou_type = context.spec.task, context.config.iou_type
    instances, semantic = truth.instances, truth.semantic
    captions, labels = truth.captions, truth.labels
    if task in ("detection", "instance_segmentation") and instances is not None:
        if iou_type != "segm":
            yield lambda: compare_instances(context, instances, "bbox")
        if iou_type != "bbox" and task == "instance_segmentation":
            yield lambda: compare_instances(context, instances, "segm")
        elif iou_type == "segm":
            yield lambda: "gives no masks, and iou_type is segm"
    elif task == "semantic_segmentation" and semantic is not None:
        yield lambda: compare_semantic(context, semantic)
    elif task == "captioning" and captions is not None:
        yield lambda: compare_captions(context, captions)
    elif task == "classification" and labels is not None:
        yield lambda: compare_labels(context, labels)
    else:
        yield lambda: f"no truth for {task}"


def _panoptic(contexts: Mapping[str, Context], truth: Truths) -> Iterator[Comparison]:
    """Each model of instances with each of label maps, where there is truth of both."""
    instances, semantic = truth.instances, truth.semantic
    if instances is None or semantic is None or not instances.has_masks:
        return
    scored = [one for one in contexts.values() if not one.scored.empty]
    for things in (one for one in scored if one.spec.task == "instance_segmentation"):
        for stuff in (one for one in scored if one.spec.task == "semantic_segmentation"):
            found = compare_panoptic(things, stuff, instances, semantic)
            if found is not None:
                yield found


evaluate_task = stage("evaluate")(evaluate)
