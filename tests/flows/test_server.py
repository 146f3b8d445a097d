"""The command against a Prefect server that runs by itself: seen there, and cancelled there."""

import json
import socket
import urllib.request
from contextlib import suppress

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_IMAGES = 160  # enough that scoring lasts longer than the command takes to ask the server


class Api:
    """Prefect's HTTP interface."""

    def __init__(self, url: str):
        self.url = url

    def get(self, path: str):
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=30) as response:
            return json.load(response)

    def post(self, path: str, **body):
        request = urllib.request.Request(
            f"{self.url}/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def flow_runs(self) -> list[dict]:
        """Oldest first; those of other modules' commands, whose home this is too, come before."""
        return self.post("flow_runs/filter", sort="START_TIME_ASC")

    def of_run(self, kind: str, flow_run_id: str) -> list[dict]:
        return self.post(f"{kind}/filter", flow_runs={"id": {"any_": [flow_run_id]}})


@pytest.fixture(scope="module")
def api(launch, wait_for):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ("--host", "127.0.0.1", "--port", port)
    quiet = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    server = launch("prefect", "server", "start", *where, **quiet)
    api = Api(f"http://127.0.0.1:{port}/api")

    def is_healthy() -> bool:
        assert server.is_running(), server.stderr()
        with suppress(OSError):
            return api.get("health")
        return False

    wait_for(is_healthy, "healthy server")
    return api


@pytest.fixture(scope="module")
def images(copy_scenes, tmp_path_factory):
    return copy_scenes(tmp_path_factory.mktemp("many") / "scenes", NUM_IMAGES)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("server") / "store"


@pytest.fixture(scope="module")
def start(api, launch_score, images, store):
    def start():
        return launch_score(images, store, "--cluster", "inline", PREFECT_API_URL=api.url)

    return start


@pytest.fixture(scope="module")
def cancelled(api, start, store, wait_for, count_receipts):
    """The command after Cancel was pressed while it scored, and how it ended."""
    command = start()

    def is_scoring() -> bool:
        assert command.is_running(), command.stderr()
        return count_receipts(store) >= 1

    wait_for(is_scoring, "receipt")
    run = api.flow_runs()[-1]
    answer = api.post(f"flow_runs/{run['id']}/set_state", state={"type": "CANCELLING"})
    assert answer["status"] == "ACCEPT"
    return command, command.wait()


def test_cancel_stops_the_run_in_order(api, cancelled, store, count_receipts):
    command, code = cancelled
    assert code == 130, command.stderr()
    assert "stopped by Prefect after" in command.stderr()
    assert "Traceback" not in command.stderr()
    assert 1 <= count_receipts(store) < NUM_IMAGES // 4
    run = api.flow_runs()[-1]
    assert run["state"]["type"] == "CANCELLED"
    assert "run again to resume" in run["state"]["message"]


def test_the_next_run_completes_it_and_is_seen_with_its_stages_and_artifacts(
    api, cancelled, start, store, images, wait_for, score_plainly, assert_same_predictions, tmp_path
):
    command = start()
    assert command.wait() == 0, command.stderr()
    assert_same_predictions(store, score_plainly(images, tmp_path / "store"))

    run = api.flow_runs()[-1]
    assert run["state"]["type"] == "COMPLETED"
    assert f"of {NUM_IMAGES} images scored" in run["state"]["message"]
    stages = {"prepare", "ingest", "plan", "score", "publish", "end"}
    wait_for(lambda: len(api.of_run("task_runs", run["id"])) >= len(stages), "task run of each")
    found = api.of_run("task_runs", run["id"])
    assert {task["name"].rpartition("-")[0] for task in found} == stages
    artifacts = {each["key"]: each for each in api.of_run("artifacts", run["id"])}
    assert artifacts["scoring"]["type"] == "progress"
    assert artifacts["scoring"]["data"] == 100.0
    assert artifacts["run-summary"]["type"] == "markdown"
    assert "detector" in artifacts["run-summary"]["data"]
