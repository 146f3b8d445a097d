from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pixelmill.configs.load import load_config
from pixelmill.configs.schema import EvaluationConfig
from pixelmill.flows.job import (
    ScoreParams,
    default_collection,
    find_truth,
    last_run,
    prepare_job,
    read_known,
    start_run,
    truth_base,
)
from pixelmill.flows.neighbours import Neighbours
from pixelmill.flows.worker import score_reference
from pixelmill.tasks.ingest import Listing, ingest
from pixelmill.tasks.store import ShardRef, Store, new_run_id


@pytest.mark.parametrize(
    ("source", "collection"),
    [
        ("/data/photos-2024", "photos-2024"),
        ("/data/bccd/images", "bccd-images"),
        ("/data/bccd/images/", "bccd-images"),
        ("/data/bccd/JPEGImages", "bccd-jpegimages"),
        ("/images", "images"),
        ("s3://bucket/night/train", "night-train"),
        ("s3://bucket/images", "bucket-images"),
        ("s3://bucket", "bucket"),
    ],
)
def test_a_collection_is_named_after_its_folder_and_its_parent_if_that_says_nothing(
    source, collection
):
    assert default_collection(source).lower() == collection


def test_truth_lies_beside_the_images_and_of_a_bucket_in_the_working_directory(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert truth_base("/data/bccd/images") == Path("/data/bccd")
    assert truth_base("s3://bucket/images") == tmp_path


def test_only_truth_that_is_there_is_compared_with(tmp_path):
    (tmp_path / "semantic").mkdir()
    config = EvaluationConfig(instances="no.json", semantic="semantic", void=7)
    assert find_truth(config, tmp_path) == EvaluationConfig(semantic="semantic", void=7)
    assert find_truth(config, tmp_path / "elsewhere") is None
    assert find_truth(EvaluationConfig(), tmp_path) is None


def test_truth_without_its_subset_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "instances.json").touch()
    config = EvaluationConfig(instances="instances.json", subset=str(tmp_path / "a.val.txt"))
    with pytest.raises(FileNotFoundError, match=r"a\.val\.txt.*pixelmill train.*--subset FILE"):
        find_truth(config, tmp_path)
    (tmp_path / "a.val.txt").touch()
    assert find_truth(config, tmp_path) == config


def test_a_subset_without_its_truth_is_not_missed(tmp_path):
    config = EvaluationConfig(instances="instances.json", subset="a.val.txt")
    assert find_truth(config, tmp_path) is None


@pytest.fixture
def scored(copy_scenes, score_plainly, tmp_path):
    """A store of two images from a folder `one/night`."""
    folder = copy_scenes(tmp_path / "one" / "night", 2)
    return folder, score_plainly(folder, tmp_path / "store")


def prepare(tiny_config, store, source, **options):
    params = ScoreParams(
        source=str(source), store=store.root, config=load_config(tiny_config), **options
    )
    return prepare_job(params)


def test_another_folder_of_the_same_name_is_refused_unless_it_is_named(
    scored, copy_scenes, tiny_config, tmp_path
):
    folder, store = scored
    other = copy_scenes(tmp_path / "two" / "night", 2)
    with pytest.raises(ValueError, match="by --collection NAME") as raised:
        prepare(tiny_config, store, other)
    assert f"has the images of {folder}, not of {other}" in str(raised.value)
    for name in ("night", "other-night"):
        assert prepare(tiny_config, store, other, collection=name).collection == name


def test_the_same_folder_is_known_however_it_is_written(scored, tiny_config, tmp_path, monkeypatch):
    folder, store = scored
    (tmp_path / "link").symlink_to(folder.parent)
    monkeypatch.chdir(folder.parent)
    for source in (folder, f"{folder}/", "night", f"file://{folder}/", tmp_path / "link" / "night"):
        assert prepare(tiny_config, store, source).collection == "night"


def test_a_store_that_is_not_there_knows_no_folder(copy_scenes, tiny_config, tmp_path):
    folder = copy_scenes(tmp_path / "night", 1)
    params = ScoreParams(
        source=str(folder), store=str(tmp_path / "none"), config=load_config(tiny_config)
    )
    assert prepare_job(params).collection == "night"
    assert not (tmp_path / "none").exists()


def test_the_newest_run_of_a_collection_is_found(scored):
    _, store = scored
    newest = last_run(store, "night")
    assert newest is not None
    assert newest.run_id == store.runs()[-1]
    assert last_run(store, None) == newest
    assert last_run(store, "day") is None


def test_a_folder_is_known_without_reading_the_records_of_all_runs(
    scored, tiny_config, copy_scenes, tmp_path, monkeypatch
):
    folder, store = scored
    read = []
    find = Store.run
    monkeypatch.setattr(
        Store, "run", lambda self, run_id: read.append(run_id) or find(self, run_id)
    )
    prepare(tiny_config, store, folder)
    assert len(read) == 1
    read.clear()
    other = copy_scenes(tmp_path / "day", 1)
    prepare(tiny_config, store, other)
    assert len(read) == 1, "the open run"


def test_another_folder_is_refused_before_anything_of_the_first_is_published(
    copy_scenes, score_plainly, tiny_config, tmp_path
):
    folder = copy_scenes(tmp_path / "one" / "night", 1)
    store = score_plainly(folder, tmp_path / "store", is_published=False)
    other = copy_scenes(tmp_path / "two" / "night", 1)
    with pytest.raises(ValueError, match="by --collection NAME"):
        prepare(tiny_config, store, other)


@pytest.mark.parametrize(
    ("options", "told"), [({"until": "25:00"}, "HH:MM"), ({"budget": "soon"}, "such as 45m")]
)
def test_a_time_that_is_none_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        ScoreParams(**options)


def test_the_earlier_of_two_deadlines_holds(scored, tiny_config):
    folder, store = scored
    assert prepare(tiny_config, store, folder).deadline is None
    job = prepare(tiny_config, store, folder, until="06:00", budget="10s")
    assert job.deadline is not None
    assert 0 < job.deadline.left_s <= 10


@pytest.fixture
def begun(copy_scenes, tiny_config, tmp_path):
    """A job over eight images, so of two shards, and its listing."""
    folder = copy_scenes(tmp_path / "night", 8)
    store = Store(tmp_path / "store", create=True)
    job = prepare(tiny_config, store, folder, date="2024-05-31")
    return store, job, ingest(job.source, job.config.ingest, read_known(store, job.collection))


def score_first(store, run_id: str) -> None:
    shard = ShardRef(run_id, 0, 4)
    score_reference(store.root, "they", shard, should_stop=lambda: False, is_isolated=False)


def test_what_was_committed_since_the_listing_is_neither_planned_nor_read_again(begun):
    store, job, listing = begun
    with Neighbours(store) as they:
        theirs = start_run(they, job, listing).record
        assert theirs is not None
        score_first(store, theirs.run_id)
        with Neighbours(store) as we:
            plan = start_run(we, job, listing)
    assert (plan.num_new, plan.num_planned) == (4, 0)
    assert [(shard.run_id, shard.index) for shard in plan.adopted] == [(theirs.run_id, 1)]
    assert set(plan.num_reused.values()) == {4}
    assert store.run_end(theirs.run_id) is None, "it is alive"


def test_a_killed_run_is_finished_under_the_names_of_its_shards(begun):
    store, job, listing = begun
    with Neighbours(store) as killed:
        theirs = start_run(killed, job, listing).record
    assert theirs is not None
    score_first(store, theirs.run_id)
    with Neighbours(store) as we:
        plan = start_run(we, job, listing)
    assert plan.record is None
    assert [(shard.run_id, shard.index) for shard in plan.adopted] == [(theirs.run_id, 1)]
    assert store.runs() == [theirs.run_id]
    assert store.run_end(theirs.run_id) is None


def test_a_killed_run_whose_rest_is_not_wanted_as_it_is_ends_as_abandoned(begun):
    store, job, listing = begun
    with Neighbours(store) as killed:
        theirs = start_run(killed, job, listing).record
    assert theirs is not None
    score_first(store, theirs.run_id)
    tomorrow = replace(job, date="2024-06-01")
    with Neighbours(store) as we:
        without_first = Listing(listing.images.slice(1), listing.problems)
        part = start_run(we, tomorrow, without_first, is_part=True)
        assert store.run_end(theirs.run_id) is None, "another part may want it"
        assert part.num_planned == 3
    with Neighbours(store) as we:
        plan = start_run(we, replace(job, date="2024-06-02"), listing)
    end = store.run_end(theirs.run_id)
    assert end is not None
    assert (end.state, end.reason) == (
        "stopped",
        "abandoned: its process died, and its rest is planned anew",
    )
    assert plan.adopted == ()
    assert plan.num_planned == 4


def test_the_clock_going_back_orders_no_run_before_an_older_one(begun):
    store, job, listing = begun
    future = new_run_id(datetime(2100, 1, 1, tzinfo=UTC))
    with Neighbours(store) as killed:
        first = start_run(killed, job, listing).record
    assert first is not None
    store.create_run(first.model_copy(update={"run_id": future}), store.plan_rows(first.run_id))
    with Neighbours(store) as we:
        other = replace(job, collection="other", date="2024-06-01")
        assert start_run(we, other, listing).record is not None
    assert store.runs()[-1][:8] == "21000101"
    assert store.runs()[-1] > future
