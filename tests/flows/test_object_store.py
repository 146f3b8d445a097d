"""The flow from a bucket to a bucket whose server fails one request in ten."""

import random
import shutil
from datetime import timedelta
from typing import Any

import pytest
import torch

from pixelmill.flows.cli import main
from pixelmill.flows.evaluation import EvaluateParams, evaluate_flow
from pixelmill.flows.job import ScoreParams, prepare_job
from pixelmill.flows.score import score_flow
from pixelmill.tasks import objects
from pixelmill.tasks.store import Store
from pixelmill.tasks.store.backend import ObjectBackend

DATE = "2024-05-31"
FAULTS = ("500", "503", "drop", "lost", "cut")


@pytest.fixture
def source(scenes, s3_root):
    """Six of the scenes in the store's bucket."""
    bucket = s3_root.rpartition("/")[0]
    for path in sorted((scenes / "images").iterdir())[:6]:
        ObjectBackend(bucket).put(f"camera/{path.name}", path.read_bytes())
    return f"{bucket}/camera"


def run(flow, params) -> tuple[Any, Any]:
    state = flow(params, return_state=True)
    return state, state.result(raise_on_failure=False)


@pytest.mark.slow
def test_scored_evaluated_and_reported_from_bucket_to_failing_bucket(
    server, faulty_s3, s3_root, source, scenes, inline, score_plainly, tmp_path, monkeypatch,
    assert_same_predictions,
):  # fmt: skip
    monkeypatch.setattr(objects, "REQUEST_BACKOFF", timedelta(milliseconds=2))
    monkeypatch.setattr(objects, "LONGEST_REQUEST_BACKOFF", timedelta(milliseconds=10))
    monkeypatch.setattr(objects, "BACKOFF_S", 0.01)
    local = tmp_path / "camera"
    local.mkdir()
    for path in sorted((scenes / "images").iterdir())[:6]:
        shutil.copy2(path, local)
    reference = score_plainly(local, tmp_path / "reference")

    monkeypatch.chdir(tmp_path)
    chance = random.Random(0)
    faulty_s3.fail(lambda *_: chance.choice(FAULTS) if chance.random() < 0.1 else None)
    truth = {"instances": str(scenes / "instances.json")}
    config = inline.model_copy(
        update={"evaluation": inline.evaluation.model_copy(update=truth | {"semantic": None})}
    )
    params = ScoreParams(
        source=source, store=s3_root, config=config, collection="camera", date=DATE
    )
    state, report = run(score_flow, params)
    assert (state.name, state.message) == ("Completed", "6 of 6 images scored")
    assert report.evaluation is not None
    assert_same_predictions(s3_root, reference)
    store = Store(s3_root)
    assert store.backend.get("reports/camera/report.html") == report.report.read_bytes()
    assert store.backend.exists("reports/camera/metrics.json")
    state, _ = run(score_flow, params)
    assert state.message == "0 of 6 images scored"

    store.backend.delete(["reports/camera/report.html"])
    config = EvaluateParams(store=s3_root, truth=config.evaluation)
    state, _ = run(evaluate_flow, config)
    assert state.is_completed()
    assert store.backend.exists("reports/camera/report.html")
    assert faulty_s3.seen.total() - faulty_s3.seen["ok"] > 20


def test_credentials_in_a_url_are_refused_before_anything_is_recorded(tmp_path, inline, capsys):
    secret = "s3://ann:hunter2hunter2@bucket/photos"
    for source, store in ((secret, tmp_path / "store"), (str(tmp_path), secret)):
        with pytest.raises(ValueError, match="has credentials in it") as caught:
            prepare_job(ScoreParams(source=source, store=str(store), config=inline))
        assert "hunter2" not in str(caught.value)
        with pytest.raises(SystemExit) as ended:
            main(["score", source, "--out", str(store), "--preset", "demo"])
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert "has credentials in it" in told
        assert "hunter2" not in told
    assert not (tmp_path / "store").exists()


def test_programs_are_trusted_by_option_only(tmp_path, capsys, monkeypatch):
    torch.save(torch.nn.Conv2d(3, 2, 1), tmp_path / "whole.pt")
    (tmp_path / "photos").mkdir()
    config = tmp_path / "mine.yaml"
    config.write_text(
        "name: mine\n"
        "models:\n"
        "  - {name: m, task: semantic_segmentation, architecture: pickle, weights: whole.pt,\n"
        "     classes: [a, b], preprocess: {canvases: [[32, 32]]}}\n"
    )
    monkeypatch.chdir(tmp_path)
    asked = ["plan", str(tmp_path / "photos"), "--config", str(config), "--out", "out"]
    with pytest.raises(SystemExit) as ended:
        main(asked)
    assert ended.value.code == 2
    assert "runs the code in" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*asked, "--trust"])
    assert ended.value.code == 0
