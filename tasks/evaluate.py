"""Compare what a store holds with truth: one `ModelEvaluation` per model and kind of truth."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from pixelmill.configs.schema import EvaluationConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.metrics.bootstrap import MIN_IMAGES, Number, Statistics, intervals
from pixelmill.tasks.metrics.captions import score_captions
from pixelmill.tasks.metrics.classification import score_labels
from pixelmill.tasks.metrics.detection import (
    InstanceTruth,
    IouType,
    encode_plane,
    score_detections,
)
from pixelmill.tasks.metrics.results import (
    Evaluation,
    ImageRow,
    Kind,
    Metric,
    ModelEvaluation,
)
from pixelmill.tasks.metrics.segmentation import (
    class_tallies,
    confusion_counts,
    mean_image_iou,
    mean_iou,
    score_confusion,
)
from pixelmill.tasks.metrics.statistics import PixelStatistics
from pixelmill.tasks.names import name_fault
from pixelmill.tasks.stage import stage
from pixelmill.tasks.store import Store
from pixelmill.tasks.store.masks import read_planes
from pixelmill.tasks.truth import (
    CaptionTruth,
    LabelTruth,
    SemanticTruth,
    load_captions,
    load_coco_instances,
    load_labels,
    load_semantic,
    match_images,
    read_label_map,
    without_suffix,
)

__all__ = ["evaluate", "evaluate_task", "save_evaluation"]

_HEADLINES: Mapping[Kind, tuple[str, ...]] = {
    "boxes": ("AP", "AP50", "AP75", "AR100"),
    "masks": ("AP", "AP50", "AP75", "AR100"),
    "semantic": ("mIoU", "Dice", "pixel accuracy"),
    "captions": ("CIDEr-D", "CIDEr-D baseline", "BLEU-4", "ROUGE-L"),
    "labels": ("top-1", "top-5", "macro F1"),
}
_LONGEST_LIST = 10


@dataclass(frozen=True, slots=True)
class _Truth:
    """What the config names, loaded."""

    instances: InstanceTruth | None
    semantic: SemanticTruth | None
    captions: CaptionTruth | None
    labels: LabelTruth | None
    sources: dict[str, str]

    def names(self) -> set[str]:
        """All images that any of it speaks of; those of label maps have no suffix."""
        names: set[str] = set()
        if self.instances is not None:
            names |= {image.file_name for image in self.instances.images}
        if self.semantic is not None:
            names |= set(self.semantic.maps)
        if self.captions is not None:
            names |= set(self.captions.file_names)
        if self.labels is not None:
            names |= set(self.labels.labels)
        return names


@dataclass(frozen=True, slots=True)
class _Collection:
    """The images of a collection as they lie there now.

    Attributes:
        image_ids: path -> image_id; of a file that changed, the newest.
        failures: rows of the failures table.
    """

    image_ids: dict[str, str]
    failures: pd.DataFrame

    def paths(self) -> set[str]:
        """All paths, those included whose bytes could not be read."""
        return {*self.image_ids, *self.failures["path"]}


@dataclass(frozen=True, slots=True)
class _Scored:
    """Truth names joined to the images that one model has scored.

    Attributes:
        names: of all truth images, sorted.
        paths: name -> path in the collection, or the name itself where there is none.
        image_ids: name -> image_id, where the model has scored the image.
        missing: names of images that the model never saw; failed: of those that it could not
            score. Both count as empty predictions.
    """

    names: tuple[str, ...]
    paths: dict[str, str]
    image_ids: dict[str, str]
    missing: tuple[str, ...]
    failed: tuple[str, ...]

    def image_rows(self, values: Mapping[str, dict[str, float]]) -> tuple[ImageRow, ...]:
        """Per-image numbers by truth name, in the order of the paths."""
        rows = (
            ImageRow(self.paths[name], self.image_ids.get(name), values[name])
            for name in self.names
            if name in values
        )
        return tuple(sorted(rows, key=lambda row: row.path))


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
    their own kind of truth. Truth images that were never scored, or failed, count as empty
    predictions and are listed.

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
    truth = _load_truth(config, base)
    if config.subset is not None:
        truth = _restrict(truth, base / config.subset)
    images = _read_collection(store, collection)
    evaluations: list[ModelEvaluation] = []
    skipped: dict[str, str] = {}
    for key, spec in _choose_models(store, models).items():
        scored = _images_of(store, key, images)
        if scored.empty:
            skipped[key] = f"has scored no image of collection {collection}"
            continue
        found, reasons = _evaluate_model(store, spec, scored, truth, images, config)
        evaluations += found
        if reasons:
            skipped[key] = "; ".join(reasons)
    return Evaluation(
        collection=collection,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        models=tuple(evaluations),
        truth=truth.sources,
        skipped=skipped,
    )


def _load_truth(config: EvaluationConfig, base: Path) -> _Truth:
    places = {
        name: base / place
        for name in ("instances", "semantic", "captions", "labels")
        if (place := getattr(config, name)) is not None
    }
    if not places:
        raise ValueError(
            "the evaluation section names no truth; set instances, semantic, captions or labels"
        )
    absent = [f"{name}: {place}" for name, place in places.items() if not place.exists()]
    if absent:
        raise FileNotFoundError(
            "truth is not there:\n  "
            + "\n  ".join(absent)
            + f"\nrelative paths start from {base}; correct them, or leave the entry out"
        )
    return _Truth(
        instances=load_coco_instances(places["instances"]) if "instances" in places else None,
        semantic=load_semantic(places["semantic"]) if "semantic" in places else None,
        captions=load_captions(places["captions"]) if "captions" in places else None,
        labels=load_labels(places["labels"]) if "labels" in places else None,
        sources={name: str(place) for name, place in places.items()},
    )


def _restrict(truth: _Truth, subset: Path) -> _Truth:
    """The truth of the images that a file names."""
    if not subset.exists():
        raise FileNotFoundError(f"subset {subset} is not there; correct it, or leave it out")
    lines = subset.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if fault := name_fault(line.strip()):
            raise ValueError(f"{subset}, line {number}: {fault}")
    wanted = {without_suffix(line.strip()) for line in lines if line.strip()}
    known = {without_suffix(name) for name in truth.names()}
    if absent := sorted(wanted - known):
        raise ValueError(f"{subset} names {len(absent)} images without truth, first {absent[0]!r}")

    def keep(name: str) -> bool:
        return without_suffix(name) in wanted

    instances, captions = truth.instances, truth.captions
    if instances is not None:
        images = tuple(image for image in instances.images if keep(image.file_name))
        ids = {image.id for image in images}
        annotations = tuple(each for each in instances.annotations if each["image_id"] in ids)
        instances = replace(instances, images=images, annotations=annotations)
    if captions is not None:
        pairs = zip(captions.file_names, captions.captions, strict=True)
        kept = [(name, texts) for name, texts in pairs if keep(name)]
        captions = CaptionTruth(tuple(name for name, _ in kept), tuple(texts for _, texts in kept))
    semantic, labels = truth.semantic, truth.labels
    if semantic is not None:
        maps = {stem: path for stem, path in semantic.maps.items() if keep(stem)}
        semantic = replace(semantic, maps=maps)
    if labels is not None:
        labels = LabelTruth({name: each for name, each in labels.labels.items() if keep(name)})
    sources = {**truth.sources, "subset": str(subset)}
    return _Truth(instances, semantic, captions, labels, sources)


def _read_collection(store: Store, name: str) -> _Collection:
    catalog = store.table("catalog", columns=["path", "image_id", "collection"])
    rows = catalog.to_pandas()
    if not (rows["collection"] == name).any():
        known = ", ".join(sorted(rows["collection"].unique())) or "none"
        raise ValueError(f"store {store.root} has no collection {name!r}; it has: {known}")
    rows = rows[rows["collection"] == name].drop_duplicates("path", keep="last")
    failures = store.table(
        "failures", columns=["path", "model_key"], filters=[("collection", "=", name)]
    )
    return _Collection(
        image_ids=dict(zip(rows["path"], rows["image_id"], strict=True)),
        failures=failures.to_pandas(),
    )


def _choose_models(store: Store, names: Sequence[str] | None) -> dict[str, ModelSpec]:
    published = store.models()
    if names is None:
        return published
    chosen: dict[str, ModelSpec] = {}
    for name in names:
        found = {key: spec for key, spec in published.items() if name in (key, spec.name)}
        if not found:
            raise KeyError(
                f"no model {name!r} in {store.root}; it has: {', '.join(published) or 'none'}"
            )
        chosen |= found
    return chosen


def _images_of(store: Store, model_key: str, images: _Collection) -> pd.DataFrame:
    """The model's rows of the images table, of this collection's images only."""
    columns = ["image_id", "width", "height", "mask_store"]
    columns += [f"{kind}_{part}" for kind in ("semantic", "instances") for part in ("array", "row")]
    rows = store.table("images", model=model_key, columns=columns).to_pandas()
    return rows[rows["image_id"].isin(set(images.image_ids.values()))]


def _evaluate_model(
    store: Store,
    spec: ModelSpec,
    scored: pd.DataFrame,
    truth: _Truth,
    images: _Collection,
    config: EvaluationConfig,
) -> tuple[list[ModelEvaluation], list[str]]:
    """Evaluations of one model, and why others were left out."""
    context = _Context(store, spec, scored, images, config)
    box_task = spec.task in ("detection", "instance_segmentation")
    evaluations: list[ModelEvaluation] = []
    reasons: list[str] = []

    def attempt(run: Callable[[], ModelEvaluation | str]) -> None:
        found = run()
        if isinstance(found, str):
            reasons.append(found)
        else:
            evaluations.append(found)

    if box_task and truth.instances is not None:
        instances = truth.instances
        if config.iou_type != "segm":
            attempt(lambda: _evaluate_instances(context, instances, "bbox"))
        if config.iou_type != "bbox" and spec.task == "instance_segmentation":
            attempt(lambda: _evaluate_instances(context, instances, "segm"))
        elif config.iou_type == "segm":
            reasons.append("gives no masks, and iou_type is segm")
    elif spec.task == "semantic_segmentation" and truth.semantic is not None:
        semantic = truth.semantic
        attempt(lambda: _evaluate_semantic(context, semantic))
    elif spec.task == "captioning" and truth.captions is not None:
        captions = truth.captions
        attempt(lambda: _evaluate_captions(context, captions))
    elif spec.task == "classification" and truth.labels is not None:
        labels = truth.labels
        attempt(lambda: _evaluate_labels(context, labels))
    else:
        reasons.append(f"no truth for {spec.task}")
    return evaluations, reasons


@dataclass(frozen=True, slots=True)
class _Context:
    """One model on one collection."""

    store: Store
    spec: ModelSpec
    scored: pd.DataFrame
    images: _Collection
    config: EvaluationConfig

    def class_names(self) -> tuple[str, ...]:
        """The model's classes by the names that the truth uses."""
        renamed = self.config.class_names
        return tuple(renamed.get(name, name) for name in self.spec.classes)

    def join(self, names: Sequence[str], *, ignore_suffix: bool = False) -> _Scored:
        """Find the truth's images among those that the model has scored."""
        matches = match_images(names, self.images.paths(), ignore_suffix=ignore_suffix)
        has_row = set(self.scored["image_id"])
        failures = self.images.failures
        of_model = failures["model_key"].isna() | (failures["model_key"] == self.spec.key)
        failed_paths = set(failures.loc[of_model, "path"])
        image_ids = {
            name: image_id
            for name, path in matches.paths.items()
            if (image_id := self.images.image_ids.get(path, "")) in has_row
        }
        unscored = [name for name in sorted(set(names)) if name not in image_ids]
        failed = [name for name in unscored if matches.paths.get(name) in failed_paths]
        return _Scored(
            names=tuple(sorted(set(names))),
            paths={name: matches.paths.get(name, name) for name in names},
            image_ids=image_ids,
            missing=tuple(name for name in unscored if name not in set(failed)),
            failed=tuple(failed),
        )

    def table(self, name: str, columns: Sequence[str], scored: _Scored) -> pd.DataFrame:
        """The model's rows for the truth's images."""
        rows = self.store.table(name, model=self.spec.key, columns=["image_id", *columns])
        frame = rows.to_pandas()
        return frame[frame["image_id"].isin(set(scored.image_ids.values()))]

    def masks(
        self, kind: Literal["semantic", "instances"], scored: _Scored
    ) -> Iterator[tuple[str, NDArray[Any]]]:
        """Mask planes of the truth's images by image_id, in the order in which they are stored."""
        array, index = f"{kind}_array", f"{kind}_row"
        rows = self.scored[self.scored["image_id"].isin(set(scored.image_ids.values()))]
        rows = rows.dropna(subset=[array]).sort_values(["mask_store", array, index])
        for mask_store, group in rows.groupby("mask_store", sort=False):
            root = zarr.open_group(
                self.store.backend.zarr_store(str(mask_store)), mode="r", zarr_format=3
            )
            for row in group.to_dict("records"):
                planes = root[row[array]]
                assert isinstance(planes, zarr.Array)
                yield (
                    row["image_id"],
                    read_planes(planes, int(row[index]), row["height"], row["width"]),
                )


def _class_notes(
    model_classes: Sequence[str], truth_classes: Sequence[str], *, what: str
) -> list[str]:
    """Which classes only one side has."""
    notes = []
    extra = [name for name in model_classes if name not in set(truth_classes)]
    lacking = [name for name in truth_classes if name not in set(model_classes)]
    if extra:
        notes.append(f"classes that the truth does not have, {what}: {_short(extra)}")
    if lacking:
        notes.append(f"truth classes that the model does not have, never found: {_short(lacking)}")
    return notes


def _short(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LONGEST_LIST])
    return (
        shown if len(names) <= _LONGEST_LIST else f"{shown} and {len(names) - _LONGEST_LIST} more"
    )


def _no_common_class(model_classes: Sequence[str], truth_classes: Sequence[str]) -> str | None:
    if set(model_classes) & set(truth_classes):
        return None
    return (
        f"none of its classes ({_short(model_classes)}) is one of the truth's "
        f"({_short(truth_classes)}); map them by evaluation.class_names"
    )


def _result(
    context: _Context,
    scored: _Scored,
    kind: Kind,
    metrics: Sequence[Metric],
    notes: Sequence[str],
    statistics: Statistics,
    **details: Any,
) -> ModelEvaluation:
    metrics, doubt = _with_intervals(metrics, statistics, context.config.bootstrap)
    by_name = {metric.name: metric for metric in metrics}
    gaps = []
    if scored.missing:
        gaps.append(f"{len(scored.missing)} truth images were never scored")
    if scored.failed:
        gaps.append(f"{len(scored.failed)} truth images could not be scored")
    if gaps:
        gaps = [f"{' and '.join(gaps)}: they count as empty predictions"]
    return ModelEvaluation(
        model_key=context.spec.key,
        task=context.spec.task,
        kind=kind,
        headline=tuple(by_name[name] for name in _HEADLINES[kind] if name in by_name),
        metrics=metrics,
        num_images=len(scored.names),
        missing=scored.missing,
        failed=scored.failed,
        notes=(*gaps, *notes, *doubt),
        **details,
    )


def _with_intervals(
    metrics: Sequence[Metric], statistics: Statistics, num_resamples: int
) -> tuple[tuple[Metric, ...], tuple[str, ...]]:
    """The metrics with their intervals where they have one, and what to say of these."""
    if not num_resamples:
        return tuple(metrics), ()
    if statistics.num_images < MIN_IMAGES:
        return tuple(metrics), (f"no intervals: they need {MIN_IMAGES} images or more",)
    found = intervals(statistics, num_resamples)
    note = (
        f"[low, high] is a 95 % interval: BCa bootstrap over {statistics.num_images:,} images, "
        f"{num_resamples:,} draws"
    )
    return tuple(replace(one, interval=found.get(Number(one.name))) for one in metrics), (note,)


def _evaluate_instances(
    context: _Context, truth: InstanceTruth, iou_type: IouType
) -> ModelEvaluation | str:
    if iou_type == "segm" and not truth.has_masks:
        return "masks not evaluated: not every annotation of the truth has a segmentation"
    category_ids = {category.name: category.id for category in truth.categories}
    class_names = context.class_names()
    reason = _no_common_class(class_names, tuple(category_ids))
    if reason:
        return reason
    scored = context.join([image.file_name for image in truth.images])
    columns = ["rank", "class_id", "score", "x_min", "y_min", "x_max", "y_max"]
    boxes = context.table("detections", [*columns, "mask_layer", "mask_value"], scored)
    lookup = {index: category_ids.get(name) for index, name in enumerate(class_names)}
    boxes = boxes.assign(category_id=boxes["class_id"].map(lookup)).sort_values("rank")
    ignored = int(boxes["category_id"].isna().sum())
    boxes = boxes.dropna(subset=["category_id"])
    per_image = (
        _boxes_by_image(boxes) if iou_type == "bbox" else _masks_by_image(context, boxes, scored)
    )
    image_ids = {image.id: scored.image_ids.get(image.file_name) for image in truth.images}
    scores = score_detections(
        truth,
        [
            {"image_id": truth_id, **detection}
            for truth_id, image_id in image_ids.items()
            for detection in per_image.get(image_id or "", ())
        ],
        iou_type=iou_type,
    )
    names = {image.id: image.file_name for image in truth.images}
    notes = _class_notes(class_names, tuple(category_ids), what=f"{ignored} detections ignored")
    return _result(
        context,
        scored,
        "boxes" if iou_type == "bbox" else "masks",
        scores.metrics,
        (*scores.notes, *notes),
        scores.statistics,
        per_class=scores.per_class,
        curves=scores.curves,
        confusion=scores.confusion,
        per_image=scored.image_rows(
            {names[truth_id]: values for truth_id, values in scores.per_image.items()}
        ),
    )


def _boxes_by_image(boxes: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """COCO results without their image_id, by our image_id."""
    corners = boxes[["x_min", "y_min", "x_max", "y_max"]].to_numpy(np.float64)
    boxes_xywh = np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]])
    found: dict[str, list[dict[str, Any]]] = {}
    for image_id, category_id, score, box_xywh in zip(
        boxes["image_id"],
        boxes["category_id"].astype(int),
        boxes["score"].astype(float),
        boxes_xywh.tolist(),
        strict=True,
    ):
        found.setdefault(image_id, []).append(
            {"category_id": category_id, "score": score, "bbox": box_xywh}
        )
    return found


def _masks_by_image(
    context: _Context, boxes: pd.DataFrame, scored: _Scored
) -> dict[str, list[dict[str, Any]]]:
    """COCO results with masks as RLE, without their image_id, by our image_id."""
    by_image = dict(list(boxes.groupby("image_id", sort=False)))
    found: dict[str, list[dict[str, Any]]] = {}
    for image_id, planes in context.masks("instances", scored):
        if image_id not in by_image:
            continue
        rows = by_image[image_id]
        layers, values = rows["mask_layer"].astype(int), rows["mask_value"].astype(int)
        encoded = {
            layer: encode_plane(planes[layer], values[layers == layer].tolist())
            for layer in layers.unique().tolist()
        }
        found[image_id] = [
            {
                "category_id": int(category_id),
                "score": float(score),
                "segmentation": encoded[layer][value],
            }
            for category_id, score, layer, value in zip(
                rows["category_id"], rows["score"], layers, values, strict=True
            )
        ]
    return found


@dataclass(frozen=True, slots=True)
class _SemanticClasses:
    """How label values of the truth and of the model become class indices.

    Attributes:
        names: of the truth's classes, K of them.
        of_truth: (65536,) label value of the truth -> class index, K where it has no class.
        of_model: (65536,) label value of the model -> class index, K where the truth lacks it.
        void: label value of the truth that is not scored.
    """

    names: tuple[str, ...]
    of_truth: NDArray[np.int32]
    of_model: NDArray[np.int32]
    void: int

    @classmethod
    def match(cls, truth: Mapping[int, str], model: Sequence[str], void: int) -> Self:
        """By name; `truth` is label value -> name."""
        scored = {value: name for value, name in truth.items() if value != void}
        index = {name: k for k, name in enumerate(dict.fromkeys(scored.values()))}
        of_truth = np.full(2**16, len(index), dtype=np.int32)
        of_model = of_truth.copy()
        for value, name in scored.items():
            of_truth[value] = index[name]
        for value, name in enumerate(model):
            of_model[value] = index.get(name, len(index))
        return cls(tuple(index), of_truth, of_model, void)

    def count(
        self, label_map: NDArray[Any], prediction: NDArray[Any] | None
    ) -> tuple[NDArray[np.int64], int]:
        """(K, K + 1) confusion of one image, and pixels of the truth without a class."""
        labels = self.of_truth[label_map]
        predicted = (
            np.full(labels.shape, len(self.names))
            if prediction is None
            else self.of_model[prediction]
        )
        unlisted = (labels == len(self.names)) & (label_map != self.void)
        counts = confusion_counts(labels, predicted, len(self.names))
        return counts, int(np.count_nonzero(unlisted))


def _evaluate_semantic(context: _Context, truth: SemanticTruth) -> ModelEvaluation | str:
    model_classes = context.class_names()
    classes = _SemanticClasses.match(
        truth.classes or dict(enumerate(model_classes)), model_classes, context.config.void
    )
    reason = _no_common_class(model_classes, classes.names)
    if reason:
        return reason
    scored = context.join(tuple(truth.maps), ignore_suffix=True)
    total = np.zeros((len(classes.names), len(classes.names) + 1), dtype=np.int64)
    num_unlisted = 0
    per_image: dict[str, dict[str, float]] = {}
    tallies: dict[str, NDArray[np.int64]] = {}
    for name, prediction in _semantic_pairs(context, scored):
        label_map = read_label_map(truth.maps[name])
        if prediction is not None and prediction.shape != label_map.shape:
            raise ValueError(
                f"{truth.maps[name]} is {label_map.shape} and the image {prediction.shape} "
                "(height, width); truth must have the image's size"
            )
        counts, unlisted = classes.count(label_map, prediction)
        total += counts
        tallies[name] = class_tallies(counts)
        num_unlisted += unlisted
        iou = mean_iou(counts)
        if iou is not None:
            accuracy = float(np.trace(counts) / counts.sum())
            per_image[name] = {"mIoU": iou, "pixel accuracy": accuracy}
    statistics = PixelStatistics(
        class_names=classes.names,
        counts=np.stack([tallies[name] for name in scored.names]),
        images_iou=np.array(
            [per_image[name]["mIoU"] if name in per_image else np.nan for name in scored.names]
        ),
    )
    scores = score_confusion(total, classes.names)
    notes = [f"label value {classes.void} of the truth is void"]
    notes += _class_notes(model_classes, classes.names, what="their pixels are wrong")
    if truth.classes is None:
        notes.append("no classes.json beside the label maps: value i is the model's class i")
    if num_unlisted:
        notes.append(f"{num_unlisted} pixels have a label value without a class: treated as void")
    return _result(
        context,
        scored,
        "semantic",
        (*scores.metrics, mean_image_iou(statistics.images_iou)),
        notes,
        statistics,
        per_class=scores.per_class,
        confusion=scores.confusion,
        per_image=scored.image_rows(per_image),
    )


def _semantic_pairs(
    context: _Context, scored: _Scored
) -> Iterator[tuple[str, NDArray[Any] | None]]:
    """Truth names with the predicted label map, or None where there is none."""
    names: dict[str, list[str]] = {}
    for name, image_id in scored.image_ids.items():
        names.setdefault(image_id, []).append(name)
    seen: set[str] = set()
    for image_id, labels in context.masks("semantic", scored):
        for name in names[image_id]:
            seen.add(name)
            yield name, labels
    for name in scored.names:
        if name not in seen:
            yield name, None


def _evaluate_captions(context: _Context, truth: CaptionTruth) -> ModelEvaluation:
    scored = context.join(truth.file_names)
    rows = context.table("captions", ["rank", "text"], scored)
    best = rows.sort_values("rank").drop_duplicates("image_id")
    texts = dict(zip(best["image_id"], best["text"], strict=True))
    candidates = [texts.get(scored.image_ids.get(name, ""), "") for name in truth.file_names]
    scores = score_captions(candidates, truth.captions)
    return _result(
        context,
        scored,
        "captions",
        scores.metrics,
        (
            "the best caption of each image (rank 0); coco-caption's numbers, own implementation",
            "METEOR (needs Java) and SPICE (needs a download) are not computed",
        ),
        scores.statistics,
        per_image=scored.image_rows(dict(zip(truth.file_names, scores.per_image, strict=True))),
    )


def _evaluate_labels(context: _Context, truth: LabelTruth) -> ModelEvaluation | str:
    class_names = context.class_names()
    reason = _no_common_class(class_names, truth.classes)
    if reason:
        return reason
    scored = context.join(tuple(truth.labels))
    rows = context.table("labels", ["rank", "class_id", "score"], scored).sort_values("rank")
    ranked: dict[str, list[str]] = {}
    for image_id, class_id in zip(rows["image_id"], rows["class_id"], strict=True):
        ranked.setdefault(image_id, []).append(class_names[class_id])
    best = rows.drop_duplicates("image_id")
    best_scores = dict(zip(best["image_id"], best["score"].astype(float), strict=True))
    scores = score_labels(
        list(truth.labels.values()),
        [ranked.get(scored.image_ids.get(name, ""), []) for name in truth.labels],
        truth.classes,
        [best_scores.get(scored.image_ids.get(name, "")) for name in truth.labels],
    )
    return _result(
        context,
        scored,
        "labels",
        scores.metrics,
        _class_notes(class_names, truth.classes, what="wrong where they come first"),
        scores.statistics,
        per_class=scores.per_class,
        curves=scores.curves,
        confusion=scores.confusion,
        per_image=scored.image_rows(dict(zip(truth.labels, scores.per_image, strict=True))),
    )


def save_evaluation(evaluation: Evaluation, folder: Path) -> tuple[Path, ...]:
    """Write metrics.json (everything), metrics.parquet and per_image.parquet (one row per number).

    Args:
        evaluation: what to save.
        folder: made if it is not there; earlier files of these names are replaced.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = json.dumps(evaluation.to_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    paths = tuple(folder / name for name in _RESULT_FILES)
    _replace(paths[0], document.encode())
    metrics: list[tuple[str, str, str | None, str, float, float | None, float | None]] = []
    per_image: list[tuple[str, str, str, str | None, str, float]] = []
    for model in evaluation.models:
        key, kind = model.model_key, model.kind
        for one in model.metrics:
            low, high = one.interval or (None, None)
            metrics.append((key, kind, None, one.name, one.value, low, high))
        for row in model.per_class:
            counts = {"num_truth": float(row.num_truth), "num_predicted": float(row.num_predicted)}
            values = {**row.values, **counts}
            metrics += [
                (key, kind, row.class_name, name, value, None, None)
                for name, value in values.items()
            ]
        per_image += [
            (key, kind, row.path, row.image_id, name, value)
            for row in model.per_image
            for name, value in row.values.items()
        ]
    _write_rows(paths[1], _METRICS_SCHEMA, metrics)
    _write_rows(paths[2], _PER_IMAGE_SCHEMA, per_image)
    return paths


_RESULT_FILES = ("metrics.json", "metrics.parquet", "per_image.parquet")
_METRICS_SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), False),
        pa.field("kind", pa.string(), False),
        pa.field("class", pa.string()),
        pa.field("metric", pa.string(), False),
        pa.field("value", pa.float64(), False),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
    ]
)
_PER_IMAGE_SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), False),
        pa.field("kind", pa.string(), False),
        pa.field("path", pa.string(), False),
        pa.field("image_id", pa.string()),
        pa.field("metric", pa.string(), False),
        pa.field("value", pa.float64(), False),
    ]
)


def _write_rows(path: Path, schema: pa.Schema, rows: Sequence[tuple[Any, ...]]) -> None:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
    _replace(path, sink.getvalue())


def _replace(path: Path, data: bytes) -> None:
    """Write aside, then rename: a reader never sees half a file."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_bytes(data)
    aside.replace(path)


evaluate_task = stage("evaluate")(evaluate)
