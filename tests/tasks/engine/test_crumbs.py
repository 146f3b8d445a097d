import pytest

from pixelmill.tasks.engine.crumbs import Crumbs, Trail
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
    assert suspects.guilty == {}


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
    assert suspects.guilty == {4: "killed_worker"}


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


def test_the_only_image_of_a_shard_is_not_condemned_by_two_deaths_that_say_nothing(attempt) -> None:
    """Somebody may have killed the worker twice, whatever the image is."""
    attempt("first").at([0])
    attempt("second").at([0])
    assert attempt("third").suspects().alone == (0,)
    attempt("third").at([0])
    assert attempt("fourth").suspects().guilty == {0: "killed_worker"}


def test_a_worker_that_ended_itself_says_why_and_because_of_which_image(attempt) -> None:
    first = attempt("first")
    first.at([1, 2, 3])
    first.last_words("deadline", 2)
    assert attempt("second").suspects().alone == (2,)
    second = attempt("second")
    second.at([2])
    second.last_words("deadline", 2)
    suspects = attempt("third").suspects()
    assert suspects.alone == ()
    assert suspects.guilty == {2: "deadline"}


def test_a_worker_that_cannot_say_which_image_suspects_all_in_progress(attempt) -> None:
    first = attempt("first")
    first.at([1, 2, 3])
    first.last_words("memory", None)
    assert attempt("second").suspects().alone == (1, 2, 3)


def test_a_note_is_there_before_any_of_its_rows_is_taken(attempt) -> None:
    windows = [[number, number + 100] for number in range(20)]
    open_rows: set[int] = set()
    crumbs = attempt("first")
    with Trail(crumbs, windows, lambda: open_rows) as trail:
        for number, window in enumerate(windows):
            trail.enter(number)
            open_rows.update(window)
            assert open_rows <= set(attempt("other").suspects().alone)
            open_rows.difference_update(windows[number - 1])  # one window later


def test_dear_notes_are_few_and_cheap_ones_exact(attempt, monkeypatch) -> None:
    windows = [[number] for number in range(20)]
    crumbs = attempt("first")
    notes: list[list[int]] = []
    monkeypatch.setattr(crumbs, "at", lambda rows: notes.append(sorted(rows)))
    with Trail(crumbs, windows, set) as trail:
        for number in range(20):
            trail.enter(number)
    if crumbs.is_dear:
        assert len(notes) <= 7
    else:
        assert notes == windows
