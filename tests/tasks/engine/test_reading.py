"""Files come in order with their errors, some are read ahead, and never too many bytes."""

import hashlib
import threading
import time
from dataclasses import dataclass

import pytest

from pixelmill.tasks.engine.reading import ReadLimits, ReadStats, read_ahead, read_with_retries

MIB = 2**20


@dataclass(frozen=True)
class File:
    source_uri: str
    size_bytes: int = 4


def files(number: int, size_bytes: int = 4) -> list[File]:
    return [File(str(index), size_bytes) for index in range(number)]


def test_files_come_in_order_with_their_identity():
    def read(uri: str) -> bytes:
        time.sleep(0.004 if int(uri) % 4 == 0 else 0)  # the first of each four comes last
        return uri.encode()

    inputs = files(50)
    found = list(read_ahead(inputs, read))
    assert [file for file, _ in found] == inputs
    for file, content in found:
        assert not isinstance(content, OSError)
        assert content.data == file.source_uri.encode()
        assert content.image_id == hashlib.sha256(content.data).hexdigest()[:32]


def test_an_error_comes_in_the_place_of_its_file():
    def read(uri: str) -> bytes:
        if uri == "3":
            raise FileNotFoundError(uri)
        if uri == "5":
            raise TimeoutError(uri)
        return b""

    found = [content for _, content in read_ahead(files(8), read)]
    errors = {index: type(each) for index, each in enumerate(found) if isinstance(each, OSError)}
    assert errors == {3: FileNotFoundError, 5: TimeoutError}


def test_an_error_of_the_program_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(files(3), lambda uri: bytes(1 // int(uri))))


def test_files_are_read_while_an_earlier_one_is_waited_for():
    later = threading.Event()

    def read(uri: str) -> bytes:
        if uri == "0":
            assert later.wait(20)
        if uri == "7":
            later.set()
        return b""

    assert len(list(read_ahead(files(8), read))) == 8


@pytest.mark.parametrize(
    ("size_bytes", "most"), [(1, 32), (60 * MIB, 4), (128 * MIB, 2), (300 * MIB, 1)]
)
def test_the_files_held_are_few_and_small(size_bytes: int, most: int):
    asked: list[str] = []
    todo = files(100, size_bytes)

    def read(uri: str) -> bytes:
        asked.append(uri)
        return b""

    for number, _ in enumerate(read_ahead(todo, read)):
        assert len(asked) - number <= most
    assert len(asked) == 100


def test_no_more_files_are_read_once_nobody_listens():
    asked: list[str] = []

    def read(uri: str) -> bytes:
        asked.append(uri)
        return b""

    found = read_ahead(files(1000), read)
    next(found)
    found.close()  # type: ignore[attr-defined] # a generator
    assert len(asked) <= 33


def test_nothing_is_read_of_nothing():
    assert list(read_ahead([], lambda uri: b"")) == []


def test_a_limit_of_bytes_and_files_is_kept():
    asked: list[str] = []

    def read(uri: str) -> bytes:
        asked.append(uri)
        return b""

    limits = ReadLimits(threads=2, files=100, num_bytes=12)
    for number, _ in enumerate(read_ahead(files(50), read, limits)):
        assert len(asked) - number <= 3
    assert len(asked) == 50


def test_what_was_read_is_counted():
    stats = ReadStats()
    list(read_ahead(files(10), lambda uri: b"12345", stats=stats))
    assert stats.num_bytes == 50
    assert stats.num_retries == 0
    assert stats.busy_s > 0


def flaky(errors):
    """A `read` that raises these errors first."""
    left = list(errors)

    def read(uri: str) -> bytes:
        if left:
            raise left.pop(0)
        return uri.encode()

    return read


def test_a_disk_that_fails_for_a_moment_is_read_again_after_longer_and_longer_waits():
    waits: list[float] = []
    errors = [OSError(5, "Input/output error"), OSError(116, "Stale file handle"), TimeoutError()]
    assert read_with_retries(flaky(errors), "a", waits.append) == (b"a", 3)
    assert [0.05 * 2**number <= wait <= 0.1 * 2**number for number, wait in enumerate(waits)] == [
        True
    ] * 3


def test_a_disk_that_goes_on_failing_is_given_up():
    with pytest.raises(OSError, match="output error"):
        read_with_retries(flaky([OSError(5, "Input/output error")] * 9), "a", lambda seconds: None)


@pytest.mark.parametrize(
    "error", [FileNotFoundError("a"), PermissionError("a"), ConnectionError("patient already")]
)
def test_what_waiting_does_not_help_is_not_read_again(error):
    waits: list[float] = []
    with pytest.raises(type(error)):
        read_with_retries(flaky([error]), "a", waits.append)
    assert waits == []
