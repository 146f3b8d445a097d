import shutil

import numpy as np
import pytest

from pixelmill.configs.schema import HealthConfig
from pixelmill.tasks.health.judge import check_health

COUNT = 120
CONFIG = HealthConfig()


@pytest.fixture(scope="module")
def usual_nights(predicted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("usual") / "store"
    store = predicted.new_store(folder)
    for night in range(4):
        predicted.write_night(
            store, [(predicted.make_spec(), predicted.found_by)],
            date=f"2026-01-0{night + 1}", first=COUNT * night, count=COUNT,
            stats={f"brightness/{k}": COUNT / 4 for k in (5, 6, 7, 8)},
        )  # fmt: skip
    return folder


@pytest.fixture
def nights(predicted, usual_nights, tmp_path):
    """A store with some nights as usual, and a last one that the caller makes."""
    shutil.copytree(usual_nights, tmp_path / "store")
    store = predicted.new_store(tmp_path / "store")

    def add(answer=predicted.found_by, model=None, **options):
        model = model or predicted.make_spec()
        options = {"date": "2026-01-05", "first": COUNT * 4, "count": COUNT} | options
        predicted.write_night(store, [(model, answer)], **options)
        return check_health(store, CONFIG)

    return add


def test_a_night_as_usual_has_no_finding(nights):
    health = nights()
    assert (health.level, health.findings) == (None, ())
    (model,) = health.models
    assert len(model.baseline) == 4
    assert model.night.num_images == COUNT
    assert health.date == "2026-01-05"


@pytest.mark.parametrize("victim", ["car", "boat", "dog"])
def test_a_class_that_was_dropped_is_named_first(nights, predicted, victim):
    number = predicted.CLASSES.index(victim)
    health = nights(
        lambda i: predicted.found_by(i, change=lambda *thing: thing if thing[0] != number else None)
    )
    assert health.level == "alarm"
    assert health.findings[0].class_name == victim


@pytest.mark.parametrize("victim", ["car", "boat", "dog"])
def test_a_class_whose_boxes_are_shifted_is_named_first(nights, predicted, victim):
    number = predicted.CLASSES.index(victim)

    def shift(label, box, score):
        return label, box + (label == number) * np.array([35, 0, 35, 0]), score

    health = nights(lambda i: predicted.found_by(i, change=shift))
    first = health.findings[0]
    assert first.level == "alarm"
    assert (first.what, first.class_name) in {("place across", victim), ("size", victim)}


def test_a_threshold_that_moved_is_named_first(nights, predicted):
    health = nights(
        lambda i: predicted.found_by(i, change=lambda *thing: thing if thing[2] > 0.4 else None)
    )
    first = health.findings[0]
    assert (first.level, first.what, first.class_name) == ("alarm", "scores", None)
    assert "before" in first.text


def test_failures_are_told_by_their_share_and_reason(nights):
    health = nights(num_failed=12)
    assert health.level == "alarm"
    assert health.findings[0].what == "failures"
    assert "most by decode/truncated" in health.findings[0].text
    assert health.models[0].night.failures == {"decode/truncated": 12}


def test_few_failures_are_a_warning(nights):
    health = nights(num_failed=3)
    assert health.level == "warning"


def test_a_night_in_which_nothing_was_scored(nights):
    health = nights(count=0, num_failed=5)
    assert health.findings[0].level == "alarm"
    assert "nothing was scored" in health.findings[0].text


def test_a_small_night_is_not_compared_and_says_so(nights, predicted):
    health = nights(
        lambda i: predicted.found_by(i, change=lambda *thing: None), count=CONFIG.min_images - 1
    )
    assert health.level == "warning"  # as there are so few
    assert "50 of each are needed" in {f.what: f.text for f in health.findings}["baseline"]


def test_the_first_night_has_nothing_to_be_compared_with(predicted, tmp_path):
    store = predicted.new_store(tmp_path / "store")
    predicted.write_night(store, [(predicted.make_spec(), predicted.found_by)])
    health = check_health(store, CONFIG)
    assert health.level == "note"
    assert "there are none" in health.findings[0].text


def test_a_new_version_is_compared_with_the_old_ones_nights(nights, predicted):
    newer = predicted.make_spec(version=1)
    health = nights(lambda i: predicted.found_by(i, seed=1), newer)
    assert health.level == "note"
    assert "other versions" in health.findings[0].text
    assert len(health.models[0].baseline) == 4


def test_dark_images_are_told(nights):
    health = nights(stats={"brightness/0": COUNT})
    assert health.findings[0].what == "brightness"
    assert health.findings[0].level == "alarm"


def test_captions_that_are_all_one_sentence(predicted, tmp_path):
    store = predicted.new_store(tmp_path / "store")
    spec = predicted.make_spec("teller", "captioning", ())
    for night in range(3):
        predicted.write_night(
            store, [(spec, predicted.caption_of)], date=f"2026-01-0{night + 1}", first=60 * night,
            count=60,
        )  # fmt: skip
    predicted.write_night(
        store, [(spec, lambda i: predicted.caption_of(7))], date="2026-01-04", first=180, count=60
    )
    health = check_health(store, CONFIG)
    assert (health.level, health.findings[0].what) == ("alarm", "one sentence")
    assert "words" in {finding.what for finding in health.findings}


def test_label_maps_and_labels(predicted, tmp_path):
    store = predicted.new_store(tmp_path / "store")
    painter = predicted.make_spec("painter", "semantic_segmentation", predicted.REGIONS)
    sorter = predicted.make_spec("sorter", "classification")
    for night in range(3):
        predicted.write_night(
            store, [(painter, predicted.regions_of), (sorter, predicted.label_of)],
            date=f"2026-01-0{night + 1}", first=60 * night, count=60,
        )  # fmt: skip

    def no_sand(index):
        answer = predicted.regions_of(index)
        answer.semantic[answer.semantic == 2] = 1
        return answer

    predicted.write_night(
        store, [(painter, no_sand), (sorter, lambda i: predicted.label_of(8))],
        date="2026-01-04", first=180, count=60,
    )  # fmt: skip
    health = check_health(store, CONFIG)
    first = {model.name: model.findings[0] for model in health.models}
    assert first["painter"].class_name == "sand"
    assert first["sorter"].what in ("classes", "gone")


def test_another_collection_or_night_that_is_not_there(nights, predicted, tmp_path):
    nights()
    store = predicted.new_store(tmp_path / "store")
    assert check_health(store, CONFIG, date="2026-01-03").date == "2026-01-03"
    with pytest.raises(ValueError, match="has the date"):
        check_health(store, CONFIG, date="2025-01-01")
    with pytest.raises(ValueError, match="no run of 'nowhere'"):
        check_health(store, CONFIG, collection="nowhere")
    with pytest.raises(ValueError, match="has no run"):
        check_health(predicted.new_store(tmp_path / "bare"), CONFIG)


def test_large_nights_are_sampled(nights, monkeypatch):
    monkeypatch.setattr("pixelmill.tasks.health.nights._MOST_IMAGES", 60)
    (model,) = nights().models
    assert model.night.num_images == COUNT
    assert 30 < model.night.num_sampled < 90
