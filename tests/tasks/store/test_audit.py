"""Each kind of damage is found by its name, mended, scored again, and gone."""

import pytest

from pixelmill.tasks.store import Store, end_run, layout, publish, run_ledger
from pixelmill.tasks.store.audit import audit_store
from pixelmill.tasks.store.repair import repair_store

RUN_A, RUN_B = "20260101T000000-aaaaaa", "20260102T000000-bbbbbb"


def kinds(store, full=True, **how):
    return sorted({finding.kind for finding in audit_store(store, full=full, **how).findings})


@pytest.mark.parametrize("full", [True, False])
def test_a_sound_store_has_no_findings(published, full):
    audit = audit_store(published, full=full)
    assert audit.findings == ()
    assert audit.is_sound
    assert audit.num_rows["images"] == 20
    assert audit.num_receipts == 3
    assert audit.num_mask_stores == 6


def flip(backend, key, place=0.5):
    """Change one bit of an object, its length stays."""
    data = bytearray(backend.get(key))
    data[int(len(data) * place)] ^= 1
    backend.put(key, bytes(data))


def part(store, name, **partitions):
    return store.parts(name, **partitions)[0].key


def mask_object(store, kind):
    """The pixels of some masks."""
    entries = [e.key for e in store.backend.list("masks") if f"/{kind}/" in e.key]
    return next(key for key in entries if "/labels/c/" in key)


def flip_part(store, fakes):
    flip(store.backend, part(store, "detections"))


def flip_footer(store, fakes):
    flip(store.backend, part(store, "images", model=fakes.SEMANTIC.key), 0.98)


def truncate_part(store, fakes):
    key = part(store, "captions")
    store.backend.put(key, store.backend.get(key)[:-100])


def delete_part(store, fakes):
    store.backend.delete([part(store, "images", model=fakes.INSTANCE.key)])


def delete_labels(store, fakes):
    store.backend.delete([part(store, "labels")])


def flip_catalog(store, fakes):
    flip(store.backend, part(store, "catalog"), 0.3)


def delete_failures(store, fakes):
    store.backend.delete([part(store, "failures")])


def copy_part(store, fakes):
    key = part(store, "detections")
    store.backend.put(key.replace("00000000", "00000007"), store.backend.get(key))


def copy_part_to_another_date(store, fakes):
    key = part(store, "images")
    store.backend.put(key.replace("2026-01-01", "2026-02-02"), store.backend.get(key))


def foreign_file(store, fakes):
    store.backend.put("images/notes.txt", b"mine")


def delete_mask_object(store, fakes):
    store.backend.delete([mask_object(store, "semantic")])


def flip_mask_object(store, fakes):
    flip(store.backend, mask_object(store, "semantic"), 0.1)


def truncate_mask_object(store, fakes):
    key = mask_object(store, "instances")
    store.backend.put(key, store.backend.get(key)[:-3])


def delete_mask_root(store, fakes):
    store.backend.delete([store.images(fakes.SEMANTIC.key).mask_store[0] + "/zarr.json"])


def break_mask_root(store, fakes):
    key = store.images(fakes.SEMANTIC.key).mask_store[0] + "/zarr.json"
    store.backend.put(key, store.backend.get(key)[:-7])


def half_written_record(store, fakes):
    key = layout.log_key(0)
    store.backend.put(key, store.backend.get(key)[:40])


def delete_record(store, fakes):
    store.backend.delete([layout.log_key(0)])


def half_written_mark(store, fakes):
    key = layout.done_key(0)
    store.backend.put(key, store.backend.get(key)[:40])


def half_written_receipt(store, fakes):
    key = layout.receipt_key(RUN_A, f"{RUN_A}-000001")
    store.backend.put(key, store.backend.get(key)[:40])


def delete_plan(store, fakes):
    store.backend.delete([layout.plan_key(RUN_A), layout.end_key(RUN_A)])


def half_written_run(store, fakes):
    store.backend.put(layout.run_key(RUN_A), b'{"run_id": ')


DAMAGE = [
    (flip_part, "part_damaged", False),
    (flip_footer, "part_damaged", False),
    (truncate_part, "part_damaged", True),
    (delete_part, "part_missing", True),
    (delete_labels, "part_missing", True),
    (flip_catalog, "part_damaged", False),
    (delete_failures, "part_missing", True),
    (copy_part, "stray_part", True),
    (copy_part_to_another_date, "stray_part", True),
    (foreign_file, "foreign_object", True),
    (delete_mask_object, "masks_missing", True),
    (flip_mask_object, "masks_damaged", False),
    (truncate_mask_object, "masks_damaged", True),
    (delete_mask_root, "masks_missing", True),
    (break_mask_root, "masks_damaged", True),
    (half_written_record, "log_damaged", True),
    (delete_record, "log_damaged", True),
    (half_written_mark, "mark_damaged", True),
    (half_written_receipt, "receipt_damaged", True),
    (delete_plan, "plan_damaged", True),
    (half_written_run, "run_damaged", True),
]


@pytest.fixture
def ended(store, fakes, contents):
    """A store with one run of ten images and a broken file, published and ended in order."""
    fakes.score_run(store, fakes.make_run(store, contents | {"broken.jpg": "x"}, run_id=RUN_A))
    publish(store)
    end_run(store, run_ledger(store, RUN_A))
    return store


@pytest.mark.parametrize(
    ("damage", "kind", "fast_too", "has_staging"),
    [(*case, True) for case in DAMAGE]
    # Where the tables of the attempts are garbage already, parts cannot be rebuilt
    + [(*case, False) for case in DAMAGE if case[1].startswith("part_")],
    ids=lambda it: getattr(it, "__name__", ""),
)
def test_damage_is_mended(ended, fakes, contents, damage, kind, fast_too, has_staging):
    """From the staged files to the byte, or by scoring what was taken out."""
    reference = rows_of(ended)
    if not has_staging:
        ended.backend.delete([entry.key for entry in ended.backend.list(layout.STAGING)])
    damage(ended, fakes)
    if fast_too and has_staging:
        assert kind in kinds(ended, full=False)
    repair = repair_store(ended)
    assert kind in {finding.kind for finding in repair.before.findings}
    assert repair.after.is_sound, repair.after.findings
    store = Store(ended.root)
    missing = missing_contents(store, fakes, contents)
    if has_staging and not kind.startswith("masks"):
        assert not missing
        assert rows_of(store) == reference
    assert is_part_of(rows_of(store), reference)
    if missing:
        fakes.score_run(store, fakes.make_run(store, missing, run_id=RUN_B))
        publish(store)
    assert audit_store(store).is_sound
    assert_whole(store, fakes, contents)


def rows_of(store):
    """All rows of all tables, without when and by which shard they came."""
    provenance = {"shard_id", "run_id", "scored_at", "mask_store", "attempt", "failed_at"}
    return {
        name: sorted(
            tuple((key, value) for key, value in row.items() if key not in provenance)
            for row in store.table(name).to_pylist()
        )
        for name in ("images", "detections", "captions", "labels", "candidates")
    }


def is_part_of(rows, reference):
    return all(set(rows[name]) <= set(reference[name]) for name in reference)


def missing_contents(store, fakes, contents):
    """What the planner would plan: inputs that lack a prediction, or are not catalogued."""
    known = set(store.catalog().path)
    have = [set(store.images(spec.key).image_id) for spec in fakes.MODELS]
    return {
        path: content
        for path, content in contents.items()
        if path not in known or not all(fakes.image_id_of(content) in ids for ids in have)
    }


def assert_whole(store, fakes, contents):
    """Every image once per model, with all its rows and true masks."""
    ids = sorted({fakes.image_id_of(content) for content in contents.values()})
    for spec in fakes.MODELS:
        assert store.images(spec.key).image_id.sort_values().tolist() == ids
    boxes = store.boxes(fakes.INSTANCE.key)
    expected = [(i, rank) for i in ids for rank in range(fakes.num_detections(i))]
    assert sorted(zip(boxes.image_id, boxes["rank"], strict=True)) == expected
    assert store.captions(fakes.INSTANCE.key).image_id.sort_values().tolist() == ids
    assert sorted(store.catalog().path) == sorted(contents)
    for image_id in ids:
        assert (store.semantic_mask(image_id) == fakes.semantic_of(image_id)).all()
        if fakes.num_detections(image_id):
            truth = fakes.full_masks(fakes.detections_of(image_id), *fakes.size_of(image_id))
            assert (store.instances(image_id).masks == truth).all()
