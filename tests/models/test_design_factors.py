"""Each design factor of the detectors and segmenters is an argument that changes what it should.

What the factors of one architecture do in detail is in the tests of that architecture; here every
line of the table in docs/architectures.md is held to it.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pixelmill.configs.schema import BoxPostprocess, DetectionModel, TrainConfig
from pixelmill.models.localiser import LocaliserOutput
from pixelmill.models.ops.boxes import encode_boxes
from pixelmill.models.retinamask import RetinaOutput
from pixelmill.models.ssd import SSDOutput
from pixelmill.models.targets import BoxTarget
from pixelmill.models.two_stage import read_two_stage
from pixelmill.models.zoo import ARCHITECTURES

CANVAS = (96, 128)
SMALL = {
    "retinamask": {"width": 8, "fpn_channels": 16},
    "ssd": {"backbone": "mobilenet_v3_large"},
    "yolo_v2": {"variant": "tiny", "width": 4, "head_width": 32},
    "yolo_v3": {"variant": "tiny", "width": 4},
    "rcnn": {"backbone": "mobilenet_v3_large", "crop_size": 32, "context": 2},
    "fast_rcnn": {"backbone": "mobilenet_v3_large", "hidden": 8, "dropout": 0.0},
    "faster_rcnn": {
        "backbone": "mobilenet_v3_large",
        "anchor_sizes": (32, 64),
        "hidden": 8,
        "dropout": 0.0,
    },
    "localiser": {"backbone": "mobilenet_v3_large", "hidden": 8},
    "pspnet": {"backbone": "resnet18", "pool_channels": 8},
    "gcn": {"backbone": "resnet18", "kernel": 5},
    "semantic_fpn": {"backbone": "resnet18", "pyramid_channels": 16, "channels": 32},
    "show_and_tell": {"embed_dim": 8, "hidden_dim": 8},
}
TRUTH = BoxTarget(torch.tensor([[10.0, 12, 50, 49], [60, 30, 120, 90]]), torch.tensor([0, 2]))


def build(name, **arguments) -> Any:
    torch.manual_seed(0)
    number = "vocabulary_size" if name == "show_and_tell" else "num_classes"
    return ARCHITECTURES[name].build(**{number: 5}, **(SMALL.get(name, {}) | arguments)).eval()


def noise(size=CANVAS):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))


def loss(name, size=CANVAS, target=TRUTH, **arguments):
    module, measure = build(name, **arguments), ARCHITECTURES[name].loss
    assert measure is not None
    with torch.no_grad():
        outputs = module(noise(size))
        torch.manual_seed(1)
        terms = measure(module, outputs, [target])
    return {term: float(value) for term, value in terms.items()}


def count(name, **arguments):
    with torch.device("meta"):
        return sum(each.numel() for each in build(name, **arguments).parameters())


# --- feature extractor, output stride, input resolution, which feature maps -----------------------

SEGMENTERS = ("pspnet", "gcn", "semantic_fpn")
WITH_BACKBONE = [name for name, arguments in SMALL.items() if "yolo" not in name]


@pytest.mark.parametrize("name", WITH_BACKBONE)
def test_the_feature_extractor_is_an_argument(name):
    assert count(name, backbone="resnet34") - count(name, backbone="resnet18") > 1_000_000


@pytest.mark.parametrize("name", ["yolo_v2", "yolo_v3"])
def test_the_variant_decides_a_yolos_features(name):
    assert count(name, variant="full", width=8) > count(name, variant="tiny", width=8)


@pytest.mark.parametrize(
    ("name", "backbone", "output_stride"),
    [
        *((name, "resnet18", stride) for name in SEGMENTERS for stride in (8, 16, 32)),
        *(("gcn", backbone, 8) for backbone in ("vgg16", "mobilenet_v2", "mobilenet_v3_large")),
    ],
)
def test_the_output_stride_is_that_of_the_coarsest_features(name, backbone, output_stride):
    with torch.device("meta"):
        module = build(name, backbone=backbone, output_stride=output_stride)
        images = torch.zeros(2, 3, 128, 160)
        assert module.backbone(images)[-1].shape[-2:] == (
            128 // output_stride,
            160 // output_stride,
        )
        assert module(images).shape == (2, 5, 128, 160)


@pytest.mark.parametrize(("name", "output_stride"), [*zip(SEGMENTERS, (8, 16, 32), strict=True)])
def test_inception_has_every_output_stride_too(name, output_stride):
    with torch.device("meta"):
        module = build(name, backbone="inception_v3", output_stride=output_stride)
        assert module(torch.zeros(1, 3, 139, 171)).shape == (1, 5, 139, 171)


@pytest.mark.parametrize("name", ["retinamask", "yolo_v2", "yolo_v3", "ssd"])
def test_a_larger_canvas_has_more_places(name):
    def places(size):
        with torch.device("meta"):
            outputs = build(name)(torch.zeros(1, 3, *size))
        leaves = outputs if isinstance(outputs, tuple) else (outputs,)
        return leaves[0].numel()

    assert places((512, 512)) > 2 * places((320, 320))


def test_the_feature_maps_that_boxes_come_from_are_an_argument():
    all_maps, coarse = build("ssd"), build("ssd", maps=(1, 2, 3))
    sizes = [(38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)]
    boxes = all_maps.default_boxes(sizes, (300, 300))
    assert len(boxes) == 8732
    assert torch.equal(
        coarse.default_boxes(sizes[1:4], (300, 300)), boxes[38**2 * 4 :][: 2166 + 750]
    )
    with pytest.raises(ValueError, match="some of 6 feature maps"):
        build("ssd", maps=(6,))
    with torch.no_grad():
        levels = build("retinamask", levels=(4, 5), anchor_sizes=(32, 64))(noise()).class_logits
        every = build("retinamask")(noise()).class_logits
    assert levels.shape[1] == 6 * (6 * 8 + 3 * 4)
    assert every.shape[1] == 6 * (12 * 16 + 6 * 8 + 3 * 4 + 2 * 2)
    one, pyramid = build("faster_rcnn"), build("faster_rcnn", fpn=True, anchor_sizes=None)
    assert [len(each(noise())) for each in (one, pyramid)] == [1, 5]


# --- matching, hard examples, proposals -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "strict", "loose"),
    [
        ("retinamask", CANVAS, {"match_iou": (0.6, 0.7)}, {"match_iou": (0.2, 0.3)}),
        ("ssd", (300, 300), {"match_iou": 0.7}, {"match_iou": 0.3}),
    ],
)
def test_an_easier_match_gives_an_object_more_anchors(name, size, strict, loose):
    def matched(arguments):
        module, measure = build(name, **arguments, match_best=False), ARCHITECTURES[name].loss
        assert measure is not None
        with torch.no_grad():
            outputs = module(noise(size))
        deltas = outputs.box_deltas.requires_grad_()
        measure(module, outputs, [TRUTH])["box"].backward()
        return int(deltas.grad.any(dim=-1).sum())  # the anchors that learn a box

    assert 0 < matched(strict) < matched(loose)


@pytest.mark.parametrize(("name", "size"), [("retinamask", CANVAS), ("ssd", (300, 300))])
def test_without_its_best_anchor_a_small_object_is_left_out(name, size):
    tiny = BoxTarget(torch.tensor([[40.0, 40, 44, 44]]), torch.tensor([1]))
    assert loss(name, size, tiny, match_best=False)["box"] == 0
    assert loss(name, size, tiny, match_best=True)["box"] > 0


@pytest.mark.parametrize("name", ["yolo_v2", "yolo_v3"])
def test_fewer_boxes_are_background_where_overlaps_are_ignored(name):
    term = "no_object" if name == "yolo_v2" else "object"
    assert loss(name, ignore_iou=0.0)[term] < loss(name, ignore_iou=1.0)[term]


def test_the_mining_ratio_decides_how_much_background_is_learnt():
    costs = [loss("ssd", (300, 300), negative_ratio=ratio)["class"] for ratio in (1, 3, 10)]
    assert costs == sorted(costs)
    assert costs[0] < costs[2]


@pytest.mark.parametrize("name", ["rcnn", "fast_rcnn", "faster_rcnn"])
def test_the_share_of_objects_among_the_regions_is_an_argument(name):
    def objects(share):
        module = build(name, positive_share=share, num_sampled=8)
        near = TRUTH.boxes_xyxy[:1] + torch.arange(16.0)[:, None] / 8
        far = torch.tensor([[80.0, 0, 120, 20]]).repeat(20, 1)
        truth = [{"boxes": TRUTH.boxes_xyxy, "labels": TRUTH.labels + 1}]
        proposals = [torch.cat((near, far))]
        _, _, (labels,), _ = module.roi_heads.select_training_samples(proposals, truth)
        assert len(labels) == 8
        return int((labels > 0).sum())

    assert [objects(share) for share in (0.25, 0.5, 1.0)] == [2, 4, 8]


@pytest.mark.parametrize("name", ["rcnn", "fast_rcnn", "faster_rcnn"])
def test_the_number_of_proposals_is_an_argument(name):
    module = build(name, num_proposals=7)
    if name != "faster_rcnn":
        module.proposer = lambda pixels: np.tile(np.float32([[0, 0, 40, 40]]), (20, 1))
    seen = []
    module.roi_heads.box_head.register_forward_hook(
        lambda _, inputs, __: seen.append(len(inputs[0]))
    )

    class Spec:
        task, classes, postprocess = "detection", tuple("abcde"), BoxPostprocess()

    with torch.no_grad():
        read_two_stage(module, module(noise()), Spec, CANVAS)
    assert seen == [7]


# --- box encoding and localisation loss -----------------------------------------------------------


def outputs_that_know(name, module):
    """Raw outputs that encode one box as the module should, sure of its class."""
    box, anchor = torch.tensor([[12.0, 16, 60, 70]]), torch.tensor([[10.0, 10, 50, 60]])
    deltas = encode_boxes(box, anchor, module.box_weights)[None]
    if name == "ssd":
        return box, SSDOutput(torch.tensor([[[-9.0, 9, -9, -9, -9, -9]]]), deltas, anchor)
    module.anchors = lambda canvas, device: anchor
    return box, RetinaOutput(torch.tensor([[[9.0, -9, -9, -9, -9]]]), deltas, ())


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
@pytest.mark.parametrize("name", ["ssd", "retinamask"])
def test_boxes_are_read_and_learnt_in_the_encoding_of_the_arguments(name, weights, make_spec):
    module = build(name, box_weights=weights)
    box, outputs = outputs_that_know(name, module)
    spec = make_spec("detection", classes=tuple("abcde"), postprocess=BoxPostprocess())
    (found,) = ARCHITECTURES[name].read_out(module, outputs, spec, CANVAS)
    torch.testing.assert_close(found.boxes_xyxy, box, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["rcnn", "fast_rcnn", "faster_rcnn"])
def test_regions_are_refined_in_the_encoding_of_the_arguments(name):
    weights = (1.0, 2.0, 3.0, 4.0)
    coder = build(name, box_weights=weights).roi_heads.box_coder
    box, region = torch.tensor([[12.0, 16, 60, 70]]), torch.tensor([[10.0, 10, 50, 60]])
    torch.testing.assert_close(coder.encode([box], [region])[0], encode_boxes(box, region, weights))


KINDS = {
    "retinamask": ("smooth_l1", "l1", "iou", "giou"),
    "ssd": ("smooth_l1", "l1", "iou", "giou"),
    "fast_rcnn": ("smooth_l1", "l1", "iou", "giou"),
    "faster_rcnn": ("smooth_l1", "l1", "iou", "giou"),
    "rcnn": ("smooth_l1", "l1", "iou", "giou"),
    "localiser": ("smooth_l1", "l1", "iou", "giou"),
    "yolo_v2": ("squared", "iou", "giou"),
    "yolo_v3": ("squared", "iou", "giou"),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_localisation_loss_is_another(name):
    size = (300, 300) if name == "ssd" else CANVAS
    # The regions that R-CNN learns from would otherwise be the truth itself, which it finds at once
    looser = {"match_iou": 0.1, "background_iou": 0.1} if name == "rcnn" else {}
    costs = {kind: loss(name, size, box_loss=kind, **looser)["box"] for kind in KINDS[name]}
    assert all(cost > 0 for cost in costs.values())
    if "l1" in costs:
        assert costs["smooth_l1"] < costs["l1"]
    # Equal where each box and its truth fill their common hull
    assert costs["iou"] <= costs["giou"] + 1e-6
    assert costs["iou"] not in (costs[KINDS[name][0]], costs.get("l1"))
    with pytest.raises(ValueError, match="expected a box loss of"):
        loss(name, size, box_loss="l3")


def test_a_localisers_box_may_belong_to_a_class():
    with torch.no_grad():
        outputs: LocaliserOutput = build("localiser", box_per_class=True)(noise())
    assert outputs.box_deltas.shape == (1, 5, 4)


# --- the table of them ----------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
ROWS = re.findall(r"^\| [^|]*\| `([a-z_]+: [^`]+)` \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("line", "who"), ROWS, ids=[line for line, _ in ROWS])
def test_every_line_of_the_documented_table_is_one_that_its_architectures_take(line, who):
    (key,) = given = yaml.safe_load(line)
    if key in TrainConfig.model_fields:
        TrainConfig.model_validate(
            {"name": "a", "task": "detection", "architecture": "ssd", "images": "scenes:1:1"}
            | {"preprocess": {"canvases": [[64, 64]]}}
            | given
        )
    else:
        DetectionModel.model_validate({"name": "a", "weights": "a.safetensors"} | given)
    named = [name for name in re.findall(r"`([a-z0-9_]+)`", who) if name in ARCHITECTURES]
    if key == "arguments":
        assert named
        for name in named:
            number = "vocabulary_size" if name == "show_and_tell" else "num_classes"
            with torch.device("meta"):
                ARCHITECTURES[name].build(**{number: 5}, **given["arguments"])
