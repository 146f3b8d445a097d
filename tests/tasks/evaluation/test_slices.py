import numpy as np
import pytest

from pixelmill.configs.schema import EvaluationConfig
from pixelmill.tasks.slices import compare_by_truth, slice_images

CONFIG = EvaluationConfig(instances="instances.json", semantic="semantic")


@pytest.fixture
def world(nights):
    """Two models of each kind on 24 images in two folders and two nights; "worse" lost a class."""
    world = nights(0)
    world.add([f"day/{i}.jpg" for i in range(12)])
    world.add([f"night/{i}.jpg" for i in range(12)])
    world.score_worse([*world.versions])
    return world


def compare(world, **changes):
    arguments = {"base": world.base, "collection": "photos", "num_resamples": 200, **changes}
    return compare_by_truth(world.store, CONFIG, "segmenter", "worse", **arguments)


def test_a_lost_class_is_the_surest_difference(world):
    boxes, masks = compare(world, num_resamples=1000)
    assert (boxes.kind, masks.kind) == ("boxes", "masks")
    assert boxes.num_images == 24
    first = boxes.differences[0]
    assert (first.slice_name, first.number.class_name) == ("all", "cat")
    assert first.value_b == 0.0
    assert first.interval[1] < 0
    assert first.adjusted_p < 0.05
    unchanged = [one for one in boxes.differences if one.number.class_name == "dog"]
    assert unchanged
    assert all(one.difference == 0.0 and one.adjusted_p == 1.0 for one in unchanged)
    assert any("Holm-adjusted" in note for note in boxes.notes)
    assert any("Benjamini-Hochberg" in note for note in boxes.notes)


def test_slices_are_compared_alone(world):
    boxes, _ = compare(world, slices=("folder", "date", "size"))
    names = {one.slice_name for one in boxes.differences}
    assert names >= {"all", "folder=day", "folder=night", "date=2026-01-01", "date=2026-01-02"}
    day = {one.number: one for one in boxes.differences if one.slice_name == "folder=day"}
    alone = {one.number: one for one in boxes.differences if one.slice_name == "date=2026-01-01"}
    assert {one.num_images for one in day.values()} == {12}
    assert [one.value_a for one in day.values()] == [alone[key].value_a for key in day]


def test_what_cannot_be_compared_is_told(world):
    with pytest.raises(KeyError, match="no model 'nobody'"):
        compare_by_truth(
            world.store, CONFIG, "segmenter", "nobody", base=world.base, collection="photos"
        )
    with pytest.raises(ValueError, match="are the same model"):
        compare_by_truth(
            world.store, CONFIG, "worse", "worse", base=world.base, collection="photos"
        )
    with pytest.raises(ValueError, match="share no kind of truth"):
        compare_by_truth(
            world.store, CONFIG, "segmenter", "mapper", base=world.base, collection="photos"
        )
    with pytest.raises(KeyError, match="cannot be sliced by moon; by: size, aspect, date, folder"):
        compare(world, slices=("moon",))


def test_numbers_are_cut_and_rare_values_are_named(world):
    paths = sorted(world.versions)
    ids = [world.image_id(path) for path in paths]
    found = slice_images(world.store, "photos", paths, ids, ["aspect", "status", "path"])
    assert found.masks.keys() == {"aspect=landscape", "status=ok"}
    assert all(mask.all() for mask in found.masks.values())
    assert "path=day/0.jpg left out: 1 images, fewer than 10" in found.notes
    assert "12 images are in no slice by path" in found.notes
    unscored = slice_images(world.store, "photos", paths, [None] * 24, ["aspect", "folder"])
    assert unscored.masks.keys() == {"folder=day", "folder=night"}
    assert "24 images are in no slice by aspect" in unscored.notes
    assert np.array_equal(~unscored.masks["folder=day"], unscored.masks["folder=night"])
