import numpy as np
import pytest

from pixelmill.tasks.metrics.matching import DetectionColumns, InstanceColumns, match_images
from pixelmill.tasks.metrics.precision import accumulate
from pixelmill.tasks.metrics.tide import KINDS, NO_ERROR, break_down, find_errors


def match(truth, found, num_images=1):
    """Rows (image, class, xywh[, crowd]) and (image, class, xywh, score)."""
    boxes = np.array([row[2] for row in truth], np.float64).reshape(-1, 4)
    instances = InstanceColumns(
        np.array([row[0] for row in truth], np.int64),
        np.array([row[1] for row in truth], np.int64),
        boxes,
        boxes[:, 2] * boxes[:, 3],
        np.array([len(row) > 3 for row in truth], np.bool_),
    )
    detections = DetectionColumns(
        np.array([row[0] for row in found], np.int64),
        np.array([row[1] for row in found], np.int64),
        np.arange(len(found)),
        np.array([row[3] for row in found], np.float64),
        np.array([row[2] for row in found], np.float64).reshape(-1, 4),
    )
    return match_images(instances, detections, num_images)


def broken_down(records, num_classes):
    order = accumulate(records, num_classes).order
    return break_down(records, find_errors(records), order, num_classes)


def kinds_of(records, errors):
    """By position, which is the order in which the detections were given."""
    order = np.argsort(records.position)
    return [None if k == NO_ERROR else KINDS[k] for k in errors.kind[order]]


A, B, C = [0, 0, 10, 10], [30, 0, 10, 10], [60, 0, 10, 10]


@pytest.mark.parametrize(
    ("detection", "kind"),
    [
        ((0, 0, A, 0.9), None),
        ((0, 1, A, 0.9), "class"),
        ((0, 0, [4, 0, 10, 10], 0.9), "localisation"),  # IoU 6 / 14
        ((0, 1, [4, 0, 10, 10], 0.9), "class and localisation"),
        ((0, 0, [80, 80, 5, 5], 0.9), "background"),
        ((0, 0, [9, 0, 10, 10], 0.9), "background"),  # IoU 1 / 19
    ],
)
def test_each_kind_by_hand(detection, kind):
    records = match([(0, 0, A)], [detection])
    errors = find_errors(records)
    assert kinds_of(records, errors) == [kind]
    # localisation and class errors point at the instance: it is not missed besides
    assert errors.missed.tolist() == [kind in ("class and localisation", "background")]


def test_a_second_detection_is_a_duplicate_and_one_on_a_crowd_is_no_error():
    records = match(
        [(0, 0, A), (0, 0, B, "crowd")],
        [(0, 0, A, 0.9), (0, 0, [1, 0, 10, 10], 0.8), (0, 0, [31, 1, 5, 5], 0.7)],
    )
    errors = find_errors(records)
    assert kinds_of(records, errors) == [None, "duplicate", None]
    assert not errors.missed.any()


def test_gains_are_those_of_mending_by_hand():
    # class 0: A found, B only beside; class 1: C taken for class 0, best of all
    truth = [(0, 0, A), (0, 0, B), (0, 1, C)]
    found = [(0, 0, C, 0.9), (0, 0, A, 0.8), (0, 0, [34, 0, 10, 10], 0.7)]
    records = match(truth, found)
    broken = broken_down(records, 2)
    assert broken is not None
    gains = {share.kind: share.delta_ap for share in broken.shares}
    half, whole = 51 / 101, 1.0  # recall 1/2 and 1
    base = (half * 1 / 2 + 0) / 2  # precision 1/2 at recall 1/2; class 1 has none
    assert broken.ap == pytest.approx(base)
    # C moves to class 1, and class 0 has A first
    assert gains["class"] == pytest.approx((half + whole) / 2 - base)
    # wrong, right, right: the best precision is 2/3 at every recall
    assert gains["localisation"] == pytest.approx((2 / 3 + 0) / 2 - base)
    # nothing is missed: both lost instances are pointed at
    assert gains["missed"] == gains["background"] == gains["duplicate"] == 0.0
    assert broken.delta_false_positives == pytest.approx(half / 2 - base)
    counts = {share.kind: share.count for share in broken.shares if share.count}
    assert counts == {"class": 1, "localisation": 1}


def test_missed_instances_are_no_longer_asked_for():
    records = match([(0, 0, A), (0, 0, B)], [(0, 0, A, 0.9)])
    broken = broken_down(records, 1)
    assert broken is not None
    (missed,) = (share for share in broken.shares if share.kind == "missed")
    assert missed.count == 1
    assert (broken.ap, missed.delta_ap) == pytest.approx((51 / 101, 1 - 51 / 101))
    assert broken.delta_misses == missed.delta_ap


def test_of_several_that_could_be_mended_the_best_is():
    near, nearer = [4, 0, 10, 10], [3.5, 0, 10, 10]
    records = match(
        [(0, 0, A)], [(0, 0, near, 0.9), (0, 0, nearer, 0.8), (0, 0, [80, 80, 5, 5], 0.7)]
    )
    broken = broken_down(records, 1)
    assert broken is not None
    gains = {share.kind: share.delta_ap for share in broken.shares}
    # the other one goes; what follows the last hit costs nothing
    assert gains["localisation"] == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(8))
def test_its_base_is_ap50_and_every_error_has_one_kind(seed):
    rng = np.random.default_rng(seed)

    def rows(count):
        corners, sides = rng.integers(0, 40, (count, 2)), rng.integers(5, 30, (count, 2))
        boxes = np.hstack([corners, sides]).tolist()
        return zip(
            np.sort(rng.integers(0, 4, count)), rng.integers(0, 3, count), boxes, strict=True
        )

    truth = list(rows(30))
    found = [(*row, score) for row, score in zip(rows(80), rng.random(80), strict=True)]
    records = match(truth, found, 4)
    errors = find_errors(records)
    broken = broken_down(records, 3)
    assert broken is not None
    assert broken.ap == pytest.approx(accumulate(records, 3).mean_precision(iou=0))
    wrong = ((records.right | records.ignored) & 1) == 0
    np.testing.assert_array_equal(errors.kind != NO_ERROR, wrong)
    assert all(share.delta_ap >= -1e-12 for share in broken.shares if share.kind != "class")
    removed = [one.delta_ap for one in broken.shares if one.kind in ("background", "duplicate")]
    assert broken.delta_false_positives >= max(removed) - 1e-12


def test_truth_without_instances_has_no_breakdown():
    records = match([], [(0, 0, A, 0.5)])
    assert broken_down(records, 1) is None
