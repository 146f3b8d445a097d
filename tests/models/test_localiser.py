from typing import cast

import pytest
import torch
from torch import nn

from pixelmill.configs.schema import BoxPostprocess, ClassificationPostprocess
from pixelmill.models.interface import BoxOutput, ClassOutput
from pixelmill.models.localiser import Localiser, LocaliserOutput, localiser_loss, localiser_outputs
from pixelmill.models.losses import weighted_sum
from pixelmill.models.ops.boxes import encode_boxes
from pixelmill.models.targets import BoxTarget, ClassTarget

CANVAS = (64, 96)
WHOLE = torch.tensor([0.0, 0, 96, 64])
SMALL = {"backbone": "resnet18", "cells": 2, "hidden": 8}


def target(*boxes_and_labels: tuple[list[float], int]) -> BoxTarget:
    boxes = torch.tensor([box for box, _ in boxes_and_labels]).view(-1, 4)
    labels = torch.tensor([label for _, label in boxes_and_labels], dtype=torch.int64)
    return BoxTarget(boxes, labels)


TARGETS = [
    target(([60.0, 40, 70, 60], 0), ([10.0, 8, 50, 60], 2)),  # the second one is larger
    target(),
    target(([30.0, 0, 96, 64], 1)),
]


def outputs_of_truth(boxes: int) -> LocaliserOutput:
    """What a network would say that knows the truth of the images with objects."""
    logits = torch.full((3, 4), -20.0)
    logits[range(3), [3, 0, 2]] = 20.0
    deltas = torch.zeros(3, boxes, 4)
    for index, (box, column) in {0: (TARGETS[0].boxes_xyxy[1], 2), 2: (WHOLE, 1)}.items():
        box = box if index == 0 else TARGETS[2].boxes_xyxy[0]
        deltas[index, column if boxes > 1 else 0] = encode_boxes(box[None], WHOLE[None])[0]
    return LocaliserOutput(logits, deltas, WHOLE)


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize(("per_class", "boxes"), [(False, 1), (True, 5)])
def test_parameters_are_those_of_the_backbone_and_of_two_heads(per_class, boxes):
    with torch.device("meta"):
        module = Localiser(5, cells=4, hidden=256, box_per_class=per_class)
    # VGG16's convolutions, then the class, then cells to the box
    heads = 513 * 6 + (512 * 16 + 1) * 256 + 257 * 4 * boxes
    assert count(module) == 14_714_688 + heads


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (67, 93)])
def test_an_image_of_any_size_has_one_box_inside_it_and_one_label(size, per_class, make_spec):
    torch.manual_seed(0)
    module = Localiser(3, **SMALL, box_per_class=per_class).eval()
    spec = make_spec("detection", postprocess=BoxPostprocess())
    with torch.no_grad():
        found = localiser_outputs(module, module(torch.randn(2, 3, *size)), spec, size)
    for each in found:
        assert isinstance(each, BoxOutput)
        assert each.boxes_xyxy.shape == (1, 4)
        assert each.labels.shape == each.scores.shape == (1,)
        assert each.boxes_xyxy.min() >= 0
        assert (each.boxes_xyxy[0, 2:] <= torch.tensor([size[1], size[0]])).all()


@pytest.mark.parametrize("boxes", [1, 3])
def test_truth_costs_nothing_and_is_read_back(boxes, make_spec):
    outputs = outputs_of_truth(boxes)
    terms = localiser_loss(Localiser(3, **SMALL), outputs, TARGETS)
    assert {name: round(float(term), 5) for name, term in terms.items()} == {"class": 0, "box": 0}
    spec = make_spec("detection", postprocess=BoxPostprocess())
    found = cast("list[BoxOutput]", localiser_outputs(nn.Identity(), outputs, spec, CANVAS))
    assert [each.labels.tolist() for each in found][::2] == [[2], [1]]
    torch.testing.assert_close(found[0].boxes_xyxy[0], TARGETS[0].boxes_xyxy[1])
    torch.testing.assert_close(found[2].boxes_xyxy[0], TARGETS[2].boxes_xyxy[0])
    # An image that shows nothing has a box, too, but no score
    assert [round(float(each.scores), 3) for each in found] == [1, 0, 1]


def test_a_wrong_box_costs_what_its_loss_says():
    outputs = outputs_of_truth(1)
    moved = outputs._replace(box_deltas=outputs.box_deltas + 0.5)
    found = {
        kind: localiser_loss(Localiser(3, **SMALL, box_loss=kind), moved, TARGETS)["box"].item()
        for kind in ("smooth_l1", "l1", "giou")
    }
    assert found["smooth_l1"] == pytest.approx(4 * (0.5 - 0.02 / 2))
    assert found["l1"] == pytest.approx(4 * 0.5)
    assert 0 < found["giou"] < 2


def test_a_batch_without_objects_has_a_loss():
    nothing = outputs_of_truth(1)
    terms = localiser_loss(Localiser(3, **SMALL), nothing, [target()] * 3)
    assert terms["box"].item() == 0
    assert terms["class"].isfinite()


def test_an_image_with_a_class_alone_teaches_no_box():
    outputs = outputs_of_truth(1)
    moved = outputs._replace(box_deltas=outputs.box_deltas + 0.5)
    labels = [ClassTarget(torch.tensor(label)) for label in (2, 0, 1)]
    terms = localiser_loss(Localiser(3, **SMALL), moved, labels)
    assert terms["box"].item() == 0
    # The second one shows an object here, and was said to show none
    assert terms["class"].item() == pytest.approx(40 / 3)


def test_the_same_network_classifies(make_spec):
    spec = make_spec("classification", postprocess=ClassificationPostprocess())
    found = cast(
        "list[ClassOutput]", localiser_outputs(nn.Identity(), outputs_of_truth(1), spec, CANVAS)
    )
    assert [each.probs.round().tolist() for each in found] == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_the_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    module = Localiser(3, **SMALL).train()
    terms = localiser_loss(module, module(torch.randn(3, 3, *CANVAS)), TARGETS)
    weighted_sum(terms, {}).backward()
    assert [name for name, each in module.named_parameters() if each.grad is None] == []
