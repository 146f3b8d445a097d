# pyright: reportArgumentType=false
# (kinds of losses as parameters)

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou_loss
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from pixelmill.models.losses import (
    balanced_weights,
    box_loss,
    dice_loss,
    dice_per_class,
    giou_loss,
    pixel_cross_entropy,
    pixel_weights,
    sigmoid_focal_loss,
    weighted_sum,
)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 1.5)])
def test_focal_loss_equals_torchvision(alpha, gamma):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(50, 3, generator=generator)
    targets = (torch.rand(50, 3, generator=generator) < 0.3).float()
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma),
        torchvision_focal_loss(logits, targets, alpha=alpha, gamma=gamma),
    )


def test_giou_loss_equals_torchvision():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(200, 2, 2, generator=generator) * 100
    predicted, target = (
        torch.cat((corner, corner + 1 + 50 * torch.rand(200, 2, generator=generator)), dim=1)
        for corner in boxes.unbind(1)
    )
    torch.testing.assert_close(
        giou_loss(predicted, target), generalized_box_iou_loss(predicted, target, eps=0)
    )


def test_boxes_apart_are_drawn_together():
    predicted = torch.tensor([[0.0, 0, 10, 10]], requires_grad=True)
    giou_loss(predicted, torch.tensor([[50.0, 0, 60, 10]])).sum().backward()
    assert predicted.grad is not None
    assert predicted.grad[0, 2] < 0


def test_dice_loss_of_a_case_worked_by_hand():
    # one class: 1 - 2 * (0.5 + 1) / ((1 + 1) + (0.25 + 1 + 0.25))
    probs = torch.tensor([[[0.5, 1.0, 0.5]]])
    targets = torch.tensor([[[1.0, 1.0, 0.0]]])
    torch.testing.assert_close(dice_loss(probs, targets), torch.tensor(1 - 3 / 3.5))


def test_dice_loss_averages_classes_and_pools_the_batch():
    targets = torch.zeros(2, 2, 4)
    targets[0, 0] = 1
    targets[:, 1, :2] = 1
    probs = targets.clone()
    probs[1, 1] = 0
    # class 0 is right; class 1 has 4 pixels, 2 found: 1 - 2 * 2 / (4 + 2)
    torch.testing.assert_close(
        dice_loss(probs, targets), torch.tensor((0 + 1 - 4 / 6) / 2), atol=1e-5, rtol=0
    )


def test_a_class_that_is_in_neither_costs_nothing():
    assert dice_loss(torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)) == 0


def test_a_term_without_weight_counts_once():
    terms = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert weighted_sum(terms, {"b": 10.0}) == 32


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # A box of 10 x 10 predicted 2 pixels right of its truth: an offset of 0.2, times 10;
        # an overlap of 80 of 120 pixels, and no hull beyond the union
        ("l1", 2.0),
        ("smooth_l1", 2.0 - 0.5 * 1.0),
        ("iou", 1 - 80 / 120),
        ("giou", 1 - 80 / 120),
    ],
)
def test_each_box_loss_of_a_shifted_box(kind, expected):
    box = torch.tensor([[0.0, 0, 10, 10]])
    weights = (10.0, 10.0, 5.0, 5.0)
    shifted = torch.tensor([[2.0, 0, 0, 0]])
    loss = box_loss(kind, shifted, box, box, weights=weights, beta=1.0)
    assert loss.tolist() == pytest.approx([expected])
    assert box_loss(kind, torch.zeros(1, 4), box, box, weights=weights).tolist() == [0.0]


def test_only_giou_draws_boxes_together_that_do_not_meet():
    box = torch.tensor([[0.0, 0, 10, 10]])
    for kind, moves in (("iou", False), ("giou", True)):
        far = torch.tensor([[3.0, 0, 0, 0]], requires_grad=True)
        box_loss(kind, far, box, box).sum().backward()
        assert far.grad is not None
        assert bool(far.grad.any()) == moves


def test_an_unknown_box_loss_is_told():
    with pytest.raises(ValueError, match="giou, got 'l2'"):
        box_loss("l2", torch.zeros(1, 4), torch.ones(1, 4), torch.ones(1, 4))


def test_pixels_between_two_objects_count_more():
    instances = torch.zeros(9, 30, dtype=torch.int64)
    instances[2:7, 2:8] = 1
    instances[2:7, 12:20] = 2
    labels = (instances > 0).long()
    weights = pixel_weights(labels, instances, torch.tensor([0.5, 2.0]), sigma=2.0)
    assert (weights[labels == 1] == 2).all()
    # The gap has columns 8 to 11: at each of them the two distances add up to 5
    expected = 0.5 + 10 * math.exp(-(5**2) / (2 * 2**2))
    assert weights[4, 8:12].tolist() == pytest.approx([expected] * 4)
    # Two rows above the gap: two columns from the first object, three from the second
    above = math.hypot(2, 2) + math.hypot(2, 3)
    assert weights[0, 9].item() == pytest.approx(0.5 + 10 * math.exp(-(above**2) / 8))
    assert weights[4, 29].item() == pytest.approx(0.5)


def test_distances_are_those_of_every_pair_of_pixels():
    generator = torch.Generator().manual_seed(0)
    instances = (torch.rand(20, 24, generator=generator) < 0.02).long()
    instances[:, 12:] *= 2
    sigma = 8.0  # all pairs are within its reach
    found = pixel_weights(instances * 0, instances, torch.zeros(1), sigma=sigma)
    places = torch.cartesian_prod(torch.arange(20.0), torch.arange(24.0))
    first, second = (
        torch.cdist(places, torch.nonzero(instances == name).float()).amin(dim=1).view(20, 24)
        for name in (1, 2)
    )
    both = first + second
    expected = 10 * torch.exp(-(both**2) / (2 * sigma**2)) * (instances == 0)
    torch.testing.assert_close(found, expected)


def test_one_object_has_no_gaps():
    instances = torch.zeros(8, 8, dtype=torch.int64)
    instances[3, 3] = 7
    weights = pixel_weights((instances > 0).long(), instances, torch.tensor([1.0, 3.0]))
    assert weights.unique().tolist() == [1, 3]


def test_dice_of_each_class_is_the_v_nets_formula():
    probs = torch.tensor([[[0.2, 0.9], [0.8, 0.1]]])  # (1, 2, 2)
    targets = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    expected = [1 - 2 * 0.9 / (1 + 0.04 + 0.81), 1 - 2 * 0.8 / (1 + 0.64 + 0.01)]
    torch.testing.assert_close(dice_per_class(probs, targets), torch.tensor(expected))
    torch.testing.assert_close(dice_loss(probs, targets), torch.tensor(sum(expected) / 2))
    weighted = dice_loss(probs, targets, class_weights=torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(weighted, torch.tensor((3 * expected[0] + expected[1]) / 4))


def test_balanced_weights_make_up_for_rarity():
    weights = balanced_weights(torch.tensor([60, 30, 10, 0]))
    torch.testing.assert_close(weights, torch.tensor([100 / 240, 100 / 120, 100 / 40, 0.0]))


class TestPixelCrossEntropy:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(1))

    def test_it_is_torchs_where_nothing_is_asked_for(self):
        labels = self.labels.clone()
        labels[0, 0] = 255
        torch.testing.assert_close(
            pixel_cross_entropy(self.logits, labels, void=255),
            F.cross_entropy(self.logits, labels, ignore_index=255),
        )
        weights = torch.tensor([1.0, 5.0, 0.5])
        torch.testing.assert_close(
            pixel_cross_entropy(self.logits, labels, void=255, class_weights=weights),
            F.cross_entropy(self.logits, labels, ignore_index=255, weight=weights),
        )

    def test_pixels_weigh_what_their_map_says(self):
        errors = F.cross_entropy(self.logits, self.labels, reduction="none")
        weights = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(
            pixel_cross_entropy(self.logits, self.labels, void=255, weights=weights),
            (weights * errors).sum() / weights.sum(),
        )

    def test_only_the_hardest_are_learnt_from(self):
        errors = F.cross_entropy(self.logits, self.labels, reduction="none")
        torch.testing.assert_close(
            pixel_cross_entropy(self.logits, self.labels, void=255, hard_share=0.25),
            errors.flatten().topk(10).values.mean(),
        )

    def test_all_void_costs_nothing(self):
        logits = self.logits.clone().requires_grad_()
        loss = pixel_cross_entropy(logits, torch.full_like(self.labels, 255), void=255)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None
        assert not logits.grad.any()
