"""One line of stages, run in one of two ways: one after the other, or all at once.

A stage turns an item into any number of items. A lane is a few stages in a row that share threads.
With one lane everything happens in the caller's thread, item by item: on a CPU core that scores,
threads would only take turns. With several, bounded channels join them, so that no stage waits for
another's slowest item, and none runs far ahead. The stages are the same in both, and so is what
comes out, but for its order where a lane has several threads.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

__all__ = ["Lane", "LaneStats", "Stage", "run_lanes"]

_END: Any = object()


def _nothing() -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the work.

    Attributes:
        name: of its measurements.
        run: an item in, items out, drawn one at a time: what comes after is done with one before
            the next is asked for.
        flush: what it still holds when no more items come; called once.
    """

    name: str
    run: Callable[[Any], Iterable[Any]]
    flush: Callable[[], Iterable[Any]] = _nothing


@dataclass(frozen=True, slots=True)
class Lane:
    """Stages that an item passes in one thread.

    Attributes:
        stages: in their order; those of a lane with several threads must bear them.
        threads: that work at once; the first lane is always the caller's thread alone.
        capacity: items that may wait before it.
    """

    stages: tuple[Stage, ...]
    threads: int = 1
    capacity: int = 2


@dataclass(slots=True)
class LaneStats:
    """What the stages and lanes did, added up over runs.

    Attributes:
        busy_s: by stage; the sum over its threads.
        starved_s: by the lane's first stage: waiting for an item to come.
        blocked_s: by the lane's last stage: waiting for room behind it.
        depth_sum: by the lane's first stage: items that waited before it, at each taking of one.
        depth_max: likewise, at most.
        num_taken: likewise, how often.
    """

    busy_s: dict[str, float] = field(default_factory=dict)
    starved_s: dict[str, float] = field(default_factory=dict)
    blocked_s: dict[str, float] = field(default_factory=dict)
    depth_sum: dict[str, int] = field(default_factory=dict)
    depth_max: dict[str, int] = field(default_factory=dict)
    num_taken: dict[str, int] = field(default_factory=dict)


class _CancelledError(Exception):
    """Another thread has failed, or the caller has."""


class _Channel:
    """A bounded queue that many threads fill and empty."""

    def __init__(self, capacity: int, num_writers: int) -> None:
        self._items: deque[Any] = deque()
        self._capacity = capacity
        self._num_writers = num_writers
        self._is_cancelled = False
        lock = threading.Lock()
        self._may_get = threading.Condition(lock)
        self._may_put = threading.Condition(lock)
        self.starved_s = self.blocked_s = 0.0
        self.depth_sum = self.depth_max = self.num_taken = 0

    def put(self, item: Any) -> None:
        with self._may_put:
            if len(self._items) >= self._capacity:
                started = time.perf_counter()
                while len(self._items) >= self._capacity and not self._is_cancelled:
                    self._may_put.wait()
                self.blocked_s += time.perf_counter() - started
            if self._is_cancelled:
                raise _CancelledError
            self._items.append(item)
            self._may_get.notify()

    def get(self) -> Any:
        """The next item, or `_END`."""
        with self._may_get:
            if not self._items:
                started = time.perf_counter()
                while not self._items and self._num_writers and not self._is_cancelled:
                    self._may_get.wait()
                self.starved_s += time.perf_counter() - started
            if self._is_cancelled:
                raise _CancelledError
            if not self._items:
                return _END
            self.depth_sum += len(self._items)
            self.depth_max = max(self.depth_max, len(self._items))
            self.num_taken += 1
            self._may_put.notify()
            return self._items.popleft()

    def close(self) -> None:
        """One writer has put its last item."""
        with self._may_get:
            self._num_writers -= 1
            if not self._num_writers:
                self._may_get.notify_all()

    def cancel(self) -> None:
        with self._may_get:
            self._is_cancelled = True
            self._items.clear()
            self._may_get.notify_all()
            self._may_put.notify_all()


class _Worker:
    """Takes items through the stages of a lane, depth first, and measures each stage."""

    def __init__(self, stages: Sequence[Stage], emit: Callable[[Any], None]) -> None:
        self._stages = stages
        self._emit = emit
        self.busy_s = dict.fromkeys((stage.name for stage in stages), 0.0)

    def push(self, item: Any, at: int = 0) -> None:
        if at == len(self._stages):
            self._emit(item)
            return
        stage = self._stages[at]
        self._draw(stage.name, lambda: stage.run(item), at + 1)

    def flush(self) -> None:
        for at, stage in enumerate(self._stages):
            self._draw(stage.name, stage.flush, at + 1)

    def _draw(self, name: str, produce: Callable[[], Iterable[Any]], following: int) -> None:
        started = time.perf_counter()
        outputs = iter(produce())
        while True:
            output = next(outputs, _END)
            self.busy_s[name] += time.perf_counter() - started
            if output is _END:
                return
            self.push(output, following)
            started = time.perf_counter()


def run_lanes(lanes: Sequence[Lane], source: Iterable[Any], stats: LaneStats) -> None:
    """Take every item of a source through all stages, to the last flush.

    Args:
        lanes: the first takes from the source, in the caller's thread; what comes out of the last
            is dropped.
        source: drawn in the caller's thread.
        stats: is added to.

    Raises:
        Exception: the first that the source or a stage raised; all threads have ended then.
    """
    if len(lanes) == 1:
        worker = _Worker(lanes[0].stages, lambda item: None)
        try:
            for item in source:
                worker.push(item)
            worker.flush()
        finally:
            _add(stats.busy_s, worker.busy_s)
        return
    _Line(lanes, stats).run(source)


class _Line:
    """Lanes with their threads and the channels before them."""

    def __init__(self, lanes: Sequence[Lane], stats: LaneStats) -> None:
        self._lanes = lanes
        self._stats = stats
        self._channels = [
            _Channel(lane.capacity, before.threads) for before, lane in pairwise(lanes)
        ]
        self._lock = threading.Lock()
        self._running = [lane.threads for lane in lanes]
        self._error: BaseException | None = None

    def run(self, source: Iterable[Any]) -> None:
        threads = [
            threading.Thread(target=self._serve, args=(index,), name=f"pixelmill-{name}-{number}")
            for index, lane in enumerate(self._lanes[1:], 1)
            for name in (lane.stages[0].name,)
            for number in range(lane.threads)
        ]
        for thread in threads:
            thread.start()
        worker = _Worker(self._lanes[0].stages, self._channels[0].put)
        try:
            for item in source:
                worker.push(item)
            worker.flush()
            self._channels[0].close()
        except _CancelledError:
            pass  # the error is another thread's
        except BaseException as err:
            self._fail(err)
        finally:
            for thread in threads:
                thread.join()
            self._collect(worker)
        if self._error is not None:
            raise self._error

    def _serve(self, index: int) -> None:
        last = index == len(self._channels)
        emit = _drop if last else self._channels[index].put
        worker = _Worker(self._lanes[index].stages, emit)
        try:
            for item in _drain(self._channels[index - 1]):
                worker.push(item)
            with self._lock:
                self._running[index] -= 1
                is_last_of_lane = not self._running[index]
            if is_last_of_lane:
                worker.flush()
            if not last:
                self._channels[index].close()
        except _CancelledError:
            pass
        except BaseException as err:
            self._fail(err)
        finally:
            with self._lock:
                _add(self._stats.busy_s, worker.busy_s)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
        for channel in self._channels:
            channel.cancel()

    def _collect(self, worker: _Worker) -> None:
        stats = self._stats
        _add(stats.busy_s, worker.busy_s)
        for before, lane, channel in zip(
            self._lanes, self._lanes[1:], self._channels, strict=False
        ):
            first, last = lane.stages[0].name, before.stages[-1].name
            _add(stats.starved_s, {first: channel.starved_s})
            _add(stats.blocked_s, {last: channel.blocked_s})
            _add(stats.depth_sum, {first: channel.depth_sum})
            _add(stats.num_taken, {first: channel.num_taken})
            stats.depth_max[first] = max(stats.depth_max.get(first, 0), channel.depth_max)


def _drain(channel: _Channel) -> Iterator[Any]:
    while (item := channel.get()) is not _END:
        yield item


def _drop(item: Any) -> None:
    """Nobody is behind the last lane."""


def _add(sums: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0) + value
