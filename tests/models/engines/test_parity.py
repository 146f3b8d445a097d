"""What the gate measures, on networks of a few lines that answer rightly, nearly or wrongly."""

import math

import pytest
import torch

from pixelmill.configs.schema import BoxPostprocess, CaptionPostprocess, PreprocessConfig
from pixelmill.models.engines.parity import LIMITS, NUM_IMAGES, check_parity, sample_images
from pixelmill.models.interface import (
    BoxOutput,
    CaptionOutput,
    ClassOutput,
    GateReport,
    SemanticOutput,
)
from pixelmill.models.spec import ModelSpec


def make_spec(task: str, precision: str = "fp32") -> ModelSpec:
    postprocess = {
        "detection": BoxPostprocess(),
        "instance_segmentation": BoxPostprocess(),
        "captioning": CaptionPostprocess(),
    }.get(task)
    return ModelSpec.model_validate(
        {
            "name": "fake",
            "task": task,
            "architecture": "-",
            "arguments": {},
            "weights_path": "-",
            "weights_sha256": "0" * 64,
            "classes": ("a", "b"),
            "preprocess": PreprocessConfig(canvases=((16, 24),)),
            "precision": precision,
            "postprocess": postprocess,
        }
    )


class Answers:
    """A network with an answer for every image, and raw outputs beside it."""

    def __init__(self, answer, raw: float = 1.0) -> None:
        self.device = torch.device("cpu")
        self.engine_used = "fake"
        self.gate: GateReport | None = None
        self.answer = answer
        self.raw = raw

    def forward(self, images):
        return {"raw": torch.full((len(images), 2), self.raw)}

    def read_out(self, raw, canvas):
        return [self.answer] * len(raw["raw"])

    def predict(self, images):
        return self.read_out(self.forward(images), (16, 24))


def boxes(*, shift: float = 0.0, label: int = 0, score: float = 0.9, masks: float | None = None):
    return BoxOutput(
        torch.tensor([[0.0, 0, 10, 10], [12, 2, 20, 12]]) + shift,
        torch.tensor([score, 0.6]),
        torch.tensor([label, 1]),
        None if masks is None else torch.full((2, 4, 4), 0.9) * (torch.arange(4) < masks),
    )


def semantic(num_other: int = 0) -> SemanticOutput:
    logits = torch.stack((torch.ones(8, 8), torch.zeros(8, 8)))
    logits[1].view(-1)[:num_other] = 2
    return SemanticOutput(logits)


@pytest.mark.parametrize(
    ("task", "ours", "theirs", "fault"),
    [
        ("detection", boxes(), boxes(), None),
        ("detection", boxes(shift=0.3), boxes(), None),
        ("detection", boxes(shift=4), boxes(), "boxes_found is 0,"),
        ("detection", boxes(label=1), boxes(), "boxes_found is 0.5,"),
        ("detection", boxes(score=0.7), boxes(), "boxes_found is 0.5,"),
        ("instance_segmentation", boxes(masks=4), boxes(masks=4), None),
        ("instance_segmentation", boxes(masks=3), boxes(masks=4), "mask_iou is 0.75,"),
        ("semantic_segmentation", semantic(), semantic(), None),
        ("semantic_segmentation", semantic(4), semantic(), "labels_equal is 0.9375,"),
        ("classification", ClassOutput(torch.tensor([0.4, 0.6])),
         ClassOutput(torch.tensor([0.45, 0.55])), None),
        ("classification", ClassOutput(torch.tensor([0.6, 0.4])),
         ClassOutput(torch.tensor([0.4, 0.6])), "top_class_equal is 0,"),
        ("captioning", CaptionOutput("a dog", -1.0, 2), CaptionOutput("a dog", -1.1, 2), None),
        ("captioning", CaptionOutput("a cat", -1.0, 2), CaptionOutput("a dog", -1.0, 2),
         "captions_equal is 0,"),
    ],
)  # fmt: skip
def test_answers_are_compared_by_what_the_task_is_about(task, ours, theirs, fault):
    report = check_parity(Answers(ours), Answers(theirs), make_spec(task))
    assert report.passed is (fault is None)
    assert report.figures["raw_error"] == 0
    if fault is not None:
        (found,) = report.faults
        assert found.startswith(fault)


def test_an_image_without_boxes_in_both_is_no_fault_and_in_one_is():
    none = BoxOutput(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    spec = make_spec("detection")
    assert check_parity(Answers(none), Answers(none), spec).passed
    assert not check_parity(Answers(none), Answers(boxes()), spec).passed
    assert not check_parity(Answers(boxes()), Answers(none), spec).passed


@pytest.mark.parametrize(
    ("raw", "precision", "passed"),
    [
        (1 + 5e-4, "fp32", True),
        (1 + 5e-3, "fp32", False),
        (1 + 5e-3, "bf16", True),
        (1.3, "bf16", False),
        (math.nan, "bf16", False),
        (math.inf, "fp32", False),
    ],
)
def test_raw_outputs_are_compared_where_no_answer_differs(raw: float, precision: str, passed):
    spec = make_spec("semantic_segmentation", precision)
    report = check_parity(Answers(semantic(), raw), Answers(semantic()), spec)
    assert report.passed is passed
    assert report.passed or "raw_error" in report.faults[0]


def test_outputs_of_another_shape_are_refused():
    class Longer(Answers):
        def forward(self, images):
            return {"raw": torch.ones(len(images), 3)}

    spec = make_spec("semantic_segmentation")
    report = check_parity(Longer(semantic()), Answers(semantic()), spec)
    assert report.figures["raw_error"] == math.inf


def test_sample_images_are_always_the_same_and_show_something():
    images = sample_images((48, 64))
    assert images.shape == (NUM_IMAGES, 48, 64, 3)
    assert images.dtype == torch.uint8
    assert torch.equal(images, sample_images((48, 64)))
    assert images[0].max() == 0
    assert all(image.float().std() > 10 for image in images[1:])
    assert len({image.numpy().tobytes() for image in images}) == NUM_IMAGES


def test_every_figure_has_its_limit():
    assert set(LIMITS) == {
        "raw_error", "boxes_found", "mask_iou", "labels_equal", "top_class_equal", "captions_equal",
    }  # fmt: skip
