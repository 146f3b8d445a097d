from typing import Any

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

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


def test_class_numbers_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, guesses = ([CLASSES[i] for i in rng.integers(0, 3, 60)] for _ in range(2))
    scores = score_labels(truth, [[guess] for guess in guesses], CLASSES)
    reference: Any = precision_recall_fscore_support(truth, guesses, labels=CLASSES)
    precision, recall, f1, support = reference
    for k, row in enumerate(scores.per_class):
        assert row.num_truth == support[k]
        assert row.values == pytest.approx(
            {"precision": precision[k], "recall": recall[k], "F1": f1[k]}
        )
    assert values(scores)["macro F1"] == pytest.approx(f1.mean())


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
