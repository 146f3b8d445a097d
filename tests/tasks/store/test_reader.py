import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pytest

from pixelmill.tasks.store import PLAN, Store, layout, new_run_id, publish, shard_id
from pixelmill.tasks.store.runs import shard_index

RUN_A, RUN_B = "20260101T000000-aaaaaa", "20260102T000000-bbbbbb"


def test_masks_and_boxes_come_back_by_path(published, fakes, contents):
    for path, content in contents.items():
        image_id = fakes.image_id_of(content)
        np.testing.assert_array_equal(published.semantic_mask(path), fakes.semantic_of(image_id))
        detections = fakes.detections_of(image_id)
        if not len(detections.scores):
            continue
        found = published.instances(path)
        boxes = found.boxes
        np.testing.assert_array_equal(
            boxes[["x_min", "y_min", "x_max", "y_max"]].to_numpy(), detections.boxes_xyxy
        )
        np.testing.assert_array_equal(boxes.score.to_numpy(), detections.scores)
        assert boxes.class_name.tolist() == [fakes.CLASSES[i] for i in detections.labels]
        expected = fakes.full_masks(detections, *fakes.size_of(image_id))
        np.testing.assert_array_equal(found.masks, expected)
        np.testing.assert_array_equal(boxes.mask_area, expected.sum((1, 2)))


def test_image_ids_are_taken_for_paths(published, fakes):
    image_id = fakes.image_id_of("picture 3")
    np.testing.assert_array_equal(
        published.semantic_mask(image_id), published.semantic_mask("a/03.jpg")
    )


def test_unknown_images_say_where_to_look(published):
    with pytest.raises(KeyError, match="catalog"):
        published.semantic_mask("absent.jpg")
    with pytest.raises(KeyError, match="failures"):
        published.semantic_mask("0" * 32)
    with pytest.raises(KeyError, match="by model 'other'"):
        published.semantic_mask("a/00.jpg", model="other")


def test_a_model_without_masks_says_so(published, fakes):
    with pytest.raises(KeyError, match="no instance masks"):
        published.instances("a/00.jpg", model=fakes.SEMANTIC.key)


def test_two_models_must_be_told_apart(published, fakes, contents):
    newer = fakes.make_spec("labels-of", "semantic_segmentation", weights="1")
    run = fakes.make_run(published, contents, run_id=RUN_B, models=(newer,))
    fakes.score_run(published, run)
    publish(published)
    with pytest.raises(KeyError, match="name one of"):
        published.semantic_mask("a/00.jpg")
    assert published.semantic_mask("a/00.jpg", model=newer.key).shape


def test_a_path_in_two_collections_is_ambiguous(published, fakes):
    run = fakes.make_run(
        published, {"a/00.jpg": "another"}, run_id=RUN_B, collection="other-slides"
    )
    fakes.score_run(published, run)
    publish(published)
    with pytest.raises(KeyError, match="other-slides, slides"):
        published.semantic_mask("a/00.jpg")
    assert len(published.catalog("other-slides")) == 1


def test_of_a_changed_file_the_newest_is_read(published, fakes):
    run = fakes.make_run(published, {"a/00.jpg": "edited"}, run_id=RUN_B)
    fakes.score_run(published, run)
    publish(published)
    newest = fakes.semantic_of(fakes.image_id_of("edited"))
    np.testing.assert_array_equal(published.semantic_mask("a/00.jpg"), newest)


def test_frames_have_partition_columns_last(published, fakes):
    images = published.images()
    assert images.columns[-2:].tolist() == ["model", "date"]
    assert set(images.model) == {spec.key for spec in fakes.MODELS}
    assert set(images.date) == {"2026-01-01"}
    assert published.catalog().columns[-1] == "collection"
    assert published.boxes(fakes.SEMANTIC.key).empty
    assert published.failures().columns[-1] == "date"


def test_tables_can_be_cut(published, fakes):
    table = published.table(
        "detections",
        model=fakes.INSTANCE.key,
        columns=["score", "model"],
        filters=[("rank", "=", 0), ("date", ">=", "2026-01-01")],
    )
    assert table.column_names == ["score", "model"]
    assert set(table["score"].to_pylist()) == {np.float32(0.9)}
    assert published.table("images", filters=[("date", "<", "2026-01-01")]).num_rows == 0


def test_failures_can_be_cut_by_model(store, fakes):
    fakes.score_run(store, fakes.make_run(store, {"broken.jpg": "x"}, run_id=RUN_A))
    publish(store)
    assert store.table("failures").num_rows == 1
    assert store.table("failures", model=fakes.SEMANTIC.key).num_rows == 0


def test_unknown_tables_and_columns_are_named(published):
    with pytest.raises(KeyError, match="detections"):
        published.table("boxes")
    with pytest.raises(KeyError, match="score"):
        published.table("images", columns=["score"])


def test_units_come_with_the_columns(published):
    schema = published.table("detections").schema
    assert b"pixels" in schema.field("x_min").metadata[b"unit"]


def test_published_ids_are_sorted_raw_bytes(published, fakes, contents):
    ids = published.published_ids(fakes.SEMANTIC.key)
    assert ids.dtype == "S16"
    assert [value.ljust(16, b"\0").hex() for value in ids.tolist()] == sorted(
        fakes.image_id_of(content) for content in contents.values()
    )
    assert len(published.published_ids("never-published")) == 0


def test_an_unfinished_publication_is_not_seen(published, fakes):
    published.backend.delete([layout.done_key(0)])
    assert published.images().empty
    assert published.models() == {}
    publish(published)
    assert len(published.images()) == 20


def test_models_come_with_their_specs(published, fakes):
    assert published.models() == {
        spec.key: spec for spec in sorted(fakes.MODELS, key=lambda s: s.key)
    }


def test_runs_and_shards(published, fakes, contents):
    assert published.runs() == [RUN_A]
    record = published.run(RUN_A)
    assert record.models == fakes.MODELS
    assert record.model(fakes.SEMANTIC.key) == fakes.SEMANTIC
    rows = published.shard_rows(RUN_A, 1)
    assert rows.schema.equals(PLAN)
    assert rows["path"].to_pylist() == [f"a/{i:02d}.jpg" for i in range(4, 8)]
    assert published.committed_shards(RUN_A) == {0, 1, 2}
    assert [receipt.shard_index for receipt in published.receipts(RUN_A)] == [0, 1, 2]
    assert published.committed_shards(RUN_B) == set()
    with pytest.raises(KeyError, match="no run"):
        published.run(RUN_B)


def test_a_run_is_created_once(published, fakes, contents):
    with pytest.raises(FileExistsError, match=RUN_A):
        fakes.make_run(published, {"x": "y"}, run_id=RUN_A)
    assert published.shard_rows(RUN_A, 0).num_rows == 4


def test_plans_of_another_schema_are_refused(published, fakes):
    with pytest.raises(ValueError, match="model_mask"):
        published.create_run(published.run(RUN_A), pa.table({"shard": [0]}))


def test_reading_a_shard_reads_little_of_a_large_plan(store, fakes, monkeypatch):
    number, per_shard = 200_000, 256
    plan = pa.table(
        {
            "shard": np.arange(number, dtype=np.int32) // per_shard,
            "path": [f"{i:08d}.jpg" for i in range(number)],
            "source_uri": [f"/data/{i * 7919 % number:08d}.jpg" for i in range(number)],
            "size_bytes": np.arange(number) * 7919 % number,
            "modified": ["1"] * number,
            "width": [None] * number,
            "height": [None] * number,
            "image_id": [None] * number,
            "model_mask": np.ones(number, np.int64),
        },
        schema=PLAN,
    )
    run = fakes.make_run(store, {"x": "y"}, run_id=RUN_A)
    store.create_run(run.model_copy(update={"run_id": RUN_B}), plan)
    read, key = [], layout.plan_key(RUN_B)
    real = type(store.backend).open

    class Counting:
        def __init__(self, file):
            self._file = file

        def read(self, size=-1):
            data = self._file.read(size)
            read.append(len(data))
            return data

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

    monkeypatch.setattr(type(store.backend), "open", lambda self, key: Counting(real(self, key)))
    rows = store.shard_rows(RUN_B, 400)
    assert rows["path"].to_pylist() == [f"{i:08d}.jpg" for i in range(102_400, 102_656)]
    assert sum(read) < 0.35 * len(store.backend.get(key))


def test_throughput_is_per_model(published, fakes):
    """Shards of 4, 4 and 2 images took 2 s each, shared equally by two models."""
    assert published.throughput() == {spec.key: 4.0 for spec in fakes.MODELS}


def test_throughput_follows_the_forward_times(store, fakes, contents):
    run = fakes.make_run(store, contents, run_id=RUN_A)
    times = {f"forward_s/{fakes.SEMANTIC.key}": 3.0, f"forward_s/{fakes.INSTANCE.key}": 1.0}
    fakes.write_shard(store, run, 0).commit({"wall_s": 8.0, **times})
    rates = store.throughput()
    assert rates == {fakes.SEMANTIC.key: 4 / 6, fakes.INSTANCE.key: 2.0}
    assert Store(store.root).throughput() == rates


def test_a_store_is_pickled_by_its_root(published):
    assert len(pickle.dumps(published)) < 500
    assert len(pickle.loads(pickle.dumps(published)).images()) == 20


def test_a_missing_store_is_not_made_by_reading(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Pixelmill store"):
        Store(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_another_format_version_is_refused(store):
    identity = json.loads(store.backend.get(layout.DATASET)) | {"format_version": 99}
    store.backend.put(layout.DATASET, json.dumps(identity).encode())
    with pytest.raises(ValueError, match="format version 99"):
        Store(store.root)


def test_making_a_store_again_keeps_it(published):
    again = Store(published.root, create=True)
    assert again.dataset_id == published.dataset_id
    assert len(again.images()) == 20


def test_a_store_made_anew_in_the_same_place_remembers_nothing(published, fakes, contents):
    """Else its images would be dropped as published already."""
    fakes.score_run(published, fakes.make_run(published, {"z": "z"}, run_id=RUN_B))
    publish(published)
    shutil.rmtree(published.root)
    store = Store(published.root, create=True)
    fakes.score_run(store, fakes.make_run(store, contents, run_id=RUN_A))
    assert publish(store).num_dropped == 0
    fakes.score_run(store, fakes.make_run(store, {"z": "z"}, run_id=RUN_B))
    assert publish(store).num_dropped == 0
    assert len(store.images()) == 22


def test_run_ids_sort_by_time_and_name_shards():
    run_id = new_run_id()
    assert shard_index(shard_id(run_id, 12)) == 12
    with pytest.raises(ValueError, match="nonsense"):
        shard_index("nonsense")


def test_foreign_files_in_a_table_are_named(published):
    published.backend.put("images/model=x/date=2026-01-01/copy.parquet", b"")
    with pytest.raises(ValueError, match=r"copy\.parquet"):
        published.images()
