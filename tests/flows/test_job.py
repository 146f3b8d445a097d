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
    truth_base,
)


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
