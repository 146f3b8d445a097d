"""What options make of a configuration."""

import pytest

from pixelmill.configs.schema import DetectionModel, InstanceModel
from pixelmill.flows import job
from pixelmill.flows.commands.options import Models, UsageError, choose_config


@pytest.fixture
def _no_weights_needed(monkeypatch):
    monkeypatch.setattr(job, "resolve_models", lambda config: [])


@pytest.mark.parametrize("asked", [Models(trust=True), Models(preset="demo", trust=True)])
@pytest.mark.usefixtures("_no_weights_needed")
def test_trust_reaches_every_model_of_any_configuration(asked, tmp_path):
    assert {model.trust for model in choose_config(str(tmp_path), asked).models} == {True}


@pytest.mark.usefixtures("_no_weights_needed")
def test_no_model_is_trusted_unasked(tmp_path):
    assert {model.trust for model in choose_config(str(tmp_path), Models()).models} == {False}


def test_a_preset_and_a_file_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match="exclude each other"):
        choose_config("photos", Models(preset="demo", config=tmp_path / "x.yaml"))


@pytest.mark.usefixtures("_no_weights_needed")
def test_recommended_thresholds_make_another_version_of_the_model(tmp_path):
    before = choose_config("photos", Models(preset="demo"))
    detector = next(
        model for model in before.models if model.task.startswith(("detection", "instance"))
    )
    file = tmp_path / "thresholds.yaml"
    file.write_text(f"# of a night\n{detector.name}:\n  circle: 0.42\n")
    after = choose_config("photos", Models(preset="demo", thresholds=file))
    (changed,) = (model for model in after.models if model not in before.models)
    assert changed.name == detector.name
    assert isinstance(changed, (DetectionModel, InstanceModel))
    assert changed.postprocess.class_thresholds["circle"] == 0.42


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other:\n  cat: 0.5\n", "is for other, and the models with boxes are: "),
        ("- 0.5\n", "expected classes with a number each"),
        ("detector: {cat: 7}\n", "less than or equal to 1"),
        ("{", "thresholds.yaml: "),
    ],
)
@pytest.mark.usefixtures("_no_weights_needed")
def test_a_file_of_thresholds_that_does_not_fit_is_refused(tmp_path, text, message):
    models = choose_config("photos", Models(preset="demo")).models
    name = next(model.name for model in models if model.task.startswith(("detection", "instance")))
    file = tmp_path / "thresholds.yaml"
    file.write_text(text.replace("detector", name))
    with pytest.raises(UsageError, match=message):
        choose_config("photos", Models(preset="demo", thresholds=file))
