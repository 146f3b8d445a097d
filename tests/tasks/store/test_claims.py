"""Leases with two observers in one process; time is a number, and a machine's name a patch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from pixelmill.tasks.store import Store, layout
from pixelmill.tasks.store import claims as claims_module
from pixelmill.tasks.store.backend import Backend
from pixelmill.tasks.store.claims import (
    Session,
    Watch,
    claimed_names,
    release,
    sweep,
    take_claim,
    take_over,
)

LEASE_S = 30.0


@pytest.fixture
def backend(tmp_path) -> Backend:
    return Store(tmp_path / "store", create=True).backend


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float, step_s: float, each: Callable[[], object]) -> None:
        for _ in range(round(seconds / step_s)):
            self.now += step_s
            each()


def renew(backend: Backend, session: str, beat: int) -> None:
    content = {"beat": beat, "machine": "another", "pid": 1, "started": "7"}
    backend.put(layout.session_key(session), json.dumps(content).encode())


def test_the_first_has_it_and_the_others_learn_who(backend):
    first = take_claim(backend, "shard", "aa")
    assert (first.holder, first.generation) == ("aa", 0)
    assert take_claim(backend, "shard", "bb") == first
    assert take_claim(backend, "shard", "aa") == first, "a worker's death does not lock us out"
    assert claimed_names(backend) == {"shard"}
    release(backend, first)
    assert claimed_names(backend) == set()
    assert take_claim(backend, "shard", "bb").holder == "bb"


def test_one_of_two_takes_over_what_a_dead_session_holds(backend):
    dead = take_claim(backend, "shard", "aa")
    mine = take_over(backend, dead, "bb")
    assert (mine.holder, mine.generation) == ("bb", 1)
    assert take_over(backend, dead, "cc") == mine
    assert take_claim(backend, "shard", "bb") == mine
    release(backend, mine)
    assert claimed_names(backend) == set(), "what was taken over goes too"


def test_a_dead_one_that_comes_back_does_not_release_what_was_taken_over(backend):
    stale = take_claim(backend, "shard", "aa")
    mine = take_over(backend, stale, "bb")
    release(backend, stale)
    assert take_claim(backend, "shard", "cc") == mine


def test_what_a_session_has_twice_it_gives_back_as_a_whole(backend):
    first = take_claim(backend, "shard", "aa")
    release(backend, first)
    take_over(backend, first, "bb")  # it was gone when bb saw that aa is dead
    release(backend, take_claim(backend, "shard", "bb"))
    assert claimed_names(backend) == set()


def test_a_session_lives_while_its_content_changes_and_is_dead_after_a_lease_without(backend):
    clock = Clock()
    watch = Watch(backend, lease_s=LEASE_S, clock=clock)
    for beat in range(10):
        renew(backend, "aa", beat)
        clock.pass_by(LEASE_S - 2, 2.0, lambda: pytest.fail("dead") if watch.is_dead("aa") else 0)
    clock.pass_by(4, 2.0, lambda: watch.is_dead("aa"))
    assert watch.is_dead("aa")


def test_the_wall_clock_has_no_say(backend, monkeypatch):
    monkeypatch.setattr("time.time", lambda: pytest.fail("a wall clock was asked"))
    clock = Clock()
    watch = Watch(backend, lease_s=LEASE_S, clock=clock)
    renew(backend, "aa", 0)
    assert not watch.is_dead("aa")
    os.utime(os.path.join(backend.root, layout.session_key("aa")), (0, 0))  # noqa: PTH118
    clock.now += 2
    assert not watch.is_dead("aa")


def test_an_observer_that_was_paused_itself_calls_nobody_dead(backend):
    clock = Clock()
    watch = Watch(backend, lease_s=LEASE_S, clock=clock)
    renew(backend, "aa", 0)
    assert not watch.is_dead("aa")
    clock.now += 1000 * LEASE_S  # a suspended machine: the other one was suspended too
    assert not watch.is_dead("aa")


def test_a_session_that_has_ended_is_dead_at_once(backend):
    with Session(backend, beat_s=60) as session:
        assert not Watch(backend).is_dead(session.id)
    assert Watch(backend).is_dead(session.id)
    assert Watch(backend).is_dead(""), "a run of nobody"


def test_a_session_renews_itself(backend, wait_until):
    with Session(backend, beat_s=0.01) as session:
        key = layout.session_key(session.id)
        first = backend.get(key)
        wait_until(lambda: backend.get(key) != first)


def test_a_killed_process_of_this_machine_is_dead_at_once(backend):
    code = (
        "import os, sys\n"
        "from pixelmill.tasks.store import open_backend\n"
        "from pixelmill.tasks.store.claims import Session\n"
        "session = Session(open_backend(sys.argv[1])).__enter__()\n"
        "print(session.id, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-P", "-c", code, backend.root]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        session = process.stdout.readline().decode().strip()
        assert not Watch(backend).is_dead(session)
        process.kill()
        # Not waited for yet: a zombie does no work either
        while "Z" not in _state(process.pid):
            pass
        assert Watch(backend).is_dead(session)


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rpartition(")")[2].split()[0]


def test_another_machines_process_ids_mean_nothing_here(backend, monkeypatch):
    with Session(backend, beat_s=60) as session:
        content = json.loads(backend.get(layout.session_key(session.id)))
        content["pid"] = 2**22 + 1  # no such process
        for machine, is_dead in ((content["machine"], True), ("another", False)):
            content["machine"] = machine
            backend.put(layout.session_key(session.id), json.dumps(content).encode())
            assert Watch(backend).is_dead(session.id) is is_dead


def test_a_store_that_fails_stops_no_session(backend, monkeypatch, caplog, wait_until):
    with Session(backend, beat_s=0.01) as session:
        monkeypatch.setattr(session, "_beat", _fail)
        wait_until(lambda: "could not renew" in caplog.text)
        monkeypatch.undo()
        before = backend.get(layout.session_key(session.id))
        wait_until(lambda: backend.get(layout.session_key(session.id)) != before)


def _fail() -> None:
    raise OSError("storage is away")


def test_sweeping_takes_what_the_dead_left_and_nothing_else(backend):
    with Session(backend, beat_s=60) as session:
        alive = take_claim(backend, "mine", session.id)
        renew(backend, "dd", 0)
        for name in ("left", "taken"):
            take_claim(backend, name, "gone")
        taken = take_over(backend, take_claim(backend, "taken", "gone"), session.id)
        sweep(backend, Watch(backend))
        assert claimed_names(backend) == {"mine", "taken"}
        assert take_claim(backend, "taken", "x") == taken
        assert take_claim(backend, "mine", "x") == alive
        assert backend.exists(layout.session_key("dd")), "it may live on another machine"


def test_names_of_claims_and_sessions_are_told_apart():
    assert layout.parse_claim(layout.claim_key("20240531T000000-abcdef-000001", 12)) == (
        "20240531T000000-abcdef-000001",
        12,
    )
    assert layout.parse_claim(layout.session_key("ab12")) is None
    assert layout.parse_session(layout.session_key("ab12")) == "ab12"
    assert layout.parse_session(layout.claim_key("plan", 0)) is None


@pytest.fixture
def wait_until():
    def wait_until(condition: Callable[[], bool]) -> None:
        deadline = claims_module.time.monotonic() + 30
        while not condition():
            assert claims_module.time.monotonic() < deadline
            claims_module.time.sleep(0.005)

    return wait_until
