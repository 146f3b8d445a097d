"""What options make of a configuration."""

import pytest

from pixelmill.flows import job
from pixelmill.flows.commands.options import Models, UsageError, choose_config


@pytest.fixture
def _no_weights_needed(monkeypatch):
    monkeypatch.setattr(job, "resolve_models", lambda config: [])


@pytest.mark.parametrize("asked", [Models(trust=True), Models(preset="demo", trust=True)])
@pytest.mark.usefixtures("_no_weights_needed")
def test_trust_reaches_every_model_of_any_configuration(asked):
    assert {model.trust for model in choose_config("photos", asked).models} == {True}


@pytest.mark.usefixtures("_no_weights_needed")
def test_no_model_is_trusted_unasked():
    assert {model.trust for model in choose_config("photos", Models()).models} == {False}


def test_a_preset_and_a_file_exclude_each_other(tmp_path):
    with pytest.raises(UsageError, match="exclude each other"):
        choose_config("photos", Models(preset="demo", config=tmp_path / "x.yaml"))
