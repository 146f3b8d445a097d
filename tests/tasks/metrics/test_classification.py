import numpy as np
import pytest

from pixelmill.tasks.metrics.classification import score_labels

CLASSES = ("a", "b", "c")


def values(scores):
    return {metric.name: metric.value for metric in scores.metrics}


def test_top_1_and_top_5_by_hand():
    scores = score_labels(
        ["a", "b", "c", "a"],
        [["a"], ["c", "a", "x", "y", "b"], ["a", "b", "x", "y", "z", "c"], []],
        CLASSES,
    )
    assert values(scores)["top-1"] == 0.25
    assert values(scores)["top-5"] == 0.5
    assert scores.per_image[1] == {"top-1": 0.0, "top-5": 1.0}
    assert scores.confusion.counts == ((1, 0, 0, 1), (0, 0, 1, 0), (1, 0, 0, 0))


def test_class_numbers_follow_their_definitions():
    rng = np.random.default_rng(0)
    truth, guesses = ([CLASSES[i] for i in rng.integers(0, 3, 60)] for _ in range(2))
    scores = score_labels(truth, [[guess] for guess in guesses], CLASSES)
    pairs = list(zip(truth, guesses, strict=True))
    f1s = []
    for row in scores.per_class:
        name = row.class_name
        hits = pairs.count((name, name))
        precision, recall = hits / guesses.count(name), hits / truth.count(name)
        f1s.append(2 * precision * recall / (precision + recall))
        assert (row.num_truth, row.num_predicted) == (truth.count(name), guesses.count(name))
        assert row.values == pytest.approx(
            {"precision": precision, "recall": recall, "F1": f1s[-1]}
        )
    assert values(scores)["macro F1"] == pytest.approx(np.mean(f1s))


def test_unknown_and_missing_predictions_are_wrong():
    scores = score_labels(["a", "b"], [["zebra"], []], CLASSES)
    assert values(scores)["top-1"] == 0.0
    assert scores.confusion.columns[-1] == "none or unknown"
    assert [line[-1] for line in scores.confusion.counts] == [1, 1, 0]


@pytest.mark.parametrize(
    ("truth", "ranked", "message"),
    [([], [], "at least one"), (["a"], [], "as many"), (["zebra"], [["a"]], "not listed: zebra")],
)
def test_bad_input_is_refused(truth, ranked, message):
    with pytest.raises(ValueError, match=message):
        score_labels(truth, ranked, CLASSES)


def test_scores_of_best_labels_are_compared_with_the_share_that_is_right():
    scores = score_labels(["a", "b", "a"], [["a"], ["a"], []], ["a", "b"], [0.75, 0.75, None])
    found = {metric.name: metric.value for metric in scores.metrics}
    assert found["ECE"] == pytest.approx(0.25)
    assert [(curve.x, curve.y) for curve in scores.curves] == [((0.75,), (0.5,))]
    without = score_labels(["a"], [["a"]], ["a", "b"])
    assert (without.curves, "ECE" in {metric.name for metric in without.metrics}) == ((), False)
