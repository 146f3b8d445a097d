import pytest

from pixelmill.tasks.engine.crumbs import Crumbs
from pixelmill.tasks.store import open_backend

RUN, SHARD = "20260101T000000-abcdef", "20260101T000000-abcdef-000000"


@pytest.fixture(params=["disk", "memory"])
def attempt(request, tmp_path):
    """Function attempt name -> its crumbs, on a disk or in an object store."""
    root = str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}"
    backend = open_backend(root)
    return lambda name: Crumbs(backend, RUN, SHARD, name)


def test_the_first_attempt_has_no_suspects(attempt) -> None:
    suspects = attempt("first").suspects()
    assert suspects.alone == ()
    assert suspects.guilty == frozenset()


def test_what_was_last_in_progress_at_a_death_is_suspected(attempt) -> None:
    dead = attempt("first")
    dead.at([0, 1, 2])
    dead.at([5, 3, 4])
    assert attempt("second").suspects().alone == (3, 4, 5)


def test_an_attempt_does_not_suspect_its_own_rows(attempt) -> None:
    crumbs = attempt("first")
    crumbs.at([1])
    assert crumbs.suspects().alone == ()


def test_two_lone_deaths_make_guilty_and_one_does_not(attempt) -> None:
    attempt("first").at([3, 4])
    attempt("second").at([4])
    assert attempt("third").suspects().alone == (3, 4)
    attempt("third").at([4])
    suspects = attempt("fourth").suspects()
    assert suspects.alone == (3,)
    assert suspects.guilty == {4}


def test_an_attempt_that_ends_in_order_leaves_no_suspects(attempt) -> None:
    stopped = attempt("first")
    stopped.at([1, 2])
    stopped.end()
    assert attempt("second").suspects().alone == ()


def test_a_commit_clears_all_notes(attempt) -> None:
    attempt("first").at([1])
    attempt("second").at([1])
    attempt("second").clear()
    assert attempt("third").suspects().alone == ()
