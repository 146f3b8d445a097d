import pyarrow as pa
import pytest

from pixelmill.tasks.ingest import LISTING_SCHEMA, Listing
from pixelmill.tasks.partition import UNDATED, partition_listing, partition_of
from pixelmill.tasks.sources import PROBLEMS_SCHEMA


@pytest.mark.parametrize(
    ("path", "day", "month"),
    [
        ("2024/05/31/a.jpg", "2024-05-31", "2024-05"),
        ("cam1/2024-05-31_a.jpg", "2024-05-31", "2024-05"),
        ("IMG_20240531_101112.jpg", "2024-05-31", "2024-05"),
        ("2024-05/a.jpg", UNDATED, "2024-05"),
        ("2024/13/31/a.jpg", UNDATED, UNDATED),
        ("120240531/a.jpg", UNDATED, UNDATED),
        ("a.jpg", UNDATED, UNDATED),
    ],
)
def test_dates_are_read_from_paths(path, day, month):
    assert partition_of(path, "day") == day
    assert partition_of(path, "month") == month


def test_folders_are_the_first_part():
    assert partition_of("a/b/c.jpg", "folder") == "a"
    assert partition_of("c.jpg", "folder") == "."


def test_parts_hold_every_image_once_in_order():
    paths = ["b/1.jpg", "a/2.jpg", "b/0.jpg"]
    rows = [{"path": p, "source_uri": p, "size_bytes": 1, "modified": "1"} for p in sorted(paths)]
    images = pa.Table.from_pylist(rows, LISTING_SCHEMA)
    problem = {"path": "x", "reason": "broken_link", "message": ""}
    problems = pa.Table.from_pylist([problem], PROBLEMS_SCHEMA)
    parts = partition_listing(Listing(images, problems), "folder")
    assert {key: part.images["path"].to_pylist() for key, part in parts.items()} == {
        "a": ["a/2.jpg"],
        "b": ["b/0.jpg", "b/1.jpg"],
    }
    assert sum(part.problems.num_rows for part in parts.values()) == 1
