from dataclasses import dataclass

import numpy as np
import pytest

from pixelmill.tasks.metrics import bootstrap
from pixelmill.tasks.metrics.bootstrap import (
    MIN_IMAGES,
    Number,
    benjamini_hochberg,
    compare_runs,
    draw_images,
    holm,
    intervals,
)
from pixelmill.tasks.metrics.statistics import LabelStatistics, MatchStatistics, PixelStatistics

MEAN = Number("mean")


@dataclass(frozen=True)
class Means:
    """The mean of one value per image."""

    values: np.ndarray

    @property
    def num_images(self):
        return len(self.values)

    def resample(self, weights):
        return {MEAN: weights @ self.values / np.maximum(weights.sum(axis=1), 1)}

    def take(self, images):
        return Means(self.values[images])


def noise(num_images, seed=0):
    return np.random.default_rng(seed).normal(size=num_images)


def test_each_draw_has_as_many_images_as_there_are():
    drawn = draw_images(50, 400, np.random.default_rng(0))
    assert drawn.shape == (400, 50)
    assert (drawn.sum(axis=1) == 50).all()
    # each image is drawn once on average
    assert drawn.mean(axis=0) == pytest.approx(np.ones(50), abs=0.25)


def test_the_interval_of_a_mean_is_the_normal_one():
    values = noise(2000)
    low, high = intervals(Means(values), 2000)[MEAN]
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)


def test_the_same_seed_gives_the_same_interval():
    statistics = Means(noise(100))
    assert intervals(statistics, 200, seed=1) == intervals(statistics, 200, seed=1)
    assert intervals(statistics, 200, seed=1) != intervals(statistics, 200, seed=2)


def test_a_skewed_mean_has_a_longer_upper_arm():
    values = np.random.default_rng(0).exponential(size=30) ** 2
    low, high = intervals(Means(values), 2000)[MEAN]
    assert high - values.mean() > 1.3 * (values.mean() - low)


def test_an_interval_never_leaves_the_range_of_the_number():
    values = np.ones(40)
    values[0] = 0.0
    low, high = intervals(Means(values), 500)[MEAN]
    assert 0.0 <= low < 0.975 <= high <= 1.0


def test_all_images_alike_leave_an_interval_of_no_width():
    assert intervals(Means(np.full(20, 0.25)), 100)[MEAN] == (0.25, 0.25)


def test_few_images_have_no_interval():
    assert intervals(Means(noise(MIN_IMAGES - 1)), 100) == {}


def test_senseless_arguments_are_named():
    with pytest.raises(ValueError, match="at least 100 resamples, got 10"):
        intervals(Means(noise(20)), 10)
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        intervals(Means(noise(20)), 100, level=95)


def test_a_pair_tells_apart_what_two_intervals_cannot():
    hard = 10 * noise(200)
    a, b = Means(hard), Means(hard + 0.2 + 0.5 * noise(200, seed=1))
    (found,) = compare_runs(a, b)
    assert found.difference == pytest.approx(found.value_b - found.value_a)
    assert found.interval[0] > 0
    assert found.p_value < 0.01
    assert intervals(a, 1000)[MEAN][1] > intervals(b, 1000)[MEAN][0]


def test_equal_runs_do_not_differ():
    (found,) = compare_runs(Means(noise(50)), Means(noise(50)), 100)
    assert (found.difference, found.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_a_slice_is_compared_alone():
    values = noise(100)
    worse = values.copy()
    worse[:30] -= 2 + 0.1 * noise(30)
    night = np.arange(100) < 30
    few = np.arange(100) < 3
    found = compare_runs(
        Means(values), Means(worse), slices={"night": night, "day": ~night, "few": few}
    )
    assert [(one.slice_name, one.num_images) for one in found] == [("night", 30), ("day", 70)]
    assert found[0].difference == pytest.approx((worse - values)[:30].mean())
    assert found[0].adjusted_p < 0.01
    assert found[1].difference == 0.0
    assert found[1].adjusted_p == 1.0


def test_runs_of_other_images_cannot_be_compared():
    with pytest.raises(ValueError, match="got 20 and 30; keep the images that both have"):
        compare_runs(Means(noise(20)), Means(noise(30)))
    with pytest.raises(ValueError, match=r"slice 'odd' must be \(20,\) bool, got \(3,\)"):
        compare_runs(Means(noise(20)), Means(noise(20)), slices={"odd": np.ones(3, dtype=bool)})


def test_holm_on_his_own_kind_of_example():
    # sorted: .005 * 4, .01 * 3, .03 * 2 and .04 * 1, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([]) == ()
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        holm([1.5])


def test_benjamini_hochberg_is_that_of_the_definition():
    # sorted: min over later of p * 4 / rank
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.02, 0.04, 0.04, 0.02))
    assert benjamini_hochberg([0.9, 0.8]) == (0.9, 0.9)
    assert benjamini_hochberg([]) == ()


def test_the_interval_of_very_many_images_is_that_of_a_sample_scaled_down(monkeypatch):
    values = noise(4000)
    low, high = intervals(Means(values), 1000)[MEAN]
    monkeypatch.setattr(bootstrap, "_MOST_DRAWN", 1000)
    sampled_low, sampled_high = intervals(Means(values), 1000)[MEAN]
    assert sampled_low < values.mean() < sampled_high
    assert sampled_high - sampled_low == pytest.approx(high - low, rel=0.15)
    assert sampled_low + sampled_high == pytest.approx(low + high, abs=0.2 * (high - low))


def simulated_labels(rng, num_images):
    """Classifier of three classes, right in 90, 80 and 60 % of them."""
    truth = rng.choice(3, size=num_images, p=[0.6, 0.3, 0.1])
    right = rng.random(num_images) < np.array([0.9, 0.8, 0.6])[truth]
    guess = np.where(right, truth, (truth + rng.integers(1, 3, num_images)) % 3)
    return LabelStatistics(("a", "b", "c"), truth, guess, right)


def simulated_pixels(rng, num_images):
    """Two classes; how well an image is segmented varies from image to image."""
    in_truth = rng.integers(50, 1000, size=(num_images, 2))
    quality = rng.beta(8, 2, size=(num_images, 2))
    hits = (quality * in_truth).astype(np.int64)
    predicted = hits + rng.poisson(60, size=hits.shape)
    counts = np.stack([hits, in_truth, predicted], axis=2)
    iou = (hits / (in_truth + predicted - hits)).mean(axis=1)
    return PixelStatistics(("a", "b"), counts, iou)


def simulated_matches(rng, num_images):
    """One to five objects an image, found in 80 %, and false alarms of lower scores."""
    num_truth = rng.integers(1, 6, size=(num_images, 1))
    found = rng.binomial(num_truth[:, 0], 0.8)
    extra = rng.poisson(1.5, size=num_images)
    images = np.concatenate(
        [np.repeat(np.arange(num_images), found), np.repeat(np.arange(num_images), extra)]
    )
    scores = np.concatenate([rng.beta(5, 2, found.sum()), rng.beta(2, 4, extra.sum())])
    # an image's scores rise and fall together: its objects are no independent draws
    scores = np.clip(scores + 0.1 * rng.normal(size=num_images)[images], 0, 1)
    quality = np.concatenate([rng.integers(1, 11, found.sum()), np.zeros(extra.sum(), np.int64)])
    right = quality[:, None] > 2
    return MatchStatistics(
        ("thing",),
        images,
        np.zeros(len(images), np.int64),
        scores,
        right,
        np.zeros_like(right),
        num_truth,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("simulate", "names", "num_images"),
    [
        (simulated_labels, ("top-1", "macro F1"), 200),
        (simulated_pixels, ("mIoU", "pixel accuracy"), 100),
        (simulated_matches, ("AP50", "AR100"), 100),
    ],
)
def test_a_95_percent_interval_covers_the_true_number_in_93_to_97_percent(
    simulate, names, num_images
):
    """Standard error of 500 trials is 1 point; the seeds are fixed."""
    rng = np.random.default_rng(2)
    population = simulate(rng, 300_000)
    truth = population.resample(np.ones((1, population.num_images), np.int32))
    trials = [intervals(simulate(rng, num_images), 300, seed=k) for k in range(500)]
    for name in names:
        number = Number(name)
        covered = [t[number][0] <= truth[number][0] <= t[number][1] for t in trials]
        assert 0.93 <= np.mean(covered) <= 0.97, (name, np.mean(covered))
