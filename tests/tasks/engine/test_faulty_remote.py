"""A night on an object store that fails, throttles and loses answers: slower, and no different."""

import random
from datetime import timedelta

import pytest

from pixelmill.configs.schema import IngestConfig
from pixelmill.tasks import objects
from pixelmill.tasks.objects import open_objects
from pixelmill.tasks.sources import list_images
from pixelmill.tasks.store import Store
from pixelmill.tasks.store.backend import ObjectBackend
from pixelmill.tasks.transient import is_transient

FAULTS = ("500", "503", "drop", "lost", "cut")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The same behaviour, sooner."""
    monkeypatch.setattr(objects, "READ_TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr(objects, "REQUEST_BACKOFF", timedelta(milliseconds=2))
    monkeypatch.setattr(objects, "LONGEST_REQUEST_BACKOFF", timedelta(milliseconds=10))
    monkeypatch.setattr(objects, "BACKOFF_S", 0.01)
    monkeypatch.setattr(objects, "_outages", {})


@pytest.fixture
def specs(small_spec):
    return [small_spec("masker"), small_spec("segmenter")]


@pytest.fixture
def source(s3_root, pictures):
    """The pictures in the store's bucket."""
    bucket = s3_root.rpartition("/")[0]
    for path in pictures.iterdir():
        ObjectBackend(bucket).put(f"camera/{path.name}", path.read_bytes())
    return f"{bucket}/camera"


def some(share):
    """Requests fail by chance, each kind of failure as often as the others, the same every time."""
    chance = random.Random(0)
    return lambda number, method, path: chance.choice(FAULTS) if chance.random() < share else None


@pytest.mark.slow
def test_a_night_through_failing_requests_equals_one_on_local_disk(
    faulty_s3, s3_root, source, store, pictures, specs, score_night, read_results
):
    score_night(store, str(pictures), specs)
    expected = read_results(store)
    faulty_s3.fail(some(0.2))
    remote = Store(s3_root, create=True)
    plan = score_night(remote, source, specs)
    assert plan.num_planned == 12
    assert read_results(Store(s3_root)) == expected
    assert len(remote.failures()) == 0
    assert score_night(remote, source, specs).record is None
    failed = faulty_s3.seen.total() - faulty_s3.seen["ok"]
    assert failed > 0.1 * faulty_s3.seen.total()
    assert {kind for kind in faulty_s3.seen if kind != "ok"} == set(FAULTS)


@pytest.mark.slow
def test_a_store_that_fails_for_good_is_told_and_a_later_night_completes(
    faulty_s3, s3_root, source, store, pictures, specs, score_night, read_results, monkeypatch
):
    score_night(store, str(pictures), specs)
    expected = read_results(store)
    remote = Store(s3_root, create=True)
    monkeypatch.setenv("PIXELMILL_STORAGE_PATIENCE_S", "0.2")
    # It takes writes of masks for a while, then nothing at all
    written = []

    def plan(number, method, path):
        if method == "PUT" and "/masks/" in path:
            written.append(path)
        return "503" if len(written) > 3 else None

    faulty_s3.fail(plan)
    with pytest.raises(ConnectionError, match=r"no success in \d+ tries") as caught:
        score_night(remote, source, specs)
    assert s3_root in str(caught.value)
    assert is_transient(caught.value)
    faulty_s3.fail(lambda *request: None)
    assert len(Store(s3_root).images()) == 0
    score_night(remote, source, specs)
    assert read_results(Store(s3_root)) == expected


def test_a_bucket_of_many_objects_is_listed_by_pages(faulty_s3, s3_root, monkeypatch):
    monkeypatch.setattr(objects, "_LIST_CHUNK", 10)
    bucket = s3_root.rpartition("/")[0]
    for index in range(45):
        ObjectBackend(bucket).put(f"many/{index:03d}.jpg", b"")
    faulty_s3.fail(lambda number, method, path: "cut" if number % 3 == 1 else None)
    images = list_images(f"{bucket}/many", IngestConfig()).images
    assert images["path"].to_pylist() == [f"{index:03d}.jpg" for index in range(45)]
    assert open_objects(bucket) is open_objects(bucket)
