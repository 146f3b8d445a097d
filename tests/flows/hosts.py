"""Hosts on this machine for test_hosts.py: network namespaces on a bridge, whose links can be cut.

    python hosts.py nsenter --net=/proc/PID/ns/net -- -m MODULE ...     # Python on a host

What is sent over a cut link vanishes, as with a pulled cable: nobody is told, and no connection is
closed by it. A namespace lives as long as a process in it, and the first one in each ends with the
process that made it: however the tests end, nothing is left behind. Needs no privilege where users
may have namespaces of their own.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

_TOOLS = ("ip", "nsenter", "setpriv", "unshare")
# For documentation (RFC 5737): nobody has such an address
_SUBNET = "192.0.2"
_NOBODY = "02:00:00:00:00:00"
_LISTEN = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=128)
socket.send_fds(socket.socket(fileno=0), [b"."], [server.fileno()])
"""


@dataclass(frozen=True, slots=True)
class Host:
    """A host on the switch.

    Attributes:
        enter: command line that goes before one that is to run there.
    """

    name: str
    address: str
    enter: tuple[str, ...]

    @property
    def before(self) -> tuple[str, ...]:
        """What goes before Python's arguments if it is to run there."""
        return (__file__, *self.enter)

    def run(self, *command: str, **options: Any) -> None:
        """Run something there.

        Raises:
            OSError: it failed; says how.
        """
        done = subprocess.run(
            [*self.enter, *command], capture_output=True, text=True, check=False, **options
        )
        if done.returncode:
            raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")

    def ip(self, *lines: str) -> None:
        """Commands of ip(8)."""
        self.run("ip", "-batch", "-", input="\n".join(lines))

    def listen(self, port: int) -> socket.socket:
        """A socket of this process that listens there."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            python = (sys.executable, "-P", "-c", _LISTEN)
            self.run(*python, self.address, str(port), stdin=theirs)
            _, (descriptor,), *_ = socket.recv_fds(ours, 1, 1)
        return socket.socket(fileno=descriptor)


class Network:
    """A switch and the hosts on it.

    Args:
        names: of the hosts.

    Raises:
        OSError: there can be none here; says why.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._keepers: list[subprocess.Popen[bytes]] = []
        if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
            raise OSError(f"not installed: {', '.join(missing)}")
        try:
            self._switch = self._make_host("switch", "")
            self._switch.ip("link add switch type bridge", "link set switch up")
            self.hosts = {name: self._plug_in(name, index) for index, name in enumerate(names, 1)}
        except OSError:
            self.close()
            raise

    def cut(self, name: str) -> None:
        """From now on nothing reaches a host, and nothing that it sends reaches anybody."""
        self._switch.ip(f"link set {name} nomaster")

    def heal(self, name: str) -> None:
        """Undo `cut`."""
        self._switch.ip(f"link set {name} master switch")

    def cut_between(self, name: str, other: str) -> None:
        """From now on what one host sends to the other is lost."""
        address = self.hosts[other].address
        self.hosts[name].ip(f"neigh replace {address} lladdr {_NOBODY} dev eth0 nud permanent")

    def heal_between(self, name: str, other: str) -> None:
        """Undo `cut_between`."""
        self.hosts[name].ip(f"neigh del {self.hosts[other].address} dev eth0")

    def resend_within(self, seconds: int) -> None:
        """Have TCP try again so soon, instead of after as long again as a cut has lasted.

        Where the kernel cannot be told (before 6.15), or may not, all takes longer.
        """
        setting = f"echo {1000 * seconds} > /proc/sys/net/ipv4/tcp_rto_max_ms"
        for host in self.hosts.values():
            with contextlib.suppress(OSError):
                host.run("sh", "-c", setting)

    def close(self) -> None:
        """End the namespaces, each when all else that runs in it has ended."""
        for keeper in self._keepers:
            keeper.communicate()

    def _plug_in(self, name: str, number: int) -> Host:
        host = self._make_host(name, f"{_SUBNET}.{number}")
        there = self._keepers[-1].pid
        self._switch.ip(
            f"link add {name} type veth peer name eth0 netns {there}",
            f"link set {name} master switch up",
        )
        host.ip(
            "link set lo up",
            f"address add {host.address}/24 dev eth0",
            "link set eth0 up",
        )
        return host

    def _make_host(self, name: str, address: str) -> Host:
        """A network namespace; all belong to one user namespace, in which we may do everything."""
        if self._keepers:
            make: tuple[str, ...] = ("nsenter", *self._as_user(), "--", "unshare", "--net")
        else:
            make = ("unshare", "--user", "--map-root-user", "--net")
        pipe = subprocess.PIPE
        keeper = subprocess.Popen([*make, "cat"], stdin=pipe, stdout=pipe, stderr=pipe)
        self._keepers.append(keeper)
        assert keeper.stdin
        assert keeper.stdout
        assert keeper.stderr
        with contextlib.suppress(BrokenPipeError):  # why is read below
            os.write(keeper.stdin.fileno(), b".\n")
        if not keeper.stdout.readline():
            raise OSError(keeper.stderr.read().decode().strip())
        there = f"--net=/proc/{keeper.pid}/ns/net"
        return Host(name, address, ("nsenter", *self._as_user(), there, "--"))

    def _as_user(self) -> tuple[str, ...]:
        return f"--user=/proc/{self._keepers[0].pid}/ns/user", "--preserve-credentials"


# What the hosts ask of an object store


@dataclass(slots=True)
class Request:
    """A request to the object store.

    Attributes:
        status: of the answer; None before there is one.
    """

    host: str
    method: str
    key: str
    status: int | None = None


class Diary:
    """Prints what happens, with the seconds since it began."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:6.1f} s  {text}", flush=True)


class ObjectStore:
    """The S3 stand-in of this process at the address of a host.

    Args:
        listening: there.
        hosts: that may ask.
        tell: about commits.

    Attributes:
        url: for AWS_ENDPOINT_URL.
        requests: all so far, in the order in which they came.
    """

    def __init__(
        self, listening: socket.socket, hosts: Iterable[Host], tell: Callable[[str], None]
    ) -> None:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            MotoRequestHandler,
            create_backend_app,
        )
        from werkzeug.serving import make_server

        self.requests: list[Request] = []
        self._names = {host.address: host.name for host in hosts}
        self._tell = tell
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._may_begin = {host.name: threading.Event() for host in hosts}
        for event in self._may_begin.values():
            event.set()
        address, port = listening.getsockname()
        self.url = f"http://{address}:{port}"
        with listening:
            self._server = make_server(
                address,
                port,
                self._answer,
                threaded=True,
                request_handler=MotoRequestHandler,
                fd=listening.fileno(),
            )
        self._server.daemon_threads = True  # type: ignore[attr-defined]  # of a threaded one
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        for event in self._may_begin.values():
            event.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def hold(self, host: str) -> None:
        """Have a host wait, from now on, at the beginning of a shard."""
        self._may_begin[host].clear()

    def let_go(self, host: str) -> None:
        """Undo `hold`."""
        self._may_begin[host].set()

    def commits(self, status: int = 200) -> list[tuple[str, str]]:
        """Shard and host of each commit that was answered so."""
        return [
            (PurePosixPath(each.key).stem, each.host)
            for each in tuple(self.requests)
            if _is_commit(each) and each.status == status
        ]

    def attempts(self) -> list[tuple[str, str]]:
        """Shard and host of each attempt at a shard, in the order in which they began."""
        notes = {note: each.host for each in tuple(self.requests) if (note := _note(each))}
        return [(note.parent.name, host) for note, host in notes.items()]

    def is_waiting(self, host: str) -> bool:
        """Whether a host waits at the beginning of a shard."""
        return not self._may_begin[host].is_set() and any(
            each.host == host and _note(each) and each.status is None
            for each in tuple(self.requests)
        )

    def _answer(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        host = self._names[environ["REMOTE_ADDR"]]
        request = Request(host, environ["REQUEST_METHOD"], environ["PATH_INFO"])
        known = {_note(each) for each in tuple(self.requests)}
        self.requests.append(request)
        if _note(request) not in {None, *known}:
            self._may_begin[host].wait()

        def note(status: str, *others: Any) -> Any:
            request.status = int(status.split()[0])
            if _is_commit(request):
                done = "commits" if request.status == 200 else f"is refused ({request.status})"
                self._tell(f"{host} {done} {PurePosixPath(request.key).stem}")
            return start_response(status, *others)

        return self._moto(environ, note)


def _is_commit(request: Request) -> bool:
    return request.method == "PUT" and "/_commit/receipts/" in request.key


def _note(request: Request) -> PurePosixPath | None:
    """Where an attempt says what it is at; its first request of its own."""
    is_note = request.method == "PUT" and "/_commit/crumbs/" in request.key
    return PurePosixPath(request.key) if is_note else None


if __name__ == "__main__":
    end = sys.argv.index("--") + 1
    # Who started it may be killed, and its namespace shall not outlive that
    python = ("setpriv", "--pdeathsig", "KILL", sys.executable, "-P")
    os.execvp(sys.argv[1], [*sys.argv[1:end], *python, *sys.argv[end:]])
