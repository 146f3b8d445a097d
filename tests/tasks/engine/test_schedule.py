"""The same stages in turns and at once: same items, bounded queues, no thread left behind."""

import threading
import time

import pytest

from pixelmill.tasks.engine.schedule import Lane, LaneStats, Stage, run_lanes


def double(item):
    yield item
    yield item + 1000


class Pairs:
    """Puts two items together, as batches do."""

    def __init__(self):
        self.waiting = []

    def run(self, item):
        self.waiting.append(item)
        if len(self.waiting) < 2:
            return ()
        pair, self.waiting = tuple(self.waiting), []
        return (pair,)

    def flush(self):
        return [tuple(self.waiting)] if self.waiting else []


def make_lanes(threads: int | None, into: list):
    """In one lane if `threads` is None, else four, of which the second has so many threads."""
    pairs = Pairs()
    first = Stage("first", lambda item: (item,))
    doubled = Stage("double", double)
    paired = Stage("pair", pairs.run, pairs.flush)
    last = Stage("last", lambda item: into.append(item) or ())
    if threads is None:
        return [Lane((first, doubled, paired, last))]
    return [Lane((first,)), Lane((doubled,), threads), Lane((paired,)), Lane((last,))]


@pytest.mark.parametrize("threads", [None, 1, 3])
@pytest.mark.parametrize("number", [0, 1, 7, 100])
def test_every_item_goes_through_all_stages_to_the_last_flush(threads, number: int):
    seen: list[tuple[int, ...]] = []
    run_lanes(make_lanes(threads, seen), range(number), LaneStats())
    expected = [item for each in range(number) for item in double(each)]
    assert sorted(item for pair in seen for item in pair) == sorted(expected)
    assert [len(pair) for pair in seen] == [2] * number
    if threads != 3:
        assert [item for pair in seen for item in pair] == expected


def test_in_turns_an_item_is_finished_before_the_next_is_drawn():
    events: list[str] = []

    def produce(item):
        for part in "ab":
            events.append(f"made {part}")
            yield part

    stages = Stage("make", produce), Stage("use", lambda part: events.append(f"used {part}") or ())
    run_lanes([Lane(stages)], range(1), LaneStats())
    assert events == ["made a", "used a", "made b", "used b"]


def test_a_slow_item_does_not_hold_up_the_others():
    slow_may_end = threading.Event()
    seen: list[int] = []

    def work(item):
        if item == 0:
            assert slow_may_end.wait(20)
        return (item,)

    def use(item):
        seen.append(item)
        if len(seen) == 9:
            slow_may_end.set()
        return ()

    lanes = [
        Lane((Stage("feed", lambda item: (item,)),)),
        Lane((Stage("work", work),), threads=2, capacity=2),
        Lane((Stage("use", use),)),
    ]
    run_lanes(lanes, range(10), LaneStats())
    assert seen[-1] == 0
    assert sorted(seen) == list(range(10))


def test_no_stage_runs_further_ahead_than_the_capacities_allow():
    taken, used = [], []

    def use(item):
        used.append(item)
        time.sleep(0.002)
        assert len(taken) - len(used) <= 3 + 1  # in the channel, and in the hands of the feeder
        return ()

    stages = Stage("feed", lambda item: taken.append(item) or (item,)), Stage("use", use)
    stats = LaneStats()
    run_lanes([Lane(stages[:1]), Lane(stages[1:], capacity=3)], range(30), stats)
    assert used == list(range(30))
    assert stats.depth_max == {"use": 3}
    assert stats.num_taken == {"use": 30}
    assert stats.blocked_s["feed"] > 0
    assert stats.busy_s["use"] >= 0.06


@pytest.mark.parametrize("threads", [None, 1, 3])
@pytest.mark.parametrize("where", ["first", "double", "pair", "last", "source"])
def test_an_error_anywhere_ends_all_threads_and_is_raised(threads, where: str):
    def fail(item):
        raise ZeroDivisionError(where)

    def source():
        yield from range(50)
        if where == "source":
            fail(None)

    lanes = [
        Lane(
            tuple(Stage(s.name, fail, s.flush) if s.name == where else s for s in lane.stages),
            lane.threads,
        )
        for lane in make_lanes(threads, [])
    ]
    with pytest.raises(ZeroDivisionError, match=where):
        run_lanes(lanes, source(), LaneStats())
    assert not [each for each in threading.enumerate() if each.name.startswith("pixelmill-double")]


def test_measurements_of_several_runs_add_up():
    stats = LaneStats()
    for _ in range(2):
        run_lanes(make_lanes(1, []), range(3), stats)
    assert stats.num_taken == {"double": 6, "pair": 12, "last": 6}
    assert set(stats.busy_s) == {"first", "double", "pair", "last"}
