"""The embedded Prefect server, which ends when we do, however we end."""

import os
import subprocess

from pixelmill.flows.signals import sigint_masked

__all__ = ["start_server"]

# By the server's process id, for ever: a pipe that is closed earlier stops the server.
_watchers: dict[int, "subprocess.Popen[bytes]"] = {}


def start_server() -> None:
    """Start Prefect's embedded server, unless PREFECT_API_URL names one that runs.

    Prefect stops its server in an exit handler, which a SIGKILL skips. So a shell that waits for
    the end of our pipe stops it then. Neither hears the terminal's Ctrl-C, which is for us.
    """
    if os.environ.get("PREFECT_API_URL"):
        return
    from prefect.client.orchestration import get_client
    from prefect.server.api.server import SubprocessASGIServer

    with sigint_masked():
        get_client(sync_client=True)
        server = SubprocessASGIServer().server_process
        if server is not None and server.pid not in _watchers:
            _watchers[server.pid] = subprocess.Popen(
                ["/bin/sh", "-c", "read _; kill $0 2>/dev/null", str(server.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
