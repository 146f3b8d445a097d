"""The smoke test finds what a broken network does."""

import pytest
import torch
from torch import nn

from pixelmill.configs.schema import BoxPostprocess, PreprocessConfig
from pixelmill.models.interface import BoxOutput, CaptionOutput, ClassOutput, SemanticOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks import check_model as module
from pixelmill.tasks.check_model import check_model

PREPROCESS = PreprocessConfig(resize="stretch", canvases=((8, 8), (8, 16)))


def make_spec(task: str = "semantic_segmentation", **changes) -> ModelSpec:
    known = {
        "name": "m", "task": task, "architecture": "-", "arguments": {}, "weights_path": "-",
        "weights_sha256": "-", "classes": ("a", "b"), "preprocess": PREPROCESS, "precision": "fp32",
    }  # fmt: skip
    return ModelSpec.model_validate(known | changes)


class Network:
    """Answers by a function of a batch of images, called once more each time."""

    engine_used = "none"
    gate = None
    device = torch.device("cpu")

    def __init__(self, answer) -> None:
        self.answer = answer
        self.calls = 0

    def predict(self, images):
        self.calls += 1
        return self.answer(images.permute(0, 3, 1, 2).float(), self.calls)


@pytest.fixture
def check(monkeypatch):
    def run(answer, spec=None):
        monkeypatch.setattr(module, "build_network", lambda spec, device: Network(answer))
        findings = check_model(spec or make_spec(), seconds=0)
        return {each.what: each for each in findings}

    return run


def of_each(images, function):
    return [function(image) for image in images]


def test_a_sound_network_passes_on_each_canvas(check) -> None:
    found = check(lambda images, _: of_each(images, lambda image: SemanticOutput(image[:2])))
    assert all(each.passed is not False for each in found.values())
    for place in ("8x8", "8x16"):
        assert found[f"batch mates {place}"].result == "change no bit"
    assert found["outputs 8x16"].result == "logits (2, 8, 16)"
    assert found["speed 8x8, batch of 8"].result.endswith("images/s")
    assert found["peak memory"].result.endswith("MB of the process")


def test_batch_norm_that_was_left_in_training_is_found(check) -> None:
    norm = nn.BatchNorm2d(3, affine=False).train()
    found = check(
        lambda images, _: [SemanticOutput(each[:2]) for each in norm(images - images.mean(1, True))]
    )
    assert found["batch mates 8x8"].passed is False
    assert found["batch mates 8x8"].result.startswith("change answers: labels_equal")


def test_an_answer_of_another_day_is_found(check) -> None:
    found = check(lambda images, call: [SemanticOutput(each[:2] + call) for each in images])
    assert found["repeated 8x8"].passed is False


@pytest.mark.parametrize(
    ("output", "task", "told"),
    [
        (SemanticOutput(torch.zeros(3, 8, 8)), "semantic_segmentation", "logits of 2 classes"),
        (SemanticOutput(torch.full((2, 8, 8), torch.nan)), "semantic_segmentation", "no numbers"),
        (ClassOutput(torch.tensor([0.5, 1.5])), "classification", "outside of 0 to 1"),
        (ClassOutput(torch.tensor([0.5])), "classification", "probabilities of 2 classes"),
        (CaptionOutput("a", 0.5, 3), "captioning", "log probability above 0"),
        (CaptionOutput("", -0.5, 0), "captioning", "no token"),
        ("outside", "detection", "boxes outside of the canvas"),
        ("turned", "detection", "ends come before their starts"),
        ("class", "detection", "labels of no class"),
        ("score", "detection", "scores outside of 0 to 1"),
        ("nan", "detection", "no numbers"),
    ],
)
def test_what_the_task_forbids_is_told(check, output, task, told) -> None:
    if isinstance(output, str):
        output = broken_box(output)
    postprocess = BoxPostprocess() if task == "detection" else None
    found = check(
        lambda images, _: [output] * len(images), make_spec(task, postprocess=postprocess)
    )
    assert found["outputs 8x8"].passed is False
    assert told in found["outputs 8x8"].result


def broken_box(how: str) -> BoxOutput:
    boxes = {"outside": [0, 0, 12, 4], "turned": [4, 4, 2, 6], "nan": [0, 0, torch.nan, 4]}
    return BoxOutput(
        torch.tensor([boxes.get(how, [0, 0, 4, 4])]).float(),
        torch.tensor([1.5 if how == "score" else 0.5]),
        torch.tensor([2 if how == "class" else 1]),
    )
