import json
import shutil
from pathlib import Path

import pytest

from pixelmill.tasks.history import list_runs, read_run, run_differences
from pixelmill.tasks.store import Store, end_run, run_ledger


@pytest.fixture(scope="module")
def store(scenes, score_plainly, tmp_path_factory) -> Store:
    """Two runs: one that ended, one that was killed."""
    folder = tmp_path_factory.mktemp("listed") / "photos"
    folder.mkdir()
    paths = sorted((scenes / "images").iterdir())
    for path in paths[:4]:
        shutil.copy2(path, folder)
    root = folder.parent / "store"
    store = score_plainly(folder, root)
    end_run(store, run_ledger(store, store.runs()[0]))
    shutil.copy2(paths[4], folder)
    score_plainly(folder, root, is_published=False)
    return store


def test_runs_are_listed_newest_first_with_how_they_ended(store, run):
    code, out, _ = run("runs", "list", store.root)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:4] == ["run", "date", "collection", "state"]
    assert [line[0] for line in lines[1:]] == list(reversed(store.runs()))
    assert [line[3] for line in lines[1:]] == ["killed", "complete"]
    assert lines[2][4:7] == ["4", "4", "0"]
    found = json.loads(run("runs", "list", store.root, "--last", "1", "--json")[1])
    assert [line["state"] for line in found] == ["killed"]
    assert list_runs(store, collection="other") == []


def test_a_run_is_shown_with_its_ledger_speed_and_software(store, run):
    first = store.runs()[0]
    code, out, _ = run("runs", "show", first, store.root)
    assert code == 0
    assert "4 of 4 listed" in out
    assert "1 of 1 committed" in out
    assert "-bound: " in out
    assert "4 listed = " in out
    assert f"pixelmill {store.run(first).software['pixelmill']}" in out
    document = json.loads(run("runs", "show", "last", store.root, "--json")[1])
    assert (document["run"]["state"], document["end"]) == ("killed", None)


def test_two_runs_side_by_side_show_what_differs(store, run):
    first, second = store.runs()
    code, out, _ = run("runs", "compare", first, "last", store.root)
    assert code == 0
    assert "4 of 4 listed" in out
    assert "1 of 5 listed" in out
    assert "differs" not in out
    a, b = read_run(store, first), read_run(store, second)
    config = b.record.config | {"compute": b.record.config["compute"] | {"retries": 5}}
    other = type(b)(
        b.line, b.record.model_copy(update={"config": config}), None, 1, b.stats, "", 1.0, None
    )
    assert list(run_differences(a, other)) == [("config.compute.retries", "2", "5")]


def test_an_unknown_run_is_wrong_usage(store, run, tmp_path: Path):
    assert run("runs", "show", "1999", store.root)[0] == 2
    assert run("runs", "list", str(tmp_path))[0] == 2


def test_the_cost_of_a_run_follows_from_its_workers_time(store, monkeypatch):
    record = store.run(store.runs()[0])
    compute = record.config["compute"] | {"cost_per_hour": 36.0}
    priced = record.model_copy(update={"config": record.config | {"compute": compute}})
    monkeypatch.setattr(Store, "run", lambda self, run_id: priced)
    detail = read_run(store, record.run_id)
    assert detail.cost == pytest.approx(0.01 * detail.worker_s)
