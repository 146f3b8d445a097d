"""Files that results are told in: whole at any moment, tables made of rows."""

import io
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["encode_rows", "replace_whole"]


def encode_rows(schema: pa.Schema, rows: Sequence[Sequence[Any]]) -> bytes:
    """A Parquet file of rows, whose values are in the order of the schema."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def replace_whole(path: Path, data: bytes) -> None:
    """Write aside, then rename: a reader sees the old file or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    aside.write_bytes(data)
    aside.replace(path)
