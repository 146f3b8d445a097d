from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pixelmill.tasks.predictions import ImagePrediction
from pixelmill.tasks.store import ImageRow, ShardWriter, Store, publish

RUN_B, RUN_C, RUN_D = (
    "20260102T000000-bbbbbb", "20260103T000000-cccccc", "20260104T000000-dddddd",
)  # fmt: skip
TASK = "instance_segmentation"
CURRENT = f"current:{TASK}"


@pytest.fixture
def versions(published, fakes, contents):
    """Three versions of a model: the first scored all ten images, the next six, the last three."""
    newer, newest = (fakes.make_spec("things-in", TASK, weights=weights) for weights in ("1", "2"))
    for spec, number, run_id in ((newer, 6, RUN_B), (newest, 3, RUN_C)):
        some = dict(list(contents.items())[:number])
        fakes.score_run(published, fakes.make_run(published, some, run_id=run_id, models=(spec,)))
    publish(published)
    return published, [fakes.INSTANCE.key, newer.key, newest.key]


def models_of(store, contents, fakes):
    images = store.images(CURRENT).set_index("image_id")
    assert images.index.is_unique
    return [images.model.get(fakes.image_id_of(content)) for content in contents.values()]


def test_an_image_has_the_newest_promoted_version_that_scored_it(versions, fakes, contents):
    store, (old, newer, newest) = versions
    store.promote(old)
    assert models_of(store, contents, fakes) == [old] * 10
    store.promote(newer)
    assert models_of(store, contents, fakes) == [newer] * 6 + [old] * 4
    store.promote(newest)
    assert models_of(store, contents, fakes) == [newest] * 3 + [newer] * 3 + [old] * 4
    assert store.current(TASK) == (newest, newer, old)
    assert Store(store.root).current("semantic_segmentation") == ()


def test_boxes_and_captions_are_of_the_same_version_as_the_image(versions, fakes):
    store, keys = versions
    for key in keys[:2]:
        store.promote(key)
    of_image = store.images(CURRENT).set_index("image_id")
    for name in ("detections", "captions", "labels", "candidates"):
        table = store.table(name, model=CURRENT).to_pandas()
        assert (table.model == of_image.model.loc[table.image_id].to_numpy()).all()
    boxes = store.boxes(CURRENT)
    assert len(boxes) == of_image.n_detections.sum()
    assert not boxes[["image_id", "rank"]].duplicated().any()
    ids = store.table("captions", model=CURRENT, columns=["text"])
    assert ids.column_names == ["text"]
    assert len(ids) == 10


def test_a_version_that_found_nothing_is_not_filled_up_from_an_older_one(versions, fakes):
    """Boxes of the older version do not show through where the newer one has none."""
    store, (old, *_) = versions
    image_id = fakes.image_id_of("picture 3")
    assert fakes.num_detections(image_id) > 0
    blind = fakes.make_spec("things-in", TASK, weights="3")
    run = fakes.make_run(store, {"3.jpg": "picture 3"}, run_id=RUN_D, models=(blind,))
    voids = (fakes.image_id_of(f"void {number}") for number in range(100))
    nothing = fakes.detections_of(next(i for i in voids if fakes.num_detections(i) == 0))
    height, width = fakes.size_of(image_id)
    image = ImageRow(image_id, "slides", "3.jpg", "/data/3.jpg", width, height, 9, "1")
    writer = ShardWriter(store, run, 0)
    writer.add_image(image, blind.key, ImagePrediction(detections=nothing))
    writer.commit()
    publish(store)
    store.promote(old)
    assert image_id in set(store.boxes(CURRENT).image_id)
    store.promote(blind.key)
    assert image_id not in set(store.boxes(CURRENT).image_id)
    images = store.images(CURRENT).set_index("image_id")
    assert images.n_detections[image_id] == 0
    assert len(store.boxes(CURRENT)) == images.n_detections.sum()


def test_masks_are_found_by_what_is_current(versions, fakes, contents):
    store, keys = versions
    for key in keys:
        store.promote(key)
    paths = [p for p, c in contents.items() if fakes.num_detections(fakes.image_id_of(c))]
    assert len(paths) > 3
    for path in paths:
        found = store.instances(path, model=CURRENT)
        assert len(found.masks) == fakes.num_detections(fakes.image_id_of(contents[path]))
        newest = next(row["model"] for row in store.find(path, CURRENT))
        assert set(found.boxes.model) == {newest}
    with pytest.raises(KeyError, match="several models"):
        store.instances(paths[0])


def test_rolling_back_undoes_the_last_promotion(versions, fakes, contents):
    store, (old, newer, newest) = versions
    for key in (old, newer, newest, old):
        store.promote(key)
    assert store.current(TASK) == (old, newest, newer)
    assert store.rollback(TASK).model_key == old
    assert store.current(TASK) == (newest, newer, old)
    store.rollback(TASK)
    store.promote(newest)
    store.rollback(TASK)
    assert models_of(store, contents, fakes) == [newer] * 6 + [old] * 4
    store.rollback(TASK)
    store.rollback(TASK)
    with pytest.raises(ValueError, match="nothing to undo"):
        store.rollback(TASK)
    with pytest.raises(KeyError, match="no model is promoted"):
        store.images(CURRENT)
    assert [step.op for step in store.promotions()].count("rollback") == 5


def test_tasks_are_promoted_by_themselves(versions, fakes):
    store, (old, *_) = versions
    store.promote(old)
    store.promote(fakes.SEMANTIC.key)
    assert store.current(TASK) == (old,)
    image_id = fakes.image_id_of("picture 3")
    mask = store.semantic_mask(image_id, model="current:semantic_segmentation")
    np.testing.assert_array_equal(mask, fakes.semantic_of(image_id))


def test_what_cannot_be_current_is_refused(versions):
    store, _ = versions
    with pytest.raises(KeyError, match="nothing is published of a model 'other-00000000'"):
        store.promote("other-00000000")
    with pytest.raises(KeyError, match="expected current: and one of classification"):
        store.images("current:segmenting")
    with pytest.raises(KeyError, match="not by model"):
        store.table("catalog", model=CURRENT)


def test_promotions_at_once_are_all_kept_in_some_order(versions):
    store, keys = versions
    with ThreadPoolExecutor(6) as pool:
        steps = list(pool.map(lambda key: Store(store.root).promote(key), keys * 4))
    assert sorted(step.seq for step in steps) == list(range(12))
    assert set(store.current(TASK)) == set(keys)


def test_a_rollback_undoes_nothing_that_it_has_not_seen(versions, monkeypatch):
    """Two people who undo the same promotion undo it once."""
    store, keys = versions
    for key in keys:
        store.promote(key)
    seen = store.promotions()
    store.rollback(TASK)
    monkeypatch.setattr(Store, "promotions", lambda self: seen)
    with pytest.raises(RuntimeError, match="just now"):
        Store(store.root).rollback(TASK)
    monkeypatch.undo()
    assert store.current(TASK) == (keys[1], keys[0])
