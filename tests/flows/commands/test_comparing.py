import json
import re

import pandas as pd
import pytest

from pixelmill.flows.commands.running import ExitCode


@pytest.fixture
def two_versions(predicted, tmp_path):
    """A store in which the second version of a detector lost its boats, and two more models."""
    store = predicted.new_store(tmp_path / "store")
    old, new = (predicted.make_spec(version=version) for version in (0, 1))

    def without_boats(index):
        return predicted.found_by(
            index, seed=1, change=lambda *thing: None if thing[0] == 1 else thing
        )

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    names = [f"pier/{predicted.EVIL}{i}.png" for i in range(30)]
    for spec, answer in ((old, predicted.found_by), (new, without_boats)):
        predicted.write_night(store, [(spec, answer)], count=30, folder=pictures, names=names)
    return store, old, new


def test_compare_names_the_change_and_leaves_files(two_versions, run, predicted):
    store, old, new = two_versions
    code, out, _ = run("compare", old.key, new.key, "--store", store.root)
    assert code == ExitCode.COMPLETE
    assert "class boat: gone" in out.splitlines()[1]
    (folder,) = (item for item in (store_path(store) / "reports").iterdir())
    page = (folder / "compare.html").read_text()
    assert predicted.EVIL not in page
    assert "class boat: gone" in page
    assert "boat lost" in page
    assert 'src="http' not in page
    # every colour that the style uses is there: styles are in several files
    assert set(re.findall(r"var\((--[a-z]+)\)", page)) <= set(re.findall(r"(--[a-z]+):", page))
    images = pd.read_parquet(folder / "images.parquet")
    assert len(images) == 30
    assert (
        images.change.max()
        == json.loads((folder / "compare.json").read_text())["pairs"][0]["images"][0]["change"]
    )
    classes = pd.read_parquet(folder / "classes.parquet").set_index(["class", "metric"])
    lost = classes.loc[[("boat", "lost")]]
    assert lost["value"].tolist() == lost["num_a"].tolist()


def store_path(store):
    from pathlib import Path

    return Path(store.root)


def test_compare_with_truth_tells_how_sure_it_is(two_versions, run, predicted, tmp_path):
    store, old, new = two_versions
    truth = {
        "images": [
            {"id": i, "file_name": f"pier/{predicted.EVIL}{i}.png",
             "width": predicted.WIDTH, "height": predicted.HEIGHT}
            for i in range(30)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(predicted.CLASSES)],
        "annotations": [
            {"image_id": i, "category_id": label,
             "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
            for i in range(30)
            for label, box, _ in predicted.scene(i)
        ],
    }  # fmt: skip
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(truth))
    folder = tmp_path / "found"
    code, out, _ = run(
        "compare", old.key, new.key, "--store", store.root, "--instances", path, "--to", folder
    )
    assert code == ExitCode.COMPLETE
    assert "boxes by truth" in out
    (found,) = json.loads((folder / "compare.json").read_text())["pairs"][0]["truth"]
    sure = found["differences"][0]
    assert sure["adjusted_p"] < 0.5
    assert "95 % interval" in (folder / "compare.html").read_text()


def test_what_cannot_be_compared_is_wrong_usage(two_versions, run, tmp_path):
    store, old, new = two_versions
    assert run("compare", "finder", old.key, "--store", store.root)[0] == ExitCode.USAGE
    code, _, err = run("compare", store.root, store.root, "--with-truth")
    assert (code, "models of one store" in err) == (ExitCode.USAGE, True)
    assert run("compare", old.key, new.key, "--sample", 0)[0] == ExitCode.USAGE


def test_two_stores_by_their_folders(two_versions, run, tmp_path):
    store, old, _ = two_versions
    code, out, _ = run(
        "compare", store.root, store.root, "--model", old.key, "--to", tmp_path / "out", "--json"
    )
    assert code == ExitCode.COMPLETE
    assert json.loads(out)["pairs"][0]["findings"] == []


def test_health_exits_for_schedulers(predicted, run, tmp_path):
    store = predicted.new_store(tmp_path / "store")
    spec = predicted.make_spec()
    for night in range(4):
        predicted.write_night(
            store, [(spec, predicted.found_by)], date=f"2026-01-0{night + 1}", first=60 * night,
            count=60,
        )  # fmt: skip
    code, out, _ = run("health", store.root)
    assert (code, "as the nights before" in out) == (ExitCode.COMPLETE, True)
    predicted.write_night(
        store, [(spec, predicted.found_by)], date="2026-01-05", first=240, count=60, num_failed=2
    )
    assert run("health", store.root)[0] == ExitCode.COMPLETE
    assert run("health", store.root, "--strict")[0] == ExitCode.UNHEALTHY

    def no_cars(index):
        return predicted.found_by(index, change=lambda *thing: thing if thing[0] else None)

    predicted.write_night(store, [(spec, no_cars)], date="2026-01-06", first=300, count=60)
    code, out, _ = run("health", store.root, "--json")
    assert code == ExitCode.UNHEALTHY
    found = json.loads(out)
    assert found["findings"][0]["class_name"] == "car"
    assert len(found["models"][0]["nights"]) == 6
    folder = store_path(store) / "reports" / predicted.COLLECTION
    assert json.loads((folder / "health.json").read_text()) == found
    page = (folder / "health.html").read_text()
    assert "Alarm" in page
    assert "car" in page
    assert run("health", store.root, "--date", "2020-01-01")[0] == ExitCode.USAGE


def test_export_and_review_there_and_back(two_versions, run, tmp_path):
    store, old, new = two_versions
    out = tmp_path / "out"
    options = ("--model", old.key, "--out", out)
    code, told, _ = run("export", store.root, "--format", "coco", *options, "--min-score", 0.5)
    assert code == ExitCode.COMPLETE
    assert told.startswith("30 images, ")
    exported = json.loads((out / "instances.json").read_text())
    assert exported["info"]["model"] == old.key
    assert min(note["score"] for note in exported["annotations"]) >= 0.5
    assert run("export", store.root, "--format", "coco", "--out", out)[0] == ExitCode.USAGE
    assert run("export", store.root, "--format", "voc", *options, "--where", "x")[0] == 2

    queue = tmp_path / "queue"
    code, told, _ = run(
        "review", store.root, "--limit", 5, "--model", new.key, "--model", old.key,
        "--format", "label-studio", "--out", queue,
    )  # fmt: skip
    assert code == ExitCode.COMPLETE
    assert "images of harbour to look at" in told
    tasks = json.loads((queue / "tasks.json").read_text())
    assert len(tasks) == len(pd.read_parquet(queue / "queue.parquet")) == 5
    assert {task["predictions"][0]["model_version"] for task in tasks} == {new.key}

    truth = tmp_path / "truth.json"
    for expected in ("30 new", "30 the same"):
        code, told, _ = run("review", "import", out / "instances.json", "--truth", truth)
        assert (code, expected in told) == (ExitCode.COMPLETE, True)
    assert run("review", "import", tmp_path / "none.json", "--truth", truth)[0] == ExitCode.USAGE
