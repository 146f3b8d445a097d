import numpy as np
import pytest

from pixelmill.tasks.metrics.sweep import best_threshold, sweep_thresholds


def test_a_threshold_takes_all_detections_of_a_score_or_none():
    scores = np.array([0.9, 0.7, 0.7, 0.2])
    right = np.array([True, True, False, False])
    found = sweep_thresholds("cat", scores, right, 2)
    assert found.thresholds == (0.9, 0.7, 0.2)
    assert found.precision == pytest.approx((1, 2 / 3, 2 / 4))
    assert found.recall == pytest.approx((0.5, 1, 1))
    assert found.f1 == pytest.approx((2 / 3, 4 / 5, 4 / 6))
    assert found.recommended == 0.7
    assert best_threshold(scores, right, 2) == (0.7, pytest.approx(0.8))


def test_many_scores_are_thinned_out_and_the_best_stays():
    rng = np.random.default_rng(0)
    scores = np.sort(rng.random(5000))[::-1]
    right = rng.random(5000) < scores
    found = sweep_thresholds("cat", scores, right, 3000)
    assert len(found.thresholds) <= 102
    assert (found.thresholds[0], found.thresholds[-1]) == (scores[0], scores[-1])
    best = best_threshold(scores, right, 3000)
    assert best is not None
    assert (found.recommended, max(found.f1)) == best


@pytest.mark.parametrize("count", [0, 3])
def test_without_a_right_one_nothing_is_recommended(count):
    found = sweep_thresholds("cat", np.full(count, 0.5), np.zeros(count, bool), 2)
    assert found.recommended is None
    assert len(found.thresholds) == min(count, 1)
    assert best_threshold(np.full(count, 0.5), np.zeros(count, bool), 2) is None
