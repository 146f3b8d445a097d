"""Commands and deployments against a Prefect server that runs by itself, on PostgreSQL if it can.

As its users see them: by what its pages show, which is what its API tells.
"""

import asyncio
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from pixelmill.tasks.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 160  # enough that scoring lasts longer than the command takes to ask the server
NUM_NIGHT = 8
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass(frozen=True)
class Postgres:
    """A database of PostgreSQL that lives as long as the tests of this module."""

    port: int
    password: str

    @property
    def settings(self) -> dict[str, str]:
        """What Prefect's server is told of it; docker/compose.yaml tells the same."""
        prefix = "PREFECT_SERVER_DATABASE"
        return {
            f"{prefix}_DRIVER": "postgresql+asyncpg",
            f"{prefix}_HOST": "127.0.0.1",
            f"{prefix}_PORT": str(self.port),
            f"{prefix}_NAME": "prefect",
            f"{prefix}_USER": "prefect",
            f"{prefix}_PASSWORD": self.password,
        }

    def query(self, sql: str, database: str = "prefect") -> list[tuple[Any, ...]]:
        async def fetch() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(
                host="127.0.0.1",
                port=self.port,
                user="prefect",
                password=self.password,
                database=database,
            )
            try:
                return [tuple(row) for row in await connection.fetch(sql)]
            finally:
                await connection.close()

        return asyncio.run(fetch())


def find_postgres() -> Path | None:
    """Where its programs are; Debian keeps them off the PATH."""
    found = [Path(path).parent for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((each for each in found if (each / "initdb").exists()), None)


@pytest.fixture(scope="module")
def postgres(wait_for) -> Iterator[Postgres | None]:
    """A cluster of its own, by whoever runs the tests; it refuses root, so that is nobody."""
    programs = find_postgres()
    if programs is None:
        yield None
        return
    owner = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        database = Postgres(free_port(), secrets.token_hex(16))
        (folder / "password").write_text(database.password)
        if owner is not None:
            for path in (folder, folder / "password"):
                os.chown(path, pwd.getpwnam(owner).pw_uid, -1)

        log = folder / "log"

        def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
            command = [str(programs / program), "-D", str(folder / "data"), *arguments]
            with log.open("a") as told:
                return subprocess.Popen(command, stdout=told, stderr=told, user=owner, cwd=folder)

        access = ("--username=prefect", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}")
        made = start("initdb", *access, "--encoding=UTF8", "--locale=C", "--no-sync")
        assert made.wait(120) == 0, log.read_text()
        where = ("-p", str(database.port), "-c", "listen_addresses=127.0.0.1", "-k", str(folder))
        server = start("postgres", *where, "-c", "fsync=off")

        def is_ready() -> bool:
            assert server.poll() is None, log.read_text()
            with suppress(OSError, asyncpg.PostgresError):
                return database.query("SELECT 1", "postgres") == [(1,)]
            return False

        try:
            wait_for(is_ready, "PostgreSQL")
            database.query("CREATE DATABASE prefect", "postgres")
            yield database
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait(60)


class Api:
    """Prefect's HTTP interface."""

    def __init__(self, url: str):
        self.url = url

    def get(self, path: str):
        return self._ask(urllib.request.Request(f"{self.url}/{path}"))

    def post(self, path: str, **body):
        return self.request(path, body)

    def request(self, path: str, body: object):
        request = urllib.request.Request(
            f"{self.url}/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        return self._ask(request)

    def _ask(self, request: urllib.request.Request):
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as refused:
            refused.close()
            raise

    def run(self, flow_run_id: str) -> dict:
        return self.get(f"flow_runs/{flow_run_id}")

    def runs_of(self, deployment: str) -> list[dict]:
        """Oldest first."""
        chosen = {"name": {"any_": [deployment]}}
        found = self.post("flow_runs/filter", deployments=chosen)
        return sorted(found, key=lambda each: each["created"])

    def flow_runs(self) -> list[dict]:
        """Oldest first; those of other modules' commands, whose home this is too, come before."""
        return self.post("flow_runs/filter", sort="START_TIME_ASC")

    def of_run(self, kind: str, flow_run_id: str) -> list[dict]:
        return self.post(f"{kind}/filter", flow_runs={"id": {"any_": [flow_run_id]}})

    def log(self, flow_run_id: str) -> list[str]:
        """Messages of a run."""
        chosen = {"flow_run_id": {"any_": [flow_run_id]}}
        found = self.post("logs/filter", logs=chosen, sort="TIMESTAMP_ASC")
        return [each["message"] for each in found]

    def artifacts(self, flow_run_id: str) -> dict[str, dict]:
        return {each["key"]: each for each in self.of_run("artifacts", flow_run_id)}


@pytest.fixture(scope="module")
def api(launch, wait_for, postgres):
    port = free_port()
    where = ("--host", "127.0.0.1", "--port", port)
    settings = QUIET if postgres is None else QUIET | postgres.settings
    # a run that waits for its turn asks again so often
    settings = settings | {"PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1"}
    server = launch("prefect", "server", "start", *where, **settings)
    api = Api(f"http://127.0.0.1:{port}/api")

    def is_healthy() -> bool:
        assert server.is_running(), server.stderr()
        with suppress(OSError):
            return api.get("health")
        return False

    wait_for(is_healthy, "healthy server")
    return api


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
    artifacts = api.artifacts(run["id"])
    assert artifacts["scoring"]["type"] == "progress"
    assert artifacts["scoring"]["data"] == 100.0
    assert artifacts["run-summary"]["type"] == "markdown"
    assert "detector" in artifacts["run-summary"]["data"]


@pytest.fixture(scope="module")
def prefect(api, launch):
    """Starts Prefect's command."""

    def prefect(*arguments: object):
        often = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
        return launch("prefect", *arguments, PREFECT_API_URL=api.url, **QUIET, **often)

    return prefect


def scheduled_nights(api: Api, deployment: str) -> list[str]:
    """When the server's scheduler will start it."""
    found = [each for each in api.runs_of(deployment) if each["auto_scheduled"]]
    return [each["expected_start_time"] for each in found]


def succeed(*commands) -> None:
    for command in commands:
        assert command.wait() == 0, command.stderr()


@pytest.fixture(scope="module")
def line1(copy_scenes, tiny_config, tmp_path_factory) -> Path:
    """A folder with the configuration of a night, its images, and room for a store."""
    folder = tmp_path_factory.mktemp("production")
    copy_scenes(folder / "line1", NUM_NIGHT)
    document = yaml.safe_load(tiny_config.read_text())
    for model in document["models"]:
        model["weights"] = str(tiny_config.parent / model["weights"])
    del document["evaluation"]
    places = {"name": "line1", "images": str(folder / "line1"), "compute": {"cluster": "inline"}}
    (folder / "line1.yaml").write_text(yaml.safe_dump(document | places))
    return folder


@pytest.fixture(scope="module")
def deployed(api, postgres, prefect, line1) -> dict[str, dict]:
    """prefect.yaml as it stands, but for its two paths, with a worker; deployments by name."""
    if postgres is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    text = (ROOT / "prefect.yaml").read_text()
    paths = {"/etc/pixelmill/line1.yaml": "line1.yaml", "/data/pixelmill-store": "store"}
    for path, name in paths.items():
        assert path in text
        text = text.replace(path, str(line1 / name))
    (line1 / "prefect.yaml").write_text(text)
    succeed(
        prefect("work-pool", "create", "--type", "process", "pixelmill"),
        prefect("automation", "create", "--from-file", ROOT / "deploy/automations.yaml"),
    )
    succeed(prefect("--no-prompt", "deploy", "--all", "--prefect-file", line1 / "prefect.yaml"))
    prefect("worker", "start", "--pool", "pixelmill")
    found = api.post("deployments/filter", work_pools={"name": {"any_": ["pixelmill"]}})
    return {each["name"]: each for each in found}


@pytest.fixture(scope="module")
def nights(api, deployed, prefect, wait_for) -> list[dict]:
    """Two nights that end: one that a person has started, and one by an event meanwhile."""
    landed = ("pixelmill.collection.landed", "--resource-id", "pixelmill.collection.line1")
    succeed(prefect("deployment", "run", "nightly/nightly"))
    succeed(prefect("event", "emit", *landed))

    def have_ended() -> list[dict]:
        found = api.runs_of("nightly")
        ended = [each for each in found if each["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]
        return ended if len(ended) >= 2 else []

    return wait_for(have_ended, "two nights")


def test_deployments_are_typed_scheduled_and_one_at_a_time(api, deployed, wait_for):
    assert deployed.keys() == {"nightly", "backfill"}
    night = deployed["nightly"]
    assert [each["schedule"]["cron"] for each in night["schedules"]] == ["0 2 * * *"]
    planned = wait_for(lambda: scheduled_nights(api, "nightly"), "night that the schedule starts")
    assert {each[11:19] for each in planned} == {"02:00:00"}
    assert night["global_concurrency_limit"]["limit"] == 1
    score = night["parameter_openapi_schema"]["definitions"]["ScoreParams"]["properties"]
    assert score["budget"]["description"] == "time that the run may take, such as 45m or 2h"
    wrong = {"params": {"score": {"config": "coco", "budget": 7}}}
    with pytest.raises(urllib.error.HTTPError) as refused:
        api.post(f"deployments/{night['id']}/create_flow_run", parameters=wrong)
    assert refused.value.code == 409


def test_a_worker_runs_the_night_and_its_page_tells_how_it_was(
    api, nights, line1, postgres, wait_for
):
    night = nights[0]
    assert (night["state_type"], night["name"]) == ("COMPLETED", "nightly-line1")
    assert night["state"]["message"] == f"{NUM_NIGHT} of {NUM_NIGHT} images scored"
    assert night["tags"] == ["pixelmill"]
    stages = {"prepare", "ingest", "plan", "score", "publish", "end", "report", "health"}
    wait_for(lambda: len(api.of_run("task_runs", night["id"])) >= len(stages), "task run of each")
    names = {task["name"].rpartition("-")[0] for task in api.of_run("task_runs", night["id"])}
    assert names == stages
    artifacts = api.artifacts(night["id"])
    assert artifacts.keys() == {"scoring", "run-summary", "nightly"}
    page = artifacts["nightly"]["data"].splitlines()
    assert page[0] == f"# line1: complete, {NUM_NIGHT} of {NUM_NIGHT} images"
    assert f"- report: {line1}/store/reports/line1/report.html" in page
    wait_for(lambda: "is done" in " ".join(api.log(night["id"])), "line for a shard")

    assert set(Store(line1 / "store").images().groupby("model").size()) == {NUM_NIGHT}
    # It is PostgreSQL that all this is in
    kept = "SELECT id::text, state_type::text FROM flow_run"
    assert (night["id"], "COMPLETED") in postgres.query(kept)


def test_a_night_that_an_event_starts_waits_for_the_other_one(api, nights):
    first, second = nights
    assert (first["created_by"], second["created_by"]["type"]) == (None, "AUTOMATION")
    states = api.get(f"flow_run_states/?flow_run_id={second['id']}")
    assert "AwaitingConcurrencySlot" in {state["name"] for state in states}
    assert second["start_time"] >= first["end_time"]
    assert second["state"]["message"] == f"0 of {NUM_NIGHT} images scored"


@pytest.fixture(scope="module")
def heard(api, nights, deployed) -> dict[str, str]:
    """Runs without a process, of which the server hears as if they had one."""
    # Seconds ago; the last tells the server that time goes on
    beats = {"at work": (400, 215, 30), "silent": (700, 0)}
    tag = {"prefect.resource.id": "prefect.tag.pixelmill", "prefect.resource.role": "tag"}
    now = datetime.now(UTC)
    later = {"scheduled_time": (now + timedelta(days=1)).isoformat()}
    runs = {}
    for what, seconds_ago in beats.items():
        runs[what] = api.post(
            f"deployments/{deployed['nightly']['id']}/create_flow_run",
            state={"type": "SCHEDULED", "state_details": later},
        )["id"]
        api.post(f"flow_runs/{runs[what]}/set_state", state={"type": "RUNNING"}, force=True)
        before = None
        for seconds in seconds_ago:
            event = {
                "id": str(uuid.uuid4()),
                "event": "prefect.flow-run.heartbeat",
                "occurred": (now - timedelta(seconds=seconds)).isoformat(),
                "resource": {"prefect.resource.id": f"prefect.flow-run.{runs[what]}"},
                "related": [tag],
                "follows": before,
            }
            api.request("events", [event])
            before = event["id"]
    return runs


def test_a_night_that_fails_is_tried_again_and_says_what_it_was(api, heard, deployed, wait_for):
    night = deployed["nightly"]
    score = night["parameters"]["params"]["score"] | {"source": "/mnt/nowhere"}
    run = api.post(
        f"deployments/{night['id']}/create_flow_run",
        parameters={"params": {"score": score}},
        empirical_policy={"retries": 1, "retry_delay": 1},  # not twice after five minutes
    )
    wait_for(lambda: api.run(run["id"])["state_type"] == "FAILED", "failed night")
    run = api.run(run["id"])
    assert "FileNotFoundError: no folder '/mnt/nowhere'" in run["state"]["message"]
    assert run["run_count"] == 2
    wait_for(lambda: "Traceback" in " ".join(api.log(run["id"])), "traceback")


def test_a_night_that_is_silent_is_taken_for_dead_and_another_goes_on(api, heard, wait_for):
    wait_for(lambda: api.run(heard["silent"])["state_type"] == "CRASHED", "mark")
    assert api.run(heard["silent"])["state"]["message"] == "Nothing was heard of it for ten minutes"
    assert api.run(heard["at work"])["state_type"] == "RUNNING"

    def next_nights() -> list[str]:
        by = [(each["created_by"] or {}).get("display_value") for each in api.runs_of("nightly")]
        return [each for each in by if each == "pixelmill-night-goes-on"]

    assert len(wait_for(next_nights, "night that goes on")) == 1


def test_nights_that_are_served_have_what_deployed_ones_have(api, launch, line1, wait_for):
    launch(
        *("pixelmill.flows.cli", "nightly", line1 / "line1.yaml", "--out", line1 / "served"),
        *("--serve", "--cron", "30 1 * * *"),
        **{"PREFECT_API_URL": api.url, "PREFECT_RUNNER_POLL_FREQUENCY": "1"},
    )

    def served() -> dict | None:
        with suppress(urllib.error.HTTPError):
            return api.get("deployments/name/nightly/nightly-line1")
        return None

    deployment = wait_for(served, "deployment")
    planned = wait_for(lambda: scheduled_nights(api, "nightly-line1"), "scheduled night")
    assert {each[11:19] for each in planned} == {"01:30:00"}
    run = api.post(f"deployments/{deployment['id']}/create_flow_run")
    wait_for(lambda: api.run(run["id"])["state_type"] == "COMPLETED", "served night")
    run = api.run(run["id"])
    assert (run["name"], run["tags"]) == ("nightly-line1", ["pixelmill"])
    assert run["empirical_policy"]["retries"] == 2
    wait_for(lambda: "is done" in " ".join(api.log(run["id"])), "line for a shard")
    assert set(Store(line1 / "served").images().groupby("model").size()) == {NUM_NIGHT}
