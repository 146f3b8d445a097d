import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixelmill.tasks.predictions import ImagePrediction
from pixelmill.tasks.store import (
    PLAN,
    FailureRow,
    RunRecord,
    ShardWriter,
    Store,
    end_run,
    layout,
    publish,
    run_ledger,
)

RUN_A, RUN_B = "20260101T000000-aaaaaa", "20260102T000000-bbbbbb"


def states(ledger, model_key):
    rows = ledger.rows.to_pylist()
    return {row["path"]: row["state"] for row in rows if row["model_key"] == model_key}


def test_every_input_is_scored_or_failed(store, fakes, contents):
    run = fakes.make_run(store, {**contents, "broken.jpg": "x"}, run_id=RUN_A)
    fakes.score_run(store, run)
    publish(store)
    ledger = run_ledger(store, RUN_A)
    assert ledger.is_complete
    assert ledger.missing.num_rows == 0
    counts = ledger.counts[fakes.INSTANCE.key]
    assert (counts.listed, counts.scored, counts.failed) == (11, 10, {"decode/corrupt": 1})
    assert counts.retryable == 0
    assert states(ledger, fakes.SEMANTIC.key)["broken.jpg"] == "failed"


def test_an_image_without_findings_is_scored_empty(store, fakes):
    detector = fakes.make_spec("boxes-in", "detection")
    contents = {f"{i:02d}.jpg": f"picture {i}" for i in range(20)}
    run = fakes.make_run(store, contents, run_id=RUN_A, models=(detector,))
    for index in range(run.num_shards):
        writer = ShardWriter(store, run, index)
        for row in store.shard_rows(RUN_A, index).to_pylist():
            image = fakes.image_of(run, row)
            found = fakes.detections_of(row["image_id"])
            writer.add_image(image, detector.key, ImagePrediction(detections=found))
        writer.commit()
    publish(store)
    found = states(run_ledger(store, RUN_A), detector.key)
    for path, content in contents.items():
        is_empty = fakes.num_detections(fakes.image_id_of(content)) == 0
        assert found[path] == ("scored_empty" if is_empty else "scored")
    assert set(found.values()) == {"scored", "scored_empty"}


def test_classes_given_to_an_image_are_findings(store, fakes):
    classifier = fakes.make_spec("kinds-of", "classification")
    run = fakes.make_run(store, {"a.jpg": "1", "b.jpg": "2"}, run_id=RUN_A, models=(classifier,))
    writer = ShardWriter(store, run, 0)
    for row, labels in zip(
        store.shard_rows(RUN_A, 0).to_pylist(), [(fakes.Label(0, 0.5),), ()], strict=True
    ):
        image = fakes.image_of(run, row)
        writer.add_image(image, classifier.key, ImagePrediction(labels=labels))
    writer.commit()
    publish(store)
    found = states(run_ledger(store, RUN_A), classifier.key)
    assert found == {"a.jpg": "scored", "b.jpg": "scored_empty"}


def test_a_copy_under_another_name_is_a_duplicate(store, fakes, contents):
    copies = contents | {"b/copy.jpg": contents["a/03.jpg"]}
    fakes.score_run(store, fakes.make_run(store, copies, run_id=RUN_A))
    publish(store)
    counts = run_ledger(store, RUN_A).counts[fakes.SEMANTIC.key]
    assert (counts.scored, counts.skipped) == (10, {"duplicate": 1})


def test_what_another_run_scored_is_told_by_when(store, fakes, contents):
    """Before this run was planned: predicted. Since: the other run's."""
    half = dict(list(contents.items())[:5])
    fakes.score_run(store, fakes.make_run(store, half, run_id=RUN_A))
    publish(store)
    fakes.score_run(store, fakes.make_run(store, contents, run_id=RUN_B))
    publish(store)
    counts = run_ledger(store, RUN_B).counts[fakes.SEMANTIC.key]
    assert (counts.scored, counts.skipped) == (5, {"other_run": 5})
    later = store.run(RUN_B).model_copy(
        update={"run_id": "20990101T000000-cccccc", "created_at": "2099-01-01T00:00:00+00:00"}
    )
    with store.backend.open(layout.plan_key(RUN_B)) as file:
        store.create_run(later, pq.read_table(file))
    fakes.score_run(store, later)
    publish(store)
    ledger = run_ledger(store, later.run_id)
    assert ledger.counts[fakes.SEMANTIC.key].skipped == {"predicted": 10}
    assert ledger.is_complete


def test_what_the_planner_left_out_counts(store, fakes, contents):
    run = fakes.make_run(store, contents, run_id=RUN_A)
    key = fakes.SEMANTIC.key
    listing = {"listed": 17, f"skipped/{key}/predicted": 4, f"skipped/{key}/quarantined": 3}
    listing |= {f"skipped/{fakes.INSTANCE.key}/duplicate": 6}
    store.backend.put(
        layout.run_key(RUN_A),
        run.model_copy(update={"listing": listing}).model_dump_json().encode(),
    )
    store = Store(store.root)
    fakes.score_run(store, run)
    publish(store)
    ledger = run_ledger(store, RUN_A)
    assert ledger.counts[key].skipped == {"predicted": 4, "quarantined": 3}
    assert ledger.counts[key].adds_up
    lost = ledger.counts[fakes.INSTANCE.key]
    assert lost.missing == {"listed, but neither planned nor skipped": 1}
    assert not ledger.is_complete


def test_a_plan_for_one_of_two_models_counts_for_that_one(store, fakes, contents):
    rows = [
        {
            "shard": 0,
            "path": path,
            "source_uri": path,
            "size_bytes": len(content),
            "modified": "1",
            "image_id": fakes.image_id_of(content),
            "model_mask": 2,
        }
        for path, content in contents.items()
    ]
    made = fakes.make_run(store, {}, run_id=RUN_B)
    run = RunRecord(
        **made.model_dump(exclude={"run_id", "num_images", "num_shards", "listing", "models"}),
        models=made.models,
        run_id=RUN_A,
        num_images=10,
        num_shards=1,
        listing={"listed": 10, f"skipped/{fakes.SEMANTIC.key}/predicted": 10},
    )
    store.create_run(run, pa.Table.from_pylist(rows, schema=PLAN))
    fakes.score_run(store, run)
    publish(store)
    ledger = run_ledger(store, RUN_A)
    assert ledger.counts[fakes.SEMANTIC.key].skipped == {"predicted": 10}
    assert ledger.counts[fakes.SEMANTIC.key].scored == 0
    assert ledger.counts[fakes.INSTANCE.key].scored == 10
    assert ledger.is_complete
    assert ledger.rows.num_rows == 10


def test_uncommitted_shards_are_missing_unless_there_is_a_reason(store, fakes, contents):
    run = fakes.make_run(store, contents, run_id=RUN_A)
    fakes.score_shard(store, run, 0)
    publish(store)
    key = fakes.SEMANTIC.key
    lost = run_ledger(store, RUN_A)
    assert lost.counts[key].missing == {"its shard is not committed": 6}
    assert sorted(set(lost.missing["path"].to_pylist())) == sorted(contents)[4:]
    stopped = run_ledger(store, RUN_A, stopped_by="deadline")
    assert stopped.counts[key].skipped == {"deadline": 6}
    assert stopped.is_complete
    mixed = run_ledger(store, RUN_A, given_up={1: "OSError"}, elsewhere=[2])
    assert mixed.counts[key].failed == {"shard/OSError": 4}
    assert mixed.counts[key].retryable == 4
    assert mixed.counts[key].skipped == {"other_run": 2}
    assert mixed.is_complete


def test_what_is_committed_and_not_published_is_missing(store, fakes, contents):
    run = fakes.make_run(store, contents, run_id=RUN_A)
    fakes.score_run(store, run)
    ledger = run_ledger(store, RUN_A, stopped_by="stopped")
    assert ledger.counts[fakes.SEMANTIC.key].missing == {"committed, not published": 10}


def test_a_planned_image_that_its_shard_forgot_is_missing(store, fakes, contents):
    run = fakes.make_run(store, contents, run_id=RUN_A)
    for index in range(run.num_shards):
        writer = ShardWriter(store, run, index)
        for row in store.shard_rows(RUN_A, index).to_pylist()[1:]:
            for spec in run.models:
                prediction = fakes.prediction_of(row["image_id"], spec)
                writer.add_image(fakes.image_of(run, row), spec.key, prediction)
        writer.commit()
    publish(store)
    ledger = run_ledger(store, RUN_A)
    assert ledger.counts[fakes.SEMANTIC.key].missing == {"gone from the tables": 3}
    assert set(ledger.missing["path"].to_pylist()) == {"a/00.jpg", "a/04.jpg", "a/08.jpg"}


def test_failures_of_new_files_and_of_one_model_are_found(store, fakes):
    rows = [
        {"shard": 0, "path": p, "source_uri": p, "size_bytes": 1, "modified": "1", "model_mask": 3}
        for p in ("gone.jpg", "half.jpg")
    ]
    run = fakes.make_run(store, {}, run_id=RUN_A).model_copy(
        update={"run_id": RUN_B, "num_images": 2, "num_shards": 1}
    )
    store.create_run(run, pa.Table.from_pylist(rows, schema=PLAN))
    writer = ShardWriter(store, run, 0)
    place = {"collection": run.collection, "source_uri": "x", "size_bytes": 1, "modified": "1"}
    writer.add_failure(
        FailureRow(
            **place, path="gone.jpg", stage="read", reason="gone", message="", retryable=True
        )
    )
    image_id = fakes.image_id_of("half")
    image = fakes.image_of(run, {**rows[1], "image_id": image_id})
    prediction = fakes.prediction_of(image_id, fakes.SEMANTIC)
    writer.add_image(image, fakes.SEMANTIC.key, prediction)
    writer.add_failure(
        FailureRow(
            **place,
            path="half.jpg",
            stage="forward",
            reason="RuntimeError",
            message="",
            retryable=False,
            model_key=fakes.INSTANCE.key,
        )
    )
    writer.commit()
    publish(store)
    ledger = run_ledger(store, RUN_B)
    assert ledger.is_complete
    assert states(ledger, fakes.SEMANTIC.key) == {"gone.jpg": "failed", "half.jpg": "scored"}
    counts = ledger.counts[fakes.INSTANCE.key]
    assert counts.failed == {"read/gone": 1, "forward/RuntimeError": 1}
    assert counts.retryable == 1


def test_the_end_is_recorded_and_is_no_run(published):
    assert published.run_end(RUN_A) is None
    end = end_run(published, run_ledger(published, RUN_A))
    assert end.state == "complete"
    assert Store(published.root).run_end(RUN_A) == end
    assert published.runs() == [RUN_A]


@pytest.mark.parametrize(
    ("committed", "how", "state"),
    [
        (3, {}, "complete"),
        (2, {}, "incomplete"),
        (2, {"stopped_by": "stopped"}, "stopped"),
        (2, {"error": "no worker"}, "failed"),
    ],
)
def test_the_state_of_the_end(store, fakes, contents, committed, how, state):
    run = fakes.make_run(store, contents, run_id=RUN_A)
    for index in range(committed):
        fakes.score_shard(store, run, index)
    publish(store)
    ledger = run_ledger(store, RUN_A, stopped_by=how.get("stopped_by"))
    assert end_run(store, ledger, **how).state == state


def test_codes_are_stable_for_many_rows(store, fakes):
    """Vectorised over a plan of some size, with shards in every state."""
    contents = {f"{i:04d}.jpg": f"picture {i}" for i in range(300)}
    run = fakes.make_run(store, contents, run_id=RUN_A, per_shard=50, models=(fakes.SEMANTIC,))
    for index in (0, 2):
        fakes.score_shard(store, run, index)
    publish(store)
    ledger = run_ledger(store, RUN_A, given_up={1: "killed"}, stopped_by="stopped")
    state = np.array(ledger.rows["state"].to_pylist()).reshape(6, 50)
    expected = ["scored", "failed", "scored", "skipped", "skipped", "skipped"]
    assert (state == np.array(expected)[:, None]).all()
