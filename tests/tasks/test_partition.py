import pyarrow as pa
import pytest

from pixelmill.tasks.ingest import LISTING_SCHEMA, Listing
from pixelmill.tasks.partition import UNDATED, join_parts, partition_listing, partition_of
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


@pytest.mark.parametrize(
    ("pattern", "path", "day"),
    [
        ("%Y/%m/%d", "cam1/2024/5/31/a.jpg", "2024-05-31"),
        ("cam*/%d.%m.%y", "site/cam12/31.05.24/a.jpg", "2024-05-31"),
        ("%Y/%j", "2024/152/a.jpg", "2024-05-31"),
        ("*_%Y%m%d", "20230101/IMG_20240531_1.jpg", "2024-05-31"),
        ("%Y/%m/%d", "2024/02/31/a.jpg", UNDATED),
        ("cam*/%Y/%m/%d", "cam/x/2024/05/31/a.jpg", UNDATED),
    ],
)
def test_a_pattern_says_where_the_date_is(pattern, path, day):
    assert partition_of(path, "day", pattern) == day
    assert partition_of(path, "month", pattern) == (day if day == UNDATED else day[:7])


@pytest.mark.parametrize(
    ("pattern", "told"),
    [("%Y/%m", "year and day"), ("%m/%d", "year and day"), ("%Y%H", "at most once"), ("%", "%Y")],
)
def test_a_pattern_that_says_too_little_is_refused(pattern, told):
    with pytest.raises(ValueError, match=told):
        partition_of("2024/05", "day", pattern)


def test_parts_are_joined_up_to_a_number_of_images():
    images = pa.Table.from_pylist(
        [
            {"path": f"{part}/{i}", "source_uri": "", "size_bytes": 1, "modified": "1"}
            for part, number in (("a", 2), ("b", 1), ("c", 4))
            for i in range(number)
        ],
        LISTING_SCHEMA,
    )
    parts = partition_listing(Listing(images, PROBLEMS_SCHEMA.empty_table()), "folder")
    joined = [(names, len(listing.images)) for names, listing in join_parts(parts, 3)]
    assert joined == [(["a", "b"], 3), (["c"], 4)]
