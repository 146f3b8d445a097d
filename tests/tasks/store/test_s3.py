"""The whole way on an object store: its HTTP requests are real, its server is moto."""

import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from pixelmill.tasks.store import Store, publish

RUN_A, RUN_B = "20260101T000000-aaaaaa", "20260102T000000-bbbbbb"


def test_scored_published_and_read_on_s3(s3_root, fakes, contents):
    store = Store(s3_root, create=True)
    fakes.score_run(store, fakes.make_run(store, contents, run_id=RUN_A))
    late = fakes.write_shard(store, store.run(RUN_A), 0)
    assert late.commit() == store.receipt(RUN_A, 0)
    fakes.score_run(store, fakes.make_run(store, contents, run_id=RUN_B, date="2026-01-02"))
    summary = publish(store)
    assert (summary.num_images, summary.num_dropped) == (20, 20)
    assert publish(store).num_records == 0

    reader = Store(s3_root)
    assert len(reader.images()) == 20
    assert reader.committed_shards(RUN_A) == {0, 1, 2}
    for path, content in contents.items():
        image_id = fakes.image_id_of(content)
        np.testing.assert_array_equal(reader.semantic_mask(path), fakes.semantic_of(image_id))
        if fakes.num_detections(image_id):
            truth = fakes.full_masks(fakes.detections_of(image_id), *fakes.size_of(image_id))
            np.testing.assert_array_equal(reader.instances(path).masks, truth)


def test_another_process_finds_the_bucket_by_the_environment(s3_root):
    Store(s3_root, create=True)
    code = f"from pixelmill.tasks.store import Store; print(Store({s3_root!r}).runs())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "[]\n", answer.stderr


def test_a_bucket_without_a_store_is_said_to_have_none(s3_root):
    with pytest.raises(FileNotFoundError, match="no Pixelmill store"):
        Store(s3_root)


def test_other_libraries_read_the_bucket(s3_root, fakes, contents):
    """pyarrow and zarr by file objects of ours: no s3fs needed."""
    store = Store(s3_root, create=True)
    fakes.score_run(store, fakes.make_run(store, contents, run_id=RUN_A))
    publish(store)
    part = store.parts("images", model=fakes.SEMANTIC.key)[0]
    with store.backend.open(part.key) as file:
        row = pq.read_table(file).to_pylist()[0]
    group = zarr.open_group(store.backend.zarr_store(row["mask_store"]), mode="r", zarr_format=3)
    array = group[row["semantic_array"]]
    assert isinstance(array, zarr.Array)
    plane = array[row["semantic_row"], : row["height"], : row["width"]]
    np.testing.assert_array_equal(plane, fakes.semantic_of(row["image_id"]))
