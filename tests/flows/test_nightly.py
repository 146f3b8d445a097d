"""Nights and backfills in this process, with Prefect's own test server."""

import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from prefect.testing.utilities import prefect_test_harness

from pixelmill.configs.load import load_config
from pixelmill.configs.schema import NightlyConfig, NotifyConfig
from pixelmill.flows import worker
from pixelmill.flows.backfill import BackfillParams, backfill_flow
from pixelmill.flows.commands.running import ExitCode, exit_code
from pixelmill.flows.job import ScoreParams
from pixelmill.flows.neighbours import NIGHTLY, Neighbours
from pixelmill.flows.nightly import NightlyParams, nightly_flow
from pixelmill.tasks.store import Store

pytestmark = pytest.mark.slow

RECORD = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + chr(10))"


@pytest.fixture(scope="module")
def server():
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="module")
def detector(tiny_config):
    """The tiny detector alone, in this process, which does not compare with truth."""
    config = load_config(tiny_config)
    compute = config.compute.model_copy(update={"cluster": "inline"})
    return config.model_copy(update={"compute": compute, "models": config.models[:1]})


@pytest.fixture
def notices(tmp_path):
    """Where a program records notices, and how they are read."""
    path = tmp_path / "notices.jsonl"

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    read.target = NotifyConfig(
        command=(sys.executable, "-S", "-c", RECORD, str(path)),
        on=("complete", "quarantine", "out_of_time", "unhealthy", "failed"),
    )
    return read


@pytest.fixture
def archive(scenes, tmp_path) -> Path:
    """Two images on each of three days."""
    folder = tmp_path / "archive"
    for index, path in enumerate(sorted((scenes / "images").iterdir())[:6]):
        day = folder / f"2024/05/{index // 2 + 1:02d}"
        day.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, day)
    return folder


def run(flow, params) -> tuple[Any, Any]:
    state = flow(params, return_state=True)
    return state, state.result(raise_on_failure=False)


def with_notices(config, notices):
    return config.model_copy(update={"nightly": NightlyConfig(notify=(notices.target,))})


def params_of(config, folder: Path, store: Path, **fields) -> ScoreParams:
    return ScoreParams(source=str(folder), store=str(store), config=config, **fields)


def test_a_night_is_scored_and_told_and_an_empty_one_too(
    server, detector, archive, notices, tmp_path
):
    score = params_of(with_notices(detector, notices), archive, tmp_path / "store")
    state, night = run(nightly_flow, NightlyParams(score=score))
    assert (state.name, night.untold) == ("Completed", ())
    assert night.run.report.exists()
    state, night = run(nightly_flow, NightlyParams(score=score))
    first, second = notices()
    assert first["title"] == "archive: complete, 6 of 6 images"
    assert "report: " in first["text"]
    assert first["facts"]["num_scored"] == 6
    assert (second["outcome"], second["facts"]["run_id"]) == ("complete", None)


def test_a_night_that_breaks_is_told_and_its_error_goes_on(
    server, detector, archive, notices, tmp_path, monkeypatch
):
    def crash(params):
        raise OSError("s3://bucket/x?sig=hunter2hunter2 is away")

    monkeypatch.setattr("pixelmill.flows.nightly.score", crash)
    score = params_of(with_notices(detector, notices), archive, tmp_path / "store")
    state, error = run(nightly_flow, NightlyParams(score=score))
    assert isinstance(error, OSError)
    assert exit_code(state) == ExitCode.FAILED
    (notice,) = notices()
    assert notice["outcome"] == "failed"
    assert "hunter2" not in json.dumps(notice)
    assert Neighbours(Store(tmp_path / "store")).is_anybody(NIGHTLY) is False


def test_a_second_night_on_the_same_store_is_skipped(server, detector, archive, tmp_path):
    score = params_of(detector, archive, tmp_path / "store")
    store = Store(tmp_path / "store", create=True)
    with Neighbours(store) as others, others.only_one(NIGHTLY):
        state, night = run(nightly_flow, NightlyParams(score=score))
    assert (state.name, night.run) == ("Skipped", None)
    assert exit_code(state) == ExitCode.COMPLETE
    assert store.runs() == []


def test_a_backfill_gives_way_to_a_night_and_then_goes_on(
    server, detector, archive, tmp_path, monkeypatch
):
    store = Store(tmp_path / "store", create=True)
    score_shard = worker.score_shard
    started: list[str] = []
    is_over = threading.Event()

    def record(root, run_id, shard_index, **options):
        started.append("night" if not is_over.is_set() else "backfill")
        return score_shard(root, run_id, shard_index, **options)

    monkeypatch.setattr(worker, "score_shard", record)
    params = BackfillParams(score=params_of(detector, archive, tmp_path / "store"), max_active=3)
    ended: list[Any] = []
    with Neighbours(store) as night:
        with night.only_one(NIGHTLY):
            thread = threading.Thread(target=lambda: ended.append(run(backfill_flow, params)))
            thread.start()
            thread.join(6)
            assert (len(store.runs()), started) == (3, []), "planned, and nothing started"
            is_over.set()
        thread.join(60)
    ((state, report),) = ended
    assert state.name == "Completed"
    assert started == ["backfill"] * 3
    assert [part.status for part in report.now] == ["done"] * 3


def test_a_part_that_failed_is_told_apart_and_tried_again_on_request(
    server, detector, archive, tmp_path
):
    (archive / "2024/05/01/broken.jpg").write_bytes(b"no image")
    (archive / "2024/05/09").mkdir()
    score = params_of(detector, archive, tmp_path / "store")
    params = BackfillParams(score=score, first="2024-05-01", last="2024-05-02", max_active=2)
    state, report = run(backfill_flow, params)
    assert exit_code(state) == ExitCode.QUARANTINE
    assert [part.status for part in report.now] == ["failed", "done"]
    state, report = run(backfill_flow, params.model_copy(update={"first": None, "last": None}))
    assert [part.status for part in report.parts] == ["failed", "done", "missing"]
    assert state.message == "1 of 3 parts scored"
    again = score.model_copy(update={"reprocess": "failed"})
    state, report = run(backfill_flow, params.model_copy(update={"score": again}))
    assert exit_code(state) == ExitCode.QUARANTINE
    assert len(Store(tmp_path / "store").failures()) == 2
    status = json.loads((tmp_path / "store/reports/archive/backfill.json").read_text())
    assert {part["part"]: part["status"] for part in status["parts"]} == {
        "2024-05-01": "failed",
        "2024-05-02": "done",
    }
