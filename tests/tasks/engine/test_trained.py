"""What a training reports is what its model, scored and evaluated, comes to."""

import pytest
import torch
from pydantic import TypeAdapter

from pixelmill.configs.schema import EvaluationConfig, ModelConfig, PreprocessConfig, TrainConfig
from pixelmill.models.build import resolve_model
from pixelmill.tasks.evaluate import evaluate
from pixelmill.tasks.scenes import PLACES, write_scenes
from pixelmill.tasks.store import Store
from pixelmill.tasks.train import train

# pycocotools 2.0.11 decodes run lengths with what NumPy 2 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = {"backbone": "mobilenet_v3_small"}
CASES = {
    "classifier": ("classification", SMALL, {"labels": "labels.csv"}, {"top-1": "top-1"}),
    "localiser that classifies": (
        "classification",
        SMALL | {"hidden": 8},
        {"labels": "labels.csv"},
        {"top-1": "top-1"},
    ),
    "localiser": (
        "detection",
        SMALL | {"hidden": 8},
        {"instances": "instances.json"},
        {"box AP": "AP", "box AP50": "AP50"},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 14, 77)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_the_metrics_of_a_training_are_those_of_scoring_and_evaluating(
    name, folder, tmp_path, score_night
):
    task, arguments, truth, metrics = CASES[name]
    config = TrainConfig(
        name="tiny",
        task=task,
        architecture=name.split()[0],
        arguments=arguments,
        preprocess=PreprocessConfig(canvases=((64, 96),)),
        images=str(folder / "images"),
        truth=str(folder / next(iter(truth.values()))),
        epochs=3,
        batch_size=4,
        learning_rate=5e-3,
        train_fraction=0.5,
    )
    summary = train(config, tmp_path, tmp_path)
    assert summary.num_held_out > 3
    about = {"task": task, "name": "tiny", "weights": str(summary.weights)}
    model: ModelConfig = TypeAdapter(ModelConfig).validate_python(about)
    spec = resolve_model(model, tmp_path, device="cpu")
    if task == "classification":
        assert spec.classes == tuple(sorted(spec.classes))
        assert set(spec.classes) <= set(PLACES)
    store = Store(tmp_path / "out", create=True)
    score_night(store, str(folder / "images"), [spec])
    asked = EvaluationConfig(**truth, subset=str(summary.held_out), bootstrap=0)
    (found,) = evaluate(store, asked, base=folder, collection="pictures").models
    values = {metric.name: metric.value for metric in found.metrics}
    assert found.num_images == summary.num_held_out
    assert found.missing == found.failed == ()
    for reported, evaluated in metrics.items():
        assert values[evaluated] == pytest.approx(summary.metrics[reported], abs=1e-6)
    assert all(torch.tensor(list(values.values())).isfinite())
