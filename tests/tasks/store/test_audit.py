"""Each kind of damage is found by its name, mended, scored again, and gone."""

import errno
import hashlib
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixelmill.tasks.store import Store, end_run, layout, publish, run_ledger
from pixelmill.tasks.store.audit import audit_store
from pixelmill.tasks.store.backend import LocalBackend
from pixelmill.tasks.store.compact import compact
from pixelmill.tasks.store.findings import KINDS
from pixelmill.tasks.store.log import PartSum, PublishMark, load_record
from pixelmill.tasks.store.prune import prune
from pixelmill.tasks.store.repair import repair_store
from pixelmill.tasks.store.schemas import encode_table

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


@pytest.fixture(scope="module")
def sound(fakes, tmp_path_factory):
    """A store with one run of ten images and a broken file, published and ended in order."""
    store = Store(tmp_path_factory.mktemp("sound") / "out", create=True)
    files = {f"a/{i:02d}.jpg": f"picture {i}" for i in range(10)} | {"broken.jpg": "x"}
    fakes.score_run(store, fakes.make_run(store, files, run_id=RUN_A))
    publish(store)
    end_run(store, run_ledger(store, RUN_A))
    return store


@pytest.fixture
def ended(sound, tmp_path):
    """A copy of the sound store, to be damaged."""
    return Store(shutil.copytree(sound.root, tmp_path / "ended"))


@pytest.mark.parametrize(
    ("damage", "kind", "fast_too", "has_staging"),
    [
        pytest.param(
            *case, has_staging, id=f"{case[0].__name__}{'' if has_staging else ' for good'}"
        )
        for has_staging in (True, False)
        for case in DAMAGE
        # Where the attempts' tables are gone as garbage, parts cannot be rebuilt
        if has_staging or case[1].startswith("part_")
    ],
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


# What no checksum can tell: rows that contradict each other


def rewrite(store, key, change):
    """Publish other rows in a part's place, as if they had been meant."""
    part = layout.parse_part(key)
    with store.backend.open(key) as file:
        data = encode_table(change(pq.read_table(file)))
    store.backend.put(key, data)
    mark_key = layout.done_key(part.seq)
    mark = PublishMark.model_validate_json(store.backend.get(mark_key))
    found = PartSum(
        num_rows=pq.read_metadata(io.BytesIO(data)).num_rows,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    mark = mark.model_copy(update={"parts": {**mark.parts, key: found}})
    store.backend.put(mark_key, mark.model_dump_json().encode())


def first_row(table, name, value):
    """The table with another value in its first row that has one."""
    values = table[name].to_pylist()
    values[next(i for i, old in enumerate(values) if old is not None)] = value
    column = pa.array(values, table[name].type)
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)


CONTRADICTIONS = [
    ("images", "rows_unsorted", lambda table: table.take(pa.array(range(9, -1, -1)))),
    ("images", "rows_doubled", lambda table: table.take(pa.array([0, *range(10)]))),
    ("images", "counts_differ", lambda table: first_row(table, "n_detections", 77)),
    ("images", "counts_differ", lambda table: first_row(table, "n_captions", 2)),
    ("images", "masks_misfit", lambda table: first_row(table, "instances_row", 99)),
    ("images", "rows_orphaned", lambda table: table.slice(1)),
    ("detections", "rows_doubled", lambda table: table.take(pa.array([0, *range(len(table))]))),
    ("detections", "counts_differ", lambda table: table.slice(1)),
    ("detections", "masks_misfit", lambda table: first_row(table, "mask_area", 1)),
    ("detections", "masks_misfit", lambda table: first_row(table, "mask_layer", 40)),
    (
        "candidates",
        "rows_unsorted",
        lambda table: table.take(pa.array(range(len(table) - 1, -1, -1))),
    ),
    ("catalog", "catalog_unknown", lambda table: first_row(table, "image_id", "f" * 32)),
    ("catalog", "rows_unsorted", lambda table: table.take(pa.array(range(9, -1, -1)))),
]


@pytest.mark.parametrize(
    ("name", "kind", "change"),
    CONTRADICTIONS,
    ids=[f"{name} {kind} {i}" for i, (name, kind, _) in enumerate(CONTRADICTIONS)],
)
def test_contradictions_are_taken_out_and_scored_again(ended, fakes, contents, name, kind, change):
    scope = {} if name == "catalog" else {"model": fakes.INSTANCE.key}
    rewrite(ended, part(ended, name, **scope), change)
    repair = repair_store(ended)
    assert kind in {finding.kind for finding in repair.before.findings}
    assert repair.after.is_sound, repair.after.findings
    store = Store(ended.root)
    missing = missing_contents(store, fakes, contents)
    fakes.score_run(store, fakes.make_run(store, missing, run_id=RUN_B))
    publish(store)
    assert audit_store(store).is_sound
    assert_whole(store, fakes, contents)


def test_an_image_in_two_parts_stays_where_it_came_first(ended, fakes, contents):
    """As two publishers would leave it without the log's order."""
    before = rows_of(ended)
    fakes.score_run(ended, fakes.make_run(ended, {"new.jpg": "new"}, run_id=RUN_B))
    publish(ended)
    first, second = (p.key for p in ended.parts("images", model=fakes.SEMANTIC.key))
    with ended.backend.open(first) as file:
        old = pq.read_table(file).slice(0, 2)
    rewrite(ended, second, lambda table: pa.concat_tables([old, table]).sort_by("image_id"))
    repair = repair_store(ended)
    assert [finding.kind for finding in repair.before.of("damage")] == ["rows_doubled"]
    assert repair.after.is_sound
    assert_whole(Store(ended.root), fakes, {**contents, "new.jpg": "new"})
    assert is_part_of(before, rows_of(Store(ended.root)))


def test_lost_blocks_of_a_disk_are_damage_and_other_trouble_is_not(ended, fakes, monkeypatch):
    broken = {part(ended, "captions"), mask_object(ended, "semantic")}
    code, real = [errno.EIO], LocalBackend.get

    def get(self, key):
        if key in broken:
            raise OSError(code[0], "of the disk", key)
        return real(self, key)

    monkeypatch.setattr(LocalBackend, "get", get)
    assert {finding.key for finding in audit_store(ended).of("damage")} == broken
    code[0] = errno.ETIMEDOUT
    with pytest.raises(TimeoutError):
        audit_store(ended)


# Before publication, and after the death of processes


def test_a_damaged_staged_file_is_left_out_and_scored_again(store, fakes, contents):
    receipts = fakes.score_run(store, fakes.make_run(store, contents, run_id=RUN_A))
    boxes = next(file.path for file in receipts[0].files if file.table == "detections")
    flip(store.backend, boxes)
    before = audit_store(store)
    assert [finding.key for finding in before.of("damage")] == [boxes]
    assert {finding.kind for finding in before.of("note")} == {"unpublished"}
    assert repair_store(store).after.is_sound
    missing = missing_contents(store, fakes, contents)
    assert sorted(missing) == sorted(contents)[:4]
    fakes.score_run(store, fakes.make_run(store, missing, run_id=RUN_B))
    publish(store)
    assert_whole(Store(store.root), fakes, contents)


def test_a_half_written_record_that_nobody_finished_is_taken_back(store, fakes, contents):
    """Its parts, if any were written, are not the log's; its shards are published by another."""
    fakes.score_run(store, fakes.make_run(store, contents, run_id=RUN_A))
    publish(store)
    store.backend.delete([layout.done_key(0)])
    half_written_record(store, fakes)
    load_record.cache_clear()
    with pytest.raises(RuntimeError, match="audit --repair"):
        publish(Store(store.root))
    repair = repair_store(Store(store.root))
    assert {finding.kind for finding in repair.before.of("damage")} >= {"log_damaged"}
    assert repair.after.is_sound, repair.after.findings
    assert_whole(Store(store.root), fakes, contents)


def test_nobody_publishes_over_a_gap_in_the_log(store, fakes, contents):
    run = fakes.make_run(store, contents, run_id=RUN_A)
    for index in range(2):
        fakes.score_shard(store, run, index)
        publish(store)
    store.backend.delete([layout.log_key(0)])
    fakes.score_shard(store, run, 2)
    with pytest.raises(RuntimeError, match="audit --repair"):
        publish(store)
    assert repair_store(store).after.is_sound
    assert_whole(Store(store.root), fakes, contents)


def test_leftovers_are_told_when_they_are_old_and_deleted(published, fakes):
    late = fakes.write_shard(published, published.run(RUN_A), 0)
    late.stage()  # and dies
    published.backend.put("_commit/tmp/0123", b"half")
    published.backend.put(layout.plan_key(RUN_B), b"of no run")
    assert audit_store(published).findings == ()
    assert kinds(published, grace_s=0.0) == ["orphan", "orphaned_plan"]
    found = " ".join(finding.key for finding in audit_store(published, grace_s=0.0).findings)
    assert layout.staging_of(late.shard_id, late.attempt) in found
    assert f"{late.shard_id}-{late.attempt}.zarr/" in found
    repair = repair_store(published, grace_s=0.0)
    assert repair.after.findings == ()
    assert repair.before.is_sound
    assert repair.num_deleted >= 4


def test_what_was_pruned_is_not_missed(ended, fakes):
    prune(ended, model=fakes.SEMANTIC.key)
    assert audit_store(ended).is_sound


def test_a_compacted_store_is_sound_and_its_parts_are_mended(store, fakes, contents):
    run = fakes.make_run(store, contents, run_id=RUN_A)
    for index in range(run.num_shards):
        fakes.score_shard(store, run, index)
        publish(store)
    compact(store)
    assert audit_store(store).findings == ()
    key = part(store, "detections")
    assert layout.parse_part(key).tag
    store.backend.put(key, b"no table")
    repair = repair_store(store)
    assert [finding.kind for finding in repair.before.of("damage")] == ["part_damaged"]
    assert repair.after.is_sound
    missing = missing_contents(store, fakes, contents)
    fakes.score_run(store, fakes.make_run(store, missing, run_id=RUN_B))
    publish(store)
    assert audit_store(store).is_sound
    assert_whole(Store(store.root), fakes, contents)


def test_an_untrue_ledger_is_found_and_told_as_it_is(ended, fakes):
    end = ended.run_end(RUN_A)
    key = fakes.SEMANTIC.key
    counts = end.ledger[key].model_copy(update={"listed": 13, "scored": 12})
    told = end.model_copy(update={"ledger": {**end.ledger, key: counts}})
    ended.backend.put(layout.end_key(RUN_A), told.model_dump_json().encode())
    repair = repair_store(ended)
    assert [finding.kind for finding in repair.before.findings] == ["ledger_untrue"]
    assert repair.after.is_sound
    assert ended.run_end(RUN_A).ledger == end.ledger


def test_a_repair_of_a_sound_store_changes_nothing(ended):
    before = {entry.key: ended.backend.get(entry.key) for entry in ended.backend.list("")}
    repair_store(ended)
    assert {entry.key: ended.backend.get(entry.key) for entry in ended.backend.list("")} == before


def test_damage_on_s3_is_mended(s3_root, fakes, contents):
    store = Store(s3_root, create=True)
    fakes.score_run(store, fakes.make_run(store, contents, run_id=RUN_A))
    publish(store)
    assert audit_store(store).findings == ()
    flip_part(store, fakes)
    delete_mask_object(store, fakes)
    copy_part_to_another_date(store, fakes)
    repair = repair_store(store)
    assert {finding.kind for finding in repair.before.findings} == {
        "part_damaged",
        "masks_missing",
        "stray_part",
    }
    assert repair.after.is_sound
    missing = missing_contents(store, fakes, contents)
    fakes.score_run(store, fakes.make_run(store, missing, run_id=RUN_B))
    publish(store)
    assert audit_store(store).is_sound
    assert_whole(Store(s3_root), fakes, contents)


def test_what_an_audit_says_goes_into_json(ended, fakes):
    delete_part(ended, fakes)
    told = json.loads(json.dumps(repair_store(ended).to_json()))
    assert told["sound"]
    assert told["repaired"]["num_rebuilt"] == 1
    assert told["repaired"]["findings"][0]["kind"] == "ledger_untrue"
    assert {"severity", "kind", "key", "what", "mendable", "remedy"} == set(
        told["repaired"]["findings"][0]
    )


def test_the_page_tells_every_finding():
    page = (Path(__file__).parents[3] / "docs" / "store-format.md").read_text()
    for name, kind in KINDS.items():
        if kind.severity != "note":
            assert f"| {name} | {kind.meaning} | {kind.remedy} |" in page
