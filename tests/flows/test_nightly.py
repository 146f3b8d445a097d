"""Nights and backfills in this process, with Prefect's own test server."""

import io
import itertools
import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from prefect.states import Failed
from safetensors import safe_open
from safetensors.torch import save_file

from pixelmill.configs.schema import (
    BackfillConfig,
    CanaryConfig,
    Gate,
    HealthConfig,
    NightlyConfig,
    NotifyConfig,
)
from pixelmill.flows import nightly, worker
from pixelmill.flows.backfill import BackfillParams, backfill_flow
from pixelmill.flows.commands.running import ExitCode, exit_code
from pixelmill.flows.job import ScoreParams, plan_job, prepare_job, read_known, resolve_models
from pixelmill.flows.neighbours import NIGHTLY, Neighbours
from pixelmill.flows.nightly import NightlyParams, nightly_flow
from pixelmill.tasks.ingest import ingest
from pixelmill.tasks.plan import save_plan
from pixelmill.tasks.report import build_report
from pixelmill.tasks.store import ShardRef, Store
from pixelmill.tasks.store.audit import audit_store

pytestmark = pytest.mark.slow

RECORD = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + chr(10))"


@pytest.fixture(scope="module")
def detector(inline):
    """The tiny detector alone, in this process, which does not compare with truth."""
    return inline.model_copy(update={"models": inline.models[:1]})


@dataclass(frozen=True)
class Notices:
    """Where a program records notices, and how they are read."""

    path: Path

    @property
    def target(self) -> NotifyConfig:
        return NotifyConfig(
            command=(sys.executable, "-S", "-c", RECORD, str(self.path)),
            outcomes=("complete", "quarantine", "out_of_time", "unhealthy", "failed"),
        )

    def __call__(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def notices(tmp_path):
    return Notices(tmp_path / "notices.jsonl")


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

    monkeypatch.setattr(nightly, "score", crash)
    score = params_of(with_notices(detector, notices), archive, tmp_path / "store")
    state, error = run(nightly_flow, NightlyParams(score=score))
    assert isinstance(error, OSError)
    assert exit_code(state) == ExitCode.FAILED
    (notice,) = notices()
    assert notice["outcome"] == "failed"
    assert "hunter2" not in json.dumps(notice)
    assert Neighbours(Store(tmp_path / "store")).is_anybody(NIGHTLY) is False


@pytest.mark.parametrize(
    ("num_failing", "num_tries", "told"), [(1, 2, ["complete"]), (3, 3, ["failed"])]
)
def test_a_night_that_is_tried_again_is_told_once_when_it_is_over(
    server, detector, archive, notices, tmp_path, monkeypatch, num_failing, num_tries, told
):
    score, tries = nightly.score, itertools.count(1)

    def crash_first(params):
        if next(tries) <= num_failing:
            raise OSError("the disk is away")
        return score(params)

    monkeypatch.setattr(nightly, "score", crash_first)
    params = params_of(with_notices(detector, notices), archive, tmp_path / "store", report=False)
    flow = nightly.scheduled_flow.with_options(retry_delay_seconds=0)
    run(flow, nightly.NightlyParams(score=params))
    assert next(tries) == num_tries + 1
    assert [notice["outcome"] for notice in notices()] == told


def test_a_night_of_which_shards_failed_is_not_told_while_it_will_be_tried_again(
    server, detector, archive, notices, tmp_path, monkeypatch
):
    score = nightly.score
    monkeypatch.setattr(nightly, "score", lambda params: Failed(data=score(params).data))
    params = params_of(with_notices(detector, notices), archive, tmp_path / "store", report=False)
    night = nightly.NightlyParams(score=params)
    state = nightly.scheduled_flow(night, return_state=True)
    assert (state.name, notices()) == ("AwaitingRetry", [])
    state = nightly.nightly_flow(night, return_state=True)
    assert (state.name, len(notices())) == ("Failed", 1)


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


def test_a_canary_that_fails_ends_the_backfill_and_a_better_model_goes_on(
    server, detector, archive, tmp_path, monkeypatch
):
    root = tmp_path / "store"
    canary = CanaryConfig(images=3, gates={"matched boxes": Gate(min=0.9)})
    backfill_config = BackfillConfig(canary=canary)
    detector = detector.model_copy(update={"backfill": backfill_config})
    worse = retrained(detector, tmp_path / "worse", shift=9.0)
    better = retrained(detector, tmp_path / "better")
    old_key, worse_key, better_key = (
        resolve_models(config)[0].key for config in (detector, worse, better)
    )

    def go(config):
        params = BackfillParams(score=params_of(config, archive, root))
        state, report = run(backfill_flow, params)
        return state, report, exit_code(state)

    def num_scored(key: str) -> int:
        return int((Store(root).images()["model"] == key).sum())

    _, report, code = go(detector)
    assert (code, report.canary) == (ExitCode.COMPLETE, None)

    # One image of each day, and no more however often it is asked for
    figures = ""
    for _ in range(2):
        state, report, code = go(worse)
        assert (state.name, code) == ("CanaryFailed", ExitCode.UNHEALTHY)
        assert report.canary.measures["matched boxes"] < 0.9
        figures = f"matched boxes is {report.canary.measures['matched boxes']:.4g}, below 0.9"
        models = f"({worse_key} beside {old_key})"
        assert state.message == f"the canary of 3 images says no: {figures} {models}"
        assert [part.status for part in report.now] == ["partial"] * 3
        assert num_scored(worse_key) == 3
    assert len(Store(root).runs()) == 6
    page = build_report(
        Store(root), None, tmp_path / "report.html", collection="archive", run_id=None
    )
    assert "The canary says no" in page.read_text()
    assert figures in page.read_text()

    # A stop within the sample is no leave to go on
    with monkeypatch.context() as patched:
        stop_after(patched, num_shards=1)
        state, report, code = go(better)
    assert (code, report.canary) == (ExitCode.TERMINATED, None)
    assert num_scored(better_key) == 1
    with monkeypatch.context() as patched:
        stop_after(patched, num_shards=3)  # two of the sample, one of the rest
        state, report, code = go(better)
    assert code == ExitCode.TERMINATED
    assert (report.canary.old, report.canary.broken) == (old_key, ())
    assert num_scored(better_key) == 4

    # What was well is not compared again
    with monkeypatch.context() as patched:
        patched.setattr("pixelmill.flows.canary.compare_models", None)
        _, again, code = go(better)
    assert (code, again.canary) == (ExitCode.COMPLETE, report.canary)
    assert num_scored(better_key) == 6
    page = build_report(
        Store(root), None, tmp_path / "report.html", collection="archive", run_id=None
    )
    assert "The canary says yes" in page.read_text()


# --- A fortnight ----------------------------------------------------------------------------------

NUM_NIGHTS, PER_NIGHT = 14, 12
KILLED, BLACK, CORRUPT, CHANGED = 5, 11, 13, 8
NUM_CORRUPT = 4  # of 12: a third


def day_of(night: int) -> str:
    return f"2024-06-{night:02d}"


def land(scenes: Path, folder: Path, night: int) -> None:
    """A night's images: the same scenes with other bytes, but for the two bad nights."""
    place = folder / day_of(night).replace("-", "/")
    place.mkdir(parents=True)
    paths = sorted((scenes / "images").iterdir())
    for index in range(PER_NIGHT):
        path = paths[index % len(paths)]
        data = path.read_bytes()
        if night == BLACK:
            content = io.BytesIO()
            with Image.open(path) as image:
                Image.new("RGB", image.size).save(content, "JPEG")
            data = content.getvalue()
        comment = b"\xff\xfe\x00\x06" + night.to_bytes(2, "big") + index.to_bytes(2, "big")
        data = data[:2] + comment + data[2:]
        is_corrupt = night == CORRUPT and index < NUM_CORRUPT
        (place / f"{index:03d}.jpg").write_bytes(data[: len(data) // 2] if is_corrupt else data)


def retrained(detector, folder: Path, shift: float = 0.0):
    """The detector with weights that differ a little: a new model that answers nearly the same.

    Args:
        detector: that finds next to nothing.
        folder: for the weights.
        shift: of all biases; with a big one it finds things everywhere.
    """
    (model,) = detector.models
    weights, generator = {}, torch.Generator().manual_seed(1)
    with safe_open(model.weights, "pt") as file:
        metadata = file.metadata()
        for name in file.keys():  # noqa: SIM118  # no mapping
            tensor = file.get_tensor(name)
            if tensor.is_floating_point():
                tensor = tensor * (1 + 1e-3 * torch.randn(tensor.shape, generator=generator))
                tensor = tensor + shift * name.endswith("bias")
            weights[name] = tensor
    folder.mkdir()
    save_file(weights, folder / "detector.safetensors", metadata)
    changed = model.model_copy(update={"weights": str(folder / "detector.safetensors")})
    return detector.model_copy(update={"models": (changed,)})


def be_killed(config, folder: Path, root: Path, date: str) -> str:
    """What a night leaves whose process was killed after its first shard: a plan and a receipt."""
    job = prepare_job(params_of(config, folder, root, date=date))
    store = Store(root)
    listing = ingest(job.source, job.config.ingest, read_known(store, job.collection))
    record = save_plan(store, plan_job(store, job, listing), session="0123456789abcdef")
    shard = ShardRef(record.run_id, 0, PER_NIGHT)
    worker.score_reference(store.root, "", shard, should_stop=lambda: False, is_isolated=False)
    assert record.num_shards == 3
    return record.run_id


def test_a_fortnight(server, detector, scenes, notices, tmp_path, monkeypatch):
    """Fourteen nights with all that goes wrong in them; ledgers, reports and codes as expected."""
    folder, root = tmp_path / "line1", tmp_path / "store"
    canary = CanaryConfig(images=8, gates={"matched boxes": Gate(min=0.8)})
    config = detector.model_copy(
        update={
            "health": HealthConfig(min_images=8),
            "nightly": NightlyConfig(days=2, notify=(notices.target,)),
            "backfill": BackfillConfig(pattern="%Y/%m/%d", canary=canary),
        }
    )
    old_key = resolve_models(config)[0].key
    codes: dict[int, ExitCode] = {}
    nights: dict[int, Any] = {}
    backfills: list[tuple[ExitCode, Any]] = []
    killed_run = ""
    for night in range(1, NUM_NIGHTS + 1):
        land(scenes, folder, night)
        if night == KILLED:
            killed_run = be_killed(config, folder, root, day_of(night))
            continue
        if night == CHANGED:
            config = retrained(config, tmp_path / "retrained")
        with_report = night in (BLACK, NUM_NIGHTS)  # most of a night's time
        score = params_of(config, folder, root, date=day_of(night), report=with_report)
        state, nights[night] = run(nightly_flow, NightlyParams(score=score))
        codes[night] = exit_code(state)
        if CHANGED <= night < CHANGED + 3:  # the archive, in three nights
            last = day_of(CHANGED - 1)
            params = BackfillParams(score=score, by="day", last=last, max_active=2)
            is_last = night == CHANGED + 2
            with monkeypatch.context() as patched:
                if not is_last:
                    stop_after(patched, num_shards=7)
                state, report = run(backfill_flow, params)
            backfills.append((exit_code(state), report))
    store = Store(root)
    new_key = resolve_models(config)[0].key
    assert new_key != old_key

    # Codes: only the black night and the corrupt one call for somebody
    unhealthy = {night for night, code in codes.items() if code == ExitCode.UNHEALTHY}
    assert unhealthy == {BLACK, CORRUPT}
    assert {code for night, code in codes.items() if night not in unhealthy} == {ExitCode.COMPLETE}
    alarms = {night: health_texts(nights[night]) for night in unhealthy}
    assert "failed (33.3%), most by decode/" in alarms[CORRUPT]
    assert "before" in alarms[BLACK]

    # Ledgers: each night's images once, those of the killed one by the next
    for night, report in nights.items():
        ((key, counts),) = report.run.end.ledger.items()
        assert key == (old_key if night < CHANGED else new_key)
        assert counts.adds_up
        assert report.run.end.state == "complete"
        expected = PER_NIGHT
        if night == KILLED + 1:
            expected += PER_NIGHT - 4  # the rest of the killed night
        elif night == CHANGED:
            expected += PER_NIGHT  # the night before, by the new model
        elif night == CORRUPT:
            expected -= NUM_CORRUPT
        assert counts.scored + counts.scored_empty == expected, night
    end = store.run_end(killed_run)
    assert end is not None
    assert (end.state, end.reason) == (
        "stopped",
        "abandoned: its process died, and its rest is planned anew",
    )
    images = store.images()
    assert not images.duplicated(["image_id", "model"]).any()
    by_model = images.groupby("model").size()
    assert by_model[old_key] == (CHANGED - 1) * PER_NIGHT
    assert by_model[new_key] == NUM_NIGHTS * PER_NIGHT - NUM_CORRUPT
    assert len(store.failures()) == NUM_CORRUPT

    # The backfill: a canary each time, stopped twice, then whole
    assert [code for code, _ in backfills] == [ExitCode.TERMINATED] * 2 + [ExitCode.COMPLETE]
    for _, report in backfills:
        assert report.canary is not None
        assert (report.canary.old, report.canary.new, report.canary.broken) == (
            old_key,
            new_key,
            (),
        )
    done = [sum(part.status == "done" for part in report.now) for _, report in backfills]
    assert done == sorted(done)
    assert 0 < done[0] < done[1] < done[2] == CHANGED - 1
    # Each image under its own day, but for the night before the change, which the first one did
    dates = sorted(set(images.loc[images["model"] == new_key, "date"]))
    assert dates == [day_of(night) for night in range(1, NUM_NIGHTS + 1) if night != CHANGED - 1]

    # Reports and notices
    told = notices()
    assert [notice["outcome"] for notice in told] == [
        "unhealthy" if night in unhealthy else "complete" for night in nights
    ]
    page = nights[NUM_NIGHTS].run.report.read_text()
    assert 'id="backfill-title"' in page
    assert "2024-06-07: done, 12 images" in page
    assert audit_store(store, full=True).is_sound


def stop_after(patched, *, num_shards: int) -> None:
    """SIGTERM, as a service is stopped, when so many shards are done."""
    score_shard, done = worker.score_shard, itertools.count(1)

    def count(*arguments, **options):
        outcome = score_shard(*arguments, **options)
        if next(done) == num_shards:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        return outcome

    patched.setattr(worker, "score_shard", count)


def health_texts(night) -> str:
    return "\n".join(each.text for each in night.health.findings if each.level == "alarm")
