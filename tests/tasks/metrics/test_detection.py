import contextlib
import copy
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pixelmill.tasks.metrics.detection import (
    Category,
    InstanceTruth,
    TruthImage,
    encode_mask,
    encode_plane,
    score_detections,
)
from pixelmill.tasks.truth import load_coco_instances


def make_truth(boxes, *, num_images=1, classes=("cat", "dog"), masks=False):
    """`boxes`: (image_id, category_id, xywh[, iscrowd]); images are 100 x 100."""
    annotations = []
    for image_id, category_id, box_xywh, *crowd in boxes:
        annotation = {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box_xywh,
            "area": box_xywh[2] * box_xywh[3],
            "iscrowd": crowd[0] if crowd else 0,
        }
        if masks:
            annotation["segmentation"] = encode_mask(box_mask(box_xywh))
        annotations.append(annotation)
    return InstanceTruth(
        images=tuple(TruthImage(i, f"{i}.jpg", 100, 100) for i in range(1, num_images + 1)),
        categories=tuple(Category(i, name) for i, name in enumerate(classes, start=1)),
        annotations=tuple(annotations),
        has_masks=masks,
    )


def box_mask(box_xywh):
    x, y, w, h = (int(value) for value in box_xywh)
    mask = np.zeros((100, 100), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


def detect(image_id, category_id, box_xywh, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": box_xywh, "score": score}


def values(scores):
    return {metric.name: metric.value for metric in scores.metrics}


COCO_NAMES = (
    "AP", "AP50", "AP75", "AP small", "AP medium", "AP large",
    "AR1", "AR10", "AR100", "AR small", "AR medium", "AR large",
)  # fmt: skip


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_numbers_are_those_of_the_coco_api_on_its_own_fake_results(data, iou_type):
    folder = data / "cocoapi_fake100"
    expected = json.loads((folder / "expected.json").read_text())[iou_type]
    truth = load_coco_instances(folder / "instances_val2014_100.json")
    detections = json.loads(
        (folder / f"instances_val2014_fake{iou_type}100_results.json").read_text()
    )
    scores = score_detections(truth, detections, iou_type=iou_type)
    found = values(scores)
    assert [found[name] for name in COCO_NAMES] == expected["stats"]
    per_class = {row.class_name: row.values.get("AP", -1.0) for row in scores.per_class}
    for category in truth.categories:
        expected_ap = expected["per_category_AP"][str(category.id)]
        assert per_class[category.name] == pytest.approx(expected_ap, abs=1e-12)


@pytest.mark.parametrize(
    "name", ["bccd/bbox", "pennfudan/bbox", "pennfudan/segm", "coco_small/bbox", "coco_small/segm"]
)
def test_numbers_are_those_of_pycocotools_on_noisy_predictions(data, name):
    folder, iou_type = name.split("/")
    expected = json.loads((data / "expected_noisy.json").read_text())["values"][name]["noisy"]
    truth = load_coco_instances(data / folder / "instances.json")
    detections = json.loads((data / folder / f"noisy_{iou_type}_dets.json").read_text())
    found = values(score_detections(truth, detections, iou_type=iou_type))
    assert [found.get(metric, -1.0) for metric in COCO_NAMES] == expected


def test_a_cap_of_100_detections_is_reported(data):
    truth = load_coco_instances(data / "isbi2012_membrane" / "instances.json")
    notes = score_detections(truth, [], iou_type="segm").notes
    assert any("maxDets 100 caps" in note for note in notes)


boxes = st.tuples(
    st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40)
).map(lambda box: [float(value) for value in box])


@settings(max_examples=40, deadline=None)
@given(
    truth_boxes=st.lists(
        st.tuples(st.integers(1, 2), st.integers(1, 2), boxes, st.integers(0, 1)), max_size=8
    ),
    found=st.lists(
        st.tuples(
            st.integers(1, 2), st.integers(1, 2), boxes, st.sampled_from([0.1, 0.5, 0.5, 0.9])
        ),
        min_size=1,
        max_size=10,
    ),
)
def test_random_sets_score_as_in_pycocotools(truth_boxes, found):
    truth = make_truth(truth_boxes, num_images=2)
    detections = [detect(*row) for row in found]
    scores = score_detections(truth, detections)
    reference: Any = COCO()
    reference.dataset = {
        "images": [{"id": 1, "width": 100, "height": 100}, {"id": 2, "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{**a, "id": i + 1} for i, a in enumerate(truth.annotations)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        reference.createIndex()
        run = COCOeval(reference, reference.loadRes(copy.deepcopy(detections)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    ours = values(scores)
    assert [ours.get(name, -1.0) for name in COCO_NAMES] == run.stats.tolist()


def test_two_right_one_wrong_one_missed_by_hand():
    truth = make_truth([(1, 1, [0, 0, 10, 10]), (1, 1, [20, 0, 10, 10]), (1, 1, [40, 0, 10, 10])])
    scores = score_detections(
        truth,
        [
            detect(1, 1, [0, 0, 10, 10], 0.9),
            detect(1, 1, [70, 70, 10, 10], 0.8),
            detect(1, 1, [20, 0, 10, 10], 0.7),
        ],
        score_threshold=0.5,
    )
    # Precision 1 up to recall 1/3 (34 of the 101 points), 2/3 up to recall 2/3 (33 points), then 0.
    assert values(scores)["AP50"] == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
    assert scores.per_image[0].tolist() == [2.0, 1.0, 1.0, pytest.approx(2 / 3)]  # TP, FP, FN, F1
    assert scores.confusion.counts == ((2, 0, 1), (0, 0, 0), (1, 0, 0))
    assert scores.confusion.rows == ("cat", "dog", "background")


def test_a_wrong_class_on_the_right_place_is_a_confusion():
    truth = make_truth([(1, 1, [0, 0, 10, 10])])
    scores = score_detections(truth, [detect(1, 2, [0, 0, 10, 10], 0.9)], score_threshold=0.5)
    assert scores.confusion.counts == ((0, 1, 0), (0, 0, 0), (0, 0, 0))
    assert scores.per_image[0].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_detections_on_a_crowd_are_neither_right_nor_wrong():
    truth = make_truth([(1, 1, [0, 0, 50, 50], 1), (1, 1, [60, 60, 10, 10])])
    found = [detect(1, 1, [5, 5, 10, 10], 0.9), detect(1, 1, [60, 60, 10, 10], 0.8)]
    scores = score_detections(truth, found, score_threshold=0.5)
    assert scores.per_image[0].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert values(scores)["AP"] == pytest.approx(1.0)


def test_the_threshold_of_best_f1_is_chosen_and_stated():
    truth = make_truth([(1, 1, [0, 0, 10, 10]), (1, 1, [20, 0, 10, 10])])
    right = [detect(1, 1, [0, 0, 10, 10], 0.9), detect(1, 1, [20, 0, 10, 10], 0.6)]
    scores = score_detections(truth, [*right, detect(1, 1, [70, 70, 9, 9], 0.3)])
    assert scores.score_threshold == 0.6
    assert values(scores)["best F1"] == values(scores)["F1"] == 1.0
    assert "0.6" in scores.confusion.unit


def test_curves_are_the_mean_and_each_class_that_has_truth():
    scores = score_detections(
        make_truth([(1, 1, [0, 0, 10, 10])]), [detect(1, 1, [0, 0, 10, 10], 1)]
    )
    assert [curve.name for curve in scores.curves] == ["mean", "cat", "all classes"]
    assert [curve.group for curve in scores.curves[1:]] == [
        "precision-recall @ IoU 0.50",
        "reliability",
    ]
    assert len(scores.curves[0].x) == 101
    assert scores.curves[0].y == pytest.approx([1.0] * 101)


def test_no_detections_are_ap_zero():
    scores = score_detections(make_truth([(1, 1, [0, 0, 10, 10])]), [])
    assert values(scores)["AP"] == 0.0
    assert scores.per_image[0].tolist() == [0.0, 0.0, 1.0, 0.0]


def test_numbers_without_truth_are_left_out_instead_of_minus_one():
    scores = score_detections(make_truth([]), [detect(1, 1, [0, 0, 10, 10], 0.5)])
    assert "AP" not in values(scores)
    assert "AP" not in scores.per_class[0].values


def test_an_image_without_objects_where_none_was_found_is_right():
    assert score_detections(make_truth([]), []).per_image[0].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_masks_are_compared_by_their_pixels():
    truth = make_truth([(1, 1, [0, 0, 20, 10])], masks=True)
    half = box_mask([0, 0, 20, 10]) & (np.indices((100, 100))[1] < 12)
    detection = {
        "image_id": 1, "category_id": 1, "score": 0.9, "segmentation": encode_mask(half),
    }  # fmt: skip
    found = values(score_detections(truth, [detection], iou_type="segm"))
    # IoU 0.6: right at the thresholds 0.50, 0.55 and 0.60 of ten
    assert found["AP"] == pytest.approx(0.3)


def test_the_callers_dicts_are_not_changed_and_nothing_is_printed(capfd):
    truth = make_truth([(1, 1, [0, 0, 10, 10])], masks=True)
    detections = [
        {
            **detect(1, 1, [0, 0, 10, 10], 0.9),
            "segmentation": encode_mask(box_mask([0, 0, 10, 10])),
        }
    ]
    before = copy.deepcopy((truth.annotations, detections))
    for iou_type in ("bbox", "segm"):
        score_detections(truth, detections, iou_type=iou_type)
    assert (truth.annotations, detections) == before
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": float("nan")}, "score must be finite"),
        ({"score": None}, "missing score"),
        ({"bbox": [0, 0, float("nan"), 1]}, "4 finite numbers"),
        ({"bbox": [0, 0, -1, 1]}, "width and height >= 0"),
        ({"bbox": [0, 0, 1]}, "4 finite numbers"),
        ({"image_id": 7}, "image_id 7 is not in the truth"),
        ({"category_id": 7}, "category_id 7 is not in the truth"),
    ],
)
def test_what_libraries_score_silently_wrong_is_refused(change, message):
    truth = make_truth([(1, 1, [0, 0, 10, 10])])
    with pytest.raises(ValueError, match=message):
        score_detections(truth, [{**detect(1, 1, [0, 0, 10, 10], 0.9), **change}])


def test_all_faults_are_named_at_once():
    truth = make_truth([(1, 1, [0, 0, 10, 10])])
    bad = [detect(9, 1, [0, 0, 1, 1], 0.5), detect(1, 1, [0, 0, 1, 1], float("inf"))]
    with pytest.raises(ValueError, match=r"(?s)detection 0: image_id.*detection 1: score"):
        score_detections(truth, bad)


def test_a_mask_of_another_size_is_refused():
    truth = make_truth([(1, 1, [0, 0, 10, 10])], masks=True)
    detection = {
        "image_id": 1,
        "category_id": 1,
        "score": 0.5,
        "segmentation": encode_mask(np.ones((4, 4), dtype=bool)),
    }
    with pytest.raises(ValueError, match="mask size"):
        score_detections(truth, [detection], iou_type="segm")


def test_masks_need_truth_with_masks():
    with pytest.raises(ValueError, match="truth has no masks"):
        score_detections(make_truth([(1, 1, [0, 0, 10, 10])]), [], iou_type="segm")


@given(st_numpy.arrays(np.uint16, (7, 9), elements=st.integers(0, 3)))
def test_a_plane_is_encoded_as_its_masks_are(plane):
    found = encode_plane(plane, [1, 2, 3, 9])
    assert found == {value: encode_mask(plane == value) for value in (1, 2, 3, 9)}


def test_a_class_has_its_best_threshold_and_all_scores_a_calibration_error():
    truth = make_truth([(1, 1, [0, 0, 10, 10]), (1, 1, [50, 50, 10, 10])])
    detections = [
        detect(1, 1, [0, 0, 10, 10], 0.9),
        detect(1, 1, [50, 50, 8, 10], 0.6),
        detect(1, 1, [20, 20, 10, 10], 0.3),
    ]
    scores = score_detections(truth, detections)
    cat, dog = scores.per_class
    # the second hit has IoU 0.8: a loss of (1 - 0.8) / 0.5
    assert cat.values["oLRP"] == pytest.approx(0.4 / 2)
    assert cat.values["oLRP threshold"] == 0.6
    assert "oLRP" not in dog.values
    assert values(scores)["oLRP"] == pytest.approx(0.2)
    assert values(scores)["ECE"] == pytest.approx((0.1 + 0.4 + 0.3) / 3)
    unbounded = [{**each, "score": 10 * each["score"]} for each in detections]
    assert "ECE" not in values(score_detections(truth, unbounded))
