import numpy as np
import pytest

from pixelmill.tasks.metrics.membranes import label_components, pixel_error, rand_score


def slow_components(mask):
    labels, count = np.zeros(mask.shape, int), 0
    for start in np.argwhere(mask):
        if labels[tuple(start)]:
            continue
        count += 1
        stack = [tuple(start)]
        while stack:
            y, x = stack.pop()
            inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
            if inside and mask[y, x] and not labels[y, x]:
                labels[y, x] = count
                stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return labels


@pytest.mark.parametrize("seed", range(5))
def test_components_are_those_of_a_flood_fill(seed):
    mask = np.random.default_rng(seed).random((20, 30)) < 0.6
    assert label_components(mask).tolist() == slow_components(mask).tolist()


def test_rand_is_that_of_counted_pairs():
    rng = np.random.default_rng(0)
    truth, predicted = rng.random((2, 9, 10)) < 0.8
    cells, guesses = slow_components(truth)[truth], slow_components(predicted)[truth]
    guesses = np.where(guesses == 0, -np.arange(1, len(guesses) + 1), guesses)
    same_cell = cells[:, None] == cells[None]
    same_guess = guesses[:, None] == guesses[None]
    together = (same_cell & same_guess).sum()
    f, merge, split = rand_score(truth, predicted)
    assert merge.value == pytest.approx(together / same_guess.sum())
    assert split.value == pytest.approx(together / same_cell.sum())
    assert f.value == pytest.approx(2 * together / (same_guess.sum() + same_cell.sum()))


def test_a_gap_in_a_membrane_merges_two_cells():
    truth = np.ones((10, 11), bool)
    truth[:, 5] = False
    predicted = truth.copy()
    predicted[4, 5] = True
    f, merge, split = rand_score(truth, predicted)
    assert (merge.value, split.value) == (0.5, 1.0)
    assert f.value == pytest.approx(2 / 3)
    assert pixel_error(truth, predicted).value == pytest.approx(1 / 110)
    assert [metric.value for metric in rand_score(truth, truth)] == [1.0, 1.0, 1.0]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no cell pixel"):
        rand_score(np.zeros((3, 3), bool), np.ones((3, 3), bool))
    with pytest.raises(ValueError, match="need bool masks"):
        pixel_error(np.zeros((3, 3), int), np.zeros((3, 3), int))
