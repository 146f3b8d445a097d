"""The command line as a process: killed, interrupted and terminated in the middle of its work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from pixelmill.tasks.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE_S = 120


@pytest.fixture
def command(tiny_config, scenes, tmp_path):
    return [
        *(sys.executable, "-P", "-m", "pixelmill.flows.cli", "score", str(scenes / "images")),
        *("--config", str(tiny_config), "--out", str(tmp_path / "store"), "--cluster", "local:2"),
        *("--date", "2024-05-31", "--no-report"),
    ]


@pytest.fixture
def start(command, command_environment, tmp_path):
    """Starts the command in a session of its own, of which nothing may be left."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "stderr").open("w") as stderr:
            process = subprocess.Popen(
                command,
                env=command_environment,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        for pid in members(process.pid):
            os.kill(pid, signal.SIGKILL)


def members(session: int) -> list[int]:
    """Living processes of a session."""
    pids = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                pids.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return pids


def wait_for(condition, what: str):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {PATIENCE_S} s"
        time.sleep(0.05)


def count_receipts(store: Path) -> int:
    return len(list(store.glob("_commit/receipts/*/*.json")))


def rows(store: Path) -> pd.DataFrame:
    """What was predicted, without when and where."""
    images = Store(store).images()
    kept = ["image_id", "model", "date", "path", "width", "height", "n_detections"]
    return images[kept].sort_values(["model", "image_id"]).reset_index(drop=True)


def boxes(store: Path) -> pd.DataFrame:
    table = Store(store).boxes()
    return table.sort_values(["image_id", "model", "rank"]).reset_index(drop=True)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, tiny_config, scenes, prefect_home) -> Path:
    store = tmp_path_factory.mktemp("uninterrupted") / "store"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "DASK_"))}
    subprocess.run(
        [
            *(sys.executable, "-P", "-m", "pixelmill.flows.cli", "score", str(scenes / "images")),
            *("--config", str(tiny_config), "--out", str(store), "--cluster", "inline"),
            *("--date", "2024-05-31", "--no-report"),
        ],
        env=clean | {"PREFECT_HOME": str(prefect_home)},
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    return store


def test_a_killed_run_goes_on_and_ends_like_an_uninterrupted_one(start, tmp_path, uninterrupted):
    store = tmp_path / "store"
    process = start()
    wait_for(lambda: count_receipts(store) >= 1, "receipt")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not members(process.pid), "end of the workers")
    assert count_receipts(store) < 5, "killed too late to show anything"

    again = start()
    assert again.wait(PATIENCE_S) == 0, (tmp_path / "stderr").read_text()
    pd.testing.assert_frame_equal(rows(store), rows(uninterrupted))
    pd.testing.assert_frame_equal(boxes(store), boxes(uninterrupted))
    image = rows(store)["image_id"][0]
    assert (Store(store).semantic_mask(image) == Store(uninterrupted).semantic_mask(image)).all()


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_signal_stops_the_run_in_order_and_leaves_no_process(start, tmp_path, number, code, name):
    process = start()
    wait_for(lambda: count_receipts(tmp_path / "store") >= 1, "receipt")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as the terminal does: children get it too
    else:
        os.kill(process.pid, number)
    returned = process.wait(60)
    stderr = (tmp_path / "stderr").read_text()
    assert returned == code, stderr
    assert f"stopped by {name} after" in stderr
    assert "run again to resume" in stderr
    assert "Traceback" not in stderr
    wait_for(lambda: not members(process.pid), "end of all processes")
    store = Store(tmp_path / "store")
    assert len(store.images()) > 0, "what was finished is published"
