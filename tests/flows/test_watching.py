import os
import shutil
import time

import pytest

from pixelmill.configs.schema import IngestConfig
from pixelmill.flows.watching import watch


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def land(folder, *names: str, age_s: float = 1000.0) -> None:
    for name in names:
        (folder / name).write_bytes(b"x")
        then = time.time() - age_s
        os.utime(folder / name, (then, then))


def watching(folder, run, ticks, *, settle_s=0.0, every_s=1.0):
    """Watches; each sleep is a step of `ticks`, after the last of which it stops."""
    slept: list[float] = []
    steps = iter(ticks)
    has_ended: list[bool] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        step = next(steps, None)
        if step is None:
            has_ended.append(True)
        else:
            step()

    watch(
        str(folder),
        IngestConfig(settle_s=settle_s),
        run,
        every_s=every_s,
        should_stop=lambda: bool(has_ended),
        sleep=sleep,
    )
    return slept


def test_each_landing_is_run_once(folder):
    land(folder, "a.jpg")
    runs: list[int] = []

    def run(num_new: int) -> bool:
        runs.append(num_new)
        return True

    steps = [
        lambda: None,
        lambda: land(folder, "b.jpg", "c.jpg"),
        lambda: None,
        lambda: land(folder, "note.txt"),
        lambda: land(folder, "a.jpg", age_s=500),
    ]
    watching(folder, run, steps)
    assert runs == [1, 2, 1], "the first look, two new ones, a changed one"


def test_files_that_are_still_copied_wait(folder):
    land(folder, "half.jpg", age_s=1)
    runs: list[int] = []
    old = time.time() - 100
    steps = [lambda: None, lambda: os.utime(folder / "half.jpg", (old, old))]
    watching(folder, lambda num_new: runs.append(num_new) is None, steps, settle_s=30)
    assert runs == [1]


def test_a_failed_run_is_tried_again_after_longer_and_longer_waits(folder):
    land(folder, "a.jpg")
    results, runs = iter([False, False, True]), []

    def run(num_new: int) -> bool:
        runs.append(num_new)
        return next(results)

    slept = watching(folder, run, [lambda: None] * 185)
    assert runs == [1, 1, 1]
    assert sum(slept) >= 60 + 120


def test_a_folder_that_is_away_is_waited_for(folder, caplog):
    land(folder, "a.jpg")
    runs: list[int] = []
    away = folder.with_name("away")
    shutil.move(folder, away)
    steps = [lambda: None, lambda: shutil.move(away, folder)]
    watching(folder, lambda num_new: runs.append(num_new) is None, steps)
    assert runs == [1]
    assert "could not list" in caplog.text
