import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pixelmill.tasks.evaluation import instances, records
from pixelmill.tasks.evaluation.records import EvaluationRecords, image_keys
from pixelmill.tasks.store import Store, layout
from pixelmill.tasks.store.audit import audit_store
from pixelmill.tasks.store.garbage import collect_garbage
from pixelmill.tasks.store.prune import prune

KINDS = ["boxes", "masks", "semantic", "panoptic"]


def numbers(evaluation):
    """All but the time, and what is told of the records."""
    return [
        replace(
            model, notes=tuple(note for note in model.notes if "images as they were" not in note)
        )
        for model in evaluation.models
    ]


def told(evaluation):
    """kind -> how many images were matched anew."""
    return {
        model.kind: int(note.rpartition(" anew")[0].split()[-1].replace(",", ""))
        for model in evaluation.models
        for note in model.notes
        if "images as they were" in note
    }


def anew(nights):
    """The same evaluation as if there had never been another."""
    folder = Path(nights.store.root) / layout.EVALUATIONS
    aside = folder.with_name("aside")
    folder.rename(aside)
    found = nights.evaluate()
    shutil.rmtree(folder)
    aside.rename(folder)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_random_nights_add_up_to_the_very_numbers_of_a_full_run(nights, seed):
    world = nights(seed)
    world.add([f"0-{i}.jpg" for i in range(3)])
    world.evaluate()
    for night in range(1, 5):
        event = world.rng.choice(["images", "content", "truth", "rescored", "only truth"])
        known = sorted(world.versions)
        some = world.rng.choice(known, 2, replace=False).tolist()
        expected = 2
        if event == "images":
            world.add([f"{night}-{i}.jpg" for i in range(2)])
        elif event == "content":  # other files under the same names
            for path in some:
                world.versions[path] += 1
            world.score(some)
        elif event == "truth":
            for path in some:
                world.draw_truth(path)
            world.save_truth()
        elif event == "rescored":  # the same images, other predictions
            prune(world.store, before="2027-01-01")
            world.score(known)
            expected = len(known)
        else:  # an image that nobody has scored
            world.versions[f"{night}-new.jpg"] = 0
            world.draw_truth(f"{night}-new.jpg")
            world.save_truth()
            expected = 1
        found = world.evaluate()
        assert told(found) == dict.fromkeys(KINDS, expected), event
        full = anew(world)
        assert set(told(full).values()) == {len(world.truth)}
        assert numbers(found) == numbers(full), event
        assert set(told(world.evaluate()).values()) == {0}


def test_a_killed_evaluation_goes_on_where_it_was(nights, monkeypatch):
    world = nights(0)
    world.add([f"{i}.jpg" for i in range(6)])
    monkeypatch.setattr(instances, "_IMAGES_AT_ONCE", 2)
    match, calls = instances.match_images, []

    def dies(*arguments):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return match(*arguments)

    monkeypatch.setattr(instances, "match_images", dies)
    with pytest.raises(KeyboardInterrupt):
        world.evaluate()
    monkeypatch.undo()
    assert told(world.evaluate())["boxes"] == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_left_out_and_told(nights, damage):
    world = nights(1)
    world.add([f"{i}.jpg" for i in range(3)])
    before = world.evaluate()
    (file,) = (Path(world.store.root) / layout.EVALUATIONS).glob("*/boxes-*/*.parquet")
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 3] ^= 0xFF
    file.write_bytes({"cut": content[:-20], "flipped": content, "empty": b""}[damage])
    found = world.evaluate()
    (boxes,) = (one for one in found.models if one.kind == "boxes")
    assert "1 files of records could not be read: computed anew" in boxes.notes
    assert told(found)["boxes"] == 3
    assert told(world.evaluate())["boxes"] == 0
    assert [one.metrics for one in found.models] == [one.metrics for one in before.models]


def test_other_settings_find_nothing_and_do_not_disturb(nights):
    world = nights(2)
    world.add([f"{i}.jpg" for i in range(3)])
    first = world.evaluate()
    other = world.evaluate(void=0)
    assert told(other) == {"boxes": 0, "masks": 0, "semantic": 3, "panoptic": 3}
    assert told(world.evaluate()) == dict.fromkeys(KINDS, 0)
    assert numbers(world.evaluate()) == numbers(first)


def test_many_nights_stay_a_few_files(nights, monkeypatch):
    monkeypatch.setattr(records, "_MOST_PARTS", 2)
    world = nights(3)
    for night in range(4):
        world.add([f"{night}.jpg"])
        world.evaluate()
    folder = Path(world.store.root) / layout.EVALUATIONS
    for kind in folder.glob("*/*"):
        assert len(list(kind.iterdir())) <= records._MOST_PARTS, kind
    assert numbers(world.evaluate()) == numbers(anew(world))


def test_audit_and_garbage_leave_records_alone_and_a_retired_models_go(nights):
    world = nights(4)
    world.add([f"{i}.jpg" for i in range(3)])
    world.evaluate()
    findings = audit_store(world.store).findings
    assert not [one for one in findings if one.key.startswith(layout.EVALUATIONS)]
    collect_garbage(world.store, grace_s=-10)
    assert set(told(world.evaluate()).values()) == {0}
    prune(world.store, before="2027-01-01")
    collect_garbage(world.store, grace_s=-10)
    assert not list((Path(world.store.root) / layout.EVALUATIONS).rglob("*.parquet"))


def test_rows_kept_twice_are_found_once(tmp_path):
    store = Store(tmp_path, create=True)
    schema = pa.schema([pa.field("value", pa.int64(), False)])
    kept = EvaluationRecords(store, "m", "boxes", {}, schema)
    keys = image_keys(["a", "b"], ["0", "0"], [b"t", b"t"])

    def compute(todo):
        yield pa.table({"value": [7 + i for i in todo]}, schema=schema)

    kept.rows(keys, compute)
    # another evaluation at the same time
    kept._write(keys, pa.table({"value": [7, 8]}, schema=schema))
    rows, notes = kept.rows([keys[1], keys[0], keys[1]], compute)
    assert rows["value"].to_pylist() == [8, 7, 8]
    assert notes == ("3 of 3 images as they were matched before, 0 anew",)


def test_keys_differ_by_each_of_their_parts():
    parts = [
        ("a", "0", b"t"),
        ("b", "0", b"t"),
        ("a", "1", b"t"),
        ("a", "0", b"u"),
        (None, None, b"t"),
    ]
    keys = [image_keys([one], [commit], [truth])[0] for one, commit, truth in parts]
    assert len(set(keys)) == len(np.unique(keys)) == len(parts)
