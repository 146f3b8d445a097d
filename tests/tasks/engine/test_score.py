import functools
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pixelmill.configs.schema import AugmentationConfig, BoxPostprocess, TilingConfig
from pixelmill.tasks.engine.score import score_shard
from pixelmill.tasks.engine.telemetry import bottleneck
from pixelmill.tasks.store import ShardWriter, Store, publish


@pytest.fixture
def all_specs(small_spec):
    names = ("detector", "masker", "segmenter", "captioner")
    return lambda batch_size=4: [small_spec(name, batch_size) for name in names]


def test_a_shard_is_scored_by_all_models_and_committed_once(
    store, make_run, all_specs, pictures
) -> None:
    specs = all_specs()
    run_id = make_run(store, specs, sorted(pictures.iterdir()))
    outcome = score_shard(store.root, run_id, 0)
    assert dict(outcome.num_scored) == {spec.key: 12 for spec in specs}
    assert outcome.num_failed == 0
    assert not outcome.cached
    again = score_shard(store.root, run_id, 0)
    assert again.cached
    assert again.num_scored == outcome.num_scored
    publish(store)
    assert len(store.images()) == 48
    assert len(store.catalog()) == 12
    assert len(store.boxes(specs[0].key))
    assert len(store.captions()) == 12
    image = store.images(specs[2].key).iloc[0]
    assert store.semantic_mask(image.image_id, specs[2].key).shape == (image.height, image.width)
    assert {"read_s", "decode_s", "transform_s", "forward_s", "post_s", "wall_s"} <= set(
        outcome.stats
    )
    assert outcome.stats["read_bytes"] == sum(path.stat().st_size for path in pictures.iterdir())
    assert bottleneck(outcome.stats).split(":")[0].endswith("-bound")
    shades = [int(value) for name, value in outcome.stats.items() if name.startswith("brightness/")]
    assert sum(shades) == outcome.stats["num_decoded"]


def test_batch_mates_position_and_shards_change_no_bit(
    tmp_path, make_run, all_specs, pictures, read_results
) -> None:
    """Scored in one shard, in other order, in shards of one and with other batch sizes."""
    paths = sorted(pictures.iterdir())
    layouts = {
        "together": (paths, lambda index: 0),
        "backwards": (paths[::-1], lambda index: 0),
        "shuffled": ([paths[i] for i in np.random.default_rng(1).permutation(12)], lambda i: i % 3),
        "alone": (paths, lambda index: index),
    }
    seen = {}
    for name, (ordered, shard_of) in layouts.items():
        store = Store(tmp_path / name, create=True)
        run_id = make_run(store, all_specs(), ordered, shard_of=shard_of)
        for index in sorted({shard_of(i) for i in range(12)}):
            score_shard(store.root, run_id, index)
        seen[name] = read_results(store)
    expected = seen.pop("together")
    assert len({key[2] for key in expected}) == 12
    for name, found in seen.items():
        assert found.keys() == expected.keys(), name
        different = [key for key in expected if found[key] != expected[key]]
        assert not different, (name, different)


def test_stages_that_run_at_once_change_no_bit(
    tmp_path, make_run, all_specs, pictures, read_results
) -> None:
    good = sorted(pictures.iterdir())
    (tmp_path / "copy.jpg").write_bytes(good[3].read_bytes())
    (tmp_path / "text.jpg").write_bytes(b"no picture at all")
    paths = [*good[:5], tmp_path / "copy.jpg", tmp_path / "text.jpg", *good[5:]]
    seen, tables = [], []
    for overlap in (False, True):
        store = Store(tmp_path / f"store-{overlap}", create=True)
        run_id = make_run(store, all_specs(), paths, run_id="20260101T000000-abcdef")
        outcome = score_shard(store.root, run_id, 0, device="cpu", overlap=overlap)
        assert set(outcome.num_scored.values()) == {12}
        assert ("threads/decode" in outcome.stats) == overlap
        seen.append(read_results(store))
        provenance = ["scored_at", "mask_store", "attempt", "failed_at", "date"]
        tables.append(
            [
                frame.drop(columns=provenance, errors="ignore").to_csv()
                for frame in (store.images(), store.catalog(), store.failures())
            ]
        )
    assert seen[0] == seen[1]
    assert tables[0] == tables[1]


def test_two_shards_at_once_in_one_process_change_no_bit(
    tmp_path, make_run, all_specs, pictures, read_results
) -> None:
    seen = []
    for num_threads in (1, 2):
        store = Store(tmp_path / f"store-{num_threads}", create=True)
        run_id = make_run(
            store, all_specs(), sorted(pictures.iterdir()), shard_of=lambda index: index % 2
        )
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(functools.partial(score_shard, store.root, run_id), range(2)))
        seen.append(read_results(store))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_broken_stage_ends_the_shard_and_all_its_threads(
    store, make_run, small_spec, pictures, monkeypatch, overlap: bool
) -> None:
    def fail(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("pixelmill.tasks.engine.stages.plan_views", fail)
    run_id = make_run(store, [small_spec("detector")], sorted(pictures.iterdir()))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        score_shard(store.root, run_id, 0, device="cpu", overlap=overlap)
    running = [thread.name for thread in threading.enumerate()]
    # The reading threads end by themselves, each with the file that it is at
    assert not [name for name in running if re.match("pixelmill-(?!read)", name)]
    assert store.committed_shards(run_id) == set()
    assert not list(store.backend.list("_commit/crumbs"))


@pytest.mark.parametrize("name", ["detector", "masker", "segmenter", "captioner"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_the_batch_size_changes_no_bit(
    tmp_path, make_run, small_spec, pictures, read_results, name: str, batch_size: int
) -> None:
    seen = []
    for size in (4, batch_size):
        store = Store(tmp_path / f"store{size}", create=True)
        spec = small_spec(name, size)
        run_id = make_run(store, [spec], sorted(pictures.iterdir())[:5])
        score_shard(store.root, run_id, 0)
        seen.append(read_results(store))
    assert seen[0] == seen[1]


def test_tiles_and_mirrors_are_scored_and_merged(store, make_run, small_spec, pictures) -> None:
    views = {
        "tiling": TilingConfig(tile=(40, 40), overlap=0.25),
        "augmentation": AugmentationConfig(horizontal_flip=True, vertical_flip=True),
    }
    specs = [small_spec(name, 4, **views) for name in ("detector", "masker", "segmenter")]
    run_id = make_run(store, specs, sorted(pictures.iterdir())[:4])
    outcome = score_shard(store.root, run_id, 0)
    assert outcome.num_failed == 0
    assert dict(outcome.num_scored) == {spec.key: 4 for spec in specs}
    publish(store)
    image = store.images(specs[2].key).iloc[0]
    assert store.semantic_mask(image.image_id, specs[2].key).max() < 4
    boxes = store.boxes(specs[1].key)
    assert (boxes.groupby("image_id").size() <= 10).all()


def test_bad_inputs_become_rows_and_stop_nothing(
    tmp_path, store, make_run, small_spec, pictures
) -> None:
    good = sorted(pictures.iterdir())[0]
    inputs = {
        "empty.jpg": b"",
        "text.jpg": b"no picture at all",
        "cut.jpg": good.read_bytes()[:600],
        "good.jpg": good.read_bytes(),
    }
    for name, data in inputs.items():
        (tmp_path / name).write_bytes(data)
    paths = [*(tmp_path / name for name in inputs), tmp_path / "gone.jpg"]
    run_id = make_run(store, [small_spec("detector")], paths)
    outcome = score_shard(store.root, run_id, 0)
    assert sum(outcome.num_scored.values()) == 1
    assert outcome.num_failed == 4
    publish(store)
    failures = store.failures().set_index("path")
    assert failures.stage.to_dict() == {
        "empty.jpg": "decode",
        "text.jpg": "decode",
        "cut.jpg": "decode",
        "gone.jpg": "read",
    }
    assert failures.reason["cut.jpg"] == "truncated"
    assert failures.retryable.to_dict() == {
        "empty.jpg": False,
        "text.jpg": False,
        "cut.jpg": False,
        "gone.jpg": True,
    }
    assert set(store.catalog().path) == {"empty.jpg", "text.jpg", "cut.jpg", "good.jpg"}


@pytest.mark.parametrize(("policy", "status"), [("quarantine", None), ("flag", "truncated")])
def test_what_there_is_of_a_truncated_file_is_scored_only_if_asked_for(
    tmp_path, store, make_run, small_spec, pictures, policy: str, status
) -> None:
    data = sorted(pictures.iterdir())[0].read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) * 3 // 4])
    run_id = make_run(
        store, [small_spec("detector")], [tmp_path / "cut.jpg"], ingest={"truncated": policy}
    )
    score_shard(store.root, run_id, 0)
    publish(store)
    assert store.images().status.tolist() == ([] if status is None else [status])
    assert store.failures().reason.tolist() == (["truncated"] if status is None else [])


def test_what_became_of_each_models_inputs_adds_up(
    tmp_path, store, make_run, small_spec, pictures
) -> None:
    good = sorted(pictures.iterdir())
    specs = [small_spec("detector"), small_spec("captioner")]
    first = make_run(store, specs[:1], good[:2])
    score_shard(store.root, first, 0)
    publish(store)
    (tmp_path / "text.jpg").write_bytes(b"no picture at all")
    (tmp_path / "copy.jpg").write_bytes(good[2].read_bytes())
    paths = [*good[:4], tmp_path / "copy.jpg", tmp_path / "text.jpg"]
    run_id = make_run(store, specs, paths, masks=[0b11] * 5 + [0b10])
    outcome = score_shard(store.root, run_id, 0)
    for spec, known, failed, inputs in zip(specs, (2, 0), (0, 1), (5, 6), strict=True):
        assert outcome.stats[f"num_known/{spec.key}"] == known
        assert outcome.stats[f"num_duplicate/{spec.key}"] == 1
        assert outcome.stats[f"num_failed/{spec.key}"] == failed
        assert outcome.num_scored[spec.key] + known + 1 + failed == inputs
        assert outcome.stats[f"num_empty/{spec.key}"] == 0


def test_of_copies_the_first_by_path_stands_for_the_image_in_whatever_order_they_came(
    tmp_path, store, make_run, small_spec, pictures
) -> None:
    data = sorted(pictures.iterdir())[0].read_bytes()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(data)
    run_id = make_run(store, [small_spec("detector")], [tmp_path / "b.jpg", tmp_path / "a.jpg"])
    score_shard(store.root, run_id, 0)
    publish(store)
    assert store.images().path.tolist() == ["a.jpg"]
    assert store.images().source_uri.tolist() == [str(tmp_path / "a.jpg")]


@pytest.mark.parametrize("name", ["masker", "captioner"])
def test_a_batch_size_by_measurement_changes_no_bit_and_is_remembered(
    tmp_path, make_run, small_spec, pictures, read_results, name: str
) -> None:
    paths = []
    for number in range(80):  # enough to measure all sizes, on one canvas size
        picture = np.random.default_rng(number).integers(0, 256, (24, 36, 3), np.uint8)
        paths.append(tmp_path / f"{number:02d}.png")
        Image.fromarray(picture).save(paths[-1])
    seen = []
    for size in (4, "auto"):
        store = Store(tmp_path / f"store-{size}", create=True)
        run_id = make_run(store, [small_spec(name, size)], paths, shard_of=lambda i: i // 40)
        for shard in range(2):
            score_shard(store.root, run_id, shard)
        seen.append(read_results(store))
    assert seen[0] == seen[1]
    (entry,) = store.backend.list("_commit/tuning")
    assert json.loads(store.backend.get(entry.key))["fastest"] in (2, 4, 8)


def test_a_worker_with_a_memory_limit_finds_the_same(
    tmp_path, make_run, all_specs, pictures, read_results
) -> None:
    seen = []
    for compute in ({}, {"memory": "8GB"}):
        store = Store(tmp_path / f"store{len(compute)}", create=True)
        run_id = make_run(store, all_specs(), sorted(pictures.iterdir()), compute=compute)
        for overlap in (True, False):
            score_shard(store.root, run_id, 0, device="cpu", overlap=overlap)
        seen.append(read_results(store))
    assert seen[0] == seen[1]


def test_a_memory_limit_that_the_networks_alone_exceed_is_refused(
    store, make_run, all_specs, pictures
) -> None:
    run_id = make_run(store, all_specs(), sorted(pictures.iterdir()), compute={"memory": "64MiB"})
    with pytest.raises(ValueError, match=r"compute.memory = 64 MiB, but a worker"):
        score_shard(store.root, run_id, 0, device="cpu")
    assert store.committed_shards(run_id) == set()


def test_inputs_over_the_limits_are_not_even_read(tmp_path, store, make_run, small_spec) -> None:
    (tmp_path / "large.jpg").write_bytes(bytes(100))
    run_id = make_run(
        store, [small_spec("detector")], [tmp_path / "large.jpg"], ingest={"max_file_bytes": 99}
    )
    score_shard(store.root, run_id, 0)
    publish(store)
    assert store.failures().reason.tolist() == ["too_many_bytes"]
    assert len(store.catalog()) == 0


def test_a_file_that_changed_after_the_listing_is_left_for_the_next_one(
    tmp_path, store, make_run, small_spec, pictures
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"short")
    run_id = make_run(store, [small_spec("detector")], [path])
    path.write_bytes(sorted(pictures.iterdir())[0].read_bytes())
    assert score_shard(store.root, run_id, 0).num_failed == 1
    publish(store)
    assert store.failures().reason.tolist() == ["changed"]
    assert store.failures().retryable.tolist() == [True]


def test_copies_and_known_images_are_scored_once(
    tmp_path, store, make_run, small_spec, pictures
) -> None:
    data = sorted(pictures.iterdir())[0].read_bytes()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(data)
    spec = small_spec("detector")
    first = make_run(store, [spec], [tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert sum(score_shard(store.root, first, 0).num_scored.values()) == 1
    publish(store)
    moved = make_run(store, [spec], [tmp_path / "c.jpg"])
    outcome = score_shard(store.root, moved, 0)
    assert sum(outcome.num_scored.values()) == 0
    assert outcome.stats["num_decoded"] == 0
    publish(store)
    assert sorted(store.catalog().path) == ["a.jpg", "b.jpg", "c.jpg"]
    assert store.catalog().image_id.nunique() == 1
    assert len(store.images()) == 1


def test_only_the_models_of_a_rows_mask_are_run(store, make_run, small_spec, pictures) -> None:
    specs = [small_spec("detector"), small_spec("segmenter")]
    run_id = make_run(store, specs, sorted(pictures.iterdir())[:3], masks=[0b01, 0b10, 0b11])
    outcome = score_shard(store.root, run_id, 0)
    assert dict(outcome.num_scored) == {specs[0].key: 2, specs[1].key: 2}


def test_a_stopped_shard_leaves_nothing_but_itself_to_do(
    store, make_run, small_spec, pictures
) -> None:
    run_id = make_run(store, [small_spec("detector", 2)], sorted(pictures.iterdir()))
    answers = iter([False, False, True])
    outcome = score_shard(store.root, run_id, 0, should_stop=lambda: next(answers))
    assert outcome.stopped
    assert store.committed_shards(run_id) == set()
    left = [entry.key for entry in store.backend.list("_commit")]
    assert not [key for key in left if "crumbs" in key or "staging" in key]
    assert score_shard(store.root, run_id, 0).num_scored[small_spec("detector", 2).key] == 12
    assert not list(store.backend.list("_commit/crumbs"))


@pytest.mark.parametrize("fails", [False, True])
def test_a_shard_is_scored_while_the_one_before_is_committed(
    store, make_run, small_spec, pictures, monkeypatch, fails
) -> None:
    spec, paths = small_spec("detector"), sorted(pictures.iterdir())
    runs = [make_run(store, [spec], part) for part in (paths[:4], paths[4:8], paths[8:])]
    begun = [threading.Event() for _ in runs]
    stage, committed = ShardWriter.stage, []

    def stage_slowly(writer: ShardWriter) -> None:
        index = next(k for k, run_id in enumerate(runs) if writer.shard_id.startswith(run_id))
        if index < 2:  # in the meantime the next one is scored, and has to wait for us
            assert begun[index + 1].wait(30)
        if fails and index == 0:
            raise OSError("the disk is full")
        stage(writer)
        committed.append(index)

    monkeypatch.setattr(ShardWriter, "stage", stage_slowly)

    with ThreadPoolExecutor(3) as pool:
        free = threading.Semaphore(1)  # as many as a worker begins

        def score(index: int) -> int:
            free.acquire()
            outcome = score_shard(
                store.root,
                runs[index],
                0,
                should_stop=lambda: bool(begun[index].set()),  # asked before each batch
                on_scored=free.release,
            )
            return sum(outcome.num_scored.values())

        futures = [pool.submit(score, index) for index in range(3)]
        if fails:
            with pytest.raises(OSError, match="the disk is full"):
                futures[0].result()
        else:
            assert futures[0].result() == 4
        assert [future.result() for future in futures[1:]] == [4, 4]
    assert committed == ([1, 2] if fails else [0, 1, 2])
    assert not list(store.backend.list("_commit/crumbs"))


def test_candidates_are_kept_if_asked_for_and_change_no_key(
    store, make_run, small_spec, pictures
) -> None:
    kept = BoxPostprocess(
        score_threshold=0.0, max_detections=10, pre_nms_top_k=60, keep_candidates=True
    )
    spec = small_spec("detector", 4, postprocess=kept)
    assert spec.key == small_spec("detector").key
    run_id = make_run(store, [spec], sorted(pictures.iterdir())[:2])
    score_shard(store.root, run_id, 0)
    publish(store)
    assert len(store.candidates()) == 120
    assert len(store.boxes()) < 120


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_large_blocks_are_reused_in_a_worker_as_dask_starts_it():
    code = (
        "import resource, numpy as np, sys\n"
        "from pixelmill.tasks.engine.score import configure_process\n"
        "if sys.argv[1:]: configure_process()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): np.ones(2_000_000, np.uint8)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}

    def faults(*arguments: str) -> int:
        command = [sys.executable, "-P", "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return int(done.stdout)

    assert faults("configured") < faults() / 5
