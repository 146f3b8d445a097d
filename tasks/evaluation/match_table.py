"""Matched detections as a table with one row per image, and back."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pixelmill.tasks.metrics.matching import MatchRecords

__all__ = ["MATCH_SCHEMA", "matches_from_table", "matches_to_table"]

# column of a detection, an instance or a pair -> type of its elements
_LISTS: dict[str, dict[str, pa.DataType]] = {
    "image": {
        "class_index": pa.int32(),
        "position": pa.int32(),
        "score": pa.float64(),
        "right": pa.int64(),
        "ignored": pa.int64(),
        "iou": pa.float64(),
        "same_iou": pa.float64(),
        "same_truth": pa.int32(),
        "other_iou": pa.float64(),
        "other_truth": pa.int32(),
    },
    "truth_image": {
        "truth_class": pa.int32(),
        "truth_ignored": pa.int8(),
        "found_score": pa.float64(),
    },
    "pair_image": {
        "pair_position": pa.int32(),
        "pair_truth": pa.int32(),
        "pair_iou": pa.float64(),
    },
}
MATCH_SCHEMA = pa.schema(
    [
        pa.field(name, pa.list_(pa.field("element", kind, False)), False)
        for columns in _LISTS.values()
        for name, kind in columns.items()
    ]
)


def matches_to_table(records: MatchRecords) -> pa.Table:
    """One row per image, its detections, instances and pairs as lists."""
    arrays = []
    images = np.arange(records.num_images + 1)
    for image, columns in _LISTS.items():
        order = np.argsort(getattr(records, image), kind="stable")
        offsets = np.searchsorted(getattr(records, image)[order], images).astype(np.int32)
        for name, kind in columns.items():
            values = pa.array(getattr(records, name)[order], kind, from_pandas=False)
            field = MATCH_SCHEMA.field(name)
            arrays.append(pa.ListArray.from_arrays(offsets, values, type=field.type))
    return pa.Table.from_arrays(arrays, schema=MATCH_SCHEMA)


def matches_from_table(table: pa.Table) -> MatchRecords:
    """The records of the table's rows as images 0, 1, ..."""
    columns: dict[str, NDArray[Any]] = {}
    for image, names in _LISTS.items():
        for name, kind in names.items():
            lists = table[name].combine_chunks()
            if image not in columns:
                lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
                columns[image] = np.repeat(np.arange(table.num_rows), lengths)
            values = lists.flatten().to_numpy(zero_copy_only=False)
            columns[name] = values if pa.types.is_floating(kind) else values.astype(np.int64)
    owner = columns["truth_image"]
    columns["truth_place"] = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return MatchRecords(num_images=table.num_rows, **columns)
