import numpy as np
import pytest
from scipy import stats

from pixelmill.tasks.health.drift import Histogram, chi_square_quantile, compare, pool


def histogram(counts, *, ordered=True, num_images=None, labels=None):
    labels = labels or tuple(f"{k} to {k + 1}" for k in range(len(counts)))
    number = int(sum(counts)) if num_images is None else num_images
    return Histogram(labels, tuple(map(float, counts)), ordered, number)


def test_the_index_is_the_definition():
    p, q = np.array([300, 300, 400]), np.array([200, 300, 500])
    shift = compare(histogram(p), histogram(q), alpha=0.01)
    a, b = (p + 0.5) / (p + 0.5).sum(), (q + 0.5) / (q + 0.5).sum()
    assert shift.psi == pytest.approx(float(((b - a) * np.log(b / a)).sum()))
    assert (shift.label, round(shift.share_now, 2)) == ("0 to 1", 0.2)


@pytest.mark.parametrize("freedom", [1, 2, 5, 20, 100])
@pytest.mark.parametrize("share", [0.9, 0.99, 0.9999])
def test_chi_square_quantiles(share, freedom):
    expected = stats.chi2.ppf(share, freedom)
    assert chi_square_quantile(share, freedom) == pytest.approx(expected, rel=0.15)


def test_chance_exceeds_its_bound_as_rarely_as_said():
    rng = np.random.default_rng(0)
    shares = np.full(10, 0.1)
    exceeded = 0
    for _ in range(1000):
        before, now = rng.multinomial(2000, shares), rng.multinomial(150, shares)
        shift = compare(histogram(before), histogram(now), alpha=0.05)
        exceeded += shift.psi > shift.chance
    assert 25 <= exceeded <= 80


def test_a_thousand_boxes_of_ten_images_are_ten_images():
    before, now = [100, 100, 100], [400, 300, 300]
    many = compare(histogram(before), histogram(now), alpha=0.01)
    few = compare(histogram(before), histogram(now, num_images=10), alpha=0.01)
    assert few.chance > 5 * many.chance


def test_narrow_bins_are_joined_with_their_neighbours():
    shift = compare(histogram([1, 1, 1, 1, 500, 500]), histogram([0, 1, 2, 1, 500, 500]), alpha=0.1)
    assert shift.psi < 0.001


def test_rare_classes_are_joined():
    labels = tuple(f"class{k}" for k in range(52))
    before = histogram([1] * 50 + [1000, 1000], ordered=False, labels=labels)
    now = histogram([0, 2] * 25 + [1000, 1000], ordered=False, labels=labels)
    assert compare(before, now, alpha=0.1).psi < 0.001


def test_classes_of_several_nights_are_added_up():
    both = pool([histogram([1, 2], labels=("a", "b")), histogram([3], labels=("b",))])
    assert dict(zip(both.labels, both.counts, strict=True)) == {"a": 1, "b": 5}
    assert both.num_images == 6
