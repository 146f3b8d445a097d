"""Numbers that come from a confusion are scikit-learn's."""

import numpy as np
import pytest

from pixelmill.tasks.metrics.calibration import reliability
from pixelmill.tasks.metrics.classification import score_labels
from pixelmill.tasks.metrics.membranes import label_components, rand_score
from pixelmill.tasks.metrics.segmentation import confusion_counts, score_confusion

sklearn_calibration = pytest.importorskip("sklearn.calibration")
sklearn_metrics = pytest.importorskip("sklearn.metrics")

CLASSES = ("ant", "bee", "cat", "dog", "eel")


def values(metrics):
    return {metric.name: metric.value for metric in metrics}


@pytest.mark.parametrize("seed", range(20))
def test_labels(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(5), 60)
    truth = rng.integers(0, 5, 60)
    probabilities[np.arange(60), truth] += 0.3 * (rng.random(60) < 0.5)
    ranked = np.argsort(-probabilities, axis=1)
    names = np.array(CLASSES)
    found = score_labels(names[truth].tolist(), names[ranked].tolist(), CLASSES)
    numbers, best = values(found.metrics), ranked[:, 0]
    table = sklearn_metrics.confusion_matrix(truth, best, labels=range(5))
    np.testing.assert_array_equal(np.array(found.confusion.counts)[:, :5], table)
    assert numbers["top-1"] == pytest.approx(sklearn_metrics.accuracy_score(truth, best), abs=1e-12)
    top_5 = sklearn_metrics.top_k_accuracy_score(truth, probabilities, k=4, labels=range(5))
    four = score_labels(names[truth].tolist(), names[ranked[:, :4]].tolist(), CLASSES)
    assert values(four.metrics)["top-5"] == pytest.approx(top_5, abs=1e-12)
    expected = sklearn_metrics.precision_recall_fscore_support(
        truth, best, labels=range(5), zero_division=0
    )
    for column, name in enumerate(("precision", "recall", "F1")):
        ours = [row.values.get(name, 0.0) for row in found.per_class]
        assert ours == pytest.approx(expected[column], abs=1e-12)
        labelled = expected[3] > 0
        macro = numbers[f"macro {name}"]
        assert macro == pytest.approx(expected[column][labelled].mean(), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_regions(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, (20, 30))
    guess = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 5, truth.shape))
    valid = rng.random(truth.shape) < 0.9
    confusion = confusion_counts(np.where(valid, truth, 99), guess, 5)
    found = score_confusion(confusion, CLASSES)
    true, guessed = truth[valid], guess[valid]
    numbers = values(found.metrics)
    jaccard = sklearn_metrics.jaccard_score(true, guessed, average=None, labels=range(5))
    assert [row.values["IoU"] for row in found.per_class] == pytest.approx(jaccard, abs=1e-12)
    assert numbers["mIoU"] == pytest.approx(jaccard.mean(), abs=1e-12)
    dice = sklearn_metrics.f1_score(true, guessed, average="macro", labels=range(5))
    assert numbers["Dice"] == pytest.approx(dice, abs=1e-12)
    balanced = sklearn_metrics.balanced_accuracy_score(true, guessed)
    assert numbers["mean class accuracy"] == pytest.approx(balanced, abs=1e-12)
    accuracy = sklearn_metrics.accuracy_score(true, guessed)
    assert numbers["pixel accuracy"] == pytest.approx(accuracy, abs=1e-12)
    weighted = sklearn_metrics.jaccard_score(true, guessed, average="weighted")
    assert numbers["frequency-weighted IoU"] == pytest.approx(weighted, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_reliability(seed):
    rng = np.random.default_rng(seed)
    scores = rng.random(500)
    right = rng.random(500) < scores
    share, mean = sklearn_calibration.calibration_curve(right, scores, n_bins=15)
    found = reliability(scores, right)
    assert found.share_right == pytest.approx(share, abs=1e-12)
    assert found.mean_score == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_rand_of_cells(seed):
    truth, predicted = np.random.default_rng(seed).random((2, 16, 16)) < 0.8
    cells, guesses = label_components(truth)[truth], label_components(predicted)[truth]
    alone = guesses == 0
    guesses[alone] = guesses.max() + 1 + np.arange(alone.sum())
    table = sklearn_metrics.cluster.contingency_matrix(cells, guesses).astype(float)
    together = (table**2).sum()
    split, merge = together / (table.sum(1) ** 2).sum(), together / (table.sum(0) ** 2).sum()
    f, ours_merge, ours_split = (metric.value for metric in rand_score(truth, predicted))
    assert (ours_merge, ours_split) == pytest.approx((merge, split), abs=1e-12)
    assert f == pytest.approx(2 * merge * split / (merge + split), abs=1e-12)
