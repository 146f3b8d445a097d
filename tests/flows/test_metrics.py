import socket
import urllib.request
from collections import Counter

import pytest

from pixelmill.flows.metrics import open_metrics
from pixelmill.flows.submit import FailedShard, Submission
from pixelmill.tasks.engine.score import ShardOutcome
from pixelmill.tasks.store import ShardRef

SHARD = ShardRef("20240531T000000-000000", 0, 10)
STATS = {"wall_s": 60.0, "device": "cpu", "device_share": 0.5, "peak_rss_bytes": 1000}


def play(metrics) -> None:
    metrics.on_done(SHARD, ShardOutcome(SHARD.id, {"m-1": 8}, 2, STATS))
    submission = Submission(6, num_done=1, num_in_flight=2, num_again=Counter(killed=1))
    submission.failed.append(FailedShard(SHARD, "x"))
    metrics.on_tick(submission, 12.5)


EXPECTED = (
    'pixelmill_images_total{collection="line1",model="m-1"} 8.0',
    'pixelmill_failures_total{collection="line1"} 2.0',
    'pixelmill_worker_seconds_total{collection="line1"} 60.0',
    'pixelmill_cost_total{collection="line1"} 0.05',
    'pixelmill_shards{collection="line1",state="waiting"} 2.0',
    'pixelmill_shards{collection="line1",state="failed"} 1.0',
    'pixelmill_images_per_second{collection="line1"} 12.5',
    'pixelmill_device_share{collection="line1",device="cpu"} 0.5',
    'pixelmill_shard_retries{collection="line1",why="killed"} 1.0',
)


def test_a_run_leaves_its_figures_as_a_file(tmp_path):
    with open_metrics("line1", 3.0, str(tmp_path / "run.prom")) as metrics:
        play(metrics)
    text = (tmp_path / "run.prom").read_text()
    assert [line for line in EXPECTED if line not in text] == []


def test_a_run_serves_its_figures_while_it_goes_on():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open_metrics("line1", 3.0, f"127.0.0.1:{port}") as metrics:
        play(metrics)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            text = page.read().decode()
    assert [line for line in EXPECTED if line not in text] == []
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)


def test_nobody_who_does_not_ask_pays(monkeypatch):
    monkeypatch.delenv("PIXELMILL_METRICS", raising=False)
    with open_metrics("line1") as metrics:
        assert metrics is None
