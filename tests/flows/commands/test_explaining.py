import json
import shutil
from pathlib import Path

import pytest

from pixelmill.tasks import rescore
from pixelmill.tasks.lineage import trace
from pixelmill.tasks.store import Store


@pytest.fixture(scope="module")
def scored(scenes, score_plainly, tmp_path_factory) -> tuple[Store, Path]:
    folder = tmp_path_factory.mktemp("explained") / "photos"
    folder.mkdir()
    for path in sorted((scenes / "images").iterdir())[:4]:
        shutil.copy2(path, folder)
    return score_plainly(folder, folder.parent / "store"), folder


def test_an_image_is_traced_to_its_run_weights_code_and_file_and_scores_the_same(scored, run):
    store, folder = scored
    name = sorted(path.name for path in folder.iterdir())[1]
    code, out, _ = run("explain", name, "--store", store.root)
    assert code == 0
    for lineage in trace(store, name):
        assert f"{lineage.row['model']} (" in out
        assert f"sha256 {lineage.spec.weights_sha256}" in out
        assert f"run       {lineage.run.run_id}, shard 000000" in out
        assert lineage.run.software["pixelmill"] in out
    assert f"= {folder / name}" in out
    # In a shard it was in a batch with others, whose sums may end in other bits
    verdicts = out.count("the same, bit for bit") + out.count("the same within the tolerance")
    assert verdicts == 2


def test_json_has_the_whole_lineage(scored, run):
    store, folder = scored
    name = next(folder.iterdir()).name
    arguments = (name, "--store", store.root, "--no-rescore", "--json", "--model")
    (model, *_) = store.models()
    code, out, _ = run("explain", *arguments, model)
    (document,) = json.loads(out)
    assert code == 0
    assert document["spec"]["key"] == document["row"]["model"] == model
    assert document["run"]["config"]["name"] == "tiny"
    assert document["again"] is None


def test_a_file_that_changed_or_went_is_told(scored, run, tmp_path):
    store, folder = scored
    path = sorted(folder.iterdir())[0]
    content = path.read_bytes()
    try:
        path.write_bytes(content + b"\0")
        code, out, _ = run("explain", path.name, "--store", store.root)
        assert code == 1
        assert "has changed: it is the image" in out
        path.unlink()
        assert "its file cannot be read" in run("explain", path.name, "--store", store.root)[1]
    finally:
        path.write_bytes(content)


def test_a_result_that_differs_is_told_with_what_changed(scored, run, monkeypatch):
    store, folder = scored
    name = next(folder.iterdir()).name
    now = rescore.describe_software() | {"torch": "99.0"}
    monkeypatch.setattr(rescore, "describe_software", lambda: now)
    lineage = next(each for each in trace(store, name) if each.spec.task != "detection")
    other = lineage.spec.preprocess.model_copy(update={"mean": (9.0, 0.0, -9.0)})
    spec = lineage.spec.model_copy(update={"preprocess": other})
    row = dict(lineage.row)

    # Rows of the recorded key, scored with another normalisation: as a bug would do
    monkeypatch.setattr(type(spec), "key", property(lambda self: row["model"]))
    changed = type(lineage)(row, lineage.run, spec, lineage.engine, lineage.attempt)
    assert rescore.rescore(store, changed).verdict == "within tolerance"
    monkeypatch.setattr(rescore, "PIXELS", 0.0)
    again = rescore.rescore(store, changed)
    assert again.verdict == "different"
    assert again.differences[0].startswith("label map: ")
    assert ("torch", lineage.run.software["torch"], "99.0") in again.changes


def test_an_unknown_image_is_wrong_usage(scored, run):
    store, _ = scored
    assert run("explain", "nothing.jpg", "--store", store.root)[0] == 2
