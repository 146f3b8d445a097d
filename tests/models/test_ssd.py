import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.losses import hard_negatives, weighted_sum
from pixelmill.models.ops.suppression import hard_nms
from pixelmill.models.ssd import RATIOS, SCALES, SSD, STEPS, SSDOutput, ssd_loss, ssd_outputs
from pixelmill.models.targets import BoxTarget

# (rows, columns) of figure 2, and of the published SSD512
MAPS = {
    300: [(side, side) for side in (38, 19, 10, 5, 3, 1)],
    512: [(side, side) for side in (64, 32, 16, 8, 4, 2, 1)],
}


@pytest.mark.parametrize(("size", "number"), [(300, 8732), (512, 24564)])
def test_default_boxes_equal_torchvisions(size, number):
    module = SSD(2, size, backbone="mobilenet_v3_large").eval()
    with torch.no_grad():
        outputs = module(torch.zeros(1, 3, size, size))
    found = outputs.default_boxes
    generator = DefaultBoxGenerator(
        [list(each) for each in RATIOS[size]], scales=list(SCALES[size]), steps=list(STEPS[size])
    )
    maps = [torch.zeros(1, 1, *each) for each in MAPS[size]]
    (wanted,) = generator(ImageList(torch.zeros(1, 3, size, size), [(size, size)]), maps)
    assert len(found) == number
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_hard_negatives_are_the_worst_of_each_image():
    errors = torch.tensor([[9.0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    positive = torch.tensor([[True, False, False, False, False], [False] * 5])
    assert hard_negatives(errors, positive, 2.0).tolist() == [
        [False, False, False, True, True],
        [False, False, False, False, True],
    ]


def outputs_of(module: SSD, seed: int = 0) -> tuple[SSDOutput, torch.Tensor]:
    sizes = ((8, 8), (4, 4), (2, 2), (1, 1), (1, 1), (1, 1))
    defaults = module.default_boxes(sizes, (64, 64))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, len(defaults), 3, generator=generator)
    return SSDOutput(logits, torch.zeros(1, len(defaults), 4), defaults), defaults


def test_more_negatives_and_an_easier_match_count_more_boxes():
    target = [BoxTarget(torch.tensor([[10.0, 10, 40, 40]]), torch.tensor([1]))]
    few = SSD(2, backbone="mobilenet_v3_large", negative_ratio=1)
    many = SSD(2, backbone="mobilenet_v3_large", negative_ratio=3)
    easy = SSD(2, backbone="mobilenet_v3_large", match_iou=0.2)
    outputs, _ = outputs_of(few)
    assert ssd_loss(many, outputs, target)["class"] > ssd_loss(few, outputs, target)["class"]
    strict, loose = (ssd_loss(each, outputs, target)["box"] for each in (many, easy))
    assert strict != loose


def test_exact_default_boxes_cost_no_offset_and_l1_costs_more_than_smooth_l1():
    smooth = SSD(2, backbone="mobilenet_v3_large")
    plain = SSD(2, backbone="mobilenet_v3_large", box_loss="l1")
    outputs, defaults = outputs_of(smooth)
    exact = [BoxTarget(defaults[300:301], torch.tensor([0]))]
    matched = ssd_loss(smooth, outputs, exact)["box"]
    moved = [BoxTarget(defaults[300:301] + 1, torch.tensor([0]))]
    assert ssd_loss(smooth, outputs, moved)["box"] > matched
    assert ssd_loss(plain, outputs, moved)["box"] > ssd_loss(smooth, outputs, moved)["box"]


def test_the_outputs_of_least_loss_read_as_the_truth(make_spec):
    module = SSD(2, backbone="mobilenet_v3_large")
    start, _ = outputs_of(module)
    logits, deltas = (each.clone().requires_grad_() for each in start[:2])
    outputs = SSDOutput(logits, deltas, start.default_boxes)
    truth = BoxTarget(torch.tensor([[3.0, 10, 40, 33], [30, 30, 60, 62]]), torch.tensor([1, 0]))
    optimiser = torch.optim.Adam([logits, deltas], 0.2)
    for _ in range(100):
        optimiser.zero_grad()
        weighted_sum(ssd_loss(module, outputs, [truth]), {}).backward()
        optimiser.step()
    spec = make_spec(
        "detection", postprocess=BoxPostprocess(score_threshold=0.5), classes=("a", "b")
    )
    (found,) = ssd_outputs(module, outputs, spec, (64, 64))
    kept = hard_nms(found.boxes_xyxy, found.scores, found.labels, 0.5)
    boxes, labels = found.boxes_xyxy[kept].detach(), found.labels[kept]
    order = labels.argsort(descending=True)
    assert labels[order].tolist() == [1, 0]
    torch.testing.assert_close(boxes[order], truth.boxes_xyxy, atol=0.5, rtol=0)


def test_a_canvas_too_small_for_the_last_map_is_told():
    with pytest.raises(ValueError, match="canvas of about 300"):
        SSD(2, backbone="mobilenet_v3_large").eval()(torch.zeros(1, 3, 160, 160))
