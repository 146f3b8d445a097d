import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pixelmill.tasks.metrics.segmentation import confusion_counts, mean_iou, score_confusion

VOID = 255


def values(scores):
    return {metric.name: metric.value for metric in scores.metrics}


def test_counts_by_hand():
    truth = np.array([[0, 0, 1], [1, VOID, VOID]], dtype=np.uint8)
    predicted = np.array([[0, 1, 1], [VOID, 0, VOID]], dtype=np.uint8)
    counts = confusion_counts(truth, predicted, 2)
    # the two pixels that are void in the truth are nowhere
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1]]


def test_scores_by_hand():
    scores = score_confusion(np.array([[1, 1, 0], [0, 1, 1]]), ["a", "b"])
    found = values(scores)
    # a: 1 of {1 + 1}, b: 1 of {2 + 1}
    assert found["mIoU"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["Dice"] == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert found["pixel accuracy"] == 0.5
    assert found["mean class accuracy"] == 0.5
    assert found["frequency-weighted IoU"] == pytest.approx((2 * 1 / 2 + 2 * 1 / 3) / 4)
    assert scores.per_class[0].values == {
        "IoU": 0.5, "Dice": pytest.approx(2 / 3), "accuracy": 0.5, "precision": 1.0,
    }  # fmt: skip
    assert scores.confusion.columns == ("a", "b", "void or unknown")


def test_classes_that_neither_side_has_are_left_out_of_the_mean():
    scores = score_confusion(np.array([[4, 0, 0], [0, 0, 0]]), ["a", "b"])
    assert values(scores)["mIoU"] == 1.0
    assert scores.per_class[1].values == {}


def test_classes_that_are_only_predicted_count_as_zero():
    scores = score_confusion(np.array([[3, 1, 0], [0, 0, 0]]), ["a", "b"])
    assert values(scores)["mIoU"] == pytest.approx((3 / 4 + 0) / 2)
    assert values(scores)["mean class accuracy"] == pytest.approx(3 / 4)


def test_void_predictions_are_wrong():
    everything_void = confusion_counts(np.zeros((2, 2), int), np.full((2, 2), VOID), 1)
    assert values(score_confusion(everything_void, ["a"]))["pixel accuracy"] == 0.0


@given(st_numpy.arrays(np.uint8, (2, 6, 7), elements=st.sampled_from([0, 1, 2, VOID])))
def test_scores_are_those_of_sets_of_pixels(maps):
    truth, predicted = maps
    valid = truth != VOID
    counts = confusion_counts(truth, predicted, 3)
    pairs = list(zip(truth[valid].tolist(), predicted[valid].tolist(), strict=True))
    columns = (0, 1, 2, VOID)
    assert counts.tolist() == [[pairs.count((i, j)) for j in columns] for i in range(3)]
    ious = []
    for k in range(3):
        of_truth = {i for i, (one, _) in enumerate(pairs) if one == k}
        of_prediction = {i for i, (_, one) in enumerate(pairs) if one == k}
        if of_truth | of_prediction:
            ious.append(len(of_truth & of_prediction) / len(of_truth | of_prediction))
    assert mean_iou(counts) == (pytest.approx(np.mean(ious)) if ious else None)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        confusion_counts(np.zeros((2, 2), int), np.zeros((2, 3), int), 1)


def test_truth_that_is_all_void_is_refused():
    with pytest.raises(ValueError, match="all truth is void"):
        score_confusion(np.zeros((2, 3), dtype=int), ["a", "b"])


def test_names_must_fit():
    with pytest.raises(ValueError, match="for 1 classes"):
        score_confusion(np.zeros((2, 3), dtype=int), ["a"])
