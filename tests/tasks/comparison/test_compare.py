import math

import numpy as np
import pytest

from pixelmill.tasks.comparison.compare import compare_sides
from pixelmill.tasks.comparison.sides import open_side, pair_models
from pixelmill.tasks.store import Store

COUNT = 60


@pytest.fixture
def two_versions(predicted, tmp_path):
    """Scores the same images by two versions of a model, and compares them."""

    def build(
        first, second, *, task="detection", classes=predicted.CLASSES, count=COUNT, **options
    ):
        store = predicted.new_store(tmp_path / "store")
        specs = [
            predicted.make_spec(task=task, classes=classes, version=version) for version in (0, 1)
        ]
        predicted.write_night(store, [(specs[0], first)], count=count)
        predicted.write_night(store, [(specs[1], second)], count=count)
        sides = [open_side(spec.key, store) for spec in specs]
        (pair,) = compare_sides(*sides, **options).pairs
        return pair

    return build


def test_a_model_equals_itself(two_versions, predicted):
    pair = two_versions(predicted.found_by, predicted.found_by)
    numbers = {metric.name: metric.value for metric in pair.headline}
    assert numbers == {"matched boxes": 1, "class flips": 0, "box IoU": 1, "score shift": 0}
    assert pair.findings == ()
    assert pair.images == ()
    assert pair.num_images == COUNT


def test_versions_that_differ_by_noise_have_no_finding_of_a_class(two_versions, predicted):
    pair = two_versions(predicted.found_by, lambda i: predicted.found_by(i, seed=1))
    assert all(finding.effect < 0.1 for finding in pair.findings)
    assert next(m.value for m in pair.headline if m.name == "matched boxes") > 0.98


@pytest.mark.parametrize("victim", ["car", "boat", "dog"])
def test_a_class_whose_boxes_are_shifted_is_named_first(two_versions, predicted, victim):
    number = predicted.CLASSES.index(victim)

    def shift(label, box, score):
        size = box[2] - box[0]
        return label, box + (label == number) * np.array([0.3 * size, 0, 0.3 * size, 0]), score

    pair = two_versions(predicted.found_by, lambda i: predicted.found_by(i, seed=1, change=shift))
    first = pair.findings[0]
    assert (first.what, first.class_name) == ("moved", victim)
    assert "of their width to the right" in first.text
    assert victim in pair.images[0].reasons[0] or "boxes differ" in pair.images[0].reasons[0]


def test_a_class_far_from_its_place_is_named_first(two_versions, predicted):
    def shift(label, box, score):
        return label, box + (label == 1) * np.array([0, 20, 0, 20]), score

    pair = two_versions(predicted.found_by, lambda i: predicted.found_by(i, seed=1, change=shift))
    assert pair.findings[0].class_name == "boat"
    assert pair.findings[0].what in ("moved", "lost")


@pytest.mark.parametrize("victim", ["car", "boat", "dog"])
def test_a_class_that_was_dropped_is_named_first(two_versions, predicted, victim):
    number = predicted.CLASSES.index(victim)

    def drop(label, box, score):
        return None if label == number else (label, box, score)

    pair = two_versions(predicted.found_by, lambda i: predicted.found_by(i, seed=1, change=drop))
    first = pair.findings[0]
    assert (first.what, first.class_name, first.effect) == ("lost", victim, 1)
    assert "gone" in first.text
    assert f"{victim} lost" in pair.images[0].reasons[0]


def test_a_threshold_that_rose_is_named_first(two_versions, predicted):
    def cut(label, box, score):
        return (label, box, score) if score >= 0.4 else None

    pair = two_versions(predicted.found_by, lambda i: predicted.found_by(i, seed=1, change=cut))
    first = pair.findings[0]
    assert (first.what, first.class_name) == ("threshold", None)
    assert "scores of B begin at 0.4" in first.text
    assert len([one for one in pair.findings if one.what == "lost"]) == 0


def test_a_threshold_that_fell_is_named_first(two_versions, predicted):
    def cut(label, box, score):
        return (label, box, score) if score >= 0.4 else None

    pair = two_versions(lambda i: predicted.found_by(i, change=cut), predicted.found_by)
    assert pair.findings[0].what == "threshold"
    assert "scores of A begin at 0.4" in pair.findings[0].text


def test_a_threshold_of_one_class_is_named_first(two_versions, predicted):
    def cut(label, box, score):
        return (label, box, score) if score >= 0.4 or label != 0 else None

    pair = two_versions(predicted.found_by, lambda i: predicted.found_by(i, seed=1, change=cut))
    assert (pair.findings[0].what, pair.findings[0].class_name) == ("lost", "car")
    assert "its threshold has moved" in pair.findings[0].text


def test_a_class_that_became_another_is_named_first(two_versions, predicted):
    def swap(label, box, score):
        return (2 if label == 3 else label), box, score

    pair = two_versions(predicted.found_by, lambda i: predicted.found_by(i, seed=1, change=swap))
    first = pair.findings[0]
    assert (first.what, first.class_name) == ("flipped", "dog")
    assert "person" in first.text
    assert pair.flips.counts[pair.flips.rows.index("dog")][pair.flips.columns.index("person")] > 0


def test_a_class_may_be_called_anything(two_versions, predicted):
    def swap(label, box, score):
        return (0 if label == 1 else label), box, score

    classes = ("{0}", "{part}", "%s", "a\nb")
    pair = two_versions(
        predicted.found_by, lambda i: predicted.found_by(i, change=swap), classes=classes
    )
    assert any("of them {0}" in finding.text for finding in pair.findings)


def test_scores_that_fell_are_named_first_and_mapped(two_versions, predicted):
    pair = two_versions(
        predicted.found_by,
        lambda i: predicted.found_by(i, change=lambda label, box, score: (label, box, score / 2)),
    )
    assert pair.findings[0].what == "score"
    mapping = dict(zip(pair.scores.thresholds, pair.scores.equivalents, strict=True))
    assert mapping[0.6] == pytest.approx(0.3, abs=0.01)
    assert sum(pair.scores.counts_a) == sum(row.num_a for row in pair.per_class)


def test_masks_are_compared_on_matched_boxes(two_versions, predicted):
    def found(seed):
        return lambda i: predicted.found_by(i, seed=seed, with_masks=True)

    pair = two_versions(found(0), found(1), task="instance_segmentation", count=12)
    mask_iou = next(m.value for m in pair.headline if m.name == "mask IoU")
    assert 0.85 < mask_iou < 1
    without = two_versions(
        found(0), found(1), task="instance_segmentation", count=12, with_masks=False
    )
    assert "mask IoU" not in {metric.name for metric in without.headline}
    assert without.notes == ("masks were not compared, as asked",)


def test_label_maps(two_versions, predicted):
    def broken(index):
        answer = predicted.regions_of(index)
        answer.semantic[answer.semantic == 2] = 1
        return answer

    pair = two_versions(
        predicted.regions_of, broken, task="semantic_segmentation",
        classes=predicted.REGIONS, count=12,
    )  # fmt: skip
    assert pair.findings[0].class_name == "sand"
    assert "gone" in pair.findings[0].text
    rows = {row.class_name: row.values for row in pair.per_class}
    assert rows["sand"]["IoU"] == 0
    assert rows["sky"]["IoU"] == 1
    total = np.zeros((3, 3))
    for index in range(12):
        truth, answer = predicted.regions_of(index).semantic, broken(index).semantic
        np.add.at(total, (truth, answer), 1)
    agreement = next(m.value for m in pair.headline if m.name == "pixel agreement")
    assert agreement == pytest.approx(np.trace(total) / total.sum())
    assert rows["sea"]["IoU"] == pytest.approx(
        total[1, 1] / (total[1].sum() + total[:, 1].sum() - total[1, 1])
    )
    assert "sand became sea" in pair.images[0].reasons[0]


def test_captions_that_lost_a_word(two_versions, predicted):
    def without_boats(index):
        (caption,) = predicted.caption_of(index, seed=1).captions
        words = [word for word in caption.text.split() if word != "boat"]
        return type(predicted.caption_of(0))(
            captions=(type(caption)(" ".join(words), -1.0, len(words) + 1),)
        )

    pair = two_versions(predicted.caption_of, without_boats, task="captioning", classes=())
    assert (pair.findings[0].what, pair.findings[0].class_name) == ("word went", "boat")
    assert pair.images[0].reasons[0].count("became") == 1


def test_captions_that_are_all_one_sentence(two_versions, predicted):
    one = predicted.caption_of(0)
    pair = two_versions(predicted.caption_of, lambda i: one, task="captioning", classes=())
    assert "one sentence" in {finding.what for finding in pair.findings[:2]}


def test_labels_of_a_class_that_was_dropped(two_versions, predicted):
    def dogs_are_people(index):
        answer = predicted.label_of(index, seed=1)
        if answer.labels[0].class_id != 3:
            return answer
        swap, kind = {3: 2, 2: 3}, type(answer.labels[0])
        return type(answer)(
            labels=tuple(
                kind(swap.get(one.class_id, one.class_id), one.score) for one in answer.labels
            )
        )

    pair = two_versions(predicted.label_of, dogs_are_people, task="classification")
    first = pair.findings[0]
    assert (first.what, first.class_name) == ("lost", "dog")
    assert "most for person" in first.text
    assert pair.images[0].reasons == ("dog became person",)


def test_a_sample_is_the_same_each_time_and_told(two_versions, predicted):
    def other(index):
        return predicted.found_by(index, seed=1)

    pair = two_versions(predicted.found_by, other, sample=10)
    assert pair.num_images == 10
    assert pair.notes == (f"a sample of 10 of {COUNT} common images",)


def test_two_stores_and_every_image_is_given_to_the_sink(predicted, tmp_path):
    stores = []
    for version, name in enumerate("ab"):
        store = predicted.new_store(tmp_path / name)
        specs = (
            predicted.make_spec(version=version),
            predicted.make_spec("sorter", "classification"),
        )
        night = [
            (specs[0], lambda i, v=version: predicted.found_by(i, seed=v)),
            (specs[1], predicted.label_of),
        ]
        predicted.write_night(store, night, first=5 * version, count=20)
        stores.append(store)
    seen = []
    sides = [open_side(store.root, None) for store in stores]
    found = compare_sides(*sides, sink=lambda a, b, rows: seen.extend(rows))
    assert [pair.kind for pair in found.pairs] == ["boxes", "labels"]
    assert {(p.num_images, p.only_a, p.only_b) for p in found.pairs} == {(15, 5, 5)}
    assert len(seen) == 30
    assert found.pairs[0].recipe[0][0] == "arguments.version"
    assert all(math.isfinite(row.change) and 0 <= row.change <= 1 for row in seen)


def test_chunks_change_nothing(two_versions, predicted, monkeypatch):
    def other(index):
        return predicted.found_by(index, seed=1)

    whole = two_versions(predicted.found_by, other)
    monkeypatch.setattr("pixelmill.tasks.comparison.sides._CHUNK_IMAGES", 7)
    parts = two_versions(predicted.found_by, other)
    assert whole.images == parts.images
    assert [m.value for m in whole.headline] == pytest.approx([m.value for m in parts.headline])


def test_runs_of_one_store(predicted, tmp_path):
    store = predicted.new_store(tmp_path / "store")
    versions = [predicted.make_spec(version=version) for version in (0, 1)]
    runs = [
        predicted.write_night(store, [(versions[0], predicted.found_by)], count=10),
        predicted.write_night(store, [(versions[0], predicted.found_by)], first=10, count=10),
        predicted.write_night(store, [(versions[1], predicted.found_by)], count=15),
    ]
    first, second, third = (open_side(run.run_id, store) for run in runs)
    assert compare_sides(first, third).pairs[0].num_images == 10
    assert compare_sides(second, third).pairs[0].num_images == 5
    with pytest.raises(ValueError, match="share no image"):
        compare_sides(first, second)


def test_sides_that_mean_nothing_say_what_there_is(predicted, tmp_path):
    store = predicted.new_store(tmp_path / "store")
    specs = [predicted.make_spec(version=version) for version in (0, 1)]
    caption = predicted.make_spec("teller", "captioning", ())
    for spec in specs:
        predicted.write_night(store, [(spec, predicted.found_by)], count=2)
    predicted.write_night(store, [(caption, predicted.caption_of)], count=2)
    with pytest.raises(ValueError, match="is the name of 2 models"):
        open_side("finder", store)
    with pytest.raises(ValueError, match=r"no model and no run.*finder-"):
        open_side("nobody", store)
    with pytest.raises(ValueError, match="can be compared"):
        compare_sides(open_side(specs[0].key, store), open_side("teller", store))
    pairs, skipped = pair_models(open_side(store.root, None), open_side(store.root, None))
    assert {a.key for a, _ in pairs} == {*(s.key for s in specs), caption.key}
    assert not skipped
    assert all(a.key == b.key for a, b in pairs)
    with pytest.raises(FileNotFoundError, match="no Pixelmill store"):
        open_side(str(tmp_path / "nowhere"), None)
    assert isinstance(store, Store)
