"""Matching in columns, against one box after the other in plain Python."""

import math

import numpy as np
import pytest

from pixelmill.tasks.comparison.matching import (
    FLIPPED,
    MOVED,
    SAME,
    BoxColumns,
    match_boxes,
    pair_mask_iou,
)

NUM_IMAGES, NUM_CLASSES = 400, 3


def columns(images):
    """Lists of (label, box) by image."""
    rows = [(k, box, label) for k, boxes in enumerate(images) for label, box in boxes]
    return BoxColumns(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.float64).reshape(-1, 4),
        np.full(len(rows), 0.5),
        np.array([row[2] for row in rows], np.int64),
    )


def draw(seed):
    """Two versions' boxes on small whole numbers, so that overlaps are often equal."""
    rng = np.random.default_rng(seed)
    sides = [[], []]
    for _ in range(NUM_IMAGES):
        first = [thing(rng) for _ in range(rng.integers(0, 7))]
        kind = rng.integers(0, 3)
        second = list(first) if kind == 0 else [thing(rng) for _ in range(rng.integers(0, 7))]
        if kind == 1:
            second = [(label, tuple(np.add(box, rng.integers(-1, 2)))) for label, box in first]
            second = [second[k] for k in rng.permutation(len(second))[:5]]
        sides[0].append(first)
        sides[1].append(second)
    return sides


def thing(rng):
    x, y = rng.integers(0, 12, 2).tolist()
    w, h = rng.integers(0, 9, 2).tolist()
    return int(rng.integers(NUM_CLASSES)), (x, y, x + w, y + h)


def iou(a, b):
    wide, high = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    shared = max(wide, 0) * max(high, 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
    return shared / union if union else 0.0


def nearness(a, b):
    (wide, high), (other_wide, other_high) = ((c[2] - c[0], c[3] - c[1]) for c in (a, b))
    alike = iou((0, 0, wide, high), (0, 0, other_wide, other_high))
    apart = [(a[k] + a[k + 2] - b[k] - b[k + 2]) / 2 for k in (0, 1)]
    diagonal = math.hypot(wide, high)
    if not diagonal or alike < 0.5 or math.hypot(*apart) > diagonal:
        return 0.0
    return alike * (1.01 - math.hypot(*apart) / diagonal)


def one_by_one(first, second):
    """(position in A, in B, kind, IoU) of an image's pairs."""
    if first == second:
        return {(k, k, SAME, 1.0) for k in range(len(first))}
    ranked = []
    for i, (label_a, a) in enumerate(first):
        for j, (label_b, b) in enumerate(second):
            overlap, same = iou(a, b), label_a == label_b
            if overlap >= 0.5:
                ranked.append((SAME if same else FLIPPED, -overlap, i, j))
            elif same and nearness(a, b):
                ranked.append((MOVED, -nearness(a, b), i, j))
    pairs, taken_a, taken_b = set(), set(), set()
    for kind, _, i, j in sorted(ranked):
        if i not in taken_a and j not in taken_b:
            taken_a.add(i)
            taken_b.add(j)
            pairs.add((i, j, kind, iou(first[i][1], second[j][1])))
    return pairs


@pytest.mark.parametrize("seed", [0, 1])
def test_pairs_are_those_of_taking_the_best_one_by_one(seed, monkeypatch):
    monkeypatch.setattr("pixelmill.tasks.metrics.pairs._PAIRS_AT_ONCE", 700)
    first, second = draw(seed)
    a, b = columns(first), columns(second)
    found = match_boxes(a, b, NUM_IMAGES)
    starts_a, starts_b = (np.searchsorted(side.image, np.arange(NUM_IMAGES)) for side in (a, b))
    image = a.image[found.index_a]
    assert (b.image[found.index_b] == image).all()
    assert set(found.kind.tolist()) == {SAME, FLIPPED, MOVED}
    pairs = zip(
        image.tolist(),
        (found.index_a - starts_a[image]).tolist(),
        (found.index_b - starts_b[image]).tolist(),
        found.kind.tolist(),
        found.iou.tolist(),
        strict=True,
    )
    expected = {(k, *pair) for k in range(NUM_IMAGES) for pair in one_by_one(first[k], second[k])}
    assert set(pairs) == expected
    assert sorted([*found.index_a, *found.lost]) == list(range(len(a.image)))
    assert sorted([*found.index_b, *found.gained]) == list(range(len(b.image)))


def test_two_models_without_boxes_share_none():
    none = columns([[], []])
    found = match_boxes(none, none, 2)
    assert len(found.index_a) == len(found.lost) == len(found.gained) == 0


def test_a_mask_that_one_model_lacks_has_no_iou():
    plane = np.zeros((1, 4, 4), np.uint8)
    plane[0, :2] = 1
    other = plane.copy()
    other[0, 1:3] = 2
    found = pair_mask_iou(plane, other, [(0, 1), (0, 1), (-1, -1)], [(0, 1), (0, 2), (0, 1)])
    assert found[:2].tolist() == [4 / 8, 4 / 12]
    assert np.isnan(found[2])
