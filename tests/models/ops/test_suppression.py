import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import batched_nms

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.ops.boxes import box_ios, box_iou
from pixelmill.models.ops.suppression import (
    class_thresholds,
    greedy_nms,
    hard_nms,
    preselect,
    soft_nms,
    suppress,
    weighted_box_fusion,
)

ALL_METHODS = ["hard", "soft_linear", "soft_gaussian", "weighted_fusion", "none"]


def candidates(count: int, seed: int, *, num_classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner, sides = torch.rand(2, count, 2, generator=generator)
    boxes = torch.cat((corner * 60, corner * 60 + sides * 50 + 1), dim=1)
    scores = torch.rand(count, generator=generator)
    return boxes, scores, torch.randint(num_classes, (count,), generator=generator)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(0, 60), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_hard_nms_keeps_what_torchvision_keeps(seed: int, count: int, threshold: float) -> None:
    boxes, scores, labels = candidates(count, seed)
    expected = batched_nms(boxes, scores, labels, threshold)
    assert torch.equal(hard_nms(boxes, scores, labels, threshold), expected)


def test_hard_nms_equals_torchvision_beyond_its_switch_of_strategy() -> None:
    boxes, scores, labels = candidates(2500, 0, num_classes=20)
    expected = batched_nms(boxes, scores, labels, 0.5)
    assert torch.equal(hard_nms(boxes, scores, labels, 0.5), expected)


@pytest.mark.parametrize("nms", ALL_METHODS)
def test_equal_scores_are_ranked_by_index(nms) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [0, 50, 10, 60], [0, 0, 10, 10]])
    config = BoxPostprocess(nms=nms, score_threshold=0.1, sigma=0.1)
    kept = suppress(
        boxes, torch.full((4,), 0.5), torch.zeros(4, dtype=torch.int64), config, torch.tensor([0.1])
    )
    assert kept.source[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("nms", ALL_METHODS)
@pytest.mark.parametrize("overlap", ["iou", "ios"])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_no_candidates_give_no_boxes(nms, overlap, class_agnostic: bool) -> None:
    config = BoxPostprocess(nms=nms, overlap=overlap, class_agnostic=class_agnostic)
    kept = suppress(*candidates(0, 0), config, torch.full((3,), 0.05))
    assert kept.boxes_xyxy.shape == (0, 4)
    assert kept.scores.shape == kept.labels.shape == kept.source.shape == (0,)
    assert kept.source.dtype == torch.int64


@pytest.mark.parametrize("nms", ALL_METHODS)
@pytest.mark.parametrize("overlap", ["iou", "ios"])
def test_results_are_best_first_bounded_and_above_the_threshold(nms, overlap) -> None:
    config = BoxPostprocess(nms=nms, overlap=overlap, max_detections=7, score_threshold=0.2)
    kept = suppress(*candidates(80, 1), config, torch.full((3,), 0.2), num_votes=2)
    assert 0 < len(kept.scores) <= 7
    assert (kept.scores.diff() <= 0).all()
    assert (kept.scores >= 0.2).all()


@pytest.mark.parametrize("nms", ["hard", "soft_linear", "weighted_fusion"])
def test_classes_compete_only_when_agnostic(nms) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    scores, labels = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    floors = torch.full((2,), 0.05)
    aware = suppress(boxes, scores, labels, BoxPostprocess(nms=nms), floors)
    agnostic = suppress(boxes, scores, labels, BoxPostprocess(nms=nms, class_agnostic=True), floors)
    assert aware.labels.tolist() == [0, 1]
    assert agnostic.labels.tolist() == [0]


def test_a_part_within_a_larger_box_goes_by_ios_and_stays_by_iou() -> None:
    boxes = torch.tensor([[0.0, 0, 100, 100], [10, 10, 30, 30]])
    scores, groups = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64)
    assert hard_nms(boxes, scores, groups, 0.5, overlap="iou").tolist() == [0, 1]
    assert hard_nms(boxes, scores, groups, 0.5, overlap="ios").tolist() == [0]


def test_ios_nms_leaves_no_pair_above_the_threshold() -> None:
    boxes, scores, labels = candidates(120, 3)
    keep = hard_nms(boxes, scores, labels, 0.4, overlap="ios")
    same = labels[keep][:, None] == labels[keep][None, :]
    overlaps = box_ios(boxes[keep], boxes[keep]).fill_diagonal_(0) * same
    assert overlaps.max() <= 0.4


def one_by_one(boxes, scores, groups, threshold, overlap) -> list[int]:
    """The definition: each box, best first, drops its later rivals."""
    measure = {"iou": box_iou, "ios": box_ios}[overlap]
    alive = scores.sort(descending=True, stable=True).indices.tolist()
    kept = []
    while alive:
        best = alive.pop(0)
        kept.append(best)
        rows = measure(boxes[best : best + 1], boxes)[0]
        alive = [i for i in alive if rows[i] <= threshold or groups[i] != groups[best]]
    return kept


@pytest.mark.parametrize("num_boxes", [1, 40, 255, 257, 600])
@pytest.mark.parametrize("threshold", [0.05, 0.4])
def test_hard_nms_keeps_what_going_through_them_one_by_one_keeps(num_boxes, threshold) -> None:
    boxes, scores, labels = candidates(num_boxes, num_boxes)
    scores = (scores * 50).round() / 50  # many equal ones
    for overlap in ("iou", "ios"):
        kept = hard_nms(boxes, scores, labels, threshold, overlap=overlap)
        assert kept.tolist() == one_by_one(boxes, scores, labels, threshold, overlap)


def test_a_chain_of_rivals_is_settled_from_its_beginning() -> None:
    starts = torch.arange(0, 100, 4.0)
    boxes = torch.stack((starts, starts * 0, starts + 10, starts * 0 + 10), dim=1)
    scores = torch.linspace(0.9, 0.1, len(boxes))
    kept = hard_nms(boxes, scores, torch.zeros(len(boxes)), 0.3, overlap="ios")
    assert kept.tolist() == list(range(0, len(boxes), 2))


def test_groups_at_once_are_suppressed_as_each_alone() -> None:
    boxes, scores, _ = candidates(90, 4)
    boxes = boxes[scores.argsort(descending=True)].view(3, 30, 4)
    usable = torch.rand(3, 30, generator=torch.Generator().manual_seed(0)) > 0.2
    kept = greedy_nms(boxes, usable, 0.4)
    for group, each, found in zip(boxes, usable, kept, strict=True):
        falling = torch.where(each, torch.linspace(1, 0.1, 30), 0)
        expected = hard_nms(group[each], falling[each], torch.zeros(int(each.sum())), 0.4)
        assert found.nonzero()[:, 0].tolist() == each.nonzero()[:, 0][expected].tolist()


def test_soft_nms_decays_as_the_paper_says() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [40, 40, 50, 50]])
    scores, groups = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    floors = torch.full((3,), 0.01)
    iou = float(box_iou(boxes[:1], boxes[1:2]))
    index, linear = soft_nms(boxes, scores, groups, floors, 0.5)
    assert index.tolist() == [0, 2, 1]
    assert_close(linear, torch.tensor([0.9, 0.7, 0.8 * (1 - iou)]))
    _, gaussian = soft_nms(boxes, scores, groups, floors, 0.5, sigma=0.5)
    assert_close(gaussian, torch.tensor([0.9, 0.7, 0.8 * math.exp(-(iou**2) / 0.5)]))


def test_soft_nms_drops_identical_boxes_for_good_even_without_a_floor() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(3, 1)
    scores, groups = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    index, _ = soft_nms(boxes, scores, groups, torch.zeros(3), 0.5, max_detections=10)
    assert len(set(index.tolist())) == len(index)


def test_fusion_averages_by_score_and_punishes_missing_votes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 12, 10], [50, 50, 60, 60]])
    scores, groups = torch.tensor([0.8, 0.4, 0.6]), torch.zeros(3, dtype=torch.int64)
    kept = weighted_box_fusion(boxes, scores, groups, groups, 0.5, num_votes=2)
    assert_close(
        kept.boxes_xyxy, torch.tensor([[0, 0, (0.8 * 10 + 0.4 * 12) / 1.2, 10], [50, 50, 60, 60]])
    )
    assert_close(kept.scores, torch.tensor([0.6, 0.3]))
    assert kept.source.tolist() == [0, 2]


def test_a_class_may_have_a_threshold_of_its_own() -> None:
    config = BoxPostprocess(score_threshold=0.5, class_thresholds={"dog": 0.2})
    floors = class_thresholds(config, ("cat", "dog"))
    assert_close(floors, torch.tensor([0.5, 0.2]))
    scores, labels = torch.tensor([0.3, 0.3, 0.6, 0.5]), torch.tensor([0, 1, 1, 0])
    assert preselect(scores, labels, floors, 10).tolist() == [2, 3, 1]
    assert preselect(scores, labels, floors, 1).tolist() == [2]


def test_a_threshold_for_an_unknown_class_is_refused() -> None:
    with pytest.raises(ValueError, match="bird"):
        class_thresholds(BoxPostprocess(class_thresholds={"bird": 0.2}), ("cat", "dog"))
