"""A fleet of workers on paper: how many shards an hour, from measured costs, before it is rented.

What `flows.submit` does, as a discrete simulation: the driver keeps one more shard in flight than
there are workers, and is one thread, so that it handles the end of one shard after the other; the
publisher is another thread. Both are as fast whatever the number of workers, so one of them is
what ends proportional growth.
"""

import heapq
import random
from collections import deque
from dataclasses import dataclass

__all__ = ["Costs", "Fleet", "Outcome", "simulate"]


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, measured.

    Attributes:
        driver_s: of the submitting thread for each shard, from its end to the next one's start.
        hand_over_s: from the scheduler to a worker and back.
        publish_s: of a publication, however small.
        publish_receipt_s: of each receipt in it.
        publish_every: receipts per publication.
    """

    driver_s: float
    hand_over_s: float = 0.0
    publish_s: float = 0.0
    publish_receipt_s: float = 0.0
    publish_every: int = 64


@dataclass(frozen=True, slots=True)
class Fleet:
    """Workers, and what a shard is to them.

    Attributes:
        num_workers: GPUs, or CPU cores.
        shard_s: seconds of work in a shard, its commit included.
        spread: standard deviation over mean of that.
        start_s: until a worker takes its first shard; the k-th of n comes at start_s * (1 + k / n).
    """

    num_workers: int
    shard_s: float
    spread: float = 0.1
    start_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        makespan_s: until the last shard is committed.
        efficiency: work over what the workers could have done in that time.
        steady: the same between the first shard's end and the last one's start: without the
            start of the fleet and without its tail, where workers find nothing left.
        driver_busy: share of the time that the submitting thread works.
        publisher_busy: of the publishing thread; over 1 it falls behind.
    """

    makespan_s: float
    efficiency: float
    steady: float
    driver_busy: float
    publisher_busy: float


def simulate(num_shards: int, fleet: Fleet, costs: Costs, *, seed: int = 0) -> Outcome:
    """Play a run.

    Raises:
        ValueError: there is nothing to play.
    """
    if num_shards < 1 or fleet.num_workers < 1:
        raise ValueError(f"expected shards and workers, got {num_shards} and {fleet.num_workers}")
    durations = _durations(num_shards, fleet, seed)
    idle = deque(
        fleet.start_s * (1 + number / fleet.num_workers) for number in range(fleet.num_workers)
    )
    in_flight = min(num_shards, fleet.num_workers + 1)
    ready = deque((number + 1) * costs.driver_s for number in range(in_flight))
    driver_free = ready[-1]
    running: list[tuple[float, float]] = []
    begun, work = in_flight, 0.0
    started: list[tuple[float, float]] = []
    end = 0.0
    taken = 0
    while taken < num_shards or running:
        while ready and idle:
            start = max(ready.popleft(), idle.popleft()) + costs.hand_over_s
            duration = durations[taken]
            heapq.heappush(running, (start + duration, start))
            started.append((start, duration))
            taken += 1
            work += duration
        end, _ = heapq.heappop(running)
        idle.append(end)
        if begun < num_shards:
            driver_free = max(driver_free, end) + costs.driver_s
            ready.append(driver_free)
            begun += 1
    publishing = num_shards / costs.publish_every * costs.publish_s
    publishing += num_shards * costs.publish_receipt_s
    return Outcome(
        makespan_s=end,
        efficiency=work / (fleet.num_workers * end),
        steady=_steady(started, fleet.num_workers),
        driver_busy=num_shards * costs.driver_s / end,
        publisher_busy=publishing / end,
    )


def _durations(num_shards: int, fleet: Fleet, seed: int) -> list[float]:
    """Gamma distributed: never negative, a long shard now and then."""
    if not fleet.spread:
        return [fleet.shard_s] * num_shards
    shape = fleet.spread**-2
    draw = random.Random(seed).gammavariate
    return [draw(shape, fleet.shard_s / shape) for _ in range(num_shards)]


def _steady(started: list[tuple[float, float]], num_workers: int) -> float:
    """Share of the workers' time that was work, while there was work for all of them."""
    first = min(start + duration for start, duration in started)
    last = started[-1][0]
    if last <= first:
        return float("nan")
    inside = sum(
        max(0.0, min(start + duration, last) - max(start, first)) for start, duration in started
    )
    return inside / (num_workers * (last - first))
