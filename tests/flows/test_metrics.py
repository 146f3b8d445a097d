import socket
import urllib.request
from collections import Counter

import pytest

from pixelmill.flows.metrics import open_metrics
from pixelmill.flows.submit import FailedShard, Submission
from pixelmill.tasks.engine.score import ShardOutcome
from pixelmill.tasks.store import ShardRef

SHARD = ShardRef("20240531T000000-000000", 0, 10)
STATS = {
    "wall_s": 60.0,
    "device": "cpu",
    "device_share": 0.5,
    "peak_rss_bytes": 1000,
    "queue_mean/forward": 1.5,
}


def play(metrics) -> None:
    metrics.on_done(SHARD, ShardOutcome(SHARD.id, {"m-1": 8}, 2, STATS))
    # Another run has scored this one, and counts it
    metrics.on_done(SHARD, ShardOutcome(SHARD.id, {"m-1": 8}, 2, STATS, cached=True))
    submission = Submission(6, num_done=1, num_in_flight=2, num_again=Counter(killed=1))
    submission.failed.append(FailedShard(SHARD, "x"))
    metrics.on_tick(submission, 12.5)


BEFORE = (
    'pixelmill_inputs_total{collection="line1"} 0.0',
    'pixelmill_images_total{collection="line1",model="m-1"} 0.0',
    'pixelmill_failures_total{collection="line1"} 0.0',
    'pixelmill_cost_total{collection="line1"} 0.0',
    'pixelmill_shards{collection="line1",state="waiting"} 0.0',
)
EXPECTED = (
    'pixelmill_inputs_total{collection="line1"} 10.0',
    'pixelmill_images_total{collection="line1",model="m-1"} 8.0',
    'pixelmill_failures_total{collection="line1"} 2.0',
    'pixelmill_worker_seconds_total{collection="line1"} 60.0',
    'pixelmill_device_seconds_total{collection="line1",device="cpu"} 30.0',
    'pixelmill_cost_total{collection="line1"} 0.05',
    'pixelmill_shards{collection="line1",state="waiting"} 2.0',
    'pixelmill_shards{collection="line1",state="failed"} 1.0',
    'pixelmill_stage_queue{collection="line1",stage="forward"} 1.5',
    'pixelmill_images_per_second{collection="line1"} 12.5',
    'pixelmill_shard_retries{collection="line1",why="killed"} 1.0',
)


def missing(expected: tuple[str, ...], text: str) -> list[str]:
    return [line for line in expected if line not in text.splitlines()]


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        return page.read().decode()


def test_a_run_keeps_its_figures_in_a_file_while_it_goes_on(tmp_path, monkeypatch, wait_for):
    monkeypatch.setattr("pixelmill.flows.metrics.FILE_EVERY_S", 0.02)
    path = tmp_path / "run.prom"
    with open_metrics("line1", ["m-1"], 3.0, str(path)) as metrics:
        wait_for(path.exists, "file")
        assert missing(BEFORE, path.read_text()) == []
        play(metrics)
        wait_for(lambda: not missing(EXPECTED, path.read_text()), "figures in the file")
        path.unlink()
    assert missing(EXPECTED, path.read_text()) == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_serves_its_figures_while_it_goes_on(port):
    with open_metrics("line1", ["m-1"], 3.0, f"127.0.0.1:{port}") as metrics:
        assert missing(BEFORE, scrape(port)) == []
        play(metrics)
        assert missing(EXPECTED, scrape(port)) == []
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_without_a_price_there_is_no_cost(port):
    with open_metrics("line1", ["m-1"], None, f":{port}") as metrics:
        play(metrics)
        assert "pixelmill_cost" not in scrape(port)


@pytest.mark.parametrize("place", ["127.0.0.1:{port}", "127.0.0.1:70000", "{folder}/none/run.prom"])
def test_figures_are_not_worth_a_run(place, port, tmp_path, caplog):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        where = place.format(port=port, folder=tmp_path)
        with open_metrics("line1", ["m-1"], 3.0, where) as metrics:
            play(metrics)
    assert "the run's figures are not" in caplog.text
    assert where in caplog.text


def test_nobody_who_does_not_ask_pays(monkeypatch):
    monkeypatch.delenv("PIXELMILL_METRICS", raising=False)
    with open_metrics("line1") as metrics:
        assert metrics is None
