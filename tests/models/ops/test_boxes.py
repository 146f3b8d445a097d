import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import boxes as reference

from pixelmill.models.ops.boxes import (
    box_area,
    box_ios,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    large_enough,
)


def random_boxes(count: int, seed: int) -> Tensor:
    corner, sides = torch.rand(2, count, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat((corner * 100, corner * 100 + sides * 60 + 1), dim=1)


def test_area_and_iou_equal_torchvision() -> None:
    a, b = random_boxes(40, 0), random_boxes(30, 1)
    assert_close(box_area(a), reference.box_area(a))
    assert_close(box_iou(a, b), reference.box_iou(a, b))


def test_a_box_inside_another_overlaps_the_smaller_one_wholly() -> None:
    inner, outer = torch.tensor([[2.0, 2, 4, 4]]), torch.tensor([[0.0, 0, 10, 10]])
    assert box_ios(inner, outer).item() == 1
    assert box_iou(inner, outer).item() == pytest.approx(0.04)


def test_empty_boxes_overlap_nothing() -> None:
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert box_iou(point, point).item() == 0
    assert box_ios(point, point).item() == 0


@pytest.mark.parametrize("function", [box_iou, box_ios])
def test_no_boxes_give_an_empty_matrix(function) -> None:
    assert function(torch.zeros(0, 4), random_boxes(3, 0)).shape == (0, 3)


def test_clipping_equals_torchvision() -> None:
    boxes = random_boxes(50, 2) * 3 - 60
    assert_close(clip_boxes(boxes, (90, 120)), reference.clip_boxes_to_image(boxes, (90, 120)))


def test_inside_out_and_small_boxes_are_not_large_enough() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1], [5, 5, 4, 9], [1, 1, 1, 9]])
    assert large_enough(boxes, 2).tolist() == [True, False, False, False]
    assert large_enough(boxes, 0).tolist() == [True, True, False, False]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(0, 20))
def test_decoding_undoes_encoding(seed: int, count: int) -> None:
    target, anchors = random_boxes(count, seed), random_boxes(count, seed + 1)
    weights = (10.0, 10.0, 5.0, 5.0)
    deltas = encode_boxes(target, anchors, weights)
    assert_close(decode_boxes(deltas, anchors, weights), target, rtol=1e-4, atol=1e-3)


def test_encoding_equals_torchvisions_coder() -> None:
    weights = (10.0, 10.0, 5.0, 5.0)
    coder = BoxCoder(weights)
    target, anchors = random_boxes(20, 3), random_boxes(20, 4)
    deltas = encode_boxes(target, anchors, weights)
    assert_close(deltas, coder.encode_single(target, anchors))
    huge = deltas * 30
    assert_close(decode_boxes(huge, anchors, weights), coder.decode_single(huge, anchors))
