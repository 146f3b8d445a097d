import threading

import pytest

from pixelmill.tasks.engine.budget import Budget, ByteGate, plan_budget

GIB = 2**30


def test_half_of_what_is_free_is_left_to_the_networks():
    budget = plan_budget(3 * GIB, GIB)
    assert budget.read + budget.pixels + budget.views == GIB


def test_more_memory_than_is_useful_is_not_used():
    assert plan_budget(500 * GIB, GIB) == Budget()


def test_a_limit_that_the_networks_alone_fill_is_refused_with_one_that_would_do():
    with pytest.raises(ValueError, match=r"compute.memory = 1024 MiB.*allow 1156 MiB or more"):
        plan_budget(GIB, 900 * 2**20)


def test_a_gate_lets_in_what_fits_together_and_always_one():
    gate = ByteGate(10)
    entered: list[str] = []

    def enter(name: str, num_bytes: int) -> threading.Thread:
        def work() -> None:
            with gate.hold(num_bytes):
                entered.append(name)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    with gate.hold(6), gate.hold(4):
        waiting = enter("third", 1)
        waiting.join(0.05)
        assert entered == []
    waiting.join(10)
    assert entered == ["third"]
    with gate.hold(1000):
        pass  # larger than the limit, but alone


def test_a_gate_is_left_by_an_error_too():
    gate = ByteGate(10)
    with pytest.raises(ZeroDivisionError), gate.hold(10):
        raise ZeroDivisionError
    with gate.hold(10):
        pass
