import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from pixelmill.tasks.store import Store, layout, publish
from pixelmill.tasks.store.backend import LocalBackend
from pixelmill.tasks.store.log import PublishMark

RUN_A, RUN_B = "20260101T000000-aaaaaa", "20260102T000000-bbbbbb"
TABLES = ("images", "detections", "candidates", "captions", "labels", "catalog", "failures")


def snapshot(store):
    return {entry.key: store.backend.get(entry.key) for entry in store.backend.list("")}


def published_bytes(store):
    return {key: data for key, data in snapshot(store).items() if not key.startswith("_commit/")}


def assert_whole(store, fakes, contents, models=None):
    """Every image of `contents` once per model, with all its rows and true masks."""
    ids = sorted({fakes.image_id_of(content) for content in contents.values()})
    for spec in models or fakes.MODELS:
        assert store.images(spec.key).image_id.sort_values().tolist() == ids
    boxes = store.boxes(fakes.INSTANCE.key)
    expected = [(i, rank) for i in ids for rank in range(fakes.num_detections(i))]
    assert sorted(zip(boxes.image_id, boxes["rank"], strict=True)) == expected
    candidates = store.candidates(fakes.INSTANCE.key)
    assert sorted(zip(candidates.image_id, candidates["rank"], strict=True)) == expected
    assert store.captions(fakes.INSTANCE.key).image_id.sort_values().tolist() == ids
    assert len(store.labels(fakes.INSTANCE.key)) == 2 * len(ids)
    assert sorted(store.catalog().path) == sorted(contents)
    for image_id in ids:
        assert (store.semantic_mask(image_id) == fakes.semantic_of(image_id)).all()


def test_published_rows_are_complete_and_single(published, fakes, contents):
    assert_whole(published, fakes, contents)


def test_parts_are_sorted(published):
    for name, keys in (("images", ["image_id"]), ("detections", ["image_id", "rank"])):
        for part in published.parts(name):
            rows = pd.read_parquet(published.root + "/" + part.key, partitioning=None)
            pd.testing.assert_frame_equal(rows, rows.sort_values(keys, ignore_index=True))


def test_publishing_again_changes_no_byte(published):
    before = snapshot(published)
    assert publish(published).num_records == 0
    assert snapshot(published) == before


def test_the_summary_counts(store, fakes, contents):
    run = fakes.make_run(store, {**contents, "broken.jpg": "x"}, run_id=RUN_A)
    fakes.score_run(store, run)
    summary = publish(store)
    assert summary.num_records == 1
    assert summary.num_shards == 3
    assert summary.num_images == 20
    assert summary.num_dropped == 0
    assert summary.num_failures == 1


def test_few_receipts_wait(store, fakes, contents):
    run = fakes.make_run(store, contents, run_id=RUN_A)
    fakes.score_shard(store, run, 0)
    assert publish(store, min_receipts=2).num_shards == 0
    fakes.score_shard(store, run, 1)
    assert publish(store, min_receipts=2).num_shards == 2


def test_redoing_a_publication_writes_identical_bytes(published):
    before = published_bytes(published)
    parts = [key for key in before if not key.startswith("masks/")]
    published.backend.delete([layout.done_key(0), *parts])
    assert publish(Store(published.root)).num_redone == 1
    assert published_bytes(published) == before


def dying(real, left):
    """A method of the backend that kills its process after `left[0]` calls."""

    def write(self, key, data):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, key, data)

    return write


def test_a_publisher_that_dies_anywhere_is_finished_by_the_next(
    tmp_path, store, fakes, monkeypatch
):
    """At every moment our reader sees nothing or everything."""
    contents = {"a.jpg": "picture 3", "b.jpg": "picture 1", "broken.jpg": "x"}
    good = {path: content for path, content in contents.items() if path != "broken.jpg"}
    fakes.score_run(store, fakes.make_run(store, contents, run_id=RUN_A))
    uninterrupted, survived = None, -1
    while uninterrupted is None:
        survived += 1
        copy = shutil.copytree(store.root, tmp_path / str(survived))
        left = [survived]
        with monkeypatch.context() as patch:
            patch.setattr(LocalBackend, "put", dying(LocalBackend.put, left))
            patch.setattr(LocalBackend, "create", dying(LocalBackend.create, left))
            try:
                publish(Store(copy))
                uninterrupted = published_bytes(Store(copy))
            except KeyboardInterrupt:
                assert all(Store(copy).table(name).num_rows == 0 for name in TABLES)
    assert survived == 10  # the record, 8 parts, the mark
    for number in range(survived):
        publish(Store(tmp_path / str(number)))
        assert published_bytes(Store(tmp_path / str(number))) == uninterrupted
    assert_whole(Store(tmp_path / "0"), fakes, good)


def test_the_first_published_wins_under_whatever_date(published, fakes, contents):
    before = published.images().set_index(["model", "image_id"])
    more = {path: contents[path] for path in list(contents)[5:]} | {"new.jpg": "new"}
    run = fakes.make_run(published, more, run_id=RUN_B, date="2026-01-02")
    fakes.score_run(published, run)
    assert publish(published).num_dropped == 10
    assert_whole(published, fakes, contents | more)
    after = published.images().set_index(["model", "image_id"])
    pd.testing.assert_frame_equal(after.loc[before.index], before)
    assert (after.date == "2026-01-02").sum() == 2


def test_renamed_copies_in_one_record_are_published_once(store, fakes, contents):
    copies = {f"copies/{path}": content for path, content in contents.items()}
    both = contents | copies | {"third.jpg": contents["a/03.jpg"]}
    fakes.score_run(store, fakes.make_run(store, both, run_id=RUN_A))
    assert publish(store).num_records == 1
    assert_whole(store, fakes, both)


def test_overlapping_runs_in_one_record_are_published_once(store, fakes, contents):
    """A nightly run and a backfill of two dates, published together."""
    nightly = fakes.make_run(store, contents, run_id=RUN_A, date="2026-01-02")
    backfill = fakes.make_run(store, contents, run_id=RUN_B, date="2026-01-01", per_shard=3)
    fakes.score_run(store, backfill)
    fakes.score_run(store, nightly)
    summary = publish(store)
    assert (summary.num_records, summary.num_images, summary.num_dropped) == (1, 20, 20)
    assert_whole(store, fakes, contents)


def test_another_model_touches_no_old_part(published, fakes, contents):
    before = published_bytes(published)
    newer = fakes.make_spec("things-in", "instance_segmentation", weights="1")
    assert newer.key != fakes.INSTANCE.key
    run = fakes.make_run(published, contents, run_id=RUN_B, models=(newer,))
    fakes.score_run(published, run)
    assert publish(published).num_images == 10
    after = published_bytes(published)
    assert {key: after[key] for key in before} == before
    assert_whole(published, fakes, contents, models=(*fakes.MODELS, newer))
    assert list(published.models()) == sorted([*(m.key for m in fakes.MODELS), newer.key])


def test_a_changed_file_is_catalogued_again(published, fakes):
    run = fakes.make_run(published, {"a/00.jpg": "picture 0, edited"}, run_id=RUN_B)
    fakes.score_run(published, run)
    publish(published)
    rows = published.catalog()
    assert (rows.path == "a/00.jpg").sum() == 2


def test_publishers_at_once_publish_everything_once(store, fakes, contents):
    run = fakes.make_run(store, contents, run_id=RUN_A, per_shard=1)
    other = fakes.make_run(store, contents, run_id=RUN_B, per_shard=2)

    def score_and_publish(job):
        fakes.score_shard(store, *job)
        return publish(Store(store.root))

    jobs = [(run, k) for k in range(run.num_shards)] + [(other, k) for k in range(5)]
    with ThreadPoolExecutor(4) as pool:
        summaries = list(pool.map(score_and_publish, jobs))
    assert sum(summary.num_shards for summary in summaries) == 15
    assert sum(summary.num_images for summary in summaries) == 20
    assert_whole(store, fakes, contents)


def test_old_parts_are_read_once_per_process(store, fakes, contents, monkeypatch):
    run = fakes.make_run(store, contents, run_id=RUN_A, per_shard=2)
    opened, real = [], LocalBackend.open

    def counting(self, key):
        opened.append(key)
        return real(self, key)

    monkeypatch.setattr(LocalBackend, "open", counting)
    for index in range(run.num_shards):
        fakes.score_shard(store, run, index)
        publish(store)
    reads = [key for key in opened if key.startswith("images/")]
    assert len(reads) == len(set(reads)) == 2 * (run.num_shards - 1)


def test_damaged_staging_is_left_out_and_the_rest_published(store, fakes, contents, caplog):
    """A model's tables of a shard stand or fall together; the other model's are untouched."""
    run = fakes.make_run(store, contents, run_id=RUN_A)
    receipts = fakes.score_run(store, run)
    captions = next(file for file in receipts[0].files if file.table == "captions")
    store.backend.put(captions.path, store.backend.get(captions.path)[:-1] + b"x")
    summary = publish(store)
    assert (summary.num_shards, summary.num_damaged, summary.num_images) == (3, 1, 16)
    assert captions.path in caplog.text
    assert "scored again by the next run" in caplog.text
    lost = {fakes.image_id_of(contents[path]) for path in sorted(contents)[:4]}
    whole = {fakes.image_id_of(content) for content in contents.values()}
    assert set(store.images(fakes.SEMANTIC.key).image_id) == whole
    assert set(store.images(fakes.INSTANCE.key).image_id) == whole - lost
    assert not lost & set(store.boxes().image_id) & set(store.labels().image_id)
    assert publish(store).num_records == 0


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_what_was_left_out_is_scored_by_the_next_run(store, fakes, contents, how):
    run = fakes.make_run(store, contents, run_id=RUN_A)
    for receipt in fakes.score_run(store, run):
        for file in receipt.files:
            if file.table == "images":
                store.backend.delete([file.path])
                if how == "changed":
                    store.backend.put(file.path, b"not a table")
    assert publish(store).num_damaged == 3
    fakes.score_run(store, fakes.make_run(store, contents, run_id=RUN_B))
    assert publish(store).num_damaged == 0
    assert_whole(store, fakes, contents)


def test_damage_between_the_record_and_its_parts_is_left_out(store, fakes, contents, monkeypatch):
    run = fakes.make_run(store, contents, run_id=RUN_A)
    receipts = fakes.score_run(store, run)
    with monkeypatch.context() as patch:
        left = [1]
        patch.setattr(LocalBackend, "put", dying(LocalBackend.put, [0]))
        patch.setattr(LocalBackend, "create", dying(LocalBackend.create, left))
        with pytest.raises(KeyboardInterrupt):
            publish(store)
    assert store.backend.exists(layout.log_key(0))
    boxes = next(file for file in receipts[1].files if file.table == "detections")
    store.backend.delete([boxes.path])
    assert publish(store).num_redone == 1
    assert len(store.images(fakes.INSTANCE.key)) == 6
    fakes.score_run(store, fakes.make_run(store, contents, run_id=RUN_B))
    publish(store)
    assert_whole(store, fakes, contents)


def test_an_unreadable_receipt_stops_nobody(store, fakes, contents, caplog):
    run = fakes.make_run(store, contents, run_id=RUN_A)
    fakes.score_run(store, run)
    key = layout.receipt_key(RUN_A, f"{RUN_A}-000001")
    store.backend.put(key, store.backend.get(key)[:-20])
    summary = publish(store)
    assert (summary.num_shards, summary.num_damaged) == (2, 1)
    assert key in caplog.text
    fakes.score_run(store, fakes.make_run(store, contents, run_id=RUN_B))
    publish(store)
    assert_whole(store, fakes, contents)


def test_the_mark_of_a_publication_says_what_its_parts_were(published):
    mark = PublishMark.model_validate_json(published.backend.get(layout.done_key(0)))
    parts = [part for name in TABLES for part in published.parts(name)]
    assert sorted(mark.parts) == sorted(part.key for part in parts)
    for key, part in mark.parts.items():
        data = published.backend.get(key)
        assert part.sha256 == hashlib.sha256(data).hexdigest()
        assert part.size_bytes == len(data)
    assert mark.record.shards == tuple(f"{RUN_A}-{k:06d}" for k in range(3))


def test_tables_hold_parts_and_nothing_else(published):
    for name in TABLES:
        for entry in published.backend.list(name):
            assert layout.parse_part(entry.key).table == name
    assert not published.backend.exists(layout.log_key(1))
    assert list(published.backend.list("_commit/tmp")) == []


def test_images_know_when_their_shard_was_committed(published):
    receipts = {receipt.shard_id: receipt for receipt in published.receipts()}
    for row in published.images().itertuples():
        assert row.scored_at == pd.Timestamp(receipts[row.shard_id].committed_at)
