import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixelmill.tasks.store.schemas import DETECTIONS, PLAN, TABLES, encode_table, table_metadata


def detections(number=3):
    return pa.table(
        {
            "image_id": [f"{i // 2:032x}" for i in range(number)],
            "rank": [i % 2 for i in range(number)],
            "class_id": [0] * number,
            "class_name": ["cat"] * number,
            "score": [0.5] * number,
            **{name: [float(i) for i in range(number)] for name in ("x_min", "y_min")},
            **{name: [float(i + 1) for i in range(number)] for name in ("x_max", "y_max")},
            **dict.fromkeys(("mask_layer", "mask_value", "mask_area"), [None] * number),
        },
        schema=DETECTIONS,
    )


def test_equal_tables_are_equal_bytes():
    assert encode_table(detections()) == encode_table(detections())


def test_strings_have_dictionaries_and_floats_are_split():
    metadata = pq.read_metadata(io.BytesIO(encode_table(detections())))
    columns = {c.path_in_schema: c for c in map(metadata.row_group(0).column, range(12))}
    assert "RLE_DICTIONARY" in columns["class_name"].encodings
    assert "BYTE_STREAM_SPLIT" in columns["score"].encodings
    assert "RLE_DICTIONARY" not in columns["x_min"].encodings
    assert "RLE_DICTIONARY" not in columns["rank"].encodings
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert all(column.has_offset_index and column.has_column_index for column in columns.values())


def test_row_groups_hold_122880_rows():
    metadata = pq.read_metadata(io.BytesIO(encode_table(detections(122_881))))
    assert [metadata.row_group(i).num_rows for i in range(2)] == [122_880, 1]


def test_files_explain_themselves():
    table = detections().replace_schema_metadata(table_metadata("detections", "m-0", ("cat",)))
    schema = pq.read_schema(io.BytesIO(encode_table(table)))
    assert schema.metadata[b"pixelmill.model_key"] == b"m-0"
    assert schema.metadata[b"pixelmill.classes"] == b'["cat"]'
    assert schema.metadata[b"pixelmill.format_version"] == b"1"
    assert b"pixels" in schema.field("x_min").metadata[b"unit"]


@pytest.mark.parametrize("name", TABLES)
def test_partition_keys_are_not_columns(name):
    assert not set(TABLES[name].partitions) & set(TABLES[name].schema.names)


@pytest.mark.parametrize("schema", [PLAN, *(table.schema for table in TABLES.values())])
def test_every_column_says_its_unit(schema):
    assert all(field.metadata[b"unit"] for field in schema)
