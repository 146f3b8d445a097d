import numpy as np
import pytest

from pixelmill.tasks.metrics.lrp import optimal_lrp


def test_a_worked_example():
    # keeping two: a hit of IoU 0.8 (loss 0.4) and a hit of 0.9 (0.2), one of three missed
    found = optimal_lrp(np.array([0.9, 0.8, 0.3, 0.2]), np.array([0.8, 0.9, 0.0, 0.0]), 3)
    assert found.error == pytest.approx((0.4 + 0.2 + 1) / 3)
    assert found.threshold == 0.8
    assert found.localisation == pytest.approx(0.15)
    assert found.false_positives == 0.0
    assert found.misses == pytest.approx(1 / 3)


def test_a_perfect_answer_has_no_error_and_none_the_greatest():
    assert optimal_lrp(np.array([0.5]), np.array([1.0]), 1).error == 0.0
    nothing = optimal_lrp(np.zeros(0), np.zeros(0), 4)
    assert (nothing.error, nothing.threshold, nothing.misses) == (1.0, None, 1.0)
    assert optimal_lrp(np.array([0.9]), np.array([0.0]), 4).threshold is None


def test_the_best_threshold_is_that_of_trying_each():
    rng = np.random.default_rng(0)
    scores = np.round(rng.random(60), 1)
    ious = np.where(rng.random(60) < scores, rng.uniform(0.5, 1, 60), 0.0)
    errors = {}
    for threshold in np.unique(scores):
        kept = ious[scores >= threshold]
        hits, wrong = kept[kept > 0], np.count_nonzero(kept == 0)
        errors[threshold] = (2 * (1 - hits).sum() + wrong + 50 - len(hits)) / (50 + wrong)
    found = optimal_lrp(scores, ious, 50)
    assert found.error == pytest.approx(min(errors.values()))
    assert errors[found.threshold] == pytest.approx(found.error)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"must lie in \[0.5, 1\]"):
        optimal_lrp(np.array([0.9]), np.array([0.3]), 1)
    with pytest.raises(ValueError, match="needs instances"):
        optimal_lrp(np.array([0.9]), np.array([0.9]), 0)
