"""An evaluation as files: JSON with everything, Parquet with the numbers, thresholds."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pixelmill.tasks.metrics.results import Evaluation

__all__ = ["save_evaluation"]

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
