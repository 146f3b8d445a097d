"""Images and results on object stores: the same as on a local disk, to the bit."""

import boto3
import fsspec
import pytest

from pixelmill.tasks.store import Store


@pytest.fixture
def specs(small_spec):
    return [small_spec("masker"), small_spec("segmenter")]


@pytest.fixture
def expected(store, pictures, specs, score_night, read_results):
    """What a run on local disk finds."""
    score_night(store, str(pictures), specs)
    return read_results(store)


@pytest.fixture
def bucket(s3_root, s3_server):
    """Client and name of the bucket that the store's root is in."""
    client = boto3.client("s3", endpoint_url=s3_server["AWS_ENDPOINT_URL"], region_name="us-east-1")
    yield client, s3_root.removeprefix("s3://").partition("/")[0]
    client.close()


def upload(bucket, folder) -> str:
    """Put a folder's files into the bucket, under a name that URLs would have to quote."""
    client, name = bucket
    for path in folder.iterdir():
        key = f"camera 1/é+%20/{path.name}"
        client.put_object(Bucket=name, Key=key, Body=path.read_bytes())
    return f"s3://{name}/camera 1"


def test_a_night_from_s3_to_s3_equals_one_on_local_disk(
    bucket, s3_root, pictures, specs, expected, score_night, read_results
):
    source = upload(bucket, pictures)
    store = Store(s3_root, create=True)
    first = score_night(store, source, specs)
    assert first.num_new == first.num_planned == 12
    assert read_results(Store(s3_root)) == expected
    assert store.catalog().path[0] == "é+%20/00.jpg"
    assert len(store.failures()) == 0
    assert not list(store.backend.list("_commit/crumbs"))

    second = score_night(store, source, specs)
    assert (second.num_listed, second.num_new, second.num_planned) == (12, 0, 0)
    assert second.record is None


def test_a_night_in_memory_equals_one_on_local_disk(
    request, pictures, specs, expected, score_night, read_results
):
    files = fsspec.filesystem("memory")
    for path in pictures.iterdir():
        files.pipe(f"/{request.node.name}/{path.name}", path.read_bytes())
    store = Store(f"memory://{request.node.name}", create=True)
    score_night(store, f"memory://{request.node.name}", specs)
    assert read_results(store) == expected
    assert score_night(store, f"memory://{request.node.name}", specs).record is None


def test_an_object_that_may_not_be_read_fails_alone(
    bucket, s3_root, pictures, small_spec, score_night
):
    source = upload(bucket, pictures)
    client, name = bucket
    for archived in ("00.jpg", "07.jpg"):
        key = f"camera 1/é+%20/{archived}"
        body = (pictures / archived).read_bytes()
        client.put_object(Bucket=name, Key=key, Body=body, StorageClass="GLACIER")
    store = Store(s3_root, create=True)
    score_night(store, source, [small_spec("detector")])
    failures = store.failures()
    assert failures.path.tolist() == ["é+%20/00.jpg", "é+%20/07.jpg"]
    assert set(failures.reason) == {"unreadable"}
    assert failures.retryable.all()
    assert len(store.images()) == 10
