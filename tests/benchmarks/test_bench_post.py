"""From raw outputs to predictions: reading out and merging, on one CPU thread.

`pytest -m benchmark -s tests/benchmarks/test_bench_post.py` prints a line of JSON per case:
milliseconds of CPU time per image, the least of several rounds.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pixelmill.configs.schema import BoxPostprocess, PreprocessConfig
from pixelmill.models.interface import BoxOutput, SemanticOutput
from pixelmill.models.retinamask import RetinaMask, RetinaOutput, detection_outputs
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.merge import merge_views
from pixelmill.tasks.engine.views import plan_views

pytestmark = pytest.mark.benchmark

NUM_ROUNDS = 3
CANVAS = (480, 640)
IMAGE_SIZE = (1080, 1440)


def least_ms(way: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(NUM_ROUNDS):
        started = time.process_time()
        way()
        seconds.append(time.process_time() - started)
    return round(1000 * min(seconds), 3)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_spec(task: str, num_classes: int, postprocess: BoxPostprocess | None = None) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "m",
            "task": task,
            "architecture": "-",
            "arguments": {},
            "weights_path": "-",
            "weights_sha256": "0",
            "classes": tuple(str(index) for index in range(num_classes)),
            "preprocess": PreprocessConfig(canvases=(CANVAS,)),
            "precision": "fp32",
            "postprocess": postprocess,
        }
    )


@pytest.mark.parametrize("overlap", ["iou", "ios"])
def test_a_detector(machine, overlap):
    torch.manual_seed(0)
    model = RetinaMask(80).eval()
    num_anchors = len(model.anchors(CANVAS, torch.device("cpu")))
    batch_size = 4
    raw = RetinaOutput(
        torch.randn(batch_size, num_anchors, 80) - 6, torch.randn(batch_size, num_anchors, 4), ()
    )
    spec = make_spec("detection", 80, BoxPostprocess(score_threshold=0.05, overlap=overlap))
    (placement,) = plan_views(IMAGE_SIZE, spec)
    outputs = detection_outputs(model, raw, spec, CANVAS)
    found = merge_views([outputs[0]], [placement], spec, IMAGE_SIZE).detections
    assert found is not None
    assert len(found.scores) == 100
    figures = {
        "benchmark": f"post_detector_{overlap}",
        "num_anchors": num_anchors,
        "num_candidates": len(outputs[0].scores),
        "read_out_ms": least_ms(lambda: detection_outputs(model, raw, spec, CANVAS)) / batch_size,
        "merge_ms": least_ms(lambda: merge_views([outputs[0]], [placement], spec, IMAGE_SIZE)),
    }
    print(json.dumps(figures | machine("torch", "torchvision")))


@pytest.mark.parametrize("num_masks", [20, 100])
def test_instance_masks(machine, num_masks):
    torch.manual_seed(0)
    spec = make_spec("instance_segmentation", 3, BoxPostprocess(nms="none"))
    (placement,) = plan_views(IMAGE_SIZE, spec)
    corners = torch.rand(num_masks, 2) * torch.tensor([400.0, 300.0])
    boxes = torch.cat((corners, corners + 20 + 150 * torch.rand(num_masks, 2)), dim=1)
    probs = F.interpolate(torch.rand(num_masks, 1, 4, 4), size=(28, 28), mode="bicubic")[:, 0]
    output = BoxOutput(
        boxes, torch.rand(num_masks) / 2 + 0.5, torch.zeros(num_masks).long(), probs.clamp(0, 1)
    )
    found = merge_views([output], [placement], spec, IMAGE_SIZE).detections
    assert found is not None
    assert found.masks is not None
    assert len(found.masks) == num_masks
    figures = {
        "benchmark": "post_instance_masks",
        "num_masks": num_masks,
        "merge_ms": least_ms(lambda: merge_views([output], [placement], spec, IMAGE_SIZE)),
    }
    print(json.dumps(figures | machine("torch")))


@pytest.mark.parametrize("num_classes", [21, 150])
@pytest.mark.parametrize("stride", [8, 1])
def test_a_segmenter(machine, num_classes, stride):
    generator = torch.Generator().manual_seed(0)
    spec = make_spec("semantic_segmentation", num_classes)
    (placement,) = plan_views(IMAGE_SIZE, spec)
    size = [side // stride for side in CANVAS]
    coarse = 5 * torch.randn(1, num_classes, 9, 9, generator=generator)
    logits = F.interpolate(coarse, size=size, mode="bicubic")[0]
    logits += 0.1 * torch.randn(logits.shape, generator=generator)

    def users_way() -> torch.Tensor:
        return F.interpolate(logits[None], size=IMAGE_SIZE, mode="bilinear")[0].argmax(dim=0)

    labels = merge_views([SemanticOutput(logits)], [placement], spec, IMAGE_SIZE).semantic
    assert labels is not None
    assert float((torch.from_numpy(labels) == users_way()).float().mean()) > 0.999
    figures = {
        "benchmark": "post_segmenter",
        "num_classes": num_classes,
        "stride": stride,
        "merge_ms": least_ms(
            lambda: merge_views([SemanticOutput(logits)], [placement], spec, IMAGE_SIZE)
        ),
        "upsample_argmax_ms": least_ms(users_way),
    }
    print(json.dumps(figures | machine("torch")))
