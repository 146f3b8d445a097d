import pytest

pytest.importorskip("duckdb")

from pixelmill.tasks.browse import Filter, Index
from pixelmill.tasks.store import CatalogRow, ShardWriter, publish
from pixelmill.tasks.store import ImageRow as StoredImage


@pytest.fixture
def index(store):
    index = Index(store)
    yield index
    index.close()


def found(index, **wanted):
    return [row["path"] for row in index.page(Filter(**wanted), 0, 500).rows]


def test_every_image_is_there_once_whatever_the_number_of_models(index, paths):
    assert found(index) == sorted(paths)
    assert index.page(Filter(), 0, 2).total == len(paths)


def test_pages_do_not_overlap(index, paths):
    pages = [index.page(Filter(), offset, 3).rows for offset in (0, 3, 6)]
    assert [row["path"] for page in pages for row in page] == sorted(paths)


def test_class_and_score_are_of_the_same_box(index, paths, kit):
    with_boxes = [path for path in paths if path != paths[3]]
    assert found(index, class_name="car", low=0.85) == sorted(with_boxes)
    assert found(index, class_name="boat", low=0.85) == []
    assert found(index, class_name=kit.EVIL, low=0.5, high=0.7) == sorted(with_boxes)
    assert found(index, class_name="day") == sorted(paths)  # a label of the whole image
    assert found(index, class_name="car", min_boxes=2) == []


def test_order_by_score_is_the_best_that_matched(index):
    rows = index.page(Filter(class_name="car", order="score"), 0, 3).rows
    assert {round(row["score"], 3) for row in rows} == {0.9}


def test_text_is_looked_for_in_paths_and_captions(index, paths):
    assert found(index, text="PIER/2") == [paths[2]]
    assert found(index, text="A QUAY") == sorted(paths)
    assert found(index, text="%") == []
    assert found(index, text="' OR 1=1 --") == []


def test_states_tell_empty_failed_and_found_apart(index, paths, specs):
    assert found(index, state="empty") == [paths[3]]
    assert paths[3] not in found(index, state="found", model=specs[0].key)
    (row,) = index.page(Filter(state="failed"), 0, 9).rows
    assert row["path"] == "gone.jpg"
    assert row["reason"] == "read: missing_file"
    assert row["image_id"] is None
    assert found(index, state="flagged") == []


def test_models_and_collections_narrow_it_down(index, specs, kit, paths):
    assert found(index, model=specs[1].key) == sorted(paths)
    assert found(index, model="nobody") == []
    assert found(index, collection=kit.COLLECTION) == sorted(paths)
    assert found(index, collection="other") == []


@pytest.mark.parametrize(
    "wrong",
    [{"state": "x"}, {"order": "x; DROP"}, {"low": 0.5, "high": 0.4}, {"low": float("nan")}],
)
def test_filters_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Filter(**wrong)


def test_what_a_run_publishes_meanwhile_is_seen_after_a_refresh(tmp_path, specs, kit, paths):
    store = kit.write_store(tmp_path, specs, paths[:2])
    index = Index(store)
    assert len(found(index)) == 2
    record = kit.make_record(specs, 1).model_copy(update={"run_id": "20260102T000000-bbbbbb"})
    writer = ShardWriter(store, record, 0)
    place = {"collection": kit.COLLECTION, "path": "new.png", "source_uri": "/nowhere/new.png"}
    place |= {"size_bytes": 1, "modified": "1", "image_id": "f" * 32}
    writer.add_catalog(CatalogRow(**place, width=64, height=48))
    image = StoredImage(**place, width=64, height=48)
    writer.add_image(image, specs[2].key, kit.predictions(0)[2])
    writer.commit({})
    publish(store)
    assert len(found(index)) == 2
    assert index.refresh()
    assert "new.png" in found(index)
    assert not index.refresh()
    index.close()


def test_parts_that_were_replaced_meanwhile_are_looked_for_again(tmp_path, specs, kit, paths):
    store = kit.write_store(tmp_path, specs, paths[:2])
    index = Index(store)
    for part in (tmp_path / "store" / "images").rglob("*.parquet"):
        part.unlink()
    for receipt in (tmp_path / "store" / "_commit" / "log").glob("*.done"):
        receipt.unlink()
    publish(store)  # the log's record is done again
    assert len(found(index)) == 2
    index.close()


def test_store_without_anything_has_no_images(bare_store):
    index = Index(bare_store)
    assert index.page(Filter(), 0, 5).total == 0
    assert index.page(Filter(state="failed"), 0, 5).total == 0
    assert index.facets()["models"] == []
    index.close()


def test_root_with_the_characters_of_a_pattern_is_read(tmp_path, specs, kit, paths):
    odd = tmp_path / "a[1]*'b"
    odd.mkdir()
    index = Index(kit.write_store(odd, specs, paths[:2]))
    assert len(found(index)) == 2
    index.close()


def test_remote_store_is_read_by_its_own_client(specs, kit, paths, tmp_path):
    from pixelmill.tasks.store import Store

    local = kit.write_store(tmp_path, specs, paths[:2])
    remote = Store("memory://browse", create=True)
    for entry in local.backend.list(""):
        remote.backend.put(entry.key, local.backend.get(entry.key))
    index = Index(remote)
    assert len(found(index)) == 2
    index.close()


def test_everything_of_an_image(index, store, paths, specs):
    image_id = store.find(paths[0])[0]["image_id"]
    rows = index.rows(image_id)
    assert {row["model"] for row in rows["images"]} == {spec.key for spec in specs}
    assert len(rows["detections"]) == 3
    assert index.source_uri(image_id).endswith("picture0.png")
    assert index.source_uri("0" * 32) is None


def test_results_become_a_table_in_their_order(index, paths):
    table = index.table(Filter(text="pier/"))
    assert table["path"].to_pylist() == sorted(paths)
    assert "source_uri" in table.column_names
