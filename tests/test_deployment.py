"""Deployment files name flows, parameters and commands that there are."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore

from pixelmill.flows.backfill import BackfillParams, backfill_flow
from pixelmill.flows.nightly import NightlyParams, scheduled_flow

ROOT = Path(__file__).parents[1]


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_deployments_name_flows_and_parameters_that_there_are():
    deployments = {each["name"]: each for each in load("prefect.yaml")["deployments"]}
    expected = {
        "nightly": ("flows/nightly.py:scheduled_flow", scheduled_flow, NightlyParams),
        "backfill": ("flows/backfill.py:backfill_flow", backfill_flow, BackfillParams),
    }
    assert deployments.keys() == expected.keys()
    for name, (entrypoint, flow, params) in expected.items():
        deployment = deployments[name]
        assert deployment["entrypoint"] == entrypoint
        assert (ROOT / entrypoint.partition(":")[0]).exists()
        assert flow.name == name
        params.model_validate(deployment["parameters"]["params"])
        assert deployment["concurrency_limit"]["limit"] == 1
        for schedule in deployment.get("schedules", ()):
            CronSchedule(cron=schedule["cron"])
    assert scheduled_flow.retries == 2


def test_automations_are_what_prefect_takes():
    for automation in load("deploy/automations.yaml")["automations"]:
        AutomationCore.model_validate(automation)


def test_the_image_is_pinned_small_and_not_run_by_root():
    lines = (ROOT / "docker/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(None, 1) for line in lines if line and not line.startswith(("#", " "))]
    assert all(re.search(r":\$\{PYTHON\}-slim", text) for name, text in steps if name == "FROM")
    users = [text for name, text in steps if name == "USER"]
    assert users == ["pixelmill"]
    installs = [text for name, text in steps if name == "RUN" and "pip install" in text]
    assert installs
    assert all("--constraint constraints.txt" in text for text in installs)
    copied = {part for name, text in steps if name == "COPY" for part in text.split()[:-1]}
    there = {each for each in copied if not each.startswith(("--", "/"))}
    assert {"configs", "models", "tasks", "flows", "pyproject.toml"} <= there
    assert all((ROOT / each).exists() for each in there)


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
