import os
import signal
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.client import orchestration
from prefect.client.schemas.objects import State, StateType

from pixelmill.flows import stopping
from pixelmill.flows.stopping import StopFlag


@pytest.fixture
def server(monkeypatch):
    """A Prefect server of which only a flow run's state is asked; counts how often."""
    server = SimpleNamespace(state=State(type=StateType.RUNNING), asked=0)

    def read_flow_run(flow_run_id):
        server.asked += 1
        if server.state is None:
            raise ConnectionError("no server")
        return SimpleNamespace(state=server.state)

    @contextmanager
    def get_client(sync_client):
        assert sync_client
        yield SimpleNamespace(read_flow_run=read_flow_run)

    monkeypatch.setattr(orchestration, "get_client", get_client)
    monkeypatch.setenv("PREFECT_API_URL", "http://server/api")
    monkeypatch.setattr(stopping, "POLL_S", 0.0)
    return server


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_a_signal_sets_the_flag_and_handlers_are_as_before_at_the_end(number, reason):
    before = signal.getsignal(number)
    stop = StopFlag()
    with stop.listening():
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
    assert stop.reason == reason
    assert signal.getsignal(number) is before


def test_a_second_interrupt_interrupts():
    stop = StopFlag()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_another_thread_than_the_main_one_leaves_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def listen():
        with StopFlag().listening():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("kind", [StateType.CANCELLING, StateType.CANCELLED])
def test_a_run_that_is_cancelled_on_the_server_stops(server, kind):
    stop = StopFlag(uuid4())
    assert not stop()
    server.state = State(type=kind)
    assert stop()
    assert stop.reason == "Prefect"
    asked = server.asked
    assert stop()
    assert server.asked == asked, "asked again after the answer"


def test_the_server_is_asked_every_few_seconds_only(server, monkeypatch):
    monkeypatch.setattr(stopping, "POLL_S", 3600.0)
    stop = StopFlag(uuid4())
    assert not any(stop() for _ in range(100))
    assert server.asked == 0


def test_a_server_that_is_away_stops_nothing(server):
    server.state = None
    assert not StopFlag(uuid4())()
    assert server.asked == 1


def test_an_embedded_server_is_not_asked(server, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL")
    assert not StopFlag(uuid4())()
    assert server.asked == 0
