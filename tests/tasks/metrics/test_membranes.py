import numpy as np
import pytest

from pixelmill.tasks.metrics import membranes
from pixelmill.tasks.metrics.membranes import (
    label_components,
    pixel_error,
    rand_score,
    warping_error,
)


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


def test_a_moved_membrane_is_no_warping_error_and_a_gap_is_one():
    truth = np.ones((12, 15), bool)
    truth[:, 5] = False
    moved = np.roll(truth, 1, axis=1)
    assert warping_error(truth, moved).value == 0.0
    gap = truth.copy()
    gap[4, 5] = True
    assert warping_error(truth, gap).value == pytest.approx(1 / truth.size)
    assert warping_error(truth, truth).value == 0.0


def test_a_cell_that_is_not_there_is_a_warping_error():
    truth = np.zeros((9, 9), bool)
    truth[2:7, 2:7] = True
    # the cell shrinks to a single pixel, which must stay
    assert warping_error(truth, np.zeros_like(truth)).value == pytest.approx(1 / 81)
    ring = truth.copy()
    ring[4, 4] = False
    # the hole cannot be made, and no pixel besides differs
    assert warping_error(truth, ring).value == pytest.approx(1 / 81)


@pytest.mark.parametrize("code", range(256))
def test_simple_points_are_those_whose_flip_keeps_all_counts(code):
    mask = np.zeros((3, 3), bool)
    for bit, (dy, dx) in enumerate(membranes._AROUND):
        mask[1 + dy, 1 + dx] = bool(code >> bit & 1)
    other = mask.copy()
    other[1, 1] = True
    assert membranes._simple_points()[code] == (local_counts(mask) == local_counts(other))


def local_counts(mask):
    """Within the 3 x 3 pixels alone: cells and, uncropped, membranes."""
    cells = label_components(mask).max()
    seen, groups = set(), 0
    for start in map(tuple, np.argwhere(~mask)):
        if start in seen:
            continue
        groups += 1
        stack = [start]
        while stack:
            y, x = stack.pop()
            if (y, x) in seen or not (0 <= y < 3 and 0 <= x < 3) or mask[y, x]:
                continue
            seen.add((y, x))
            stack += [(y + dy, x + dx) for dy, dx in membranes._AROUND]
    return cells, groups
