import numpy as np
import pytest

from pixelmill.tasks.metrics.panoptic import panoptic_counts, score_panoptic


def slow_counts(truth, predicted, truth_classes, predicted_classes, num_classes, crowds):
    """Sets of pixels, one pair of segments after another."""
    pixels = list(np.ndindex(truth.shape))
    true = {i: {p for p in pixels if truth[p] == i} for i in truth_classes}
    guess = {j: {p for p in pixels if predicted[p] == j} for j in predicted_classes}
    void = {p for p in pixels if truth[p] == 0}
    counts, used, found = np.zeros((num_classes, 4)), set(), set()
    for i, a in true.items():
        for j, b in guess.items():
            if i in crowds or truth_classes[i] != predicted_classes[j] or not a & b:
                continue
            iou = len(a & b) / len((a | b) - void)
            if iou > 0.5:
                counts[truth_classes[i]] += [iou, 1, 0, 0]
                used.add(j)
                found.add(i)
    for i, a in true.items():
        if a and i not in crowds | found:
            counts[truth_classes[i], 3] += 1
    for j, b in guess.items():
        if not b or j in used:
            continue
        excused = void.union(*(true[i] for i in crowds if truth_classes[i] == predicted_classes[j]))
        if len(b & excused) <= len(b) / 2:
            counts[predicted_classes[j], 2] += 1
    return counts


@pytest.mark.parametrize("seed", range(10))
def test_counts_are_those_of_sets_of_pixels(seed):
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 6, size=(4, 4)), np.ones((3, 3), int))
    predicted = np.where(rng.random(truth.shape) < 0.8, truth, rng.integers(0, 8, truth.shape))
    truth_classes = {i: int(rng.integers(0, 3)) for i in range(1, 6)}
    predicted_classes = {
        j: truth_classes.get(j, 0) if rng.random() < 0.8 else int(rng.integers(0, 3))
        for j in range(1, 8)
    }
    scene = truth, predicted, truth_classes, predicted_classes, 3
    found = panoptic_counts(*scene, crowds={5})
    assert found == pytest.approx(slow_counts(*scene, {5}))


def test_a_worked_example():
    truth = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 3, 3]])
    predicted = np.array([[1, 1, 1, 2, 2, 2, 2, 2, 4, 3]])
    classes = {1: 0, 2: 0, 3: 1}
    counts = panoptic_counts(truth, predicted, classes, {1: 0, 2: 0, 3: 1, 4: 1}, 2)
    # IoU 3/4 and 4/5 of things; half of the stuff is not above 0.5
    assert counts.tolist() == [[pytest.approx(1.55), 2, 0, 0], [0, 0, 2, 1]]
    scores = score_panoptic(counts, ("car", "road"), ["car"])
    values = {metric.name: metric.value for metric in scores.metrics}
    assert values["PQ things"] == values["SQ things"] == pytest.approx(0.775)
    assert values["RQ things"] == 1.0
    assert values["PQ stuff"] == 0.0
    assert values["PQ"] == pytest.approx(0.3875)


def test_guesses_on_void_and_crowds_are_excused():
    truth = np.array([[0, 0, 0, 1, 1, 1, 2, 2]])
    predicted = np.array([[1, 1, 1, 2, 2, 2, 3, 3]])
    counts = panoptic_counts(truth, predicted, {1: 0, 2: 0}, {1: 0, 2: 0, 3: 0}, 1, crowds={1})
    assert counts.tolist() == [[1.0, 1, 0, 0]]


def test_segments_need_a_class():
    ids = np.array([[0, 7]])
    with pytest.raises(ValueError, match=r"truth has segments without a class .*: \[7\]"):
        panoptic_counts(ids, ids, {}, {7: 0}, 1)
    with pytest.raises(ValueError, match="things are no classes: sky"):
        score_panoptic(np.ones((1, 4)), ["car"], ["sky"])
