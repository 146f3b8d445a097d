import pytest
import torch

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.losses import weighted_sum
from pixelmill.models.ops.boxes import box_iou, encode_boxes
from pixelmill.models.retinamask import (
    RetinaMask,
    RetinaOutput,
    detection_loss,
    detection_outputs,
)
from pixelmill.models.targets import BoxTarget

CANVAS = (64, 96)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RetinaMask(3, mask_head=True, width=8, fpn_channels=16, head_depth=1).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, *CANVAS, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets():
    masks = torch.zeros(2, *CANVAS, dtype=torch.uint8)
    masks[0, 10:40, 10:40] = 1
    masks[1, 20:60, 50:90] = 1
    two = BoxTarget(
        torch.tensor([[10.0, 10, 40, 40], [50, 20, 90, 60]]), torch.tensor([0, 2]), masks
    )
    none = BoxTarget(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), masks[:0])
    return [two, none, two]


def perfect_output(model, target, features):
    """What a network would say that knows the truth."""
    anchors = model.anchors(CANVAS, torch.device("cpu"))
    iou, owner = box_iou(target.boxes_xyxy, anchors).max(dim=0)
    logits = torch.full((len(anchors), 3), -20.0)
    logits[torch.arange(len(anchors)), target.labels[owner]] = torch.where(iou > 0.4, 20.0, -20.0)
    deltas = encode_boxes(target.boxes_xyxy[owner], anchors)
    return RetinaOutput(logits[None], deltas[None], tuple(level[:1] for level in features))


def test_parameter_count():
    assert sum(p.numel() for p in RetinaMask(7).parameters()) == 1_375_378
    assert sum(p.numel() for p in RetinaMask(7, mask_head=True).parameters()) == 1_466_137


def test_with_the_papers_numbers_it_is_retinanet():
    # detectron2's tests/test_model_analysis.py: 37,915,572, its batch normalisation being frozen
    with torch.device("meta"):
        module = RetinaMask(
            80,
            backbone="resnet50",
            fpn_channels=256,
            head_depth=4,
            levels=(3, 4, 5, 6, 7),
            anchor_sizes=(32, 64, 128, 256, 512),
            anchor_scales=(1, 2 ** (1 / 3), 2 ** (2 / 3)),
        )
    norms = (each for each in module.modules() if isinstance(each, torch.nn.BatchNorm2d))
    of_norms = sum(p.numel() for norm in norms for p in norm.parameters())
    assert of_norms == 53_120
    assert sum(p.numel() for p in module.parameters()) == 37_915_572 + of_norms


@pytest.mark.parametrize("levels", [(2, 3), (3, 4, 5), (4, 5, 6, 7), (5,)])
@pytest.mark.parametrize("backbone", [None, "mobilenet_v3_large"])
def test_any_levels_of_any_backbone_have_their_anchors(levels, backbone, images, targets):
    sizes = tuple(8 * 2**level for level in levels)
    torch.manual_seed(0)
    module = RetinaMask(
        3, True, 8, fpn_channels=16, levels=levels, anchor_sizes=sizes, backbone=backbone
    )
    outputs = module(images)
    assert len(module.anchors(CANVAS, torch.device("cpu"))) == outputs.class_logits.shape[1]
    assert len(outputs.features) == sum(level <= 5 for level in levels)
    assert weighted_sum(detection_loss(module, outputs, targets), {}).isfinite()


def test_levels_and_backbones_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="levels one after the other"):
        RetinaMask(3, levels=(3, 5), anchor_sizes=(8, 16))
    with pytest.raises(ValueError, match="anchor size for each of 2 levels"):
        RetinaMask(3, levels=(3, 4))
    with pytest.raises(ValueError, match="not padded"):
        RetinaMask(3, backbone="inception_v3")


@pytest.mark.parametrize("canvas", [(64, 96), (50, 77)])
def test_there_is_one_prediction_per_anchor(model, canvas):
    outputs = model(torch.zeros(2, 3, *canvas))
    num_anchors = len(model.anchors(canvas, torch.device("cpu")))
    assert outputs.class_logits.shape == (2, num_anchors, 3)
    assert outputs.box_deltas.shape == (2, num_anchors, 4)


def test_an_untrained_model_is_sure_of_nothing(model, images):
    assert model(images).class_logits.sigmoid().max() < 0.1


def test_truth_is_read_back_from_perfect_outputs(model, images, targets, make_spec):
    spec = make_spec("instance_segmentation", postprocess=BoxPostprocess())
    with torch.no_grad():
        outputs = perfect_output(model, targets[0], model(images).features)
        (found,) = detection_outputs(model, outputs, spec, CANVAS)
    order = found.labels.argsort()
    assert found.labels[order].tolist() == [0, 2]
    torch.testing.assert_close(found.boxes_xyxy[order], targets[0].boxes_xyxy, atol=1e-3, rtol=0)
    assert found.mask_probs is not None
    assert found.mask_probs.shape == (2, 28, 28)


def test_perfect_outputs_cost_nearly_nothing(model, images, targets):
    model.mask_head = None
    outputs = perfect_output(model, targets[0], model(images).features)
    terms = detection_loss(model, outputs, targets[:1])
    assert terms.keys() == {"class", "box"}
    assert all(float(term) < 1e-4 for term in terms.values())


def test_every_parameter_learns(model, images, targets):
    model.train()
    weighted_sum(detection_loss(model, model(images), targets), {}).backward()
    idle = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert idle == []


def test_a_batch_without_objects_has_a_finite_loss(model, images, targets):
    terms = detection_loss(model, model(images[:1]), targets[1:2])
    assert all(torch.isfinite(term) for term in terms.values())
    assert terms["box"] == 0
    assert terms["mask"] == 0


def test_masks_need_truth_masks(model, images, targets):
    boxes_only = BoxTarget(targets[0].boxes_xyxy, targets[0].labels)
    with pytest.raises(ValueError, match="expected a target with masks"):
        detection_loss(model, model(images[:1]), [boxes_only])


def test_a_model_without_mask_head_says_so(images):
    model = RetinaMask(3, width=8, fpn_channels=16)
    with pytest.raises(ValueError, match="mask_head=True"):
        model.mask_logits(model(images).features, [torch.zeros(0, 4)] * 3)


def test_results_do_not_depend_on_batch_mates(model, images, make_spec):
    spec = make_spec("instance_segmentation", postprocess=BoxPostprocess(score_threshold=0.005))
    with torch.no_grad():
        together = detection_outputs(model, model(images), spec, CANVAS)
        mixed = detection_outputs(model, model(images[[0, 0, 0]]), spec, CANVAS)
    assert len(together[0].scores) > 0
    for one, other in ((together[0], mixed[0]), (together[0], mixed[2])):
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
        assert torch.equal(one.scores, other.scores)
        assert one.mask_probs is not None
        assert other.mask_probs is not None
        assert torch.equal(one.mask_probs, other.mask_probs)


def test_class_thresholds_and_top_k_bound_the_candidates(model, images, make_spec):
    model.mask_head = None
    postprocess = BoxPostprocess(
        score_threshold=0.0, class_thresholds={"b": 1.0}, pre_nms_top_k=50, max_detections=10
    )
    with torch.no_grad():
        found = detection_outputs(
            model, model(images), make_spec("detection", postprocess=postprocess), CANVAS
        )
    for each in found:
        assert len(each.scores) == 50
        assert 1 not in each.labels
        assert (each.scores.diff() <= 0).all()
        assert (each.boxes_xyxy >= 0).all()
        assert (each.boxes_xyxy <= torch.tensor([96, 64, 96, 64])).all()


@pytest.mark.parametrize("change", [{"nms": "soft_linear"}, {"keep_candidates": True}])
def test_all_candidates_get_masks_where_the_engine_needs_all(model, images, make_spec, change):
    few = BoxPostprocess(score_threshold=0.0, pre_nms_top_k=40, iou_threshold=0.3)
    spec = make_spec("instance_segmentation", postprocess=few)
    every = make_spec("instance_segmentation", postprocess=few.model_copy(update=change))
    with torch.no_grad():
        outputs = model(images)
        survivors = detection_outputs(model, outputs, spec, CANVAS)[0]
        candidates = detection_outputs(model, outputs, every, CANVAS)[0]
    assert survivors.mask_probs is not None
    assert candidates.mask_probs is not None
    assert len(survivors.mask_probs) < len(candidates.mask_probs) == 40


def test_large_and_small_boxes_are_read_where_they_have_about_fourteen_cells(model):
    # features that say which level they are of
    features = [
        torch.full((1, 16, 64 // stride, 96 // stride), float(stride)) for stride in (8, 16, 32)
    ]
    seen = []
    model.mask_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    boxes = torch.tensor([[0.0, 0, 30, 30], [0, 0, 112, 112], [0, 0, 230, 230], [0, 0, 999, 999]])
    with torch.no_grad():
        model.mask_logits(features, [boxes])
    assert seen[0][:, 0, 0, 0].tolist() == [8, 8, 16, 32]


def test_four_stages_are_needed():
    with pytest.raises(ValueError, match="four stages"):
        RetinaMask(3, depths=(1, 2, 2))
