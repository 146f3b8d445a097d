"""An evaluation as files: JSON with everything, Parquet with the numbers, thresholds."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from pixelmill.tasks.metrics.results import Evaluation, ModelEvaluation
from pixelmill.tasks.result_files import encode_rows, replace_whole

__all__ = ["save_evaluation"]

_JSON, _YAML = "metrics.json", "thresholds.yaml"
# Of more images the numbers of each are in per_image.parquet alone.
_MOST_JSON_IMAGES = 20_000
_OWNER = [pa.field("model", pa.string(), False), pa.field("kind", pa.string(), False)]
_BOX = pa.list_(pa.field("element", pa.float64(), False), 4)
_SCHEMAS = {
    "metrics.parquet": pa.schema(
        [
            *_OWNER,
            pa.field("class", pa.string()),
            pa.field("metric", pa.string(), False),
            pa.field("value", pa.float64(), False),
            pa.field("low", pa.float64()),
            pa.field("high", pa.float64()),
        ]
    ),
    "per_image.parquet": pa.schema(
        [
            *_OWNER,
            pa.field("path", pa.string(), False),
            pa.field("image_id", pa.string()),
            pa.field("metric", pa.string(), False),
            pa.field("value", pa.float64(), False),
        ]
    ),
    "mistakes.parquet": pa.schema(
        [
            *_OWNER,
            pa.field("path", pa.string(), False),
            pa.field("image_id", pa.string()),
            pa.field("error", pa.string(), False),
            pa.field("class", pa.string(), False),
            pa.field("score", pa.float64()),
            pa.field("rank", pa.int32()),
            pa.field("box_xyxy", _BOX, False),
            pa.field("truth_class", pa.string()),
            pa.field("truth_box_xyxy", _BOX),
            pa.field("iou", pa.float64()),
        ]
    ),
    "sweeps.parquet": pa.schema(
        [
            *_OWNER,
            pa.field("class", pa.string(), False),
            pa.field("threshold", pa.float64(), False),
            pa.field("precision", pa.float64(), False),
            pa.field("recall", pa.float64(), False),
            pa.field("f1", pa.float64(), False),
        ]
    ),
}


def save_evaluation(evaluation: Evaluation, folder: Path) -> tuple[Path, ...]:
    """Write metrics.json (everything), Parquet files of its tables, and recommended thresholds.

    Args:
        evaluation: what to save.
        folder: made if it is not there; earlier files of these names are replaced.

    Returns:
        The files; thresholds.yaml only where there are boxes or masks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {_JSON: _encode_json(evaluation)}
    rows = {
        "metrics.parquet": _metric_rows,
        "per_image.parquet": _image_rows,
        "mistakes.parquet": _mistake_rows,
        "sweeps.parquet": _sweep_rows,
    }
    for name, list_rows in rows.items():
        owned = [
            (model.model_key, model.kind, *row)
            for model in evaluation.models
            for row in list_rows(model)
        ]
        found[name] = encode_rows(_SCHEMAS[name], owned)
    thresholds = {
        # masks come after boxes, and are what their model is for
        model.model_key.rpartition("-")[0]: model.thresholds
        for model in evaluation.models
        if model.thresholds
    }
    if thresholds:
        found[_YAML] = _encode_thresholds(evaluation, thresholds)
    else:
        (folder / _YAML).unlink(missing_ok=True)
    for name, content in found.items():
        replace_whole(folder / name, content)
    return tuple(folder / name for name in found)


def _encode_json(evaluation: Evaluation) -> bytes:
    models = tuple(
        model
        if len(model.per_image) <= _MOST_JSON_IMAGES
        else replace(
            model,
            per_image=(),
            notes=(*model.notes, "numbers of each image are in per_image.parquet"),
        )
        for model in evaluation.models
    )
    document = replace(evaluation, models=models).to_dict()
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1).encode()


def _encode_thresholds(evaluation: Evaluation, thresholds: Mapping[str, Any]) -> bytes:
    """For `pixelmill score --thresholds`, or a configuration's `class_thresholds`."""
    head = (
        f"# Scores of the best F1 at IoU 0.50, {evaluation.collection}, {evaluation.created_at}.\n"
        "# pixelmill score FOLDER --thresholds thresholds.yaml\n"
    )
    return (head + yaml.safe_dump(thresholds, sort_keys=True, allow_unicode=True)).encode()


def _metric_rows(model: ModelEvaluation) -> Iterator[tuple[Any, ...]]:
    for one in model.metrics:
        yield None, one.name, one.value, *(one.interval or (None, None))
    for row in model.per_class:
        counts = {"num_truth": float(row.num_truth), "num_predicted": float(row.num_predicted)}
        for name, value in {**row.values, **counts}.items():
            yield row.class_name, name, value, None, None
    for share in model.errors.shares if model.errors else ():
        yield None, f"errors {share.kind}", float(share.count), None, None
        yield None, f"dAP {share.kind}", share.delta_ap, None, None


def _image_rows(model: ModelEvaluation) -> Iterator[tuple[Any, ...]]:
    for row in model.per_image:
        for name, value in row.values.items():
            yield row.path, row.image_id, name, value


def _mistake_rows(model: ModelEvaluation) -> Iterator[tuple[Any, ...]]:
    for one in model.mistakes:
        yield (
            *(one.path, one.image_id, one.kind, one.class_name, one.score, one.rank),
            *(one.box_xyxy, one.truth_class, one.truth_box_xyxy, one.iou),
        )


def _sweep_rows(model: ModelEvaluation) -> Iterator[tuple[Any, ...]]:
    for one in model.sweeps:
        for numbers in zip(one.thresholds, one.precision, one.recall, one.f1, strict=True):
            yield one.class_name, *numbers
