"""The join of listing and catalog, and the reading of new headers only."""

import io
import os

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pixelmill.configs.schema import IngestConfig
from pixelmill.tasks import ingest as ingest_module
from pixelmill.tasks.ingest import KNOWN_COLUMNS, LISTING_SCHEMA, Listing, ingest, join_again

CONFIG = IngestConfig()
NOTHING = LISTING_SCHEMA.empty_table()


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(png(10 + number, 20))
    return tmp_path


def known(listing: Listing) -> pa.Table:
    """The catalog after all of a listing has been read."""
    ids = pa.array([f"{number:032x}" for number in range(listing.images.num_rows)])
    place = LISTING_SCHEMA.get_field_index("image_id")
    return listing.images.set_column(place, "image_id", ids).select(KNOWN_COLUMNS)


def test_new_files_have_header_sizes_and_no_id(folder):
    listing = ingest(str(folder), CONFIG, NOTHING)
    assert listing.images.schema == LISTING_SCHEMA
    assert listing.num_known == 0
    assert listing.images["width"].to_pylist() == [10, 11, 12, 13, 14]
    assert listing.images["height"].to_pylist() == [20] * 5
    assert listing.images["image_id"].null_count == 5


def test_unchanged_files_are_known_and_not_opened(folder, monkeypatch):
    catalog = known(ingest(str(folder), CONFIG, NOTHING))
    (folder / "9.png").write_bytes(png(7, 8))
    opened = []
    monkeypatch.setattr(
        ingest_module, "read_head", lambda uri, n: opened.append(uri) or png(7, 8)[:n]
    )
    images = ingest(str(folder), CONFIG, catalog).images
    assert opened == [f"{folder}/9.png"]
    assert images["image_id"].to_pylist() == [*catalog["image_id"].to_pylist(), None]
    assert images["width"].to_pylist() == [10, 11, 12, 13, 14, 7]


@pytest.mark.parametrize("change", ["size", "time", "name"])
def test_a_changed_file_is_new(folder, change):
    catalog = known(ingest(str(folder), CONFIG, NOTHING))
    file = folder / "2.png"
    if change == "size":
        file.write_bytes(png(300, 300))
    elif change == "time":
        os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
    else:
        file.rename(folder / "2b.png")
    listing = ingest(str(folder), CONFIG, catalog)
    assert listing.num_known == 4
    assert listing.images["image_id"].is_null().to_pylist() == [False, False, True, False, False]


def test_a_file_that_returns_to_an_earlier_state_is_known(folder):
    first = known(ingest(str(folder), CONFIG, NOTHING))
    data, modified = (folder / "2.png").read_bytes(), (folder / "2.png").stat().st_mtime_ns
    (folder / "2.png").write_bytes(png(300, 300))
    (folder / "3.png").write_bytes(png(300, 300))
    second = known(ingest(str(folder), CONFIG, NOTHING))
    (folder / "2.png").write_bytes(data)
    os.utime(folder / "2.png", ns=(modified, modified))
    (folder / "4.png").write_bytes(png(300, 300))
    for catalog in (pa.concat_tables([first, second]), pa.concat_tables([second, first])):
        ids = ingest(str(folder), CONFIG, catalog).images["image_id"].to_pylist()
        assert ids == [f"{number:032x}" for number in range(4)] + [None]


def test_a_row_that_the_catalog_has_twice_is_joined_once(folder):
    catalog = known(ingest(str(folder), CONFIG, NOTHING))
    listing = ingest(str(folder), CONFIG, pa.concat_tables([catalog, catalog]))
    assert listing.images.num_rows == listing.num_known == 5


def test_the_catalog_may_come_in_chunks_and_in_any_order(folder):
    catalog = known(ingest(str(folder), CONFIG, NOTHING))
    shuffled = catalog.take(pa.array([4, 0, 3, 1, 2]))
    pieces = pa.concat_tables([shuffled.slice(0, 2), shuffled.slice(2)])
    images = ingest(str(folder), CONFIG, pieces).images
    assert images["image_id"].to_pylist() == catalog["image_id"].to_pylist()


def test_unreadable_headers_leave_the_size_open(folder):
    (folder / "0.png").write_bytes(b"no image")
    (folder / "1.png").write_bytes(b"")
    (folder / "2.png").write_bytes(png(12, 20)[:18])
    images = ingest(str(folder), CONFIG, NOTHING).images
    assert images["width"].to_pylist() == [None, None, None, 13, 14]
    assert images["height"].null_count == 3


def test_a_file_that_vanishes_leaves_the_size_open(folder, monkeypatch):
    def gone(uri: str, num_bytes: int) -> bytes:
        raise FileNotFoundError(uri)

    monkeypatch.setattr(ingest_module, "read_head", gone)
    assert ingest(str(folder), CONFIG, NOTHING).images["width"].null_count == 5


def test_a_header_behind_large_metadata_is_found(tmp_path):
    file = io.BytesIO()
    noise = np.random.default_rng(0).bytes(200_000)
    Image.new("RGB", (33, 22)).save(file, "JPEG", icc_profile=noise)
    (tmp_path / "one.jpg").write_bytes(file.getvalue())
    images = ingest(str(tmp_path), CONFIG, NOTHING).images
    assert images["width"].to_pylist() == [33]


def test_files_over_the_limit_are_listed_unopened(folder):
    listing = ingest(str(folder), IngestConfig(max_file_bytes=10), NOTHING)
    assert listing.images.num_rows == 5
    assert listing.images["width"].null_count == 5


def test_an_empty_folder_gives_an_empty_listing(tmp_path):
    listing = ingest(str(tmp_path), CONFIG, NOTHING)
    assert listing.images.schema == LISTING_SCHEMA
    assert listing.images.num_rows == listing.num_known == 0


def test_problems_are_passed_on(folder):
    (folder / "gone.jpg").symlink_to("nowhere")
    assert ingest(str(folder), CONFIG, NOTHING).problems["reason"].to_pylist() == ["broken_link"]


def test_no_column_of_text_becomes_one_array(folder, monkeypatch):
    # one array ends at 2 GB: 67 million ids
    catalog = known(ingest(str(folder), CONFIG, NOTHING))
    monkeypatch.setattr(ingest_module, "_ROWS_TAKEN", 2)
    listing = ingest(str(folder), CONFIG, catalog)
    assert max(len(chunk) for chunk in listing.images["image_id"].chunks) == 2
    assert listing.images["image_id"].to_pylist() == catalog["image_id"].to_pylist()
    assert listing.images["width"].to_pylist() == [10, 11, 12, 13, 14]


def test_a_listing_learns_what_was_catalogued_since(folder):
    before = ingest(str(folder), CONFIG, NOTHING)
    catalog = known(before).slice(1, 3)
    other_state = catalog.slice(0, 1).set_column(
        2, catalog.schema.field("modified"), pa.array(["other"])
    )
    learnt = join_again(before, pa.concat_tables([catalog.slice(1), other_state]))
    assert learnt.images.schema == LISTING_SCHEMA
    assert learnt.images["image_id"].to_pylist() == [None, None, f"{2:032x}", f"{3:032x}", None]
    assert learnt.images.drop_columns("image_id").equals(before.images.drop_columns("image_id"))
    assert join_again(learnt, NOTHING).images.equals(learnt.images)
