import os
import subprocess
import sys

from pixelmill.flows.environment import (
    DEFAULTS,
    THREAD_VARIABLES,
    apply_defaults,
    restored_threads,
    worker_threads,
)


def test_importing_flows_sets_what_prefect_and_dask_then_use():
    code = (
        "import pixelmill.flows, dask, prefect.settings as s; c = s.get_current_settings();"
        "import distributed;"
        "print(c.server.ephemeral.startup_timeout_seconds, c.server.analytics_enabled,"
        " c.logging.level, c.api.url,"
        " dask.config.get('distributed.deploy.lost-worker-timeout'),"
        " dask.config.get('distributed.worker.daemon'),"
        " dask.config.get('distributed.scheduler.worker-saturation'))"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "DASK_"))}
    for program in (code, f"import prefect, dask; {code}"):
        result = subprocess.run(
            [sys.executable, "-P", "-c", program],
            env=clean | {"PREFECT_API_URL": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.split() == ["180", "False", "WARNING", "None", "1h", "False", "1.0"]


def test_what_the_user_has_set_stands():
    environ = {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_API_URL": "http://server/api"}
    apply_defaults(environ)
    assert environ == {**DEFAULTS, **environ}
    assert environ["PREFECT_LOGGING_LEVEL"] == "DEBUG"


def test_a_server_gets_the_log_of_a_run_and_the_terminal_does_not():
    environ = {"PREFECT_API_URL": "http://server/api"}
    apply_defaults(environ)
    assert "PREFECT_LOGGING_LEVEL" not in environ
    assert environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] == "WARNING"


def test_an_empty_api_url_is_no_url():
    environ = {"PREFECT_API_URL": ""}
    apply_defaults(environ)
    assert "PREFECT_API_URL" not in environ


def test_workers_share_the_cores():
    assert set(worker_threads(16, 2)) == set(THREAD_VARIABLES)
    assert worker_threads(16, 2)["OMP_NUM_THREADS"] == "8"
    assert worker_threads(2, 5)["OMP_NUM_THREADS"] == "1"


def test_thread_variables_are_as_before():
    environ = {"OMP_NUM_THREADS": "7", "HOME": "/"}
    with restored_threads(environ):
        environ.update(dict.fromkeys(THREAD_VARIABLES, "1"), HOME="/tmp")
    assert environ == {"OMP_NUM_THREADS": "7", "HOME": "/tmp"}
