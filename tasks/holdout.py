"""A trained model's numbers on the images that were kept apart, by the scoring path itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from pixelmill.tasks.datasets import DataSource
from pixelmill.tasks.engine.decode import decode_image
from pixelmill.tasks.engine.merge import merge_views
from pixelmill.tasks.engine.views import draw_view, plan_views
from pixelmill.tasks.metrics.captions import score_captions
from pixelmill.tasks.metrics.detection import encode_mask, score_detections
from pixelmill.tasks.metrics.results import Metric
from pixelmill.tasks.metrics.segmentation import confusion_counts, score_confusion
from pixelmill.tasks.names import place_inside
from pixelmill.tasks.predictions import Detections, ImagePrediction, MaskCrop
from pixelmill.tasks.truth import (
    load_captions,
    load_coco_instances,
    load_semantic,
    read_label_map,
)

__all__ = ["check_held_out", "predict_image", "score_predictions"]

_SHOWN = ("AP50", "AP", "mIoU", "pixel accuracy", "CIDEr-D", "CIDEr-D baseline", "BLEU-4")

Size = tuple[int, int]


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
    metadata = read_metadata(weights)
    config: ModelConfig = TypeAdapter(ModelConfig).validate_python(
        {"task": metadata.task, "name": metadata.name, "weights": str(weights.resolve())}
    )
    spec = resolve_model(config, weights.parent)
    network = build_network(spec)
    predictions = {
        name: predict_image(network, spec, place_inside(source.images, name)) for name in names
    }
    return score_predictions(predictions, source.truth, spec)


def score_predictions(
    predictions: Mapping[str, ImagePrediction], truth: Path, spec: ModelSpec
) -> dict[str, float]:
    """The main numbers of the task, see `check_held_out`.

    Args:
        predictions: by file name in the truth.
        truth: as for training: a COCO file, a folder of label maps, COCO captions.
        spec: of the model; its classes are named as in the truth.
    """
    if spec.task == "semantic_segmentation":
        return _shown(_score_semantic(predictions, truth, spec))
    if spec.task == "captioning":
        return _shown(_score_captions(predictions, truth))
    return _score_boxes(predictions, truth, spec)


def predict_image(network: Network, spec: ModelSpec, path: Path) -> ImagePrediction:
    """Score one image, as an engine that has nothing else to do."""
    decoded = decode_image(path.read_bytes(), max_pixels=IngestConfig().max_pixels)
    size = decoded.original_size
    placements = plan_views(size, spec)
    canvases = (draw_view(decoded.pixels, each, spec.preprocess) for each in placements)
    outputs = [network.predict(torch.from_numpy(canvas)[None])[0] for canvas in canvases]
    return merge_views(outputs, placements, spec, size)


def _shown(metrics: Sequence[Metric], prefix: str = "") -> dict[str, float]:
    return {prefix + each.name: each.value for each in metrics if each.name in _SHOWN}


def _score_boxes(
    predictions: Mapping[str, ImagePrediction], truth_path: Path, spec: ModelSpec
) -> dict[str, float]:
    truth = load_coco_instances(truth_path)
    images = tuple(image for image in truth.images if image.file_name in predictions)
    ids = {image.id for image in images}
    notes = tuple(note for note in truth.annotations if note["image_id"] in ids)
    truth = replace(truth, images=images, annotations=notes)
    category_ids = {category.name: category.id for category in truth.categories}
    detections = []
    for image in images:
        found = predictions[image.file_name].detections
        if found is not None:
            named = _as_coco(found, image.id, (image.height, image.width))
            for entry in named:
                entry["category_id"] = category_ids[spec.classes[entry.pop("label")]]
            detections += named
    metrics = _shown(score_detections(truth, detections).metrics, "box ")
    if spec.task == "instance_segmentation":
        metrics |= _shown(score_detections(truth, detections, iou_type="segm").metrics, "mask ")
    return metrics


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


def _score_semantic(
    predictions: Mapping[str, ImagePrediction], truth_path: Path, spec: ModelSpec
) -> tuple[Metric, ...]:
    maps = load_semantic(truth_path).maps
    num_classes = len(spec.classes)
    confusion = np.zeros((num_classes, num_classes + 1), np.int64)
    for name, prediction in predictions.items():
        if prediction.semantic is not None:
            truth = read_label_map(maps[name.rpartition(".")[0]])
            confusion += confusion_counts(truth, prediction.semantic, num_classes)
    return score_confusion(confusion, spec.classes).metrics


def _score_captions(
    predictions: Mapping[str, ImagePrediction], truth_path: Path
) -> tuple[Metric, ...]:
    truth = load_captions(truth_path)
    references = dict(zip(truth.file_names, truth.captions, strict=True))
    candidates = [prediction.captions[0].text for prediction in predictions.values()]
    return score_captions(candidates, [references[name] for name in predictions]).metrics
