"""The settings that Prefect, Dask and the thread pools need to have before they are imported.

Every value is a default: a variable that the user has set stands. Importing `pixelmill.flows`
applies them, so nobody has to set anything.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping

__all__ = ["DEFAULTS", "THREAD_VARIABLES", "apply_defaults", "restored_threads", "worker_threads"]

DEFAULTS: Mapping[str, str] = {
    # Prefect's client analytics and its server's telemetry call home, and log errors offline
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # the default of 20 s is less than a cold start on a busy machine: 4 of 4 starts failed
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "DASK_LOGGING__DISTRIBUTED": "warning",
    # at the default of 15 s, one slow restart of a worker removes it from the cluster for good
    "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1h",
    # daemonic workers may not start processes, and users' decoders do
    "DASK_DISTRIBUTED__WORKER__DAEMON": "False",
    # above 1 a worker holds a queue, and its death counts against every shard in it
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
}

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def apply_defaults(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set `DEFAULTS` where nothing is set, and drop an empty PREFECT_API_URL.

    An empty URL is not read as none by Prefect's event channel, which then drops events with
    tracebacks. A server that runs by itself gets the log of each run, for its page. Where Prefect
    or Dask were imported before us, they are told to look again.
    """
    for name, value in DEFAULTS.items():
        environ.setdefault(name, value)
    if environ.get("PREFECT_API_URL") == "":
        del environ["PREFECT_API_URL"]
    if "PREFECT_LOGGING_LEVEL" not in environ:
        # INFO is 11 lines for a flow that does nothing; our own progress says what matters
        is_alone = "PREFECT_API_URL" not in environ
        quiet = "PREFECT_LOGGING_LEVEL" if is_alone else "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"
        environ.setdefault(quiet, "WARNING")
    if "prefect" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
    if "dask" in sys.modules:
        import dask.config

        dask.config.refresh()


def worker_threads(num_cores: int, num_workers: int) -> dict[str, str]:
    """Thread variables for each of `num_workers` processes that share `num_cores`.

    Dask's nanny would set 1, which leaves cores idle where there are fewer workers than cores.
    """
    return dict.fromkeys(THREAD_VARIABLES, str(max(1, num_cores // max(1, num_workers))))


@contextlib.contextmanager
def restored_threads(environ: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Undo what the body does to the thread variables.

    Starting a `LocalCluster` sets them for its workers in the parent too, where evaluation would
    then run on one thread.
    """
    before = {name: environ.get(name) for name in THREAD_VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value
