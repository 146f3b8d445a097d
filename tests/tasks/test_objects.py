"""Requests that fail are made again; those that cannot succeed are not."""

from datetime import timedelta

import pytest
from obstore.exceptions import AlreadyExistsError, GenericError, NotSupportedError

from pixelmill.configs.schema import IngestConfig
from pixelmill.tasks import objects
from pixelmill.tasks.objects import open_objects, patience_s, patiently
from pixelmill.tasks.sources import list_images, read_bytes, read_head
from pixelmill.tasks.store.backend import ObjectBackend
from pixelmill.tasks.transient import RefusedError, is_transient

FAULTS = ("500", "503", "drop", "lost", "cut", "stall")
DATA = bytes(range(256)) * 400


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The same behaviour, sooner."""
    monkeypatch.setattr(objects, "READ_TIMEOUT", timedelta(seconds=0.3))
    monkeypatch.setattr(objects, "REQUEST_BACKOFF", timedelta(milliseconds=5))
    monkeypatch.setattr(objects, "LONGEST_REQUEST_BACKOFF", timedelta(milliseconds=20))
    monkeypatch.setattr(objects, "BACKOFF_S", 0.01)
    monkeypatch.setattr(objects, "_outages", {})


def first(number, fault):
    """The first `number` requests fail."""
    return lambda index, method, path: fault if index < number else None


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_survives_a_failed_request(faulty_s3, s3_root, fault):
    backend = ObjectBackend(s3_root)
    backend.put("a/1", DATA)
    backend.put("a/2", b"two")

    def surviving(operation):
        faulty_s3.fail(first(1, fault))
        result = operation()
        assert faulty_s3.seen[fault] == 1
        return result

    assert surviving(lambda: backend.get("a/1")) == DATA
    assert surviving(lambda: backend.exists("a/1"))
    assert not surviving(lambda: backend.exists("a/nothing"))
    with backend.open("a/1") as file:
        file.seek(1000)
        assert surviving(lambda: file.read(2000)) == DATA[1000:3000]
    assert [entry.key for entry in surviving(lambda: list(backend.list("a")))] == ["a/1", "a/2"]
    surviving(lambda: backend.put("a/1", b"new"))
    assert backend.get("a/1") == b"new"
    assert surviving(lambda: backend.create("c", b"ours"))
    assert backend.get("c") == b"ours"
    assert not surviving(lambda: backend.create("c", b"theirs"))
    surviving(lambda: backend.delete(["a/1", "c"]))
    assert [entry.key for entry in backend.list("")] == ["a/2"]


def test_a_create_whose_answer_was_lost_is_known_for_ours(faulty_s3, s3_root):
    backend = ObjectBackend(s3_root)
    faulty_s3.fail(first(1, "lost"))
    assert backend.create("receipt", b"attempt 1")
    assert not backend.create("receipt", b"attempt 2")
    assert backend.get("receipt") == b"attempt 1"


def test_images_are_listed_and_read_through_failing_requests(faulty_s3, s3_root):
    bucket = s3_root.rpartition("/")[0]
    ObjectBackend(bucket).put("photos/1.jpg", DATA)
    faults = iter(FAULTS * 2)
    faulty_s3.fail(lambda index, method, path: next(faults, None) if index % 2 == 0 else None)
    images = list_images(f"{bucket}/photos", IngestConfig()).images.to_pylist()
    assert [image["path"] for image in images] == ["1.jpg"]
    for _ in range(3):
        assert read_bytes(images[0]["source_uri"]) == DATA
        assert read_head(images[0]["source_uri"], 100) == DATA[:100]
    assert faulty_s3.seen.total() - faulty_s3.seen["ok"] >= 5


@pytest.mark.parametrize("fault", ["503", "drop"])
def test_a_store_that_stays_down_ends_in_one_clear_error(faulty_s3, s3_root, fault, monkeypatch):
    monkeypatch.setenv("PIXELMILL_STORAGE_PATIENCE_S", "0.3")
    backend = ObjectBackend(s3_root)
    faulty_s3.fail(first(10**9, fault))
    with pytest.raises(ConnectionError, match=r"no success in \d+ tries") as caught:
        backend.get("x")
    assert f"{s3_root}/x" in str(caught.value)
    assert "Debug source" not in str(caught.value)
    assert is_transient(caught.value)
    # The next ones do not wait as long again
    with pytest.raises(ConnectionError, match="in 1 tries"):
        backend.put("y", b"")
    faulty_s3.fail(lambda *request: None)
    backend.put("y", b"")
    assert backend.get("y") == b""


def test_listing_goes_on_where_it_broke(faulty_s3, s3_root, monkeypatch):
    monkeypatch.setattr(objects, "_LIST_CHUNK", 2)
    backend = ObjectBackend(s3_root)
    for index in range(7):
        backend.put(f"a/{index}", b"")

    def plan(index, method, path):
        return "cut" if method == "GET" and index in (0, 2) else None

    faulty_s3.fail(plan)
    assert [entry.key for entry in backend.list("a")] == [f"a/{index}" for index in range(7)]


class Failing:
    """A call that fails so often, and then says how often it was made."""

    def __init__(self, *errors):
        self.errors, self.num_calls = list(errors), 0

    def __call__(self):
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.num_calls


def http(status: str, body: str = "") -> GenericError:
    return GenericError(f"Generic S3 error: returned non-2xx status code: {status}: {body}")


@pytest.mark.parametrize(
    "error",
    [
        http("500 Internal Server Error"),
        http("429 Too Many Requests"),
        http("400 Bad Request", "<Error><Code>RequestTimeout</Code></Error>"),
        http("400 Bad Request", "<Error><Code>ThrottlingException</Code></Error>"),
        GenericError("Generic S3 error: HTTP error: error sending request"),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
def test_what_may_pass_is_tried_again(error):
    assert patiently("s3://b", "k", Failing(error, error)) == 3


class Answer(Exception):
    """As aiohttp's ClientResponseError, which is no OSError."""

    def __init__(self, status):
        super().__init__(f"{status}, message='no'")
        self.status = status


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (http("400 Bad Request", "<Error><Code>InvalidArgument</Code></Error>"), RefusedError),
        (http("501 Not Implemented"), RefusedError),
        (http("403 Forbidden"), PermissionError),
        (http("404 Not Found", "<Error><Code>NoSuchBucket</Code></Error>"), FileNotFoundError),
        (NotSupportedError("no conditional put"), RefusedError),
        (GenericError("error PUT http://169.254.169.254/latest/api/token"), PermissionError),
        (AlreadyExistsError("there"), AlreadyExistsError),
        (Answer(404), FileNotFoundError),
        (Answer(410), RefusedError),
        (Answer(401), PermissionError),
        (ValueError("a bug"), ValueError),
        (FileNotFoundError("gone"), FileNotFoundError),
    ],
)
def test_what_will_not_pass_is_raised_at_once(error, expected):
    call = Failing(error, error)
    with pytest.raises(expected) as caught:
        patiently("s3://b", "k", call)
    assert call.num_calls == 1
    if not isinstance(error, AlreadyExistsError):
        assert not is_transient(caught.value)


def test_an_outage_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(objects, "TELL_AFTER_S", 0.05)
    monkeypatch.setattr(objects.random, "uniform", lambda low, high: 0.02)
    patiently("s3://b", "k", Failing(*[TimeoutError("no answer")] * 8))
    assert [record.getMessage() for record in caplog.records] == [
        "s3://b/k fails, and is tried again for up to 300 s: no answer"
    ]
    caplog.clear()
    patiently("s3://b", "k", Failing(TimeoutError()))
    assert not caplog.records


def test_messages_have_no_secrets():
    url = "https://acc.blob.core.windows.net/c/x?sv=2024&sig=abc%2Fdef"
    error = GenericError(f"error performing GET {url} - status code: 400 Bad Request")
    with pytest.raises(RefusedError) as caught:
        patiently("az://c", "x", Failing(error))
    assert "abc" not in str(caught.value)
    assert "sig=***" in str(caught.value)


def test_patience_is_a_number_of_seconds(monkeypatch):
    assert patience_s() == 300
    monkeypatch.setenv("PIXELMILL_STORAGE_PATIENCE_S", "7.5")
    assert patience_s() == 7.5
    monkeypatch.setenv("PIXELMILL_STORAGE_PATIENCE_S", "long")
    with pytest.raises(ValueError, match="PIXELMILL_STORAGE_PATIENCE_S must be seconds"):
        patience_s()


def test_waits_grow_and_differ(monkeypatch):
    waits = []
    monkeypatch.setattr(objects.time, "sleep", waits.append)
    monkeypatch.setattr(objects, "BACKOFF_S", 1.0)
    monkeypatch.setattr(objects, "LONGEST_BACKOFF_S", 4.0)
    patiently("s3://b", "k", Failing(*[TimeoutError() for _ in range(200)]))
    assert len(set(waits)) == 200
    assert max(waits[:1]) <= 1.0
    assert max(waits) <= 4.0
    assert 1.5 < sum(waits[3:]) / len(waits[3:]) < 2.5  # uniform over [0, 4]


# No servers of these here: what is tested is that addresses and accounts go where they should.


def test_google_and_azure_addresses(monkeypatch):
    assert "bucket" in repr(open_objects("gs://bucket/deep/er"))
    assert open_objects("gs://bucket/deep/er").prefix == "deep/er"
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(RefusedError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        open_objects("az://container/deep")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    azure = open_objects("az://container/deep")
    assert azure.prefix == "deep"
    assert azure.config["container_name"] == "container"
