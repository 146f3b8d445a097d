"""Figures of a run for Prometheus: served while it goes on, or left as a file for node_exporter."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pixelmill.flows.submit import Submission
from pixelmill.tasks.engine.score import ShardOutcome
from pixelmill.tasks.store import ShardRef

__all__ = ["METRICS_VARIABLE", "RunMetrics", "open_metrics"]

METRICS_VARIABLE = "PIXELMILL_METRICS"

STATES = ("waiting", "running", "done", "failed")


class RunMetrics:
    """Counters and gauges of one process, in a registry of their own.

    Args:
        collection: label of all.
        cost_per_hour: of a worker; None: no cost is told.
    """

    def __init__(self, collection: str, cost_per_hour: float | None = None) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge

        self.registry = CollectorRegistry()
        self._collection, self._rate = collection, cost_per_hour
        many: dict[str, Any] = {"registry": self.registry}

        def name(what: str, text: str, kind: Any, *labels: str) -> Any:
            return kind(f"pixelmill_{what}", text, ("collection", *labels), **many)

        self._images = name("images", "Images scored.", Counter, "model")
        self._failures = name("failures", "Failures recorded.", Counter)
        self._worker_s = name("worker_seconds", "Time of all workers together.", Counter)
        self._cost = name("cost", "compute.cost_per_hour of that time.", Counter)
        self._shards = name("shards", "Shards by state; waiting is the queue.", Gauge, "state")
        self._rate_now = name("images_per_second", "Of the run so far.", Gauge)
        self._device = name("device_share", "Of the newest shard: forward passes.", Gauge, "device")
        self._rss = name("worker_peak_rss_bytes", "Of the newest shard's worker.", Gauge)
        self._retries = name("shard_retries", "Tries again, by why.", Gauge, "why")

    def on_done(self, shard: ShardRef, outcome: ShardOutcome) -> None:
        """A shard was committed."""
        del shard
        stats: Mapping[str, Any] = outcome.stats
        for model, number in outcome.num_scored.items():
            self._images.labels(self._collection, model).inc(number)
        self._failures.labels(self._collection).inc(outcome.num_failed)
        seconds = float(stats.get("wall_s", 0))
        self._worker_s.labels(self._collection).inc(seconds)
        if self._rate is not None:
            self._cost.labels(self._collection).inc(self._rate * seconds / 3600)
        if "device" in stats:
            share = float(stats.get("device_share", 0))
            self._device.labels(self._collection, str(stats["device"])).set(share)
        self._rss.labels(self._collection).set(float(stats.get("peak_rss_bytes", 0)))

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
        self._rate_now.labels(self._collection).set(images_per_s)
        for why, number in submission.num_again.items():
            self._retries.labels(self._collection, why).set(number)


@contextlib.contextmanager
def open_metrics(
    collection: str, cost_per_hour: float | None = None, place: str | None = None
) -> Iterator[RunMetrics | None]:
    """Figures of a run, where somebody wants them.

    Args:
        collection: that is scored.
        cost_per_hour: of a worker.
        place: `:9464` or `127.0.0.1:9464` to serve /metrics there while the run goes on; else a
            `.prom` file that is written at its end; left out: PIXELMILL_METRICS.

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
        from prometheus_client import start_http_server, write_to_textfile
    except ModuleNotFoundError as err:
        raise ModuleNotFoundError(
            f"{METRICS_VARIABLE} needs: pip install 'pixelmill[metrics]'"
        ) from err
    metrics = RunMetrics(collection, cost_per_hour)
    address = re.fullmatch(r"([^/]*):(\d+)", place)
    if address is None:
        try:
            yield metrics
        finally:
            write_to_textfile(str(Path(place).expanduser()), metrics.registry)
        return
    server, thread = start_http_server(
        int(address[2]), addr=address[1] or "127.0.0.1", registry=metrics.registry
    )
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
