"""Files come in order with their errors, some are read ahead, and never too many bytes."""

import hashlib
import threading
import time
from dataclasses import dataclass

import pytest

from pixelmill.tasks.engine.reading import read_ahead

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
