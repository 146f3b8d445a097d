import threading

from pixelmill.tasks.engine.exclusion import SharedLock


def start(work) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_many_hold_it_together():
    lock, both = SharedLock(), threading.Barrier(2)

    def work() -> None:
        with lock.shared():
            both.wait(20)

    threads = [start(work) for _ in range(2)]
    for thread in threads:
        thread.join(20)
    assert not both.broken


def test_who_wants_it_alone_waits_for_all_and_goes_before_those_that_come_later():
    lock, order = SharedLock(), []

    def alone() -> None:
        with lock.alone():
            order.append("alone")

    def shared() -> None:
        with lock.shared():
            order.append("shared")

    with lock.shared():
        first = start(alone)
        while not lock._num_waiting:
            pass
        second = start(shared)
        first.join(0.05)
        assert order == []
    first.join(20)
    second.join(20)
    assert order == ["alone", "shared"]


def test_it_is_free_again_after_an_error():
    lock = SharedLock()
    for holding in (lock.alone, lock.shared, lock.alone):
        try:
            with holding():
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
