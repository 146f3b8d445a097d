"""Figures of a run for Prometheus: served while it goes on, or kept in a file for node_exporter."""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pixelmill.flows.submit import Submission
from pixelmill.tasks.engine.score import ShardOutcome
from pixelmill.tasks.store import ShardRef

__all__ = ["METRICS_VARIABLE", "RunMetrics", "open_metrics"]

logger = logging.getLogger(__name__)

METRICS_VARIABLE = "PIXELMILL_METRICS"

STATES = ("waiting", "running", "done", "failed")

# As often as Prometheus reads by default, or oftener
FILE_EVERY_S = 10.0


class RunMetrics:
    """Counters and gauges of one run, in a registry of their own.

    What other runs have scored of its shards is theirs to count, so that sums over hosts are true.

    Args:
        collection: label of all.
        models: keys; each has a counter from the start.
        cost_per_hour: of a worker; None: no cost is told.
    """

    def __init__(
        self, collection: str, models: Sequence[str] = (), cost_per_hour: float | None = None
    ) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge

        self.registry = CollectorRegistry()
        self._collection, self._rate = collection, cost_per_hour
        many: dict[str, Any] = {"registry": self.registry}

        def name(what: str, text: str, kind: Any, *labels: str) -> Any:
            made = kind(f"pixelmill_{what}", text, ("collection", *labels), **many)
            return made if labels else made.labels(collection)

        self._inputs = name("inputs", "Images of shards that are done.", Counter)
        self._images = name("images", "Images scored.", Counter, "model")
        self._failures = name("failures", "Failures recorded.", Counter)
        self._worker_s = name("worker_seconds", "Time of all workers together.", Counter)
        self._device_s = name(
            "device_seconds", "Of that time: forward passes ran.", Counter, "device"
        )
        if cost_per_hour is not None:
            self._cost = name("cost", "compute.cost_per_hour of that time.", Counter)
        self._shards = name("shards", "Shards by state; waiting is the queue.", Gauge, "state")
        self._queue = name(
            "stage_queue", "Items that waited before a stage, of the newest shard.", Gauge, "stage"
        )
        self._rate_now = name("images_per_second", "Of the run so far.", Gauge)
        self._rss = name("worker_peak_rss_bytes", "Of the newest shard's worker.", Gauge)
        self._retries = name("shard_retries", "Tries again, by why.", Gauge, "why")
        for model in models:
            self._images.labels(collection, model)
        for state in STATES:
            self._shards.labels(collection, state)

    def on_done(self, shard: ShardRef, outcome: ShardOutcome) -> None:
        """A shard was committed."""
        if outcome.cached:
            return
        stats: Mapping[str, Any] = outcome.stats
        self._inputs.inc(shard.num_images)
        for model, number in outcome.num_scored.items():
            self._images.labels(self._collection, model).inc(number)
        self._failures.inc(outcome.num_failed)
        seconds = float(stats.get("wall_s", 0))
        self._worker_s.inc(seconds)
        if self._rate is not None:
            self._cost.inc(self._rate * seconds / 3600)
        if "device" in stats:
            busy_s = float(stats.get("device_share", 0)) * seconds
            self._device_s.labels(self._collection, str(stats["device"])).inc(busy_s)
        for name, depth in stats.items():
            if name.startswith("queue_mean/"):
                stage = name.removeprefix("queue_mean/")
                self._queue.labels(self._collection, stage).set(float(depth))
        self._rss.set(float(stats.get("peak_rss_bytes", 0)))

    def on_tick(self, submission: Submission, images_per_s: float) -> None:
        """How far the run is."""
        numbers = {
            "running": submission.num_in_flight,
            "done": submission.num_done,
            "failed": len(submission.failed),
            "waiting": max(0, submission.num_left - submission.num_in_flight),
        }
        for state in STATES:
            self._shards.labels(self._collection, state).set(numbers[state])
        self._rate_now.set(images_per_s)
        for why, number in submission.num_again.items():
            self._retries.labels(self._collection, why).set(number)


@contextlib.contextmanager
def open_metrics(
    collection: str,
    models: Sequence[str] = (),
    cost_per_hour: float | None = None,
    place: str | None = None,
) -> Iterator[RunMetrics | None]:
    """Figures of a run, where somebody wants them.

    Figures are not worth a run: of a place that is taken, or cannot be written, it is warned.

    Args:
        collection: that is scored.
        models: keys of those that score it.
        cost_per_hour: of a worker.
        place: `:9464` or `127.0.0.1:9464` to serve /metrics there while the run goes on; else a
            `.prom` file that is written anew every ten seconds and at the end; left out:
            PIXELMILL_METRICS.

    Yields:
        None where nobody does.

    Raises:
        ModuleNotFoundError: prometheus-client is not installed.
    """
    place = place or os.environ.get(METRICS_VARIABLE)
    if not place:
        yield None
        return
    try:
        metrics = RunMetrics(collection, models, cost_per_hour)
    except ModuleNotFoundError as err:
        raise ModuleNotFoundError(
            f"{METRICS_VARIABLE} needs: pip install 'pixelmill[metrics]'"
        ) from err
    address = re.fullmatch(r"([^/]*):(\d+)", place)
    with contextlib.ExitStack() as stack:
        if address is None:
            stack.enter_context(_kept(metrics, Path(place).expanduser()))
        else:
            try:
                stack.enter_context(_served(metrics, address[1] or "127.0.0.1", int(address[2])))
            except (OSError, OverflowError) as err:  # taken, or no such address or port
                logger.warning("the run's figures are not served at %s: %s", place, err)
        yield metrics


@contextlib.contextmanager
def _served(metrics: RunMetrics, host: str, port: int) -> Iterator[None]:
    """Answers requests for /metrics meanwhile."""
    from prometheus_client import start_http_server

    server, thread = start_http_server(port, addr=host, registry=metrics.registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def _kept(metrics: RunMetrics, path: Path) -> Iterator[None]:
    """Writes a file meanwhile; who reads it finds the figures before or the new ones."""
    from prometheus_client import write_to_textfile

    def write() -> bool:
        try:
            write_to_textfile(str(path), metrics.registry)
        except OSError as err:
            logger.warning("the run's figures are not written to %s: %s", path, err)
            return False
        return True

    is_over = threading.Event()

    def go_on() -> None:
        while write() and not is_over.wait(FILE_EVERY_S):
            pass

    thread = threading.Thread(target=go_on, name="pixelmill-metrics")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        write()
