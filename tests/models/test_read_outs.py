"""Reading a batch out: bit by bit what image by image gave, and with few waits for the device."""

import functools
from collections import Counter
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection.image_list import ImageList

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models import retinamask, torchvision_zoo, two_stage
from pixelmill.models.interface import BoxOutput
from pixelmill.models.ops import candidates
from pixelmill.models.ops.anchors import make_anchors
from pixelmill.models.ops.boxes import clip_boxes, decode_boxes, large_enough
from pixelmill.models.ops.suppression import (
    class_thresholds,
    hard_nms,
    preselect,
    rank,
)
from pixelmill.models.retinamask import RetinaMask, detection_outputs
from pixelmill.models.torch_network import TorchNetwork

CPU = torch.device("cpu")
POSTPROCESSES = {
    "many": BoxPostprocess(score_threshold=0.02, pre_nms_top_k=10_000),
    "bounded": BoxPostprocess(score_threshold=0.05, pre_nms_top_k=50, max_detections=7),
    "ios": BoxPostprocess(score_threshold=0.05, pre_nms_top_k=300, overlap="ios", max_detections=9),
    "everything": BoxPostprocess(score_threshold=0.0, pre_nms_top_k=20, keep_candidates=True),
    "one class": BoxPostprocess(score_threshold=0.99, class_thresholds={"b": 0.1}),
    "none": BoxPostprocess(score_threshold=1.0),
}


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.labels, other.labels)
        assert one.labels.dtype == torch.int64
        assert (one.mask_probs is None) == (other.mask_probs is None)
        if one.mask_probs is not None:
            assert torch.equal(one.mask_probs, other.mask_probs)


def assert_close_outputs(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.scores.shape == other.scores.shape
        torch.testing.assert_close(one.boxes_xyxy, other.boxes_xyxy, rtol=0, atol=1e-2)
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-5)
        if other.mask_probs is not None:
            torch.testing.assert_close(one.mask_probs, other.mask_probs, rtol=0, atol=1e-4)


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: values and sizes asked of tensors, and copies."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        asks = {
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "_unique2",
            "unique_dim",
            "equal",
        }
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if name in asks or by_mask:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """Batches are read out as on a GPU, on the CPU; what is asked of copies is not counted."""
    waits = Waits()
    for module in (torchvision_zoo, two_stage, retinamask):
        monkeypatch.setattr(module, "pieces", lambda size, device: [slice(0, size)])
    monkeypatch.setattr(candidates, "_indices_of", lambda mask: torch.nonzero(mask, as_tuple=True))

    def copy_to_host(tensor: Tensor) -> Tensor:
        waits.count["cpu"] += 1
        return tensor

    monkeypatch.setattr(Tensor, "cpu", copy_to_host)
    with waits:
        yield waits.count


# --- RetinaMask -----------------------------------------------------------------------------------


def retina_image_by_image(model: RetinaMask, outputs: Any, spec: Any, canvas: Any) -> list[Any]:
    """As before batches were read out at once."""
    config = spec.postprocess
    anchors = make_anchors(
        canvas, model.strides, model.anchor_sizes, model.anchor_scales, model.anchor_ratios
    )
    floors = torch.logit(class_thresholds(config, spec.classes))
    results = []
    for index in range(len(outputs.class_logits)):
        logits, deltas = outputs.class_logits[index], outputs.box_deltas[index]
        place, labels = torch.nonzero(logits >= floors, as_tuple=True)
        scores = logits[place, labels].sigmoid()
        order = rank(scores)[: config.pre_nms_top_k]
        boxes = clip_boxes(decode_boxes(deltas[place[order]], anchors[place[order]]), canvas)
        scores, labels, probs = scores[order], labels[order], None
        if model.mask_head is not None:
            if config.nms == "hard" and not config.keep_candidates:
                kept = hard_nms(
                    boxes, scores, labels, config.iou_threshold, overlap=config.overlap
                )[: config.max_detections]
                boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
            features = [level[index : index + 1] for level in outputs.features]
            probs = model.mask_logits(features, [boxes])
            probs = probs[torch.arange(len(labels)), labels].sigmoid()
        results.append(BoxOutput(boxes, scores, labels, probs))
    return results


@pytest.fixture(scope="module")
def make_retina():
    """Function from whether it has masks -> a RetinaMask, and its outputs for 4 images."""

    @functools.cache
    def make(masks: bool) -> Any:
        torch.manual_seed(0)
        model = RetinaMask(3, mask_head=masks, width=8, fpn_channels=16, head_depth=1).eval()
        torch.nn.init.normal_(cast("Tensor", model.class_head.predictor.bias), -2.5)
        with torch.no_grad():
            return model, model(torch.rand(4, 3, 64, 96))

    return make


@pytest.mark.parametrize("name", POSTPROCESSES)
@pytest.mark.parametrize("masks", [False, True])
def test_retinamask_reads_a_batch_as_image_by_image(make_retina, make_spec, name, masks):
    model, outputs = make_retina(masks)
    task = "instance_segmentation" if masks else "detection"
    spec = make_spec(task, postprocess=POSTPROCESSES[name])
    with torch.no_grad():
        found = detection_outputs(model, outputs, spec, (64, 96))
        assert_equal(found, retina_image_by_image(model, outputs, spec, (64, 96)))
    assert (sum(len(each.scores) for each in found) > 0) == (name != "none")


@pytest.mark.parametrize("num_images", [1, 4])
def test_a_detector_waits_twice_for_the_device_whatever_the_batch(
    make_retina, make_spec, monkeypatch, num_images
):
    model, outputs = make_retina(False)
    spec = make_spec("detection", postprocess=POSTPROCESSES["many"])
    part = type(outputs)(*(each[:num_images] for each in outputs[:2]), outputs.features)
    expected = retina_image_by_image(model, part, spec, (64, 96))
    with torch.no_grad(), as_on_a_gpu(monkeypatch) as waits:
        found = detection_outputs(model, part, spec, (64, 96))
    assert waits == {"nonzero": 1, "cpu": 1}
    assert_equal(found, expected)


def test_anchors_are_made_once_per_canvas(make_retina):
    model, _ = make_retina(False)
    assert model.anchors((64, 96), CPU) is model.anchors((64, 96), CPU)
    with torch.inference_mode():
        made_while_scoring = model.anchors((32, 96), CPU)
    (made_while_scoring * torch.ones(1, requires_grad=True)).sum().backward()


# --- Torchvision ----------------------------------------------------------------------------------


def one_stage_image_by_image(trunk: Any, outputs: Any, spec: Any, canvas: Any) -> list[Any]:
    head, anchors = outputs
    config = spec.postprocess
    thresholds = class_thresholds(config, spec.classes)
    results = []
    for index in range(len(head["cls_logits"])):
        raw = {name: tensor[index] for name, tensor in head.items()}
        scores = torchvision_zoo._one_stage_scores(trunk.model, raw)[:, trunk.class_indices]
        place, labels = torch.nonzero(scores >= thresholds, as_tuple=True)
        kept = preselect(scores[place, labels], labels, thresholds, config.pre_nms_top_k)
        place, labels = place[kept], labels[kept]
        boxes = torchvision_zoo._decode_one_stage(
            trunk.model, raw["bbox_regression"][place], anchors[place]
        )
        results.append(BoxOutput(clip_boxes(boxes, canvas), scores[place, labels], labels))
    return results


def two_stage_image_by_image(trunk: Any, features: Any, spec: Any, canvas: Any) -> list[Any]:
    heads, config = trunk.model.roi_heads, spec.postprocess
    thresholds = class_thresholds(config, spec.classes)
    results = []
    for index in range(len(features["0"])):
        own = {name: tensor[index : index + 1] for name, tensor in features.items()}
        proposals, _ = trunk.model.rpn(ImageList(torch.empty((1, 3, *canvas)), [canvas]), own)
        pooled = heads.box_roi_pool(own, proposals, [canvas])
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        boxes = heads.box_coder.decode(deltas, proposals)[:, trunk.class_indices]
        scores = F.softmax(logits, -1)[:, trunk.class_indices]
        place, labels = torch.nonzero(scores >= thresholds, as_tuple=True)
        boxes, scores = clip_boxes(boxes[place, labels], canvas), scores[place, labels]
        usable = large_enough(boxes, 1e-2)
        boxes, scores, labels = boxes[usable], scores[usable], labels[usable]
        kept = preselect(scores, labels, thresholds, config.pre_nms_top_k)
        boxes, scores, labels, probs = boxes[kept], scores[kept], labels[kept], None
        if spec.task == "instance_segmentation":
            if config.nms == "hard" and not config.keep_candidates:
                kept = hard_nms(
                    boxes, scores, labels, config.iou_threshold, overlap=config.overlap
                )[: config.max_detections]
                boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
            pooled = heads.mask_roi_pool(own, [boxes], [canvas])
            logits = heads.mask_predictor(heads.mask_head(pooled))
            probs = logits[torch.arange(len(labels)), trunk.class_indices[labels]].sigmoid()
        results.append(BoxOutput(boxes, scores, labels, probs))
    return results


@pytest.fixture(scope="module")
def make_trunk():
    """Function name -> a trunk of random weights, its canvas, and raw outputs of 3 images."""

    @functools.cache
    def make(name: str) -> Any:
        torch.manual_seed(0)
        has_background = not name.startswith(("retinanet", "fcos"))
        arguments: dict[str, Any] = {
            "num_classes": 3 + has_background,
            "class_indices": tuple(range(has_background, 3 + has_background)),
        }
        if name.startswith("maskrcnn"):
            arguments |= {"rpn_post_nms_top_n_test": 40, "rpn_pre_nms_top_n_test": 60}
        trunk: Any = torchvision_zoo._build(name, arguments).eval()
        canvas = (320, 320) if name.startswith("ssd") else (64, 96)
        if name.startswith("maskrcnn"):
            strides = {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}
            return (
                trunk,
                canvas,
                {
                    key: torch.randn(3, 256, -(-canvas[0] // step), -(-canvas[1] // step))
                    for key, step in strides.items()
                },
            )
        with torch.no_grad():
            head, anchors = trunk(torch.rand(1, 3, *canvas))
        noise = {key: torch.randn(3, *tensor.shape[1:]) for key, tensor in head.items()}
        return trunk, canvas, (noise, anchors)

    return make


ONE_STAGE = ("ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "fcos_resnet50_fpn")


@pytest.mark.parametrize("name", ["many", "bounded", "one class", "none"])
@pytest.mark.parametrize("builder", ONE_STAGE)
def test_a_one_stage_detector_reads_a_batch_as_image_by_image(
    make_trunk, make_spec, monkeypatch, builder, name
):
    trunk, canvas, outputs = make_trunk(builder)
    spec = make_spec("detection", postprocess=POSTPROCESSES[name])
    expected = one_stage_image_by_image(trunk, outputs, spec, canvas)
    assert (sum(len(each.scores) for each in expected) > 0) == (name != "none")
    assert_equal(torchvision_zoo._read_one_stage(trunk, outputs, spec, canvas), expected)
    with as_on_a_gpu(monkeypatch) as waits:
        found = torchvision_zoo._read_one_stage(trunk, outputs, spec, canvas)
    assert waits == {"nonzero": 1, "cpu": 1}
    # A sigmoid's last digit depends on where in a vector register its argument lies
    assert_close_outputs(found, expected)


@pytest.mark.parametrize("task", ["detection", "instance_segmentation"])
@pytest.mark.parametrize("name", ["bounded", "ios", "everything", "none"])
def test_a_two_stage_detector_reads_a_batch_as_image_by_image(make_trunk, make_spec, name, task):
    trunk, canvas, features = make_trunk("maskrcnn_resnet50_fpn")
    spec = make_spec(task, postprocess=POSTPROCESSES[name])
    with torch.no_grad():
        expected = two_stage_image_by_image(trunk, features, spec, canvas)
        assert_equal(two_stage.read_two_stage(trunk, features, spec, canvas), expected)
    assert (sum(len(each.scores) for each in expected) > 0) == (name != "none")


def test_regions_of_a_batch_are_those_of_torchvision(make_trunk):
    trunk, canvas, features = make_trunk("maskrcnn_resnet50_fpn")
    rpn = trunk.model.rpn
    with torch.no_grad():
        boxes, is_region = two_stage.propose_many(rpn, features, canvas, canvas)
        for index in range(3):
            own = {name: tensor[index : index + 1] for name, tensor in features.items()}
            (expected,), _ = rpn(ImageList(torch.empty((1, 3, *canvas)), [canvas]), own)
            found = boxes[index][is_region[index]]
            assert found.shape == expected.shape
            assert is_region[index, : len(found)].all()
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_waits_of_a_two_stage_detector_do_not_grow_with_the_batch(
    make_trunk, make_spec, monkeypatch
):
    trunk, canvas, features = make_trunk("maskrcnn_resnet50_fpn")
    spec = make_spec("instance_segmentation", postprocess=POSTPROCESSES["bounded"])
    monkeypatch.setattr(two_stage, "_propose_one", two_stage.propose_many)
    seen = []
    for num_images in (1, 3):
        part = {name: tensor[:num_images] for name, tensor in features.items()}
        with torch.no_grad(), as_on_a_gpu(monkeypatch) as waits:
            found = two_stage.read_two_stage(trunk, part, spec, canvas)
        assert_close_outputs(found, two_stage_image_by_image(trunk, part, spec, canvas))
        seen.append(waits)
    one, three = seen
    assert one["cpu"] == three["cpu"] == 2
    assert one["nonzero"] == three["nonzero"]


def test_fp32_is_not_tf32(make_spec, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    TorchNetwork(torch.nn.Conv2d(3, 2, 3), make_spec("detection"), detection_outputs)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
