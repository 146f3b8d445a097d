"""What is particular to detectors of two stages; what holds for all is in `test_detectors`."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# (parts of modules, and arguments by name)

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model
from torchvision.ops import roi_pool

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.fast_rcnn import FastRCNN
from pixelmill.models.faster_rcnn import FasterRCNN
from pixelmill.models.mask_rcnn import MaskRCNN
from pixelmill.models.ops.boxes import encode_boxes
from pixelmill.models.rcnn import RCNN, Warp
from pixelmill.models.targets import BoxTarget
from pixelmill.models.two_stage import (
    IMAGES,
    RoIMaxPool,
    propose_from_pixels,
    read_two_stage,
    two_stage_loss,
)

SMALL = {"backbone": "mobilenet_v3_large", "hidden": 8, "dropout": 0.0}
VGG16 = 14_714_688  # convolutions
FC6_FC7 = 119_545_856


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def test_faster_rcnn_on_vgg16_has_the_papers_parameters():
    with torch.device("meta"):
        module = FasterRCNN(20)
    # The paper's RPN: 3 x 3 convolution of 512 channels, 9 anchors of 2 logits and 4 offsets
    assert count(module.rpn) == 2_387_510 == (9 * 512 + 1) * 512 + 513 * 9 * 6
    assert count(module) == 137_078_239 == VGG16 + 2_387_510 + FC6_FC7 + 4097 * 21 * 5


@pytest.mark.parametrize(
    ("build", "published"),
    [
        # By hand: convolutions, fc6 and fc7, classes and offsets of 21 outputs
        (lambda: FastRCNN(20), 134_690_729),
        (lambda: RCNN(20, head="softmax"), 134_690_729),
        (lambda: RCNN(20), VGG16 + FC6_FC7 + 4097 * 20 * 5),
    ],
    ids=["fast_rcnn", "rcnn softmax", "rcnn svm"],
)
def test_detectors_without_an_rpn_have_the_parameters_of_their_layers(build, published):
    with torch.device("meta"):
        assert count(build()) == published


@pytest.mark.parametrize(
    ("build", "name", "published"),
    [
        # torchvision's documentation, for weights whose batch normalisation is frozen
        (lambda: FasterRCNN(90, "resnet50", fpn=True), "fasterrcnn_resnet50_fpn", 41_755_286),
        (lambda: MaskRCNN(90), "maskrcnn_resnet50_fpn", 44_401_393),
    ],
)
def test_detectors_on_a_pyramid_have_torchvisions_parameters(build, name, published):
    with torch.device("meta"):
        ours, theirs = build(), get_model(name, weights=None, weights_backbone=None)
    of_norms = sum(count(each) for each in ours.modules() if isinstance(each, nn.BatchNorm2d))
    assert of_norms == 53_120
    assert count(ours) == count(theirs) == published + of_norms


def test_roi_pooling_takes_the_largest_of_each_cell():
    features = torch.arange(64.0).view(1, 1, 8, 8)
    pool = RoIMaxPool(2, 4)
    # In cells of 4 pixels: columns 0 to 3, rows 2 to 5, ends included
    found = pool({"0": features}, [torch.tensor([[0.0, 8, 12, 20]])], [(32, 32)])
    assert found.view(2, 2).tolist() == [[3 * 8 + 1, 3 * 8 + 3], [5 * 8 + 1, 5 * 8 + 3]]


def test_a_crop_is_the_region_between_margins_of_what_is_around_it():
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, 16:48, 20:36] = 1.0
    crop = Warp(40, 4)({IMAGES: images}, [torch.tensor([[20.0, 16, 36, 48]])], [(64, 64)])
    assert crop.shape == (1, 3, 40, 40)
    inside = crop[..., 5:35, 5:35]
    assert inside.min() == 1.0
    assert crop[..., :3, :].max() == crop[..., :, :3].max() == 0.0
    # What is outside of the image is 0 even where its border is not
    edge = Warp(40, 4)({IMAGES: images + 1}, [torch.tensor([[0.0, 0, 32, 32]])], [(64, 64)])
    assert edge[..., :2, :].max() == 0.0


def test_proposals_do_not_depend_on_the_normalisation_and_are_bounded():
    torch.manual_seed(0)
    images = F.interpolate(torch.rand(2, 3, 4, 6), size=(64, 96))
    seen = []

    def look(pixels):
        seen.append(pixels)
        return np.zeros((5, 4), np.float32)

    found = propose_from_pixels(images, look, 3)
    propose_from_pixels(images * 4 - 2, look, 3)
    assert [len(each) for each in found] == [3, 3]
    assert seen[0].shape == (64, 96, 3)
    assert seen[0].dtype == np.uint8
    assert np.abs(seen[0].astype(int) - seen[2].astype(int)).max() <= 1


def regions_of(module, images):
    """(B, R) how many regions a module proposes while scoring."""
    seen = []
    handle = module.roi_heads.box_head.register_forward_hook(
        lambda _, inputs, __: seen.append(len(inputs[0]))
    )
    with torch.no_grad():
        read_two_stage(module, module(images), SPEC(), tuple(images.shape[-2:]))
    handle.remove()
    return seen


class SPEC:
    task = "detection"
    classes = ("a", "b")
    postprocess = BoxPostprocess(score_threshold=0.9)


def faster(**arguments):
    torch.manual_seed(0)
    return FasterRCNN(2, **(SMALL | {"anchor_sizes": (32, 64)} | arguments)).eval()


IMAGES_OF_NOISE = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def test_the_number_of_proposals_and_their_suppression_decide_how_many_regions_are_seen():
    (many,) = regions_of(faster(), IMAGES_OF_NOISE)
    assert regions_of(faster(num_proposals=5), IMAGES_OF_NOISE) == [5]
    (few,) = regions_of(faster(rpn_nms_iou=0.2), IMAGES_OF_NOISE)
    assert 5 < few < many


def test_anchor_sizes_and_ratios_are_those_of_each_cell():
    module = faster(anchor_sizes=(16,), anchor_ratios=(1.0, 4.0))
    anchors = module.rpn.anchor_generator.cell_anchors[0]
    sides = anchors[:, 2:] - anchors[:, :2]
    assert sides.tolist() == [[16, 16], [8, 32]]
    assert module.rpn.head.cls_logits.out_channels == 4


def loss_of(module, target, terms=("rpn_box", "box")):
    torch.manual_seed(1)
    with torch.no_grad():
        found = two_stage_loss(module, module(IMAGES_OF_NOISE), [target])
    return [float(found[name]) for name in terms]


TARGET = BoxTarget(torch.tensor([[10.0, 12, 50, 49], [60, 30, 120, 90]]), torch.tensor([0, 1]))


def test_each_box_loss_is_another():
    found = {kind: loss_of(faster(box_loss=kind), TARGET) for kind in ("smooth_l1", "l1", "giou")}
    smooth, plain, giou = found.values()
    assert all(a < b for a, b in zip(smooth, plain, strict=True))
    assert all(a not in (b, c) for a, b, c in zip(giou, smooth, plain, strict=True))


def test_looser_matches_learn_more_regions():
    def number(**arguments):
        module = faster(**arguments)
        module.roi_heads.fg_bg_sampler.positive_fraction = 1.0
        proposals = [torch.tensor([[10.0, 12, 50, 30], [10, 12, 50, 46], [90, 0, 120, 20]])]
        truth = [{"boxes": TARGET.boxes_xyxy, "labels": TARGET.labels + 1}]
        _, _, (labels,), _ = module.roi_heads.select_training_samples(proposals, truth)
        return int((labels > 0).sum())

    # The two objects themselves, and the proposals that overlap the first by 0.49 and 0.92
    assert number(match_iou=0.95) == 2
    assert number(match_iou=0.5) == 3
    assert number(match_iou=0.4) == 4


def test_looser_anchor_matches_learn_more_anchors():
    def number(low, high):
        rpn = faster(rpn_match_iou=(low, high)).rpn
        anchors = torch.tensor([[10.0, 12, 50, 30], [10, 12, 50, 49], [60, 30, 120, 70]])
        labels, _ = rpn.assign_targets_to_anchors([anchors], [{"boxes": TARGET.boxes_xyxy}])
        return labels[0].tolist()

    assert number(0.3, 0.7) == [-1, 1, 1]  # the third is the best anchor of its object
    assert number(0.5, 0.7) == [0, 1, 1]
    assert number(0.3, 0.4) == [1, 1, 1]


def test_a_perfect_detector_has_no_loss_of_boxes():
    class Oracle(nn.Module):
        """Offsets from each region to the one object, sure of its class where it overlaps."""

        def forward(self, pooled):
            return pooled.new_zeros(len(pooled), 3), codes.repeat(1, 3)

    module = RCNN(2, "mobilenet_v3_large", head="softmax", crop_size=32, context=2, num_sampled=4)
    module.proposer = lambda _: np.array([[10, 10, 40, 40]], np.float32)
    truth = BoxTarget(torch.tensor([[12.0, 10, 44, 38]]), torch.tensor([1]))
    regions = torch.tensor([[10.0, 10, 40, 40], [12, 10, 44, 38]])  # truth is a region, too
    codes = encode_boxes(truth.boxes_xyxy.expand(2, 4), regions, (10, 10, 5, 5))
    module.roi_heads.box_predictor = Oracle()
    module.roi_heads.fg_bg_sampler.positive_fraction = 1.0
    terms = two_stage_loss(module, module(torch.randn(1, 3, 64, 64)), [truth])
    assert terms["box"].item() == pytest.approx(0, abs=1e-6)
    assert terms["class"].item() == pytest.approx(np.log(3), abs=1e-5)


def test_svms_cost_what_they_lack_to_a_margin_of_one():
    module = RCNN(2, "mobilenet_v3_large", crop_size=32, context=2)
    margins = torch.tensor([[0.5, -2.0], [2.0, 0.25]])
    # Region 1 is of class 0: 1 - 0.5 lacks, and -2 is far enough; region 2 is background
    loss = module.class_loss(margins, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((0.5 + 0 + 3 + 1.25) / 2)


def test_regions_between_the_two_overlaps_are_not_learnt_from():
    module = RCNN(2, "mobilenet_v3_large", crop_size=32, context=2)
    assert module.roi_heads.proposal_matcher.low_threshold == 0.3
    proposals = [torch.tensor([[0.0, 0, 10, 4], [0, 0, 10, 2], [0, 0, 10, 6]])]
    labels = module.roi_heads.assign_targets_to_proposals(
        proposals, [torch.tensor([[0.0, 0, 10, 10]])], [torch.tensor([1])]
    )[1]
    assert labels[0].tolist() == [-1, 0, 1]


def test_any_function_can_propose():
    def halves(pixels):
        height, width = pixels.shape[:2]
        return np.array([[0, 0, width / 2, height], [width / 2, 0, width, height]], np.float32)

    torch.manual_seed(0)
    module = FastRCNN(2, **SMALL, proposals=halves).eval()
    assert regions_of(module, IMAGES_OF_NOISE) == [2]
    windows = FastRCNN(2, **SMALL, proposals="sliding_windows", num_proposals=7).eval()
    assert regions_of(windows, IMAGES_OF_NOISE) == [7]
    torch.testing.assert_close(
        module.roi_heads.box_roi_pool(
            features := module(IMAGES_OF_NOISE), [torch.tensor([[0.0, 0, 64, 96]])], [(96, 128)]
        ),
        roi_pool(features["0"], [torch.tensor([[0.0, 0, 64, 96]])], 7, 1 / 16),
    )


def test_an_image_is_read_alike_whatever_its_neighbours(make_spec):
    torch.manual_seed(0)
    module = faster()
    images = torch.cat((IMAGES_OF_NOISE, IMAGES_OF_NOISE.flip(-1)))
    spec = make_spec("detection", classes=("a", "b"), postprocess=BoxPostprocess(score_threshold=0))
    with torch.no_grad():
        both = read_two_stage(module, module(images), spec, (96, 128))
        alone = read_two_stage(module, module(images[1:]), spec, (96, 128))
    torch.testing.assert_close(both[1].boxes_xyxy, alone[0].boxes_xyxy, rtol=0, atol=1e-3)


def test_only_the_backbone_gives_up_float32():
    module = faster().to(dtype=torch.bfloat16)
    assert {each.dtype for each in module.backbone.parameters()} == {torch.bfloat16}
    assert {each.dtype for each in module.roi_heads.parameters()} == {torch.float32}


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="not padded"):
        FasterRCNN(2, "inception_v3")
    with pytest.raises(ValueError, match="each of five levels"):
        FasterRCNN(2, "mobilenet_v2", fpn=True, anchor_sizes=(32,))
    with pytest.raises(ValueError, match="less context than half of 32"):
        RCNN(2, "mobilenet_v2", crop_size=32)
