import numpy as np
import pytest

from pixelmill.tasks.store import Store, layout, publish
from pixelmill.tasks.store.backend import LocalBackend
from pixelmill.tasks.store.compact import compact
from pixelmill.tasks.store.garbage import collect_garbage
from pixelmill.tasks.store.prune import prune

RUN_B, RUN_C = "20260102T000000-bbbbbb", "20260103T000000-cccccc"
TABLES = ("images", "detections", "candidates", "captions", "labels")


@pytest.fixture
def two_days(published, fakes, contents):
    """The ten images of 1 January and two more of the day after, by both models."""
    more = {"new.jpg": "new", "newer.jpg": "newer"}
    run = fakes.make_run(published, more, run_id=RUN_B, date="2026-01-02")
    fakes.score_run(published, run)
    publish(published)
    return published


def test_a_model_is_gone_from_all_its_tables_and_the_other_is_untouched(two_days, fakes):
    kept = two_days.images(fakes.SEMANTIC.key)
    num_boxes = two_days.boxes().groupby("image_id").size()
    assert len(num_boxes)
    (pruned,) = prune(two_days, model=fakes.INSTANCE.key)
    assert (pruned.num_images, pruned.num_parts) == (12, 10)
    assert pruned.dates == ("2026-01-01", "2026-01-02")
    assert pruned.num_mask_stores > 0
    for name in TABLES:
        assert two_days.table(name, model=fakes.INSTANCE.key).num_rows == 0
        assert not any(two_days.backend.list(f"{name}/model={fakes.INSTANCE.key}"))
    assert two_days.images().equals(kept)
    assert list(two_days.models()) == [fakes.SEMANTIC.key]
    record = two_days.backend.get(layout.log_key(2)).decode()
    assert '"op":"prune"' in record
    assert fakes.INSTANCE.key in record


def test_pruned_images_are_missing_and_can_be_scored_again(two_days, fakes, contents):
    before = two_days.images(fakes.INSTANCE.key).drop(columns=["shard_id", "run_id", "scored_at"])
    prune(two_days, model="things-in")
    assert len(two_days.published_ids(fakes.INSTANCE.key)) == 0
    assert publish(two_days).num_shards == 0  # its receipts are not pending again
    run = fakes.make_run(two_days, contents, run_id=RUN_C, models=(fakes.INSTANCE,))
    fakes.score_run(two_days, run)
    assert publish(two_days).num_images == 10
    after = two_days.images(fakes.INSTANCE.key)
    assert sorted(after.image_id) == sorted(before[before.date == "2026-01-01"].image_id)
    for path, content in contents.items():
        truth = fakes.num_detections(fakes.image_id_of(content))
        if truth:
            assert len(two_days.instances(path).masks) == truth


def test_what_was_committed_before_does_not_come_back(two_days, fakes):
    fakes.score_run(two_days, fakes.make_run(two_days, {"late.jpg": "late"}, run_id=RUN_C))
    (pruned,) = prune(two_days, model=fakes.INSTANCE.key)
    assert pruned.num_images == 13
    assert publish(two_days).num_shards == 0
    assert two_days.images(fakes.INSTANCE.key).empty
    assert len(two_days.images(fakes.SEMANTIC.key)) == 13


def test_only_what_is_older_than_a_date(two_days, fakes):
    pruned = prune(two_days, before="2026-01-02")
    assert {one.model_key for one in pruned} == {spec.key for spec in fakes.MODELS}
    assert {one.num_images for one in pruned} == {10}
    assert set(two_days.images().date) == {"2026-01-02"}
    assert len(two_days.images()) == 4
    assert prune(two_days, before="2026-01-02") == []


def test_merged_parts_are_pruned_too(two_days, fakes):
    compact(two_days)
    prune(two_days, model=fakes.INSTANCE.key, before="2026-01-02")
    assert len(two_days.images(fakes.INSTANCE.key)) == 2


def test_promoted_models_are_refused_kept_or_removed_as_asked(two_days, fakes):
    two_days.promote(fakes.INSTANCE.key)
    with pytest.raises(ValueError, match=f"promoted models are among them: {fakes.INSTANCE.key}"):
        prune(two_days, before="2026-01-02")
    assert len(two_days.images()) == 24
    (pruned,) = prune(two_days, before="2026-01-02", promoted="keep")
    assert pruned.model_key == fakes.SEMANTIC.key
    assert len(prune(two_days, model=fakes.INSTANCE.key, promoted="remove")) == 1
    assert two_days.images("current:instance_segmentation").empty


def test_a_dry_run_changes_nothing(two_days, fakes):
    before = {entry.key for entry in two_days.backend.list("")}
    (pruned,) = prune(two_days, model=fakes.INSTANCE.key, dry_run=True)
    assert pruned.num_images == 12
    assert {entry.key for entry in two_days.backend.list("")} == before


def test_unknown_models_and_everything_are_refused(two_days):
    with pytest.raises(
        KeyError, match="nothing is published of a model 'absent'; there are: labels"
    ):
        prune(two_days, model="absent")
    with pytest.raises(ValueError, match="everything"):
        prune(two_days)


# Garbage


def kinds(found):
    return {garbage.kind for garbage in found}


def test_fresh_things_are_not_garbage(two_days, fakes):
    prune(two_days, model=fakes.INSTANCE.key)
    compact(two_days)
    before = {entry.key for entry in two_days.backend.list("")}
    assert collect_garbage(two_days) == []
    assert {entry.key for entry in two_days.backend.list("")} == before


def test_masks_and_staged_tables_go_after_the_grace(two_days, fakes, contents):
    prune(two_days, model=fakes.INSTANCE.key)
    rows = two_days.images()
    told = collect_garbage(two_days, grace_s=-60, dry_run=True)
    assert any(two_days.backend.list(f"masks/model={fakes.INSTANCE.key}"))
    found = collect_garbage(two_days, grace_s=-60)
    assert found == told
    assert kinds(found) == {"masks", "staged tables", "parts that were replaced"}
    assert not any(two_days.backend.list(f"masks/model={fakes.INSTANCE.key}"))
    assert not any(two_days.backend.list(layout.STAGING))
    assert not any(two_days.backend.list(layout.CHANGES))
    assert two_days.images().equals(rows)
    for content in contents.values():
        image_id = fakes.image_id_of(content)
        np.testing.assert_array_equal(two_days.semantic_mask(image_id), fakes.semantic_of(image_id))
    assert collect_garbage(two_days, grace_s=-60) == []


def test_a_committed_shard_that_waits_for_publication_is_never_garbage(two_days, fakes):
    run = fakes.make_run(two_days, {"late.jpg": "late"}, run_id=RUN_C)
    fakes.score_shard(two_days, run, 0)
    collect_garbage(two_days, grace_s=-60)
    assert publish(two_days).num_images == 2
    image_id = fakes.image_id_of("late")
    np.testing.assert_array_equal(two_days.semantic_mask(image_id), fakes.semantic_of(image_id))


def test_what_a_killed_worker_left_is_garbage(two_days, fakes, monkeypatch):
    collect_garbage(two_days, grace_s=-60)
    run = fakes.make_run(two_days, {"late.jpg": "late"}, run_id=RUN_C)

    def dies(self, key, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "create", dies)
        with pytest.raises(KeyboardInterrupt):
            fakes.score_shard(two_days, run, 0)
    two_days.backend.put(f"{layout.CRUMBS}/{RUN_C}/{RUN_C}-000000/aaaaaaaa.json", b"[]")
    assert collect_garbage(two_days) == []
    found = collect_garbage(two_days, grace_s=-60)
    assert kinds(found) == {"masks", "staged tables", "notes of dead workers"}
    fakes.score_shard(two_days, run, 0)
    assert publish(two_days).num_images == 2


def test_a_part_that_was_put_back_is_deleted_at_any_age(two_days, fakes):
    """As by a publisher on an object store that slept through a compaction."""
    part = two_days.parts("images", model=fakes.SEMANTIC.key, date="2026-01-01")[0]
    data = two_days.backend.get(part.key)
    prune(two_days, model=fakes.SEMANTIC.key)
    two_days.backend.put(part.key, data)
    assert Store(two_days.root).images(fakes.SEMANTIC.key).empty
    assert kinds(collect_garbage(two_days)) == {"parts put back after they were replaced"}
    assert not two_days.backend.exists(part.key)
