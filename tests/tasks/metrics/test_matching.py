import contextlib
import io
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pixelmill.tasks.metrics.detection import encode_mask
from pixelmill.tasks.metrics.matching import (
    DetectionColumns,
    InstanceColumns,
    MatchRecords,
    match_images,
)
from pixelmill.tasks.metrics.precision import accumulate

SIZE = 120
# sides whose squares are COCO's borders between small, medium and large
SIDES = [1, 4, 10, 31, 32, 33, 60, 95, 96, 97]
mask_codec: Any = coco_mask


def random_set(seed, *, iou_type="bbox"):
    """Few images, crowds, ties, sizes at the borders; now and then over 100 of one class."""
    rng = np.random.default_rng(seed)
    num_images, num_classes = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    num_truth = int(rng.integers(0, 9))
    num_found = int(rng.choice([0, 3, 12, 130], p=[0.1, 0.4, 0.45, 0.05]))
    sides = rng.choice(SIDES, (num_truth, 2))
    truth_boxes = np.hstack([rng.integers(0, 24, (num_truth, 2)), sides]).astype(np.float64)
    truth_image = np.sort(rng.integers(0, num_images, num_truth))
    truth_class = rng.integers(0, num_classes, num_truth)
    crowd = rng.random(num_truth) < 0.2
    area = np.prod(truth_boxes[:, 2:], axis=1) * rng.choice([1.0, 0.7], num_truth)
    image = np.sort(rng.integers(0, num_images, num_found))
    boxes = np.hstack([rng.integers(0, 24, (num_found, 2)), rng.choice(SIDES, (num_found, 2))])
    class_index = rng.integers(0, num_classes, num_found)
    if num_truth:  # most lie near an instance of the image
        for i in np.flatnonzero(rng.random(num_found) < 0.8):
            near = np.flatnonzero(truth_image == image[i])
            if len(near):
                j = rng.choice(near)
                boxes[i] = truth_boxes[j] + rng.integers(-2, 3, 4) * (rng.random() < 0.7)
                class_index[i] = truth_class[j] if rng.random() < 0.8 else class_index[i]
    boxes = np.maximum(boxes, [0, 0, 1, 1]).astype(np.float64)
    truth = InstanceColumns(
        truth_image, truth_class, truth_boxes, area, crowd, masks_of(truth_boxes, iou_type, rng)
    )
    found = DetectionColumns(
        image,
        class_index,
        np.arange(num_found) - np.searchsorted(image, image),
        rng.choice([0.1, 0.3, 0.5, 0.5, 0.7, 0.9], num_found),
        boxes,
        masks_of(boxes, iou_type, rng),
    )
    return truth, found, num_images, num_classes


def masks_of(boxes, iou_type, rng):
    """The boxes with holes."""
    if iou_type == "bbox":
        return None
    masks = []
    for x, y, w, h in boxes.astype(int):
        mask = np.zeros((SIZE + 10, SIZE + 10), dtype=bool)
        mask[y : y + h, x : x + w] = True
        if w * h > 20:
            mask[y : y + int(rng.integers(0, h // 2 + 1)), x : x + w // 2] = False
        masks.append(encode_mask(mask))
    return masks


def pycocotools(truth, found, num_images, num_classes, iou_type):
    header = {
        "images": [{"id": i, "width": SIZE, "height": SIZE} for i in range(num_images)],
        "categories": [{"id": k, "name": str(k)} for k in range(num_classes)],
    }
    notes = [
        {
            "id": i + 1,
            "image_id": int(truth.image[i]),
            "category_id": int(truth.class_index[i]),
            "bbox": truth.boxes_xywh[i].tolist(),
            "area": float(truth.area[i]),
            "iscrowd": int(truth.crowd[i]),
            **({} if truth.masks is None else {"segmentation": truth.masks[i]}),
        }
        for i in range(len(truth.image))
    ]
    guesses = [
        {
            "id": i + 1,
            "image_id": int(found.image[i]),
            "category_id": int(found.class_index[i]),
            "score": float(found.score[i]),
            "iscrowd": 0,
            "bbox": found.boxes_xywh[i].tolist(),
            "area": float(found.boxes_xywh[i, 2] * found.boxes_xywh[i, 3])
            if found.masks is None
            else float(mask_codec.area(found.masks[i])),
            **({} if found.masks is None else {"segmentation": found.masks[i]}),
        }
        for i in range(len(found.image))
    ]
    sides: list[Any] = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (notes, guesses):
            side: Any = COCO()
            side.dataset = {**header, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        run = COCOeval(*sides, iouType=iou_type)
        run.evaluate()
        run.accumulate()
    return run.eval


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@settings(max_examples=500, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_precision_and_recall_are_those_of_pycocotools_to_the_last_bit(iou_type, seed):
    truth, found, num_images, num_classes = random_set(seed, iou_type=iou_type)
    expected = pycocotools(truth, found, num_images, num_classes, iou_type)
    records = match_images(truth, found, num_images, iou_type)
    ours = accumulate(records, num_classes)
    # pycocotools keeps maxDets 1, 10 and 100 of everything; of precision we keep 100 alone
    np.testing.assert_array_equal(ours.precision, expected["precision"][..., 2])
    np.testing.assert_array_equal(ours.recall, expected["recall"])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(20))
def test_an_image_is_matched_alike_alone_and_among_others(iou_type, seed):
    truth, found, num_images, _ = random_set(seed, iou_type=iou_type)
    together = match_images(truth, found, num_images, iou_type)
    alone = MatchRecords.concatenate(
        [match_images(*only(truth, found, i), 1, iou_type) for i in range(num_images)]
    )
    for column in fields(MatchRecords):
        np.testing.assert_array_equal(
            getattr(together, column.name), getattr(alone, column.name), column.name
        )


def only(truth, found, image):
    def cut(columns):
        rows = np.flatnonzero(columns.image == image)
        values = {}
        for column in fields(columns):
            value = getattr(columns, column.name)
            if isinstance(value, np.ndarray):
                value = value[rows] if column.name != "image" else np.zeros(len(rows), np.int64)
            elif value is not None:
                value = [value[i] for i in rows]
            values[column.name] = value
        return type(columns)(**values)

    return cut(truth), cut(found)


def test_overlaps_with_other_classes_are_kept():
    truth = InstanceColumns(
        np.zeros(2, np.int64),
        np.array([0, 1]),
        np.array([[0, 0, 10, 10], [50, 50, 10, 10]], dtype=np.float64),
        np.full(2, 100.0),
        np.zeros(2, np.bool_),
    )
    found = DetectionColumns(
        np.zeros(1, np.int64),
        np.array([1]),
        np.array([7]),
        np.array([0.9]),
        np.array([[0, 0, 10, 8.0]]),
    )
    records = match_images(truth, found, 1)
    assert (records.right & 1).tolist() == [0]
    assert (records.other_iou.tolist(), records.other_truth.tolist()) == ([0.8], [0])
    assert (records.same_iou.tolist(), records.same_truth.tolist()) == ([0.0], [-1])
    assert (records.pair_position.tolist(), records.pair_truth.tolist()) == ([7], [0])
    assert np.isnan(records.found_score).tolist() == [True, True]
