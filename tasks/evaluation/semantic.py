"""Label maps against truth: count the pixels of what is new, keep the counts, and add all up."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pixelmill.tasks.evaluation.context import (
    Comparison,
    Context,
    class_notes,
    no_common_class,
)
from pixelmill.tasks.evaluation.records import digest, image_keys
from pixelmill.tasks.metrics.boundary import (
    TOLERANCE,
    boundary_counts,
    boundary_f,
    score_boundaries,
)
from pixelmill.tasks.metrics.membranes import pixel_error, rand_score, warping_error
from pixelmill.tasks.metrics.results import ClassRow, Metric
from pixelmill.tasks.metrics.segmentation import (
    class_tallies,
    confusion_counts,
    mean_image_iou,
    mean_iou,
    score_confusion,
)
from pixelmill.tasks.metrics.statistics import PixelStatistics
from pixelmill.tasks.truth import SemanticTruth, read_label_map

__all__ = ["SemanticClasses", "compare_semantic", "map_digest"]

_IMAGES_AT_ONCE = 256
_MEMBRANES = ("pixel error", "Rand F", "Rand merge", "Rand split", "warping error")
_NUMBER = pa.field("element", pa.int64(), False)
# Of K classes most images have few: counts are kept as places in the flat array and numbers there.
_SCHEMA = pa.schema(
    [
        pa.field("confusion_at", pa.list_(_NUMBER), False),
        pa.field("confusion", pa.list_(_NUMBER), False),
        pa.field("outline_at", pa.list_(_NUMBER), False),
        pa.field("outline", pa.list_(_NUMBER), False),
        pa.field("num_unlisted", pa.int64(), False),
        *(pa.field(name, pa.float64()) for name in _MEMBRANES),
    ]
)


@dataclass(frozen=True, slots=True)
class SemanticClasses:
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


def compare_semantic(context: Context, truth: SemanticTruth) -> Comparison | str:
    """IoU, Dice, boundaries and, where the configuration asks, membranes of a segmenter.

    Returns:
        Why there is nothing to compare, where that is so.

    Raises:
        ValueError: a label map has not the size of its image, or the membrane is no class.
    """
    config, model_classes = context.config, context.class_names()
    classes = SemanticClasses.match(
        truth.classes or dict(enumerate(model_classes)), model_classes, config.void
    )
    if reason := no_common_class(model_classes, classes.names):
        return reason
    if config.membranes is not None and config.membranes not in classes.names:
        raise ValueError(
            f"evaluation.membranes is {config.membranes!r}, which is no class of the truth: "
            f"{', '.join(classes.names)}"
        )
    scored = context.join(tuple(truth.maps), ignore_suffix=True)
    image_ids = scored.ids(scored.names)
    counter = _Counter(context, truth, scored.names, image_ids, classes)
    parameters = {
        "classes": [classes.names, sorted((truth.classes or {}).items())],
        "model_classes": model_classes,
        "void": config.void,
        "membranes": config.membranes,
        "tolerance": TOLERANCE,
    }
    keys = image_keys(
        image_ids,
        context.commits(image_ids),
        [map_digest(truth, name) for name in scored.names],
    )
    rows, kept_notes = context.records("semantic", parameters, _SCHEMA).rows(keys, counter.count)
    size = len(classes.names)
    counts = _dense(rows, "confusion", (size, size + 1))
    outlines = boundary_f(_dense(rows, "outline", (size, 4)))
    total = np.sum(counts, axis=0)
    ious = [mean_iou(one) for one in counts]
    images_iou = np.array([np.nan if iou is None else iou for iou in ious])
    means = {
        name: rows[name].to_numpy().astype(np.float64)
        for name in _MEMBRANES
        if config.membranes is not None
    }
    scores = score_confusion(total, classes.names)
    boundary, boundary_of = _boundaries(rows, outlines, classes.names)
    notes = [f"label value {classes.void} of the truth is void"]
    notes += class_notes(model_classes, classes.names, what="their pixels are wrong")
    if truth.classes is None:
        notes.append("no classes.json beside the label maps: value i is the model's class i")
    if num_unlisted := int(np.sum(rows["num_unlisted"].to_numpy())):
        notes.append(f"{num_unlisted} pixels have a label value without a class: treated as void")
    return context.compare(
        scored,
        "semantic",
        scored.names,
        (*scores.metrics, mean_image_iou(images_iou), *boundary, *_membranes(means)),
        PixelStatistics(
            class_names=classes.names,
            counts=np.stack([class_tallies(one) for one in counts]),
            images_iou=images_iou,
            outlines=outlines if boundary else None,
            means=means,
        ),
        (*notes, *kept_notes),
        per_class=tuple(
            ClassRow(
                row.class_name,
                row.num_truth,
                row.num_predicted,
                row.values | boundary_of.get(row.class_name, {}),
            )
            for row in scores.per_class
        ),
        confusion=scores.confusion,
        per_image=scored.image_rows(_image_values(scored.names, counts, ious, means)),
        policies={
            "void": f"pixels of label value {classes.void}, and of values without a class, are not "
            "scored; void predictions on others are wrong",
            "absent classes": "in neither truth nor prediction: left out of every mean; only "
            "predicted: counts with 0",
            "outlines": f"within {100 * TOLERANCE:g} % of the image's diagonal; borders with void "
            "and with the image's edge are none",
        },
    )


def map_digest(truth: SemanticTruth, name: str) -> bytes:
    """Of one label map: by its size and time of change, as images are told apart."""
    found = truth.maps[name].stat()
    return digest(f"{found.st_size}|{found.st_mtime_ns}".encode())


@dataclass(frozen=True, slots=True)
class _Counter:
    """Truth images, and what counting their pixels takes."""

    context: Context
    truth: SemanticTruth
    names: Sequence[str]
    image_ids: Sequence[str | None]
    classes: SemanticClasses

    def count(self, todo: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Records of these images, by and by."""
        for start in range(0, len(todo), _IMAGES_AT_ONCE):
            part: list[int] = todo[start : start + _IMAGES_AT_ONCE].tolist()
            places: dict[str | None, list[int]] = {}
            for i in part:
                places.setdefault(self.image_ids[i], []).append(i)
            found: dict[int, dict[str, Any]] = {}
            image_ids = [image_id for image_id in places if image_id is not None]
            for image_id, prediction in self.context.masks("semantic", image_ids):
                for i in places[image_id]:
                    found[i] = self._row(self.names[i], prediction)
            rows = [found[i] if i in found else self._row(self.names[i], None) for i in part]
            yield pa.Table.from_pylist(rows, schema=_SCHEMA)

    def _row(self, name: str, prediction: NDArray[Any] | None) -> dict[str, Any]:
        classes, size = self.classes, len(self.classes.names)
        label_map = read_label_map(self.truth.maps[name])
        if prediction is not None and prediction.shape != label_map.shape:
            raise ValueError(
                f"{self.truth.maps[name]} is {label_map.shape} and the image {prediction.shape} "
                "(height, width); truth must have the image's size"
            )
        labels = classes.of_truth[label_map]
        guesses = (
            np.full(labels.shape, size, np.int32)
            if prediction is None
            else classes.of_model[prediction]
        )
        unlisted = (labels == size) & (label_map != classes.void)
        confusion = confusion_counts(labels, guesses, size).ravel()
        outline = boundary_counts(labels, guesses, size).ravel()
        row: dict[str, Any] = {"num_unlisted": int(np.count_nonzero(unlisted))}
        for key, values in (("confusion", confusion), ("outline", outline)):
            row[f"{key}_at"] = np.flatnonzero(values)
            row[key] = values[row[f"{key}_at"]]
        if self.context.config.membranes is not None:
            row |= self._membranes(labels, guesses)
        return row

    def _membranes(
        self, labels: NDArray[np.int32], guesses: NDArray[np.int32]
    ) -> dict[str, float | None]:
        """ISBI's numbers; void pixels are taken to be right."""
        assert self.context.config.membranes is not None
        membrane = self.classes.names.index(self.context.config.membranes)
        cells = (labels != membrane) & (labels < len(self.classes.names))
        guessed = np.where(labels < len(self.classes.names), guesses != membrane, cells)
        metrics = [pixel_error(cells, guessed), warping_error(cells, guessed)]
        if cells.any():
            metrics += rand_score(cells, guessed)
        return {metric.name: metric.value for metric in metrics}


def _dense(rows: pa.Table, name: str, shape: tuple[int, int]) -> NDArray[np.int64]:
    """(I, ...) counts of each image."""
    at, values = rows[f"{name}_at"].combine_chunks(), rows[name].combine_chunks()
    lengths = at.value_lengths().to_numpy(zero_copy_only=False)
    dense = np.zeros((rows.num_rows, shape[0] * shape[1]), np.int64)
    image = np.repeat(np.arange(rows.num_rows), lengths)
    dense[image, at.flatten().to_numpy()] = values.flatten().to_numpy()
    return dense.reshape(-1, *shape)


def _boundaries(
    rows: pa.Table, outlines: NDArray[np.float64], names: tuple[str, ...]
) -> tuple[tuple[Metric, ...], dict[str, dict[str, float]]]:
    """Boundary F over all and by class; nothing where no image has an outline."""
    if np.isnan(outlines).all():
        return (), {}
    metric, by_class = score_boundaries(_dense(rows, "outline", (len(names), 4)), names)
    return (metric,), {name: {metric.name: value} for name, value in by_class.items()}


def _membranes(means: Mapping[str, NDArray[np.float64]]) -> tuple[Metric, ...]:
    """Means over the images of ISBI's numbers."""
    if not means:
        return ()
    pair = np.eye(2, dtype=np.bool_)
    definitions = {
        metric.name: metric.definition
        for metric in (pixel_error(pair, pair), warping_error(pair, pair), *rand_score(pair, pair))
    }
    return tuple(
        Metric(name, float(np.nanmean(values)), f"{definitions[name]}; mean over images")
        for name, values in means.items()
        if not np.isnan(values).all()
    )


def _image_values(
    names: Sequence[str],
    counts: NDArray[np.int64],
    ious: Sequence[float | None],
    means: Mapping[str, NDArray[np.float64]],
) -> dict[str, dict[str, float]]:
    return {
        name: {
            "mIoU": iou,
            "pixel accuracy": float(np.trace(one) / one.sum()),
            **{key: float(each[i]) for key, each in means.items() if not np.isnan(each[i])},
        }
        for i, (name, one, iou) in enumerate(zip(names, counts, ious, strict=True))
        if iou is not None
    }
