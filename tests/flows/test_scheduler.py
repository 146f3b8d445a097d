"""A Dask cluster that somebody else started, in processes from other folders."""

import json
import os
import signal

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_IMAGES = 48


@pytest.fixture
def scheduler(launch, tmp_path, wait_for):
    """Address of a scheduler that has no workers yet."""
    file = tmp_path / "scheduler.json"
    options = ("--host", "127.0.0.1", "--port", 0, "--dashboard-address", "127.0.0.1:0")
    scheduler = launch("dask", "scheduler", *options, "--scheduler-file", file)

    def is_up() -> bool:
        assert scheduler.is_running(), scheduler.stderr()
        return file.exists() and file.read_text().endswith("}")

    wait_for(is_up, "scheduler")
    return json.loads(file.read_text())["address"]


def test_a_running_cluster_scores_and_a_killed_worker_loses_nothing(
    scheduler,
    launch,
    launch_score,
    images,
    reference,
    tmp_path,
    wait_for,
    count_receipts,
    assert_same_predictions,
):
    store = tmp_path / "store"
    command = launch_score(images, store, "--scheduler", scheduler)
    wait_for(lambda: list(store.glob("_commit/runs/*.json")), "plan")  # waits for workers now
    one = ("--nthreads", 1, "--no-nanny", "--dashboard-address", "127.0.0.1:0")
    workers = [launch("dask", "worker", scheduler, *one) for _ in range(2)]

    def has_begun() -> bool:
        assert command.is_running(), command.stderr()
        return count_receipts(store) >= 2

    wait_for(has_begun, "receipt")
    os.kill(workers[0].pid, signal.SIGKILL)
    assert count_receipts(store) < NUM_IMAGES // 4, "killed too late to show anything"

    assert command.wait() == 0, command.stderr()
    assert "Traceback" not in command.stderr()
    assert_same_predictions(store, reference)
    assert workers[1].is_running(), "a cluster that is not ours is left as it is"
