"""What is planned, what is not, and why; the worker here is a few lines that hash and fail."""

import hashlib
import io
from datetime import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixelmill.configs.schema import (
    ClassificationModel,
    PreprocessConfig,
    RunConfig,
    ShardConfig,
)
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.views import choose_canvas
from pixelmill.tasks.ingest import KNOWN_COLUMNS, ingest
from pixelmill.tasks.plan import Plan, _digests, cut_shards, plan_run, save_plan
from pixelmill.tasks.predictions import ImagePrediction, Label
from pixelmill.tasks.sources import read_bytes
from pixelmill.tasks.store import (
    PLAN,
    CatalogRow,
    FailureRow,
    ImageRow,
    RunRecord,
    ShardWriter,
    Store,
    publish,
)

CANVASES = ((64, 64), (48, 96), (96, 48))
SIZES = ((60, 60), (90, 40), (40, 90))  # (width, height)


def make_spec(name: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="classification",
        architecture="fake",
        arguments={},
        weights_path="fake.safetensors",
        weights_sha256=hashlib.sha256(name.encode()).hexdigest(),
        classes=("cat", "dog"),
        preprocess=PreprocessConfig(canvases=CANVASES),
        precision="fp32",
    )


FIRST, SECOND = make_spec("first"), make_spec("second")


def make_config(**shard: int) -> RunConfig:
    model = ClassificationModel(name="first", weights="fake.safetensors")
    return RunConfig(name="test", models=(model,), shard=ShardConfig(**shard))


def write_image(path, seed: int) -> None:
    width, height = SIZES[seed % 3]
    pixels = np.full((height, width, 3), seed % 256, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        write_image(tmp_path / "images" / f"{number:02d}.png", number)
    return tmp_path / "images"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "out", create=True)


def plan(store, folder, *specs, config=None, **options) -> Plan:
    publish(store)
    catalog = store.table("catalog", columns=KNOWN_COLUMNS, filters=[("collection", "=", "night")])
    config = config or make_config()
    return plan_run(
        store,
        ingest(str(folder), config.ingest, catalog),
        specs or (FIRST,),
        config,
        collection="night",
        source=str(folder),
        date="2026-01-31",
        **options,
    )


def score(store, run: RunRecord, shard: int, retryable: bool = False, wall_s: float = 2.0) -> None:
    """A worker: files that begin with 'bad' fail, all others are cats."""
    writer = ShardWriter(store, run, shard)
    for row in store.shard_rows(run.run_id, shard).to_pylist():
        data = read_bytes(row["source_uri"])
        image_id = hashlib.sha256(data).hexdigest()[:32]
        where = {key: row[key] for key in ("path", "source_uri", "size_bytes", "modified")}
        where |= {"collection": run.collection, "image_id": image_id}
        size = {"width": row["width"], "height": row["height"]}
        writer.add_catalog(CatalogRow(**where, **size))
        if data.startswith(b"bad"):
            writer.add_failure(
                FailureRow(
                    **where, stage="decode", reason="corrupt", message="bad", retryable=retryable
                )
            )
            continue
        for bit, spec in enumerate(run.models):
            if row["model_mask"] >> bit & 1:
                prediction = ImagePrediction(labels=(Label(0, 0.9),))
                writer.add_image(ImageRow(**where, **size), spec.key, prediction)
    writer.commit({"wall_s": wall_s})


def run_all(store, folder, *specs, retryable: bool = False, **options) -> Plan:
    made = plan(store, folder, *specs, **options)
    if made.record:
        save_plan(store, made)
        for shard in range(made.num_shards):
            score(store, made.record, shard, retryable)
    return made


def paths(made: Plan) -> list[str]:
    return sorted(made.rows["path"].to_pylist())


def test_everything_is_missing_from_an_empty_store(store, folder):
    made = plan(store, folder, FIRST, SECOND)
    assert made.num_listed == made.num_new == made.num_planned == 12
    assert made.num_missing == {FIRST.key: 12, SECOND.key: 12}
    assert made.num_reused == {FIRST.key: 0, SECOND.key: 0}
    assert set(made.rows["model_mask"].to_pylist()) == {0b11}
    assert made.num_bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert made.seconds_estimated is None
    assert made.record is not None
    assert made.record.models == (FIRST, SECOND)
    assert made.record.date == "2026-01-31"
    assert made.record.num_images == 12
    assert made.record.listing["listed"] == 12
    assert RunConfig.model_validate(made.record.config) == make_config()


def test_planning_writes_nothing_and_saving_makes_the_run(store, folder):
    made = plan(store, folder)
    assert store.runs() == []
    record = save_plan(store, made)
    assert store.runs() == [record.run_id]
    assert store.run(record.run_id) == record
    rows = [store.shard_rows(record.run_id, k) for k in range(record.num_shards)]
    assert pa.concat_tables(rows).equals(made.rows)
    assert made.rows.schema == PLAN


def test_a_second_night_scores_only_what_is_new(store, folder):
    run_all(store, folder)
    nothing = plan(store, folder)
    assert nothing.record is None
    assert nothing.num_planned == nothing.num_shards == nothing.num_bytes == 0
    assert nothing.num_reused == {FIRST.key: 12}
    assert nothing.num_unchanged == 12
    with pytest.raises(ValueError, match="nothing is missing"):
        save_plan(store, nothing)
    write_image(folder / "new.png", 99)
    made = plan(store, folder)
    assert paths(made) == ["new.png"]
    assert (made.num_new, made.num_unchanged) == (1, 12)


def test_a_second_model_scores_all_and_knows_the_ids(store, folder):
    run_all(store, folder)
    write_image(folder / "new.png", 99)
    made = plan(store, folder, FIRST, SECOND)
    assert made.num_missing == {FIRST.key: 1, SECOND.key: 13}
    assert made.num_reused == {FIRST.key: 12, SECOND.key: 0}
    masks = dict(
        zip(made.rows["path"].to_pylist(), made.rows["model_mask"].to_pylist(), strict=True)
    )
    assert masks.pop("new.png") == 0b11
    assert set(masks.values()) == {0b10}
    assert made.rows["image_id"].null_count == 1


def test_a_touched_file_is_read_again_and_a_copy_too(store, folder):
    run_all(store, folder)
    (folder / "copy.png").write_bytes((folder / "03.png").read_bytes())
    write_image(folder / "05.png", 77)
    assert paths(plan(store, folder)) == ["05.png", "copy.png"]


def test_known_copies_are_planned_once(store, folder):
    (folder / "copy.png").write_bytes((folder / "03.png").read_bytes())
    run_all(store, folder)
    made = plan(store, folder, SECOND)
    assert made.num_duplicates == 1
    assert made.num_missing == {SECOND.key: 12}
    assert "copy.png" not in paths(made)
    assert "03.png" in paths(made)


def test_what_was_committed_before_an_interruption_is_not_missing(store, folder):
    made = plan(store, folder, config=make_config(max_images=5))
    record = save_plan(store, made)
    score(store, record, 1)  # committed, not published; shards 0 and 2 are lost
    again = plan(store, folder)
    assert again.num_missing == {FIRST.key: 7}
    done = store.shard_rows(record.run_id, 1)["path"].to_pylist()
    assert not set(done) & set(paths(again))


@pytest.mark.parametrize(
    ("retryable", "reprocess", "planned"),
    [
        (False, "missing", []),
        (False, "failed", ["bad.png"]),
        (True, "missing", ["bad.png"]),
        (True, "failed", ["bad.png"]),
    ],
)
def test_failures_are_quarantined_or_retried(store, folder, retryable, reprocess, planned):
    (folder / "bad.png").write_bytes(b"bad image")
    run_all(store, folder, retryable=retryable)
    made = plan(store, folder, reprocess=reprocess)
    assert paths(made) == planned
    assert made.num_quarantined == 1 - len(planned)
    assert made.num_retried == len(planned)


def test_a_failure_holds_for_copies_of_the_image(store, folder):
    """As a worker leaves three copies of which it tried one; a new file has no copy's past."""
    for name in ("bad.png", "bad-copy.png", "bad-copy-2.png"):
        (folder / name).write_bytes(b"bad image")
    made = plan(store, folder)
    record = save_plan(store, made)
    writer = ShardWriter(store, record, 0)
    image_id = hashlib.sha256(b"bad image").hexdigest()[:32]
    for row in made.rows.to_pylist():
        if row["path"].startswith("bad"):
            where = {key: row[key] for key in ("path", "source_uri", "size_bytes", "modified")}
            where |= {"collection": "night", "image_id": image_id}
            writer.add_catalog(CatalogRow(**where, width=None, height=None))
            if row["path"] == "bad-copy.png":
                failed = {"stage": "forward", "reason": "x", "message": "x", "retryable": False}
                writer.add_failure(FailureRow(**where, **failed, model_key=FIRST.key))
    writer.commit({})
    (folder / "new.png").write_bytes(b"bad image, but another")
    again = plan(store, folder)
    assert again.num_quarantined == 3
    assert [path for path in paths(again) if not path[:2].isdigit()] == ["new.png"]
    retried = plan(store, folder, reprocess="failed")
    assert retried.num_retried == 1
    assert retried.num_duplicates == 2


def test_a_failure_before_any_model_holds_for_a_new_model(store, folder):
    (folder / "bad.png").write_bytes(b"bad image")
    run_all(store, folder)
    made = plan(store, folder, SECOND)
    assert made.num_quarantined == 1
    assert made.num_missing == {SECOND.key: 12}


def test_a_failure_in_one_model_does_not_hold_for_another(store, folder):
    record = save_plan(store, plan(store, folder, FIRST))
    writer = ShardWriter(store, record, 0)
    row = store.shard_rows(record.run_id, 0).to_pylist()[0]
    writer.add_failure(
        FailureRow(
            "night", row["path"], row["source_uri"], "score", "killed", "3 deaths", False,
            row["size_bytes"], row["modified"], model_key=FIRST.key,
        )
    )  # fmt: skip
    writer.commit({})
    again = plan(store, folder, FIRST, SECOND)
    assert again.num_missing == {FIRST.key: 11, SECOND.key: 12}
    assert again.num_quarantined == 1


def test_a_quarantined_file_that_changes_is_tried_again(store, folder):
    (folder / "bad.png").write_bytes(b"bad image")
    run_all(store, folder)
    (folder / "bad.png").write_bytes(b"bad image, again")
    made = plan(store, folder)
    assert paths(made) == ["bad.png"]
    assert (made.num_quarantined, made.num_retried) == (0, 0)


def test_the_newest_failure_decides(store, folder):
    (folder / "bad.png").write_bytes(b"bad image")
    run_all(store, folder, retryable=True)
    assert paths(run_all(store, folder, retryable=False)) == ["bad.png"]
    assert plan(store, folder).num_quarantined == 1
    run_all(store, folder, reprocess="failed", retryable=True)
    assert paths(plan(store, folder)) == ["bad.png"]


def test_failures_of_another_collection_do_not_count(store, folder, tmp_path):
    (folder / "bad.png").write_bytes(b"bad image")
    run_all(store, folder)
    config = make_config()
    made = plan_run(
        store,
        ingest(str(folder), config.ingest, store.table("catalog").slice(0, 0)),
        (FIRST,),
        config,
        collection="day",
        source="",
        date="2026-01-31",
    )
    assert "bad.png" in paths(made)


def test_reprocess_all_plans_every_input(store, folder):
    (folder / "bad.png").write_bytes(b"bad image")
    run_all(store, folder)
    made = plan(store, folder, reprocess="all")
    assert made.num_planned == 13
    assert made.num_reused == {FIRST.key: 12}
    assert made.num_retried == 1


def test_an_empty_listing_is_no_run(store, tmp_path):
    (tmp_path / "empty").mkdir()
    made = plan(store, tmp_path / "empty")
    assert made.record is None
    assert made.num_listed == made.num_shards == 0


def test_the_same_store_and_listing_give_the_same_rows(store, folder):
    config = make_config(max_images=3)
    first, second = (plan(store, folder, config=config) for _ in range(2))
    assert first.rows.equals(second.rows)
    assert save_plan(store, first).run_id != save_plan(store, second).run_id


def test_shards_hold_their_limits_and_images_of_one_canvas_stand_together(store, folder):
    made = plan(store, folder, config=make_config(max_images=5, max_pixels=12_000))
    rows = made.rows.to_pylist()
    for shard in range(made.num_shards):
        members = [row for row in rows if row["shard"] == shard]
        assert 1 <= len(members) <= 5
        assert sum(row["width"] * row["height"] for row in members) <= 12_000
    canvases = [choose_canvas((row["height"], row["width"]), FIRST.preprocess) for row in rows]
    assert canvases == sorted(canvases, key=canvases.index)
    assert len(set(canvases)) == 3


def test_small_runs_are_cut_for_all_workers(store, folder):
    for number in range(100):
        write_image(folder / f"more{number}.png", number)
    assert plan(store, folder).num_shards == 1
    assert plan(store, folder, num_workers=3).num_shards == 6
    assert plan(store, folder, num_workers=100).num_shards == 7  # no fewer than 16 images each


def test_the_estimate_comes_from_earlier_runs(store, folder):
    run_all(store, folder)  # 12 images in 2 seconds
    for number in range(100, 160):
        write_image(folder / f"{number}.png", number)
    assert plan(store, folder).seconds_estimated == pytest.approx(10)
    assert plan(store, folder, num_workers=2).seconds_estimated == pytest.approx(5)
    assert plan(store, folder, FIRST, SECOND).seconds_estimated is None


def test_models_must_differ(store, folder):
    with pytest.raises(ValueError, match="different keys"):
        plan(store, folder, FIRST, FIRST)


def test_an_unreadable_header_does_not_stop_the_plan(store, folder):
    (folder / "bad.png").write_bytes(b"bad image")
    made = plan(store, folder)
    row = next(row for row in made.rows.to_pylist() if row["path"] == "bad.png")
    assert row["width"] is None
    assert row["height"] is None


@given(
    pixels=st.lists(st.integers(0, 50), max_size=60),
    max_images=st.integers(1, 9),
    max_pixels=st.integers(1, 120),
)
def test_shards_are_consecutive_full_and_within_limits(pixels, max_images, max_pixels):
    shards = cut_shards(np.array(pixels, np.int64), max_images, max_pixels).tolist()
    assert shards == sorted(shards)
    assert set(shards) == set(range(len(set(shards))))
    for shard in set(shards):
        members = [p for p, k in zip(pixels, shards, strict=True) if k == shard]
        assert len(members) <= max_images
        assert sum(members) <= max_pixels or len(members) == 1
        if shard < shards[-1]:  # the next one would not have fitted
            following = pixels[shards.index(shard + 1)]
            assert len(members) == max_images or sum(members) + following > max_pixels


def test_known_ids_become_digests_whatever_the_chunks():
    """A column of more than 67 million ids has more text than one Arrow string can hold."""
    ids = [hashlib.sha256(bytes([number])).hexdigest()[:32] for number in range(5)]
    chunks = [[], [ids[0], None, ids[1]], [None], [ids[2], ids[3], None, ids[4]]]
    column = pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks])
    is_known, digests = _digests(column.slice(1))
    assert is_known.tolist() == [False, True, False, True, True, False, True]
    assert digests.dtype == np.dtype("S16")
    # by position: trailing zero bytes are no text, but they are part of an id
    assert digests.tobytes() == bytes.fromhex("".join(ids[1:]))
    assert [len(part) for part in _digests(column.slice(0, 0))] == [0, 0]


@pytest.mark.parametrize("reprocess", ["missing", "failed", "all"])
def test_every_listed_input_is_planned_or_skipped_for_a_reason(store, folder, reprocess):
    (folder / "bad.png").write_bytes(b"bad image")
    run_all(store, folder, retryable=False)
    (folder / "copy.png").write_bytes((folder / "03.png").read_bytes())
    run_all(store, folder)  # the copy is read, and known from now on
    write_image(folder / "new.png", 99)
    made = plan(store, folder, FIRST, SECOND, reprocess=reprocess)
    assert made.record is not None
    for key in (FIRST.key, SECOND.key):
        assert sum(made.num_skipped[key].values()) + made.num_missing[key] == 15
        for reason, number in made.num_skipped[key].items():
            assert made.record.listing[f"skipped/{key}/{reason}"] == number
    if reprocess == "missing":
        assert made.num_skipped[FIRST.key] == {
            "predicted": 13,
            "quarantined": 1,
            "duplicate": 0,
            "other_run": 0,
        }
        assert made.num_skipped[SECOND.key] == {
            "predicted": 0,
            "quarantined": 1,
            "duplicate": 1,
            "other_run": 0,
        }


def test_what_has_failed_in_three_runs_is_tried_again_and_told(store, folder):
    (folder / "bad.png").write_bytes(b"bad image")
    for night in range(3):
        made = run_all(store, folder, retryable=True)
        assert (made.num_retried, made.num_stubborn) == (int(night > 0), 0)
    made = plan(store, folder)
    assert (made.num_retried, made.num_stubborn, made.num_quarantined) == (1, 1, 0)
    (folder / "bad.png").write_bytes(b"bad again")
    assert plan(store, folder).num_stubborn == 0, "it is another file now"


def test_the_last_published_failure_counts_whatever_the_clock_said(store, folder, monkeypatch):
    (folder / "bad.png").write_bytes(b"bad image")
    run_all(store, folder, retryable=True)
    publish(store)

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr("pixelmill.tasks.store.writer.datetime", Clock)
    run_all(store, folder, retryable=False)
    assert plan(store, folder).num_quarantined == 1
    assert store.runs() == sorted(store.runs())
