import numpy as np
import pytest

from pixelmill.tasks.metrics.calibration import reliability


def test_a_worked_example():
    scores = np.array([0.1, 0.2, 0.9, 0.8])
    right = np.array([False, True, True, True])
    found = reliability(scores, right, num_bins=2)
    assert found.counts.tolist() == [2, 2]
    assert found.mean_score == pytest.approx([0.15, 0.85])
    assert found.share_right == pytest.approx([0.5, 1.0])
    assert found.error().value == pytest.approx((0.35 + 0.15) / 2)
    assert found.curve("all").x == pytest.approx((0.15, 0.85))


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_bins_are_those_of_scikit_learn(strategy):
    calibration = pytest.importorskip("sklearn.calibration")
    rng = np.random.default_rng(0)
    scores = rng.random(1000)
    right = rng.random(1000) < scores**2
    share, mean = calibration.calibration_curve(right, scores, n_bins=10, strategy=strategy)
    binning = "width" if strategy == "uniform" else "mass"
    found = reliability(scores, right, binning=binning, num_bins=10)
    assert found.share_right == pytest.approx(share)
    assert found.mean_score == pytest.approx(mean)


def test_bins_of_equal_mass_do_not_part_equal_scores():
    scores = np.array([0.5] * 8 + [0.7, 0.9])
    found = reliability(scores, np.ones(10, bool), binning="mass", num_bins=5)
    assert found.counts.tolist() == [8, 2]


def test_calibrated_scores_have_a_small_error_and_overconfident_ones_a_large():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    right = rng.random(20_000) < scores
    assert reliability(scores, right).error().value < 0.02
    assert reliability(np.sqrt(scores), right).error().value > 0.1


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        reliability(np.array([0.5, 1.5]), np.array([True, False]))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        reliability(np.array([np.nan]), np.array([True]))
    with pytest.raises(ValueError, match="a score and a truth of each"):
        reliability(np.zeros(0), np.zeros(0, bool))
