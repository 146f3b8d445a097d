import time

import pytest

from pixelmill.tasks.engine.watchdog import OverdueError, Watchdog, peak_rss_bytes, rss_bytes


@pytest.fixture
def deaths(monkeypatch):
    """Causes and rows of the deaths that would have been."""
    found: list[tuple[str, int | None]] = []
    monkeypatch.setattr("pixelmill.tasks.engine.watchdog._TICK_S", 0.01)
    monkeypatch.setattr(Watchdog, "_arm", lambda self: None)
    monkeypatch.setattr(Watchdog, "_die", lambda self, cause, row: found.append((cause, row)))
    return found


def make(max_decode_s: float = 60.0, memory: int | None = None, may_exit: bool = True) -> Watchdog:
    return Watchdog(
        max_decode_s=max_decode_s, memory=memory, last_words=lambda *_: None, may_exit=may_exit
    )


def dawdle(watchdog: Watchdog, seconds: float, **watching) -> None:
    with watchdog.watching(7, **watching):
        with watchdog.watching(7):
            pass
        time.sleep(seconds)


@pytest.mark.parametrize("watching", [{}, {"factor": 2}])
def test_what_takes_too_long_is_found_while_it_lasts(deaths, watching):
    with make(0.05) as watchdog, pytest.raises(OverdueError, match="more than"):
        dawdle(watchdog, 0.3, **watching)
    assert set(deaths) == {("deadline", 7)}


def test_what_ends_in_time_is_not_found(deaths):
    with make(10) as watchdog:
        for row in range(3):
            with watchdog.watching(row), watchdog.watching(row, factor=2):
                time.sleep(0.02)
    assert deaths == []


def test_too_much_memory_is_blamed_on_the_only_image_that_is_decoded(deaths):
    with make(memory=1) as watchdog:
        with watchdog.watching(3):
            time.sleep(0.1)
        assert ("memory", 3) in deaths
        deaths.clear()
        time.sleep(0.1)
        assert set(deaths) == {("memory", None)}


def test_a_process_that_may_not_end_is_not_watched(deaths):
    with make(0.01, memory=1, may_exit=False) as watchdog, pytest.raises(OverdueError):
        dawdle(watchdog, 0.05)
    assert deaths == []


def test_an_error_of_the_work_is_not_replaced():
    def fail() -> None:
        with watchdog.watching(7):
            time.sleep(0.05)
            raise ZeroDivisionError

    with make(0.01, may_exit=False) as watchdog, pytest.raises(ZeroDivisionError):
        fail()


def test_a_process_knows_its_memory():
    now, most = rss_bytes(), peak_rss_bytes()
    assert now is not None
    assert most is not None
    assert 2**20 < now <= most
