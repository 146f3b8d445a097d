"""The command line as a process: killed, interrupted and terminated in the middle of its work."""

import os
import signal

import pytest

from pixelmill.tasks.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_IMAGES = 48
NUM_SHARDS = NUM_IMAGES // 4


@pytest.fixture
def start(launch_score, images, tmp_path, wait_for, count_receipts):
    """Starts the command and returns it when something is committed, and something is not."""
    store = tmp_path / "store"

    def start(cluster: str):
        command = launch_score(images, store, "--cluster", cluster)

        def has_begun() -> bool:
            assert command.is_running(), command.stderr()
            return count_receipts(store) >= 1

        wait_for(has_begun, "receipt")
        return command

    return start


def test_a_killed_run_goes_on_and_ends_like_an_uninterrupted_one(
    start,
    launch_score,
    images,
    tmp_path,
    wait_for,
    count_receipts,
    score_plainly,
    assert_same_predictions,
):
    store = tmp_path / "store"
    command = start("local:1")
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    wait_for(lambda: not command.members(), "end of the workers")
    assert count_receipts(store) < NUM_SHARDS, "killed too late to show anything"

    again = launch_score(images, store, "--cluster", "inline")
    assert again.wait() == 0, again.stderr()
    assert_same_predictions(store, score_plainly(images, tmp_path / "reference"))
    opened = Store(store)
    (run_id,) = opened.runs()
    assert len(opened.receipts(run_id)) == NUM_SHARDS, "the killed run's own shards were finished"
    end = opened.run_end(run_id)
    assert end is not None
    assert end.state == "complete"


@pytest.mark.parametrize(
    ("number", "cluster", "code", "name"),
    [(signal.SIGINT, "local:1", 130, "Ctrl-C"), (signal.SIGTERM, "inline", 143, "SIGTERM")],
)
def test_a_signal_stops_the_run_in_order_and_leaves_no_process(
    start, tmp_path, wait_for, number, cluster, code, name
):
    command = start(cluster)
    if number == signal.SIGINT:
        os.killpg(command.pid, number)  # as the terminal does: children get it too
    else:
        os.kill(command.pid, number)
    returned = command.wait()
    stderr = command.stderr()
    assert returned == code, stderr
    assert f"stopped by {name} after" in stderr
    assert "run again to resume" in stderr
    assert "Traceback" not in stderr
    wait_for(lambda: not command.members(), "end of all processes")
    assert len(Store(tmp_path / "store").images()) > 0, "what was finished is published"
