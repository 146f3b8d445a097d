import json
import threading

import pytest

from pixelmill.tasks.engine.tuning import BatchSizes, batch_sizes
from pixelmill.tasks.store import open_backend

MODEL, CANVAS = "model-12345678", (64, 96)


@pytest.fixture
def backend(tmp_path):
    return open_backend(tmp_path)


def explore(sizes: BatchSizes, seconds, same=lambda size: True, limit: int = 40) -> list[int]:
    """Sizes of the batches until one is settled, where an image takes `seconds[size]`."""
    used = []
    for _ in range(limit):
        if sizes.is_settled(MODEL, CANVAS):
            return used
        size, check = sizes.full(MODEL, CANVAS, "auto")
        used.append(size)
        if check is not None:
            sizes.judge(MODEL, CANVAS, size, check, same(check))
        else:
            sizes.observe(MODEL, CANVAS, size, seconds[size] * size)
    raise AssertionError(f"not settled by {used}")


@pytest.mark.parametrize(
    ("seconds", "fastest"),
    [({8: 1.0, 4: 1.1}, 8), ({8: 1.0, 4: 0.8, 2: 0.9}, 4), ({8: 1.0, 4: 0.8, 2: 0.5}, 2)],
)
def test_smaller_batches_are_tried_on_real_work_while_they_pay(backend, seconds, fastest: int):
    sizes = BatchSizes(backend, "cpu")
    used = explore(sizes, seconds)
    assert used[:3] == [8, 8, 8]
    assert sizes.full(MODEL, CANVAS, "auto") == (fastest, None)


def test_sizes_that_give_other_bits_are_not_tried(backend):
    sizes = BatchSizes(backend, "cpu")
    explore(sizes, {8: 1.0, 4: 0.1}, same=lambda size: False)
    assert sizes.full(MODEL, CANVAS, "auto") == (8, None)


def test_one_slow_batch_settles_nothing(backend):
    """The least time counts: other processes can make a batch slower, but not faster."""
    sizes = BatchSizes(backend, "cpu")
    times = iter([9.0, 1.0, 9.0])
    for _ in range(3):
        sizes.observe(MODEL, CANVAS, 8, 8 * next(times))
    explore(sizes, {4: 1.1})
    assert sizes.full(MODEL, CANVAS, "auto") == (8, None)


def test_a_configured_size_is_taken_and_no_single_images(backend):
    sizes = BatchSizes(backend, "cpu")
    assert sizes.full(MODEL, CANVAS, 16) == (16, None)
    assert sizes.full(MODEL, CANVAS, 1) == (2, None)


def test_the_rest_is_compared_once_and_then_filled_up_to_what_is_the_same(backend):
    sizes = BatchSizes(backend, "cpu")
    assert sizes.partial(MODEL, CANVAS, 8, 3) == (8, 4)
    sizes.judge(MODEL, CANVAS, 8, 4, True)
    assert sizes.partial(MODEL, CANVAS, 8, 3) == (4, None)
    assert sizes.partial(MODEL, CANVAS, 8, 1) == (8, 2)
    sizes.judge(MODEL, CANVAS, 8, 2, False)
    assert sizes.partial(MODEL, CANVAS, 8, 1) == (8, None)
    assert sizes.partial(MODEL, CANVAS, 8, 7) == (8, None)
    assert sizes.partial(MODEL, CANVAS, 16, 3) == (16, 4)  # of other full batches nothing is known


def test_what_does_not_fit_into_memory_is_not_tried_again(backend):
    sizes = BatchSizes(backend, "cpu")
    sizes.limit(MODEL, CANVAS, 4)
    sizes.limit(MODEL, CANVAS, 6)
    assert sizes.full(MODEL, CANVAS, 16) == (4, None)
    assert sizes.full(MODEL, CANVAS, "auto") == (4, None)
    assert sizes.full(MODEL, CANVAS, 2) == (2, None)
    assert sizes.full(MODEL, (96, 64), 16) == (16, None)


def test_other_workers_and_runs_start_with_what_is_known(backend):
    sizes = BatchSizes(backend, "cpu")
    explore(sizes, {8: 1.0, 4: 0.8, 2: 0.9})
    sizes.limit(MODEL, (96, 64), 2)
    later = BatchSizes(backend, "cpu")
    assert later.full(MODEL, CANVAS, "auto") == (4, None)
    assert later.partial(MODEL, CANVAS, 8, 2) == (2, None)
    assert later.full(MODEL, (96, 64), 16) == (2, None)
    assert BatchSizes(backend, "gpu").full(MODEL, (96, 64), 16) == (16, None)


def test_a_damaged_or_foreign_note_is_as_none(backend):
    sizes = BatchSizes(backend, "cpu")
    sizes.limit(MODEL, CANVAS, 4)
    (entry,) = backend.list("_commit/tuning")
    for content in (b"", b"[]", json.dumps({"fastest": 2, "colour": "blue"}).encode()):
        backend.put(entry.key, content)
        assert BatchSizes(backend, "cpu").full(MODEL, CANVAS, 16) == (16, None)


def test_a_store_that_cannot_be_written_stops_nothing(backend, monkeypatch):
    def fail(self, key, data):
        raise OSError("disk full")

    monkeypatch.setattr(type(backend), "put", fail)
    sizes = BatchSizes(backend, "cpu")
    sizes.limit(MODEL, CANVAS, 4)
    assert sizes.full(MODEL, CANVAS, 16) == (4, None)


def test_threads_may_ask_and_tell_at_once(backend):
    sizes = BatchSizes(backend, "cpu")
    errors = []

    def work():
        try:
            for _ in range(50):
                sizes.full(MODEL, CANVAS, "auto")
                sizes.observe(MODEL, CANVAS, 8, 8.0)
        except Exception as err:
            errors.append(err)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_process_keeps_what_it_knows_of_a_store(tmp_path):
    assert batch_sizes(str(tmp_path), "a", "cpu") is batch_sizes(str(tmp_path), "a", "cpu")
    assert batch_sizes(str(tmp_path), "a", "cpu") is not batch_sizes(str(tmp_path), "b", "cpu")
