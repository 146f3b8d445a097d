"""The store's disk fills up, is made read-only, or goes away, in the middle of a run."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pixelmill.flows.commands.running import ExitCode, exit_code
from pixelmill.flows.job import ScoreParams
from pixelmill.flows.score import score_flow
from pixelmill.tasks.store import Store
from pixelmill.tasks.store.audit import audit_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_IMAGES, NUM_SHARDS = 32, 8
DATE = "2024-05-31"


@pytest.fixture
def disk(tmp_path):
    """A file system of its own; call it with a size to set it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str, *options: str) -> Path:
        what = ("mount", "-t", "tmpfs", "-o", ",".join((*options, f"size={size}")))
        done = subprocess.run((*what, "tmpfs", folder), capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"may not mount: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(("umount", "--lazy", folder), capture_output=True, check=False)


def assert_whole(store: Store, count_receipts) -> None:
    """Some shards were committed, readers see whole images of them, and nothing is damaged."""
    assert 1 <= count_receipts(Path(store.root)) < NUM_SHARDS
    images = store.images()
    boxes = store.boxes().groupby(["model", "image_id"]).size().to_dict()
    for row in images[images["n_detections"] > 0].itertuples():
        assert boxes[row.model, row.image_id] == row.n_detections
    assert not audit_store(store).of("damage")


@pytest.fixture
def score_into(server, inline, images):
    """Scores in this process into a store; gives the final state."""

    def score_into(store: Path):
        params = ScoreParams(
            source=str(images), store=str(store), config=inline, date=DATE, report=False
        )
        return score_flow(params, return_state=True)

    return score_into


def test_a_full_disk_loses_nothing_and_the_next_run_goes_on(
    disk, score_into, count_receipts, reference, assert_same_predictions
):
    files = [path for path in Path(reference.root).rglob("*") if path.is_file()]
    needed = sum(path.stat().st_blocks * 512 for path in files)
    store = disk(str(needed * 6 // 10)) / "store"
    state = score_into(store)
    assert exit_code(state) == ExitCode.FAILED, state
    assert "the disk is full: free some space and run the same command" in state.message
    assert_whole(Store(store), count_receipts)

    disk("64m", "remount")
    assert exit_code(score_into(store)) == ExitCode.COMPLETE
    assert_same_predictions(store, reference)
    assert not audit_store(Store(store)).of("damage")


def test_a_store_that_goes_away_is_not_begun_anew_and_the_next_run_goes_on(
    score_into, count_receipts, wait_for, reference, assert_same_predictions, tmp_path
):
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(score_into, store)
        wait_for(lambda: count_receipts(store) >= 1 or running.done(), "receipt")
        store.rename(elsewhere)
        state = running.result()
    assert exit_code(state) == ExitCode.FAILED, state
    assert "has gone away: bring it back" in state.message
    assert not store.exists()
    assert_whole(Store(elsewhere), count_receipts)

    elsewhere.rename(store)
    assert exit_code(score_into(store)) == ExitCode.COMPLETE
    assert_same_predictions(store, reference)
    assert not audit_store(Store(store)).of("damage")


def test_a_store_that_is_made_read_only_loses_nothing_and_the_next_run_goes_on(
    launch_powerless, tiny_config, images, count_receipts, wait_for, reference,
    assert_same_predictions, tmp_path,
):  # fmt: skip
    store = tmp_path / "store"
    where = (images, "--config", tiny_config, "--out", store, "--date", DATE, "--no-report")
    asked = ("pixelmill.flows.cli", "score", *where, "--cluster", "inline")
    command = launch_powerless(*asked)

    def has_begun() -> bool:
        assert command.is_running(), command.stderr()
        return count_receipts(store) >= 1

    wait_for(has_begun, "receipt")
    set_writable(store, False)
    try:
        assert command.wait() == ExitCode.FAILED, command.stderr()
        assert "no permission, or a read-only file system: make it writable" in command.stderr()
        assert "Traceback" not in command.stderr()
        assert_whole(Store(store), count_receipts)
    finally:
        set_writable(store, True)
    again = launch_powerless(*asked)
    assert again.wait() == ExitCode.COMPLETE, again.stderr()
    assert_same_predictions(store, reference)


def set_writable(root: Path, is_writable: bool) -> None:
    """The folder and all folders in it."""
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(0o755 if is_writable else 0o555)
