"""Who works on what: leases, so that runs at the same time share their work.

Claims save work and nothing rests on them: two workers on one shard cost time, and one of them
loses the race for the receipt. So a claim may be taken over on good grounds without proof.

A *session* is a process that plans and submits. It renews an object of its own every few seconds.
Whoever waits for it sees it as dead when that content has not changed for the lease, by the
waiter's own monotonic clock: no two clocks are compared, so none can be wrong. On the machine of
the waiter nobody waits: there a process that is gone is dead.

A *claim* is created if absent in the name of a session, and is as good as that session. What a
dead session held is taken over by creating the next generation.
"""

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.backend import Backend

__all__ = [
    "Claim",
    "Session",
    "Watch",
    "claimed_names",
    "find_claim",
    "release",
    "sweep",
    "take_claim",
    "take_over",
]

logger = logging.getLogger(__name__)

BEAT_S = 5.0
# Six beats: a busy disk or a throttled bucket may swallow some.
LEASE_S = 30.0
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Claim:
    """The newest claim on a name.

    Attributes:
        holder: id of the session that has it.
        generation: 0, and one more after each takeover.
    """

    name: str
    holder: str
    generation: int


def take_claim(backend: Backend, name: str, session: str) -> Claim:
    """Claim something, unless another session has it.

    Args:
        backend: of the store.
        name: of a shard, or of whatever only one should do at a time.
        session: id of the one that claims.

    Returns:
        The claim that stands: the caller's if it names its session.
    """
    # Nearly always free: one request. A claim of the same session has the same content.
    if backend.create(layout.claim_key(name, 0), session.encode()):
        return Claim(name, session, 0)
    while True:
        found = find_claim(backend, name)
        if found is not None:
            return found
        if backend.create(layout.claim_key(name, 0), session.encode()):  # released meanwhile
            return Claim(name, session, 0)


def take_over(backend: Backend, dead: Claim, session: str) -> Claim:
    """Claim what a dead session holds.

    Returns:
        The claim that stands: another one may have been faster.
    """
    generation = dead.generation + 1
    if backend.create(layout.claim_key(dead.name, generation), session.encode()):
        return Claim(dead.name, session, generation)
    return take_claim(backend, dead.name, session)


def release(backend: Backend, claim: Claim) -> None:
    """Give a claim of one's own back, with the dead ones that it replaced.

    One that was taken over stays: it keeps the name from being claimed from the beginning.
    """
    if backend.exists(layout.claim_key(claim.name, claim.generation + 1)):
        newest = find_claim(backend, claim.name)
        if newest is None or newest.holder != claim.holder:
            return
        claim = newest
    backend.delete([layout.claim_key(claim.name, i) for i in range(claim.generation + 1)])


def claimed_names(backend: Backend) -> set[str]:
    """What is claimed at present, by anybody, dead or alive; one listing."""
    return {name for name, _ in _claims(backend)}


def sweep(backend: Backend, watch: "Watch") -> None:
    """Delete what dead sessions left: claims that nobody has taken over, and they themselves."""
    for name in claimed_names(backend):
        claim = find_claim(backend, name)
        if claim is not None and watch.is_dead(claim.holder):
            release(backend, claim)
    sessions = [layout.parse_session(entry.key) for entry in backend.list(layout.CLAIMS)]
    dead = [each for each in sessions if each is not None and watch.is_dead(each)]
    backend.delete([layout.session_key(session) for session in dead])


def _claims(backend: Backend) -> list[tuple[str, int]]:
    """Name and generation of all claims."""
    parsed = [layout.parse_claim(entry.key) for entry in backend.list(layout.CLAIMS)]
    return [each for each in parsed if each is not None]


def find_claim(backend: Backend, name: str) -> Claim | None:
    """The newest claim on a name; None if there is none."""
    generations = [generation for known, generation in _claims(backend) if known == name]
    if not generations:
        return None
    try:
        holder = backend.get(layout.claim_key(name, max(generations))).decode()
    except FileNotFoundError:  # released meanwhile
        return None
    return Claim(name, holder, max(generations))


class Session:
    """A process that plans and submits; alive from `with` to its end, or to its death.

    Args:
        backend: of the store that it works on.
        beat_s: seconds between two renewals.
    """

    def __init__(self, backend: Backend, *, beat_s: float = BEAT_S) -> None:
        self.id = secrets.token_hex(8)
        self._backend, self._beat_s = backend, beat_s
        self._num_beats = 0
        self._has_ended = threading.Event()
        self._thread = threading.Thread(
            target=self._keep_beating, name="pixelmill-session", daemon=True
        )

    def __enter__(self) -> Self:
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._has_ended.set()
        self._thread.join()
        try:
            self._backend.delete([layout.session_key(self.id)])
        except Exception as err:  # its lease runs out then
            logger.warning("could not end the session in the store: %s", err)

    def _keep_beating(self) -> None:
        while not self._has_ended.wait(self._beat_s):
            try:
                self._beat()
            except Exception as err:
                # The work itself will meet the same trouble, and says what to do about it.
                logger.warning("could not renew the session in the store: %s", err)

    def _beat(self) -> None:
        self._num_beats += 1
        content = {"beat": self._num_beats, **_this_process()}
        self._backend.put(layout.session_key(self.id), json.dumps(content).encode())


class Watch:
    """Tells living sessions from dead ones.

    Args:
        backend: of the store.
        lease_s: seconds without a change after which a session is dead.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend, self._lease_s, self._clock = backend, lease_s, clock
        self._dead: set[str] = set()
        self._seen: dict[str, _Seen] = {}

    def is_dead(self, session: str) -> bool:
        """Whether a session has ended, in order or not; to be asked again and again.

        Of one on another machine it takes a lease to know. Reads at most once a second.
        """
        if session in self._dead:
            return True
        now = self._clock()
        seen = self._seen.get(session)
        if seen is not None and now - seen.looked_at < _POLL_S:
            return False
        try:
            content = self._backend.get(layout.session_key(session))
        except FileNotFoundError:
            content = None
        if content is None or _is_gone(content) or self._is_silent(session, content, now):
            self._dead.add(session)
            return True
        return False

    def is_here(self, session: str) -> bool:
        """Whether a session's process is on this machine and lives: then there is no doubt."""
        try:
            content = self._backend.get(layout.session_key(session))
        except FileNotFoundError:
            return False
        is_ours = json.loads(content)["machine"] == _machine() != ""
        return is_ours and not _is_gone(content)

    def _is_silent(self, session: str, content: bytes, now: float) -> bool:
        seen = self._seen.get(session)
        if seen is None or seen.content != content:
            self._seen[session] = _Seen(content, now, 0.0)
            return False
        # A long gap is our own pause, in which the other one may have been paused too.
        silent_s = seen.silent_s + min(now - seen.looked_at, BEAT_S)
        self._seen[session] = _Seen(content, now, silent_s)
        return silent_s >= self._lease_s


@dataclass(frozen=True, slots=True)
class _Seen:
    """A session's content, when it was last looked at, and for how long it has been the same."""

    content: bytes
    looked_at: float
    silent_s: float


def _this_process() -> dict[str, str | int]:
    return {"machine": _machine(), "pid": os.getpid(), "started": _start_time(os.getpid()) or ""}


def _is_gone(content: bytes) -> bool:
    """Whether a session's process was on this machine and is no more."""
    process = json.loads(content)
    if not process["started"] or process["machine"] != _machine():
        return False
    return _start_time(process["pid"]) != process["started"]


def _machine() -> str:
    """This boot of this machine and its process ids' namespace; empty where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_time(pid: int) -> str | None:
    """When a living process started, in ticks since boot; tells it from a later one of its id."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # See proc_pid_stat(5): the name, in brackets, may hold anything; state is field 3, start 22
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]
