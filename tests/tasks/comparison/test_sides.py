import pyarrow as pa
import pytest

from pixelmill.tasks.comparison import sides
from pixelmill.tasks.comparison.sides import ModelRows, chunks
from pixelmill.tasks.store import Store

NUM_IMAGES, CHUNK = 20, 6


@pytest.fixture
def scored(predicted, tmp_path, monkeypatch):
    """A store, a model's key, and a list that every reading of a table is added to."""
    store = predicted.new_store(tmp_path / "store")
    spec = predicted.make_spec()
    predicted.write_night(store, [(spec, predicted.found_by)], count=NUM_IMAGES)
    readings = []
    table = Store.table

    def noted(self, name, **options):
        readings.append(table(self, name, **options))
        return readings[-1]

    monkeypatch.setattr(Store, "table", noted)
    monkeypatch.setattr(sides, "_CHUNK_IMAGES", CHUNK)
    return store, spec.key, readings


@pytest.mark.parametrize(("ahead", "expected"), [(0, 4), (1 << 20, 2)])
def test_rows_of_chunks_are_read_at_once_as_far_as_they_may(scored, monkeypatch, ahead, expected):
    store, key, readings = scored
    monkeypatch.setattr(sides, "_AHEAD_BYTES", ahead)
    ids = store.published_ids(key)
    rows = ModelRows(store, key, ids)
    found = [(chunk, rows.read("detections", chunk, ["rank"])) for chunk in chunks(ids)]
    assert len(readings) == expected
    assert [len(chunk) for chunk, _ in found] == [6, 6, 6, 2]
    for chunk, each in found:
        assert {*each["image_id"].to_pylist()} <= {*chunk}
    whole = store.table("detections", model=key, columns=["image_id", "rank"])
    assert pa.concat_tables([each for _, each in found]).equals(whole.sort_by("image_id"))


def test_no_rows_are_read_of_images_that_nobody_asks_for(scored):
    store, key, readings = scored
    images = store.table("images", columns=["image_id", "path"]).to_pydict()
    path_of = dict(zip(images["image_id"], images["path"], strict=True))
    readings.clear()
    ids = store.published_ids(key)[:9]
    rows = ModelRows(store, key, ids)
    for chunk in chunks(ids):
        part = chunk[1:]
        found = rows.each("images", part, ["path"])
        assert found["path"].to_pylist() == [path_of[image_id] for image_id in part]
    assert sum(reading.num_rows for reading in readings) == 9


def test_images_without_rows_have_nulls(scored):
    store, key, _ = scored
    ids = store.published_ids(key)
    (chunk, *_) = chunks(ids)
    none = [("rank", "<", 0)]
    assert (
        ModelRows(store, key, ids).each("detections", chunk, ["score"], none)["score"].to_pylist()
        == [None] * CHUNK
    )
