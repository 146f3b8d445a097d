"""A trained model's numbers on the images that were kept apart, by the scoring path itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from pixelmill.configs.schema import IngestConfig, ModelConfig
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.checkpoint import read_metadata
from pixelmill.models.interface import Network
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.box_files import FolderSizes, load_boxes
from pixelmill.tasks.datasets import DataSource
from pixelmill.tasks.engine.decode import decode_image
from pixelmill.tasks.engine.merge import merge_views
from pixelmill.tasks.engine.views import draw_view, plan_views
from pixelmill.tasks.metrics.bootstrap import Number, Statistics, intervals
from pixelmill.tasks.metrics.captions import score_captions
from pixelmill.tasks.metrics.classification import score_labels
from pixelmill.tasks.metrics.detection import (
    InstanceTruth,
    IouType,
    encode_mask,
    score_detections,
)
from pixelmill.tasks.metrics.results import Metric
from pixelmill.tasks.metrics.segmentation import (
    class_tallies,
    confusion_counts,
    mean_iou,
    score_confusion,
)
from pixelmill.tasks.metrics.statistics import PixelStatistics
from pixelmill.tasks.names import place_inside
from pixelmill.tasks.predictions import Detections, ImagePrediction, MaskCrop
from pixelmill.tasks.truth import load_captions, load_labels, load_semantic, read_label_map

__all__ = [
    "check_held_out",
    "measure_held_out",
    "predict_held_out",
    "predict_image",
    "score_predictions",
]

# What evaluate leads with
_SHOWN = (
    *("AP50", "AP"),
    *("mIoU", "Dice", "pixel accuracy"),
    *("CIDEr-D", "CIDEr-D baseline", "BLEU-4"),
    *("top-1", "macro F1"),
)
_NUM_RESAMPLES = 1000

Size = tuple[int, int]
# By file name in the truth
Predictions = Mapping[str, ImagePrediction]


def check_held_out(weights: Path, source: DataSource, names: Sequence[str]) -> dict[str, float]:
    """Score the named images as `pixelmill score` does, and compare with the truth.

    Args:
        weights: checkpoint.
        source: folder of images, and truth.
        names: relative paths of images that have truth.

    Returns:
        The main numbers of the task: "box AP50", "mask AP50", "mIoU", "CIDEr-D" and the like.
        Empty if no image is named.
    """
    if not names:
        return {}
    return score_predictions(predict_held_out(weights, source, names), source, _spec_of(weights))


def measure_held_out(weights: Path, source: DataSource, names: Sequence[str]) -> tuple[Metric, ...]:
    """The numbers of `check_held_out`, with 95 % intervals where there are enough images."""
    if not names:
        return ()
    predictions = predict_held_out(weights, source, names)
    measured: list[Metric] = []
    for prefix, scores in _score(predictions, source, _spec_of(weights)):
        found = intervals(scores.statistics, _NUM_RESAMPLES)
        measured += [
            replace(each, name=prefix + each.name, interval=found.get(Number(each.name)))
            for each in scores.metrics
            if each.name in _SHOWN
        ]
    return tuple(measured)


def predict_held_out(
    weights: Path, source: DataSource, names: Sequence[str]
) -> dict[str, ImagePrediction]:
    """What a checkpoint says of the named images, by name."""
    spec = _spec_of(weights)
    network = build_network(spec)
    return {name: predict_image(network, spec, place_inside(source.images, name)) for name in names}


def _spec_of(weights: Path) -> ModelSpec:
    metadata = read_metadata(weights)
    config: ModelConfig = TypeAdapter(ModelConfig).validate_python(
        {"task": metadata.task, "name": metadata.name, "weights": str(weights.resolve())}
    )
    return resolve_model(config, weights.parent)


def score_predictions(
    predictions: Predictions, source: DataSource, spec: ModelSpec
) -> dict[str, float]:
    """The main numbers of the task, see `check_held_out`.

    Args:
        predictions: by file name in the truth.
        source: truth as for training: boxes in any format, a folder of label maps, captions,
            labels.
        spec: of the model; its classes are named as in the truth.
    """
    return {
        prefix + each.name: each.value
        for prefix, scores in _score(predictions, source, spec)
        for each in scores.metrics
        if each.name in _SHOWN
    }


@dataclass(frozen=True, slots=True)
class _Scores:
    """All numbers of one kind of truth, and what their intervals are drawn from."""

    metrics: tuple[Metric, ...]
    statistics: Statistics


def _score(
    predictions: Predictions, source: DataSource, spec: ModelSpec
) -> list[tuple[str, _Scores]]:
    """Numbers of each kind of truth, with what is written before their names."""
    if spec.task == "semantic_segmentation":
        return [("", _score_semantic(predictions, source.truth, spec))]
    if spec.task == "captioning":
        return [("", _score_captions(predictions, source.truth))]
    if spec.task == "classification":
        return [("", _score_labels(predictions, source.truth, spec))]
    truth = load_boxes(source.truth, FolderSizes(source.images), spec.classes)
    return _score_boxes(predictions, truth, spec)


def predict_image(network: Network, spec: ModelSpec, path: Path) -> ImagePrediction:
    """Score one image, as an engine that has nothing else to do."""
    decoded = decode_image(path.read_bytes(), max_pixels=IngestConfig().max_pixels)
    size = decoded.original_size
    placements = plan_views(size, spec)
    canvases = (draw_view(decoded.pixels, each, spec.preprocess) for each in placements)
    outputs = [network.predict(torch.from_numpy(canvas)[None])[0] for canvas in canvases]
    return merge_views(outputs, placements, spec, size)


def _score_boxes(
    predictions: Predictions, truth: InstanceTruth, spec: ModelSpec
) -> list[tuple[str, _Scores]]:
    images = tuple(image for image in truth.images if image.file_name in predictions)
    ids = {image.id for image in images}
    notes = tuple(note for note in truth.annotations if note["image_id"] in ids)
    truth = replace(truth, images=images, annotations=notes)
    category_ids = {category.name: category.id for category in truth.categories}
    detections = []
    for image in images:
        found = predictions[image.file_name].detections
        if found is not None:
            for entry in _as_coco(found, image.id, (image.height, image.width)):
                # A class that the truth does not know is neither right nor wrong
                name = spec.classes[entry.pop("label")]
                if name in category_ids:
                    detections.append(entry | {"category_id": category_ids[name]})
    kinds: list[tuple[str, IouType]] = [("box ", "bbox")]
    if spec.task == "instance_segmentation":
        kinds.append(("mask ", "segm"))
    scores = [
        (prefix, score_detections(truth, detections, iou_type=kind)) for prefix, kind in kinds
    ]
    return [(prefix, _Scores(each.metrics, each.statistics)) for prefix, each in scores]


def _as_coco(found: Detections, image_id: int, size: Size) -> list[dict[str, Any]]:
    """COCO results, with the key "label" instead of category_id."""
    entries: list[dict[str, Any]] = []
    for index, (box_xyxy, score, label) in enumerate(
        zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    ):
        left, top, right, bottom = box_xyxy
        entry = {
            "image_id": image_id,
            "label": label,
            "score": score,
            "bbox": [left, top, right - left, bottom - top],
        }
        if found.masks is not None:
            entry["segmentation"] = encode_mask(_whole_mask(found.masks[index], size))
        entries.append(entry)
    return entries


def _whole_mask(crop: MaskCrop, size: Size) -> NDArray[np.bool_]:
    mask = np.zeros(size, np.bool_)
    height, width = crop.mask.shape
    mask[crop.top : crop.top + height, crop.left : crop.left + width] = crop.mask
    return mask


def _score_semantic(predictions: Predictions, truth_path: Path, spec: ModelSpec) -> _Scores:
    maps = load_semantic(truth_path).maps
    counted = [
        confusion_counts(
            read_label_map(maps[name.rpartition(".")[0]]), prediction.semantic, len(spec.classes)
        )
        for name, prediction in predictions.items()
        if prediction.semantic is not None
    ]
    ious = [mean_iou(counts) for counts in counted]
    statistics = PixelStatistics(
        class_names=spec.classes,
        counts=np.stack([class_tallies(counts) for counts in counted]),
        images_iou=np.array([np.nan if iou is None else iou for iou in ious]),
    )
    total = np.sum(counted, axis=0)
    return _Scores(score_confusion(total, spec.classes).metrics, statistics)


def _score_captions(predictions: Predictions, truth_path: Path) -> _Scores:
    truth = load_captions(truth_path)
    references = dict(zip(truth.file_names, truth.captions, strict=True))
    candidates = [prediction.captions[0].text for prediction in predictions.values()]
    scores = score_captions(candidates, [references[name] for name in predictions])
    return _Scores(scores.metrics, scores.statistics)


def _score_labels(predictions: Predictions, truth_path: Path, spec: ModelSpec) -> _Scores:
    truth = load_labels(truth_path).labels
    ranked = [
        [spec.classes[label.class_id] for label in prediction.labels]
        for prediction in predictions.values()
    ]
    scores = score_labels([truth[name] for name in predictions], ranked, spec.classes)
    return _Scores(scores.metrics, scores.statistics)
