import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from pixelmill.tasks.predictions import Detections, ImagePrediction, Label
from pixelmill.tasks.store import CatalogRow, ImageRow, ShardWriter, layout, publish

RUN = "20260101T000000-aaaaaa"


@pytest.fixture
def run(store, fakes, contents):
    return fakes.make_run(store, contents, run_id=RUN)


def test_nothing_is_seen_before_the_receipt(store, fakes, run):
    writer = fakes.write_shard(store, run, 0)
    assert store.committed_shards(RUN) == set()
    assert store.receipt(RUN, 0) is None
    receipt = writer.commit()
    assert store.committed_shards(RUN) == {0}
    assert store.receipt(RUN, 0) == receipt


def test_the_receipt_counts(store, fakes, run):
    receipt = fakes.score_shard(store, run, 0)
    assert receipt.num_inputs == 4
    assert receipt.num_scored == {spec.key: 4 for spec in fakes.MODELS}
    assert receipt.num_failed == 0
    assert {file.table for file in receipt.files} == {
        "images", "detections", "candidates", "captions", "labels", "catalog",
    }  # fmt: skip
    assert set(receipt.mask_stores) == {spec.key for spec in fakes.MODELS}


def test_a_second_attempt_returns_the_first_receipt_and_leaves_nothing(store, fakes, run):
    late = fakes.write_shard(store, run, 0)
    first = fakes.score_shard(store, run, 0)
    before = [entry.key for entry in store.backend.list("")]
    assert late.commit() == first
    assert [entry.key for entry in store.backend.list("")] == before


def test_of_two_attempts_at_once_one_wins_and_the_other_cleans_up(store, fakes, run, monkeypatch):
    """Both have written everything when they ask for the receipt."""
    monkeypatch.setattr(type(store), "receipt", lambda *_: None)
    writers = [fakes.write_shard(store, run, 0) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        receipts = list(pool.map(lambda writer: writer.commit(), writers))
    assert len({receipt.attempt for receipt in receipts}) == 1
    keys = [
        entry.key for folder in ("masks", "_commit/staging") for entry in store.backend.list(folder)
    ]
    assert keys
    assert all(receipts[0].attempt in key for key in keys)


@pytest.mark.parametrize("number", [1, 2])
def test_abort_leaves_nothing(store, fakes, run, monkeypatch, number):
    writer = fakes.write_shard(store, run, 0)
    before = [entry.key for entry in store.backend.list("")]
    monkeypatch.setattr(type(store.backend), "put_new", _die_within(store, number))
    with pytest.raises(KeyboardInterrupt):
        writer.commit()
    assert [entry.key for entry in store.backend.list("")] != before
    writer.abort()
    assert [entry.key for entry in store.backend.list("")] == before


def _die_within(store, number):
    real, calls = type(store.backend).put_new, []

    def put_new(self, objects):
        calls.append(objects)
        if len(calls) == number:
            real(self, dict(list(objects.items())[:2]))
            raise KeyboardInterrupt
        real(self, objects)

    return put_new


def test_abort_spares_what_may_be_committed(store, fakes, run, monkeypatch):
    """The receipt was written, but its writer never heard so."""
    writer = fakes.write_shard(store, run, 0)
    real = type(store.backend).create

    def lose_the_answer(self, key, data):
        real(self, key, data)
        raise ConnectionError

    monkeypatch.setattr(type(store.backend), "create", lose_the_answer)
    with pytest.raises(ConnectionError):
        writer.commit()
    monkeypatch.undo()
    writer.abort()
    publish(store)
    assert len(store.images(fakes.SEMANTIC.key)) == 4
    assert writer.commit() == store.receipt(RUN, 0)


def test_a_copy_in_the_same_shard_is_taken_once(store, fakes):
    run = fakes.make_run(store, {"a.jpg": "same", "b.jpg": "same"}, run_id=RUN)
    receipt = fakes.score_shard(store, run, 0)
    assert set(receipt.num_scored.values()) == {1}
    publish(store)
    assert len(store.images()) == 2
    assert store.catalog().path.tolist() == ["a.jpg", "b.jpg"]


def test_an_image_without_instances_has_no_row_in_the_mask_store(store, fakes, run):
    receipt = fakes.score_shard(store, run, 0)
    publish(store)
    images = store.images(fakes.INSTANCE.key).set_index("image_id")
    for image_id, row in images.iterrows():
        assert pd.isna(row.instances_array) == (fakes.num_detections(image_id) == 0)
    assert receipt.num_scored[fakes.INSTANCE.key] == 4


def image_of(fakes, image_id):
    height, width = fakes.size_of(image_id)
    return ImageRow(image_id, "slides", "a.jpg", "/data/a.jpg", width, height, 1, "1")


BOX = np.array([[0, 0, 5, 5]], np.float32)
ONE = np.array([0.5], np.float32)
FIRST = np.array([0], np.int32)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (ImagePrediction(detections=Detections(BOX, ONE * np.nan, FIRST)), "scores"),
        (ImagePrediction(detections=Detections(BOX, ONE * 3, FIRST)), "scores"),
        (ImagePrediction(detections=Detections(BOX + np.inf, ONE, FIRST)), "infinity"),
        (ImagePrediction(detections=Detections(BOX, ONE, FIRST + 3)), r"labels.*\[0, 3\)"),
        (ImagePrediction(candidates=Detections(BOX, ONE, FIRST - 1)), "labels"),
        (ImagePrediction(detections=Detections(BOX, ONE[:0], FIRST)), "boxes"),
        (ImagePrediction(semantic=np.zeros((2, 2), np.uint8)), "label map"),
        (ImagePrediction(labels=(Label(3, 0.5),)), "class_id"),
        (ImagePrediction(labels=(Label(0, float("nan")),)), "score"),
    ],
)
def test_what_no_reader_could_use_is_refused(store, fakes, run, prediction, message):
    writer = ShardWriter(store, run, 0)
    with pytest.raises(ValueError, match=message):
        writer.add_image(image_of(fakes, "0" * 32), fakes.INSTANCE.key, prediction)


def test_wrong_identities_are_refused(store, fakes, run):
    writer, image = ShardWriter(store, run, 0), image_of(fakes, "0" * 32)
    with pytest.raises(KeyError, match="no model 'other'"):
        writer.add_image(image, "other", ImagePrediction())
    short = dataclasses.replace(image, image_id="0" * 31)
    with pytest.raises(ValueError, match="32 hex"):
        writer.add_image(short, fakes.INSTANCE.key, ImagePrediction())
    elsewhere = CatalogRow("other", "a", "/a", 1, "1", "0" * 32)
    with pytest.raises(ValueError, match="collection 'slides'"):
        writer.add_catalog(elsewhere)


def test_a_shard_of_failures_only_commits(store, fakes):
    run = fakes.make_run(store, {"broken.jpg": "x"}, run_id=RUN)
    receipt = fakes.score_shard(store, run, 0)
    assert (receipt.num_inputs, receipt.num_failed) == (1, 1)
    assert publish(store).num_failures == 1
    assert store.failures().path.tolist() == ["broken.jpg"]
    assert store.backend.exists(layout.done_key(0))
