import numpy as np
import pytest

from pixelmill.tasks.metrics.boundary import boundary_counts, boundary_f, score_boundaries


def squares(shift=0):
    labels = np.zeros((60, 80), dtype=np.int64)
    labels[20:40, 20 + shift : 50 + shift] = 1
    return labels


def slow_counts(truth, predicted, num_classes, radius):
    """By the definition: all pairs of outline pixels and their distances."""

    def outline(labels, k):
        found = []
        for y, x in np.argwhere(labels == k):
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                v, u = y + dy, x + dx
                inside = 0 <= v < labels.shape[0] and 0 <= u < labels.shape[1]
                if inside and truth[y, x] >= 0 and truth[v, u] >= 0 and labels[v, u] != k:
                    found.append((y, x))
                    break
        return np.array(found).reshape(-1, 2)

    rows = []
    for k in range(num_classes):
        a, b = outline(truth, k), outline(predicted, k)
        near = ((a[:, None] - b[None]) ** 2).sum(axis=2) <= radius**2
        rows.append([near.any(axis=0).sum(), len(b), near.any(axis=1).sum(), len(a)])
    return np.array(rows)


@pytest.mark.parametrize("radius", [1, 3])
def test_counts_are_those_of_all_pairs(radius):
    rng = np.random.default_rng(radius)
    truth = np.kron(rng.integers(-1, 3, size=(5, 6)), np.ones((6, 6), int))
    predicted = np.kron(rng.integers(0, 3, size=(6, 6)), np.ones((5, 6), int))
    tolerance = (radius - 0.5) / np.hypot(*truth.shape)
    found = boundary_counts(truth, predicted, 3, tolerance=tolerance)
    assert found.tolist() == slow_counts(truth, predicted, 3, radius).tolist()


def test_a_shift_within_the_tolerance_is_forgiven_and_a_larger_is_not():
    # 1 % of the diagonal of 100 pixels
    near = boundary_counts(squares(), squares(1), 2, tolerance=0.01)
    far = boundary_counts(squares(), squares(3), 2, tolerance=0.01)
    assert boundary_f(near).tolist() == [1.0, 1.0]
    assert (boundary_f(far) < 0.9).all()


def test_a_class_without_outline_on_both_sides_does_not_count():
    counts = boundary_counts(squares(), squares(), 3)
    metric, per_class = score_boundaries(counts[None], ("ground", "box", "never"))
    assert metric.value == 1.0
    assert per_class == {"ground": 1.0, "box": 1.0}
    missed = boundary_counts(squares(), np.zeros_like(squares()), 2)
    assert boundary_f(missed).tolist() == [0.0, 0.0]


def test_void_has_no_outline():
    truth = np.where(squares() == 1, -1, 0)
    assert boundary_counts(truth, squares(), 2).sum() == 0
    with pytest.raises(ValueError, match="no image has an outline"):
        score_boundaries(np.zeros((1, 2, 4), int), ("a", "b"))
