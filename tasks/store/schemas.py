"""The tables: their columns, types and units, and how they are written to Parquet.

Partition keys (`model`, `date`, `collection`) live in the path only: a column that is in the file
and in the path too makes pandas raise. The schema is fixed per format version.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = [
    "CANDIDATES",
    "CAPTIONS",
    "CATALOG",
    "DETECTIONS",
    "FAILURES",
    "FORMAT_VERSION",
    "IMAGES",
    "LABELS",
    "PLAN",
    "TABLES",
    "Table",
    "encode_table",
    "encode_tables",
    "table_metadata",
]

FORMAT_VERSION = 1

# One unit of work of DuckDB; smaller row groups scan 1.6 to 3.4 times slower.
ROW_GROUP_ROWS = 122_880


def _field(name: str, dtype: pa.DataType, unit: str, *, null: bool = False) -> pa.Field:
    return pa.field(name, dtype, nullable=null, metadata={"unit": unit})


_STRING, _INT, _LONG, _FLOAT = pa.string(), pa.int32(), pa.int64(), pa.float32()
_TIME = pa.timestamp("us", tz="UTC")
_IMAGE_ID = _field("image_id", _STRING, "first 32 hex digits of the sha256 of the encoded bytes")
_RANK = _field("rank", _INT, "0 is best; (image_id, rank) is the key")
_CLASS_ID = _field("class_id", _INT, "index into the model's classes")
_CLASS_NAME = _field("class_name", _STRING, "name in the model's classes")
_SCORE = _field("score", _FLOAT, "0 to 1")
_BOX = tuple(
    _field(name, _FLOAT, f"pixels of the original image, {meaning}")
    for name, meaning in (
        ("x_min", "left edge"),
        ("y_min", "top edge"),
        ("x_max", "right edge, exclusive"),
        ("y_max", "bottom edge, exclusive"),
    )
)

IMAGES = pa.schema(
    [
        _IMAGE_ID,
        _field("collection", _STRING, "slug of the listed root"),
        _field("path", _STRING, "relative to the listed root, where it was first seen"),
        _field("source_uri", _STRING, "where the bytes were read"),
        _field("width", _INT, "pixels, after EXIF orientation"),
        _field("height", _INT, "pixels, after EXIF orientation"),
        _field("size_bytes", _LONG, "bytes"),
        _field("modified", _STRING, "mtime in nanoseconds, or etag"),
        _field("status", _STRING, "ok, or comma-separated flags such as truncated"),
        _field("n_detections", _INT, "rows in detections"),
        _field("n_captions", _INT, "rows in captions"),
        _field("mask_store", _STRING, "path of a Zarr store, relative to the root", null=True),
        _field("semantic_array", _STRING, "path in mask_store", null=True),
        _field("semantic_row", _INT, "index on the array's image axis", null=True),
        _field("instances_array", _STRING, "path in mask_store", null=True),
        _field("instances_row", _INT, "index on the array's image axis", null=True),
        _field("shard_id", _STRING, "the shard that scored it"),
        _field("run_id", _STRING, "the run that planned the shard"),
        _field("scored_at", _TIME, "when the shard was committed"),
    ]
)
DETECTIONS = pa.schema(
    [
        _IMAGE_ID,
        _RANK,
        _CLASS_ID,
        _CLASS_NAME,
        _SCORE,
        *_BOX,
        _field("mask_layer", _INT, "index on the instance array's layer axis", null=True),
        _field("mask_value", _INT, "value of its pixels in that layer, rank + 1", null=True),
        _field("mask_area", _INT, "pixels", null=True),
    ]
)
CANDIDATES = pa.schema([_IMAGE_ID, _RANK, _CLASS_ID, _CLASS_NAME, _SCORE, *_BOX])
CAPTIONS = pa.schema(
    [
        _IMAGE_ID,
        _RANK,
        _field("text", _STRING, "detokenised sentence"),
        _field("logprob", _FLOAT, "natural logarithm of the sentence's probability"),
        _field("n_tokens", _INT, "tokens generated, the end token included"),
        _field("prompt", _STRING, "what the model was asked", null=True),
    ]
)
LABELS = pa.schema([_IMAGE_ID, _RANK, _CLASS_ID, _CLASS_NAME, _SCORE])
CATALOG = pa.schema(
    [
        _field("path", _STRING, "relative to the listed root, '/' between the parts"),
        _field("source_uri", _STRING, "where the bytes were read"),
        _field("size_bytes", _LONG, "bytes"),
        _field("modified", _STRING, "mtime in nanoseconds, or etag"),
        _IMAGE_ID,
        _field("width", _INT, "pixels, after EXIF orientation", null=True),
        _field("height", _INT, "pixels, after EXIF orientation", null=True),
        _field("run_id", _STRING, "the run that read it"),
    ]
)
FAILURES = pa.schema(
    [
        _field("collection", _STRING, "slug of the listed root"),
        _field("path", _STRING, "relative to the listed root"),
        _field("source_uri", _STRING, "where the bytes were read"),
        _field("size_bytes", _LONG, "bytes, as listed", null=True),
        _field("modified", _STRING, "mtime in nanoseconds, or etag, as listed", null=True),
        _field("image_id", _STRING, "null when the bytes could not be read", null=True),
        _field("model_key", _STRING, "null when no model was reached", null=True),
        _field("stage", _STRING, "step that failed: read, decode, score, ..."),
        _field("reason", _STRING, "short code"),
        _field("message", _STRING, "what the library said"),
        _field("retryable", pa.bool_(), "whether the same bytes may succeed later"),
        _field("attempt", _STRING, "8 hex digits of the shard's attempt"),
        _field("run_id", _STRING, "the run that tried"),
        _field("failed_at", _TIME, "when it failed"),
    ]
)
PLAN = pa.schema(
    [
        _field("shard", _INT, "index of the shard in the run"),
        _field("path", _STRING, "relative to the listed root"),
        _field("source_uri", _STRING, "where the bytes are read"),
        _field("size_bytes", _LONG, "bytes"),
        _field("modified", _STRING, "mtime in nanoseconds, or etag"),
        _field("width", _INT, "pixels, after EXIF orientation", null=True),
        _field("height", _INT, "pixels, after EXIF orientation", null=True),
        _field("image_id", _STRING, "where the catalog knows it", null=True),
        _field("model_mask", _LONG, "bit i: the run's models[i] has not scored it"),
    ]
)


@dataclass(frozen=True, slots=True)
class Table:
    """A published table.

    Attributes:
        partitions: path components below the table's folder, `<name>=<value>` each.
        sort_by: order of the rows in each part.
    """

    name: str
    schema: pa.Schema
    partitions: tuple[str, ...]
    sort_by: tuple[str, ...]


TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        Table("catalog", CATALOG, ("collection",), ("path", "size_bytes", "modified")),
        Table("images", IMAGES, ("model", "date"), ("image_id",)),
        Table("detections", DETECTIONS, ("model", "date"), ("image_id", "rank")),
        Table("captions", CAPTIONS, ("model", "date"), ("image_id", "rank")),
        Table("labels", LABELS, ("model", "date"), ("image_id", "rank")),
        Table("candidates", CANDIDATES, ("model", "date"), ("image_id", "rank")),
        Table("failures", FAILURES, ("date",), ("path", "failed_at", "attempt")),
    )
}


def table_metadata(
    name: str, model_key: str | None = None, classes: Sequence[str] = ()
) -> dict[str, str]:
    """Key-values for a file's schema: what it is, so that a part explains itself."""
    metadata = {"pixelmill.format_version": str(FORMAT_VERSION), "pixelmill.table": name}
    if model_key is not None:
        metadata["pixelmill.model_key"] = model_key
        metadata["pixelmill.classes"] = json.dumps(list(classes), ensure_ascii=False)
    return metadata


def encode_table(table: pa.Table, *, row_group_rows: int = ROW_GROUP_ROWS) -> bytes:
    """Parquet bytes of `table`; the same table gives the same bytes.

    Dictionaries on strings only (on floats they cost 40 %), byte-stream-split floats (-6 %).
    """
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_rows, **_options(table.schema))
    return sink.getvalue()


def encode_tables(tables: Iterable[pa.Table], schema: pa.Schema) -> bytes:
    """Parquet bytes of the rows of tables, one after the other, as `encode_table` writes them."""
    sink = io.BytesIO()
    waiting = schema.empty_table()  # for their row group to be full
    with pq.ParquetWriter(sink, schema, **_options(schema)) as writer:
        for table in tables:
            waiting = pa.concat_tables([waiting, table])
            num_rows = waiting.num_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS
            if num_rows:
                writer.write_table(waiting.slice(0, num_rows), row_group_size=ROW_GROUP_ROWS)
                waiting = waiting.slice(num_rows)
        if waiting.num_rows:
            writer.write_table(waiting)
    return sink.getvalue()


def _options(schema: pa.Schema) -> dict[str, Any]:
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": [f.name for f in schema if pa.types.is_string(f.type)],
        "column_encoding": {
            f.name: "BYTE_STREAM_SPLIT" for f in schema if pa.types.is_floating(f.type)
        },
        "write_page_index": True,
        "write_statistics": True,
    }
