"""The flow in this process, with Prefect's own test server."""

import errno
import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL

from pixelmill.flows import worker
from pixelmill.flows.backfill import BackfillParams, backfill_flow
from pixelmill.flows.cli import main
from pixelmill.flows.commands.running import ExitCode, exit_code
from pixelmill.flows.evaluation import EvaluateParams, evaluate_flow
from pixelmill.flows.job import ScoreParams, prepare_job, preview_plan
from pixelmill.flows.score import score_flow
from pixelmill.tasks.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture
def images(scenes, tmp_path) -> Path:
    """Six of the scenes with their truth, in a folder that a test may change."""
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    for path in sorted((scenes / "images").iterdir())[:6]:
        shutil.copy2(path, folder / "images")
    shutil.copy2(scenes / "instances.json", folder)
    return folder / "images"


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(flow, params) -> tuple[Any, Any]:
    state = flow(params, return_state=True)
    return state, state.result(raise_on_failure=False)


def test_a_folder_is_scored_evaluated_and_reported_and_the_second_run_changes_nothing(
    server, inline, images, tmp_path
):
    params = ScoreParams(source=str(images), store=str(tmp_path / "store"), config=inline)
    state, report = run(score_flow, params)
    assert (state.name, state.message) == ("Completed", "6 of 6 images scored")
    assert set(report.scoring.num_scored.values()) == {6}
    assert report.collection == "set-images"
    assert report.report.read_text().startswith("<!")
    assert (report.report.parent / "metrics.json").exists()
    store = Store(tmp_path / "store")
    assert len(store.images()) == 12

    before = digests(tmp_path / "store")
    state, report = run(score_flow, params)
    assert state.message == "0 of 6 images scored"
    assert report.run_id is None
    assert digests(tmp_path / "store") == before


def test_added_images_are_scored_and_no_others(server, inline, images, scenes, tmp_path):
    params = ScoreParams(
        source=str(images), store=str(tmp_path / "store"), config=inline, report=False
    )
    run(score_flow, params)
    for path in sorted((scenes / "images").iterdir())[6:]:
        shutil.copy2(path, images)
    _, report = run(score_flow, params)
    assert report.num_planned == 2
    assert set(report.scoring.num_scored.values()) == {2}
    assert len(Store(tmp_path / "store").images()) == 16


def test_a_broken_image_is_quarantined_and_the_rest_is_scored(server, inline, images, tmp_path):
    (images / "broken.jpg").write_bytes(b"no image")
    params = ScoreParams(source=str(images), store=str(tmp_path / "store"), config=inline)
    state, report = run(score_flow, params)
    assert state.name == "CompletedWithQuarantine"
    assert report.scoring.num_failed == 1
    assert Store(tmp_path / "store").failures()["path"].tolist() == ["broken.jpg"]
    state, report = run(score_flow, params)
    assert (state.name, report.num_quarantined, report.num_planned) == ("Completed", 1, 0)


def test_the_ledger_of_a_run_accounts_for_every_image(server, inline, images, tmp_path):
    (images / "broken.jpg").write_bytes(b"no image")
    params = ScoreParams(source=str(images), store=str(tmp_path / "store"), config=inline)
    _, report = run(score_flow, params)
    assert report.end == Store(tmp_path / "store").run_end(report.run_id)
    assert report.end.state == "complete"
    for counts in report.end.ledger.values():
        assert counts.adds_up
        assert counts.scored + counts.scored_empty == 6
        assert sum(counts.failed.values()) == 1


def test_a_run_that_is_out_of_time_ends_clean_and_the_next_one_goes_on(
    server, inline, images, tmp_path
):
    params = ScoreParams(source=str(images), store=str(tmp_path / "store"), config=inline)
    state, report = run(score_flow, params.model_copy(update={"budget": "0.001s"}))
    assert (state.type, state.name) == (StateType.COMPLETED, "OutOfTime")
    assert exit_code(state) == ExitCode.OUT_OF_TIME
    assert "2 of 2 shards are left, run again to go on" in state.message
    assert (report.scoring.num_left, report.report) == (2, None)
    assert report.end.state == "stopped"
    assert {tuple(counts.skipped) for counts in report.end.ledger.values()} == {("deadline",)}
    state, report = run(score_flow, params.model_copy(update={"budget": "1h"}))
    assert (state.name, report.end.state) == ("Completed", "complete")


def test_more_failures_than_allowed_fail_the_run_and_what_is_committed_stays(
    server, inline, images, tmp_path
):
    for number in range(2):
        (images / f"a{number}.jpg").write_bytes(b"no image %d" % number)
    compute = inline.compute.model_copy(update={"max_failures": "1"})
    config = inline.model_copy(update={"compute": compute})
    params = ScoreParams(source=str(images), store=str(tmp_path / "store"), config=config)
    state, report = run(score_flow, params)
    assert exit_code(state) == ExitCode.FAILED
    assert "more failures than the 1 that compute.max_failures allows" in state.message
    assert "most often decode/" in state.message
    assert "what was committed is kept" in state.message
    assert report.end.state == "failed"
    assert len(Store(tmp_path / "store").failures()) == 2
    state, report = run(score_flow, params)
    assert (state.name, report.num_quarantined) == ("Completed", 2), "bad files are not retried"


def test_a_full_disk_ends_the_run_with_a_remedy_and_the_next_one_goes_on(
    server, inline, images, tmp_path, monkeypatch
):
    score_shard = worker.score_shard

    def run_full(root, run_id, shard_index, **options):
        if shard_index == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return score_shard(root, run_id, shard_index, **options)

    monkeypatch.setattr(worker, "score_shard", run_full)
    params = ScoreParams(source=str(images), store=str(tmp_path / "store"), config=inline)
    state, report = run(score_flow, params)
    assert exit_code(state) == ExitCode.FAILED
    assert "the disk is full: free some space" in state.message
    assert report.end.state == "failed"
    monkeypatch.undo()
    state, report = run(score_flow, params)
    assert state.name == "Completed"
    assert len(Store(tmp_path / "store").images()) == 12


def test_two_runs_at_once_score_everything_once_between_them(server, inline, copy_scenes, tmp_path):
    folder = copy_scenes(tmp_path / "night", 24)
    params = ScoreParams(
        source=str(folder), store=str(tmp_path / "store"), config=inline, report=False
    )
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda _: run(score_flow, params), range(2)))
    assert [state.name for state, _ in ended] == ["Completed", "Completed"]
    store = Store(tmp_path / "store")
    assert len(store.runs()) == 1, "the second one helped the first"
    assert sorted(report.end is None for _, report in ended) == [False, True]
    rows = store.images()
    assert len(rows) == len(rows.drop_duplicates(["image_id", "model"])) == 48


def test_evaluate_uses_the_truth_of_the_run_and_compares_a_subset_if_asked(
    server, inline, images, tmp_path, capsys, monkeypatch
):
    params = ScoreParams(
        source=str(images), store=str(tmp_path / "store"), config=inline, evaluate=False
    )
    run(score_flow, params)
    state, found = run(evaluate_flow, EvaluateParams(store=str(tmp_path / "store")))
    assert state.is_completed()
    assert [model.kind for model in found.evaluation.models] == ["boxes"]
    assert (found.folder / "metrics.parquet").exists()

    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    subset = tmp_path / "held-out.txt"
    subset.write_text("".join(f"{path.name}\n" for path in sorted(images.iterdir())[:2]))
    for options in ((), ("--instances", str(images.parent / "instances.json"))):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", str(tmp_path / "store"), "--subset", str(subset), *options])
        assert ended.value.code == 0
        told = capsys.readouterr().out
        assert "AP50 = mAP at IoU 0.5" in told
        assert f"metrics {found.folder}" in told
        metrics = json.loads((found.folder / "metrics.json").read_text())
        assert metrics["truth"]["subset"] == str(subset)
        assert metrics["models"][0]["num_images"] == 2


def test_backfill_goes_on_where_it_stopped(server, inline, images, tmp_path):
    for index, path in enumerate(sorted(images.iterdir())):
        day = images / "2024" / "05" / f"{index % 3 + 1:02d}"
        day.mkdir(parents=True, exist_ok=True)
        path.rename(day / path.name)
    score = ScoreParams(source=str(images), store=str(tmp_path / "store"), config=inline)
    params = BackfillParams(score=score, last="2024-05-02")
    state, report = run(backfill_flow, params.model_copy(update={"dry_run": True}))
    assert [(part.part, part.status) for part in report.parts] == [
        ("2024-05-01", "missing"),
        ("2024-05-02", "missing"),
    ]
    run(backfill_flow, params)
    rows = Store(tmp_path / "store").images()
    assert sorted(set(rows["date"])) == ["2024-05-01", "2024-05-02"]
    state, report = run(backfill_flow, params.model_copy(update={"last": None}))
    assert [part.status for part in report.parts] == ["done", "done", "missing"]
    assert [part.status for part in report.now] == ["done"] * 3
    assert (state.name, state.message) == ("Completed", "1 of 3 parts scored")


def test_a_plan_needs_no_store_and_makes_none(inline, images, tmp_path):
    params = ScoreParams(source=str(images), store=str(tmp_path / "store"), config=inline)
    plan = preview_plan(params.store, prepare_job(params))
    assert plan.num_planned == 6
    assert not (tmp_path / "store").exists()
