"""A folder full of files that mean harm: each ends as it should, and the others as without them."""

import os
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pixelmill.configs.load import load_config
from pixelmill.configs.schema import IngestConfig
from pixelmill.flows.job import ScoreParams, prepare_job, preview_plan
from pixelmill.tasks.sources import list_images
from pixelmill.tasks.store import Store
from pixelmill.tasks.store.audit import audit_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_GOOD = 24
DATE = "2024-05-31"
COMPLETE_WITH_FAILURES = 3
NOT_UTF8_AS_TOLD = "caf\\xe9.jpg"


@pytest.fixture(scope="module")
def files(hostile):
    return list(hostile.corpus(has_limits=True))


@pytest.fixture(scope="module")
def folder(copy_scenes, files, hostile, tmp_path_factory) -> Path:
    """Good images and hostile ones."""
    folder = copy_scenes(tmp_path_factory.mktemp("hostile") / "camera", NUM_GOOD)
    for file in files:
        file.make(folder / os.fsdecode(file.path))
    for name, seed in (("swapped", 60), ("grown", 61), ("gone", 62)):
        (folder / f"zz {name}.png").write_bytes(hostile.encode("PNG", seed=seed))
    return folder


@pytest.fixture(scope="module")
def config(tiny_config) -> Path:
    document = yaml.safe_load(tiny_config.read_text())
    document["ingest"] = {"max_decode_s": 3}  # ten times as long where an image is alone
    document["shard"] = {"max_images": 8}
    path = tiny_config.with_name("hostile.yaml")
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def planted(hostile, tmp_path_factory) -> dict[str, str]:
    """Environment of workers whose JPEG decoder misbehaves, and the log of its misdeeds."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "simplejpeg").mkdir()
    (folder / "simplejpeg" / "__init__.py").write_text(hostile.PLANTED_DECODER)
    (folder / "log").touch()
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PLANTED_LOG": str(folder / "log")}


@pytest.fixture(scope="module")
def scored(folder, config, planted, hostile, launch_powerless, wait_for, tmp_path_factory) -> Path:
    """The store of a run in which some files are also replaced between listing and reading."""
    store = tmp_path_factory.mktemp("hostile-store") / "store"
    command = launch_powerless(
        "pixelmill.flows.cli", "score", folder, "--config", config, "--out", store,
        "--date", DATE, "--no-report", "--cluster", "local:2", "--memory", "1500MB", **planted,
    )  # fmt: skip

    def has_planned() -> bool:
        assert command.is_running(), command.stderr()
        return any(store.glob("_commit/runs/*.parquet"))

    wait_for(has_planned, "plan")  # workers are only being started now
    before = (folder / "zz swapped.png").read_bytes()
    after = before[:-1] + b"\x00"  # another image id, but damaged
    assert len(after) == len(before)
    (folder / "zz swapped.png").write_bytes(after)
    (folder / "zz grown.png").write_bytes(hostile.encode("PNG", seed=63, size=(80, 60)))
    (folder / "zz gone.png").unlink()
    code = command.wait(600)
    assert code == COMPLETE_WITH_FAILURES, command.stderr()
    assert "Traceback" not in command.stderr()
    return store


def test_every_hostile_file_ends_in_its_expected_state(scored, files):
    store = Store(scored)
    statuses = store.images().groupby("path")["status"].agg(set).to_dict()
    failures = store.failures()
    found, expected = {}, {}
    for file in files:
        if file.problem is not None:
            continue
        rows = failures[failures["path"] == file.path]
        states = {(row.stage, row.reason, bool(row.retryable)) for row in rows.itertuples()}
        found[file.path] = statuses.get(file.path, set()), states
        expected[file.path] = (
            {file.status} if file.status else set(),
            {file.failure} if file.failure else set(),
        )
    assert found == expected


def test_what_cannot_be_listed_is_told_with_its_reason(scored, folder, files):
    found = list_images(str(folder), IngestConfig()).problems.to_pylist()
    reasons = {row["path"]: row["reason"] for row in found}
    expected = {file.path: file.problem for file in files if file.problem}
    expected[NOT_UTF8_AS_TOLD] = expected.pop(b"caf\xe9.jpg")
    if os.geteuid() == 0:  # this process is not powerless
        del expected["locked folder"]
    assert reasons == expected
    (run_id,) = Store(scored).runs()
    assert Store(scored).run(run_id).listing["problems"] == sum(bool(f.problem) for f in files)


def test_a_killer_costs_three_workers_at_most(scored, files, planted):
    deaths = Counter(Path(planted["PLANTED_LOG"]).read_text().split())
    allowed = {Path(str(file.path)).stem: file.max_deaths for file in files if file.max_deaths}
    assert deaths.keys() == allowed.keys()
    assert all(deaths[how] <= allowed[how] for how in allowed), deaths


def test_the_other_images_are_scored_as_without_them(scored, scenes, copy_scenes, score_plainly,
    assert_same_predictions, tmp_path,
):  # fmt: skip
    reference = score_plainly(copy_scenes(tmp_path / "camera", NUM_GOOD), tmp_path / "reference")
    good = set(reference.images()["image_id"])
    assert len(good) == NUM_GOOD
    assert_same_predictions(scored, reference, only=good)


def test_nothing_is_lost_and_the_store_is_sound(scored, folder):
    store = Store(scored)
    assert not audit_store(store).of("damage")
    (run_id,) = store.runs()
    end = store.run_end(run_id)
    assert end is not None
    assert end.state == "complete"
    assert all(counts.adds_up for counts in end.ledger.values())


def test_files_that_changed_while_they_were_scored_are_tried_again_and_bad_ones_are_not(
    scored, folder, config
):
    store = Store(scored)
    failures = store.failures().set_index("path")
    assert tuple(failures.loc["zz gone.png", ["stage", "reason", "retryable"]]) == (
        "read", "not_found", True,
    )  # fmt: skip
    assert tuple(failures.loc["zz grown.png", ["stage", "reason", "retryable"]]) == (
        "read", "changed", True,
    )  # fmt: skip
    params = ScoreParams(source=str(folder), store=str(scored), config=load_config(config))
    again = preview_plan(params.store, prepare_job(params)).rows.to_pandas()["path"]
    again = again[~again.str.startswith("locked folder/")]  # root looks into it
    assert set(again) == {"zz swapped.png", "zz grown.png", "locked.jpg"}
