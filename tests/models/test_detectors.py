"""What holds for each of the detectors: its size, its shapes, its gradient, its learning."""

# pyright: reportAttributeAccessIssue=false, reportOptionalCall=false
# (outputs are those of the task that was asked for)

import pytest
import torch
from torch import nn

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.losses import weighted_sum
from pixelmill.models.ops.boxes import box_iou
from pixelmill.models.ops.suppression import hard_nms
from pixelmill.models.ssd import SSD
from pixelmill.models.targets import BoxTarget
from pixelmill.models.yolo_v1 import YOLOv1
from pixelmill.models.yolo_v2 import YOLOv2
from pixelmill.models.yolo_v3 import YOLOv3
from pixelmill.models.zoo import ARCHITECTURES

# name: arguments, canvas, rate and steps to learn two pictures by heart
SMALL = {
    "yolo_v1": ({"variant": "tiny", "width": 16, "image_size": 128}, (128, 128), 3e-3, 80),
    "yolo_v2": ({"variant": "tiny", "width": 4, "head_width": 32}, (96, 128), 5e-3, 80),
    "yolo_v3": ({"variant": "tiny", "width": 4}, (96, 128), 5e-3, 80),
    "ssd": ({"backbone": "mobilenet_v3_large"}, (300, 300), 1e-3, 0),
    "rcnn": (
        {"backbone": "mobilenet_v3_large", "crop_size": 64, "context": 5, "num_sampled": 16},
        (96, 128),
        2e-3,
        0,
    ),
    "fast_rcnn": (
        {"backbone": "mobilenet_v3_large", "hidden": 64, "dropout": 0.0},
        (96, 128),
        2e-3,
        40,
    ),
    "faster_rcnn": (
        {
            "backbone": "mobilenet_v3_large",
            "anchor_sizes": (32, 64),
            "num_proposals_training": 100,
            "hidden": 64,
            "dropout": 0.0,
        },
        (96, 128),
        2e-3,
        60,
    ),
    "mask_rcnn": (
        {
            "backbone": "mobilenet_v3_large",
            "fpn_channels": 16,
            "mask_channels": 16,
            "anchor_sizes": (16, 32, 48, 64, 96),
            "num_proposals_training": 100,
            "num_sampled": 64,
            "hidden": 64,
        },
        (96, 128),
        2e-3,
        60,
    ),
    "retinamask": ({"width": 8, "fpn_channels": 16}, (96, 128), 5e-3, 80),
}


def floats(module: nn.Module) -> int:
    """As a darknet weights file has: running means and variances count."""
    buffers = (each for name, each in module.named_buffers() if "running" in name)
    return sum(each.numel() for each in (*module.parameters(), *buffers))


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize(
    ("build", "published"),
    [
        # Files and configurations of pjreddie/darknet
        (lambda: YOLOv1(20, variant="tiny"), 27_099_950),
        (lambda: YOLOv2(80), 50_983_561),
        (lambda: YOLOv2(20), 50_676_061),
        (lambda: YOLOv2(80, variant="tiny"), 11_237_145),
        (lambda: YOLOv2(20, variant="tiny", head_width=1024), 15_867_885),
        (lambda: YOLOv3(80), 62_001_757),
        (lambda: YOLOv3(80, variant="tiny"), 8_858_734),
    ],
)
def test_a_yolo_has_as_many_numbers_as_its_published_file(build, published):
    with torch.device("meta"):
        assert floats(build()) == published


def test_yolo_v1_has_the_published_convolutions_and_the_papers_connected_layers():
    with torch.device("meta"):
        module = YOLOv1(20)
    # The published file holds 197,328,243: a locally connected layer and another head than the
    # paper's take 115,618,048 and 21,514,675 of them
    assert floats(module.convolutions) == 197_328_243 - 115_618_048 - 21_514_675
    hidden = (7 * 7 * 1024 + 1) * 4096
    assert count(module.head) == hidden + (4096 + 1) * 7 * 7 * 30


@pytest.mark.parametrize(
    ("arguments", "published"),
    [
        # amdegroot/ssd.pytorch and torchvision; SSD512 from the paper's layers
        ({"num_classes": 20}, 26_285_486),
        ({"num_classes": 80}, 34_305_206),
        ({"num_classes": 90}, 35_641_826),
        ({"num_classes": 20, "size": 512}, 27_188_676),
        ({"num_classes": 80, "size": 512}, 36_038_196),
    ],
)
def test_an_ssd_has_as_many_parameters_as_the_reference(arguments, published):
    with torch.device("meta"):
        assert count(SSD(**arguments)) == published


@pytest.mark.parametrize("name", [name for name in SMALL if name != "yolo_v1"])
def test_canvases_of_odd_sizes_give_boxes_inside_them(name, make_spec):
    torch.manual_seed(0)
    height, width = (SMALL[name][1][0] + 3, SMALL[name][1][1] - 5)
    architecture = ARCHITECTURES[name]
    module = architecture.build(num_classes=3, **SMALL[name][0]).eval()
    spec = make_spec("detection", postprocess=BoxPostprocess(score_threshold=0))
    with torch.no_grad():
        outputs = module(torch.randn(2, 3, height, width))
        found = architecture.read_out(module, outputs, spec, (height, width))
    for each in found:
        assert len(each.scores) > 0
        assert each.boxes_xyxy.min() >= 0
        assert (each.boxes_xyxy <= torch.tensor([width, height, width, height])).all()


def test_yolo_v1_names_the_canvas_that_it_needs():
    with pytest.raises(ValueError, match="canvas of 128 x 128"):
        YOLOv1(3, 128, variant="tiny", width=16)(torch.zeros(1, 3, 96, 128))
    with pytest.raises(ValueError, match="multiple of 64"):
        YOLOv1(3, 100)


def masks(boxes: torch.Tensor, canvas: tuple[int, int]) -> torch.Tensor:
    filled = torch.zeros(len(boxes), *canvas, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(filled, boxes.round().long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return filled


@pytest.fixture
def pictures():
    """Two pictures of coloured rectangles, one with an empty neighbour, and their truth."""

    def make(canvas: tuple[int, int]) -> tuple[torch.Tensor, list[BoxTarget]]:
        height, width = canvas
        scale = torch.tensor([width, height, width, height]) / 128
        boxes = torch.tensor([[8.0, 10, 50, 60], [70, 60, 120, 116]]) * scale
        other = torch.tensor([[60.0, 4, 118, 40]]) * scale
        images = torch.zeros(3, 3, height, width)
        for index, truth in ((0, boxes), (1, other)):
            for channel, (x1, y1, x2, y2) in enumerate(truth.round().long().tolist()):
                images[index, channel, y1:y2, x1:x2] = 2.0
        nothing = torch.zeros(0, 4)
        labels = torch.tensor([0, 1]), torch.tensor([2]), torch.zeros(0, dtype=torch.int64)
        return images, [
            BoxTarget(each, label, masks(each, canvas))
            for each, label in zip((boxes, other, nothing), labels, strict=True)
        ]

    return make


@pytest.mark.parametrize("name", SMALL)
def test_the_gradient_reaches_every_parameter(name, pictures):
    torch.manual_seed(0)
    arguments, canvas, _, _ = SMALL[name]
    architecture = ARCHITECTURES[name]
    module = architecture.build(num_classes=3, **arguments)
    images, targets = pictures(canvas)
    terms = architecture.loss(module, module(images + 0.1 * torch.randn_like(images)), targets)
    weighted_sum(terms, {}).backward()
    without = [
        each
        for each, parameter in module.named_parameters()
        if parameter.grad is None and "extractor.stages.4" not in each
    ]
    assert without == []


@pytest.mark.slow
# The others learn scenes by heart, and are scored by the pipeline, in tests/tasks/test_learning.py
@pytest.mark.parametrize("name", ["yolo_v1", "fast_rcnn", "mask_rcnn"])
def test_a_detector_learns_pictures_by_heart(name, pictures, make_spec):
    torch.manual_seed(0)
    arguments, canvas, rate, steps = SMALL[name]
    architecture = ARCHITECTURES[name]
    module = architecture.build(num_classes=3, **arguments).train()
    images, targets = pictures(canvas)
    optimiser = torch.optim.Adam(module.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(steps):
        optimiser.zero_grad()
        weighted_sum(architecture.loss(module, module(images), targets), {}).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 10)
        optimiser.step()
        schedule.step()
    spec = make_spec("detection", postprocess=BoxPostprocess(score_threshold=0.5))
    # So few steps are too few for the running means: the pictures' own are used
    with torch.no_grad():
        found = architecture.read_out(module, module(images), spec, canvas)
    for each, target in zip(found, targets, strict=True):
        kept = hard_nms(each.boxes_xyxy, each.scores, each.labels, 0.3)
        boxes, labels = each.boxes_xyxy[kept], each.labels[kept]
        assert sorted(labels.tolist()) == sorted(target.labels.tolist())
        if len(labels):
            same = labels[:, None] == target.labels[None]
            assert (box_iou(boxes, target.boxes_xyxy) * same).amax(dim=0).min() > 0.5
