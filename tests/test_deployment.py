"""Deployment files name flows, parameters and commands that there are."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.flows import load_flow_from_entrypoint
from prefect.settings.models.flows import FlowsSettings

from pixelmill.flows.backfill import BackfillParams, backfill_flow
from pixelmill.flows.nightly import LANDED, WHICH, NightlyParams, scheduled_flow

ROOT = Path(__file__).parents[1]


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_deployments_name_flows_and_parameters_that_there_are():
    deployments = {each["name"]: each for each in load("prefect.yaml")["deployments"]}
    expected = {
        "nightly": (scheduled_flow, NightlyParams),
        "backfill": (backfill_flow, BackfillParams),
    }
    assert deployments.keys() == expected.keys()
    for name, (flow, params) in expected.items():
        deployment = deployments[name]
        assert load_flow_from_entrypoint(deployment["entrypoint"]) is flow
        assert flow.name == name
        params.model_validate(deployment["parameters"]["params"])
        assert deployment["concurrency_limit"]["limit"] == 1
        for schedule in deployment.get("schedules", ()):
            CronSchedule(cron=schedule["cron"])
    assert scheduled_flow.retries == 2
    [trigger] = deployments["nightly"]["triggers"]
    assert trigger["expect"] == [LANDED]
    assert trigger["match"] == {"prefect.resource.id": WHICH}


@pytest.fixture(scope="module")
def automations() -> dict[str, Any]:
    found = load("deploy/automations.yaml")["automations"]
    return {each["name"]: AutomationCore.model_validate(each) for each in found}


def test_a_run_is_silent_for_long_before_it_is_taken_for_dead(automations):
    trigger = automations["pixelmill-run-has-died"].trigger
    every = FlowsSettings().heartbeat_frequency
    assert every is not None
    assert trigger.within.total_seconds() > 3 * every


def test_every_name_of_a_final_state_counts_as_heard(automations):
    """A run that ended in another one would be taken for dead."""
    names = {"Completed", "Failed", "Crashed", "Cancelled", "TimedOut"}
    for path in (ROOT / "flows").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                given = {each.arg: each.value for each in node.keywords}
                name = given.get("name")
                if node.func.id in names and isinstance(name, ast.Constant):
                    names.add(str(name.value))
    assert len(names) > 5
    heard = automations["pixelmill-run-has-died"].trigger.expect
    assert heard == {f"prefect.flow-run.{each}" for each in (*names, "heartbeat")}


def test_the_image_is_pinned_small_and_not_run_by_root():
    lines = (ROOT / "docker/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith(("#", " "))]
    assert all(re.search(r":\$\{PYTHON\}-slim", text) for name, text in steps if name == "FROM")
    users = [text for name, text in steps if name == "USER"]
    assert users == ["10001"]  # a number: Kubernetes cannot tell that a name is not root's
    installs = [text for name, text in steps if name == "RUN" and "pip install" in text]
    assert installs
    assert all("--constraint constraints.txt" in text for text in installs)
    copied = {part for name, text in steps if name == "COPY" for part in text.split()[:-1]}
    there = {each for each in copied if not each.startswith(("--", "/"))}
    assert {"configs", "models", "tasks", "flows", "pyproject.toml"} <= there
    assert all((ROOT / each).exists() for each in there)


def test_the_image_is_made_of_what_it_copies_and_nothing_else_is_sent_along():
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    text = (ROOT / "docker/Dockerfile").read_text().replace("\\\n", " ")
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY")]
    assert allowed == {
        name for names in copied for name in names if not name.startswith(("-", "/"))
    }


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint")
def test_hadolint_has_nothing_to_say():
    done = subprocess.run(["hadolint", str(ROOT / "docker/Dockerfile")], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_files_are_what_the_specification_says(name):
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-P", "-m", "check_jsonschema"]
    schema = ("--builtin-schema", "vendor.compose-spec")
    done = subprocess.run(
        [*command, *schema, str(ROOT / "docker" / name)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return load("docker/compose.yaml")["services"]


def test_services_wait_for_services_that_there_are_and_have_pinned_images(services):
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= services.keys(), name
        assert "build" in service or re.search(r":[^:]*\d", service["image"]), name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), "nothing is open to the network"


def test_no_secret_has_a_default(services):
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name or "SECRET" in name:
                assert value.startswith("${")
                assert ":-" not in value


def test_the_nightly_service_runs_a_command_that_there_is(services):
    command = services["nightly"]["command"]
    assert command[0] == "nightly"
    from pixelmill.flows.cli import app

    _, bound, _ = app.parse_args([*command, "--collection", "x"], exit_on_error=False)
    assert bound.arguments["serve"] is True
