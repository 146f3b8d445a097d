import json

import pandas as pd
import pytest

from pixelmill.tasks.handoff.review import build_queue, save_queue
from pixelmill.tasks.predictions import ImagePrediction, Label


@pytest.fixture
def store(predicted, tmp_path):
    """Two versions that differ on images 0 to 4, a sure and an unsure sorter, and failures."""
    store = predicted.new_store(tmp_path / "store")
    old, new = (predicted.make_spec(version=version) for version in (0, 1))

    def differs(index):
        change = (lambda *thing: None) if index < 5 else None
        return predicted.found_by(index, change=change)

    def unsure(index):
        lead = 0.02 if index == 7 else 0.6
        return ImagePrediction(labels=(Label(0, 0.5 + lead / 2), Label(1, 0.5 - lead / 2)))

    predicted.write_night(store, [(old, predicted.found_by)], count=20)
    predicted.write_night(
        store, [(new, differs), (predicted.make_spec("sorter", "classification"), unsure)],
        count=20, num_failed=2,
    )  # fmt: skip
    return store


def test_what_failed_and_where_models_disagree_comes_first(store, predicted):
    review = build_queue(store, collection=predicted.COLLECTION)
    assert [item.causes["failed"] for item in review.items[:2]] == [1, 1]
    assert "failed: decode, truncated" in review.items[0].reasons
    disagreed = {item.path for item in review.items[2:7]}
    assert disagreed == {f"pier/{index:05d}.png" for index in range(5)}
    assert review.items[2].reasons[-1].endswith(("lost", "gained"))
    priorities = [item.priority for item in review.items]
    assert priorities == sorted(priorities, reverse=True)
    assert all(0 < priority <= 1 for priority in priorities)


def test_labels_without_a_lead_are_near_the_threshold(store, predicted):
    review = build_queue(store, collection=predicted.COLLECTION)
    (item,) = (item for item in review.items if item.path == "pier/00007.png")
    assert "sorter: car or boat" in item.reasons


def test_boxes_near_the_threshold_are_counted(store, predicted):
    review = build_queue(store, collection=predicted.COLLECTION, threshold=0.5, margin=0.05)
    boxes = store.boxes(predicted.make_spec().key)
    near = boxes[boxes.score.between(0.45, 0.55)].groupby("image_id").size()
    found = {
        item.image_id: reason
        for item in review.items
        for reason in item.reasons
        if reason.endswith("near 0.5")
    }
    assert len(near) > 3
    assert {i: f"finder: {n} boxes near 0.5" for i, n in near.items()}.items() <= found.items()


def test_files_with_other_content_than_before(store, predicted):
    spec = predicted.make_spec()
    names = [f"pier/{index:05d}.png" for index in range(18, 20)]
    predicted.write_night(store, [(spec, predicted.found_by)], first=100, count=2, names=names)
    review = build_queue(store, collection=predicted.COLLECTION)
    assert {i.path for i in review.items if "changed" in i.causes} == set(names)


def test_the_queue_is_cut_and_saved(store, predicted, tmp_path):
    review = build_queue(store, collection=predicted.COLLECTION, limit=3)
    assert len(review.items) == 3 < review.num_found
    json_path, table_path = save_queue(review, tmp_path / "queue")
    table = pd.read_parquet(table_path)
    assert list(table.path) == [item.path for item in review.items]
    assert table["failed"].notna().sum() == 2
    saved = json.loads(json_path.read_text())
    assert saved["images"][0]["reasons"] == list(review.items[0].reasons)


def test_unknown_models_and_collections(store):
    with pytest.raises(ValueError, match="no model 'nobody'"):
        build_queue(store, collection="harbour", models=("nobody",))
    with pytest.raises(ValueError, match="no collection 'nowhere'"):
        build_queue(store, collection="nowhere")
