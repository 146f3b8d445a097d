import pytest
from pydantic import ValidationError

from pixelmill.configs.schema import EvaluationConfig, SemanticModel, TilingConfig


@pytest.mark.parametrize("overlap", [0, 0.2, 0.9])
def test_tiles_may_overlap(overlap: float):
    assert TilingConfig(tile=(64, 64), overlap=overlap).overlap == overlap


@pytest.mark.parametrize("overlap", [-0.1, 0.91, 0.999, 1])
def test_tiles_that_would_be_countless_are_refused(overlap: float):
    with pytest.raises(ValidationError, match=r"overlap\n.*(or equal to 0.9|or equal to 0)"):
        TilingConfig(tile=(64, 64), overlap=overlap)


@pytest.mark.parametrize("name", ["instances", "semantic", "captions", "labels", "subset"])
def test_truth_is_not_looked_for_at_a_url(name):
    """It would be taken for a path that is not there, and nothing would be evaluated."""
    with pytest.raises(ValidationError, match="must be on a local disk, got a s3:// URL"):
        EvaluationConfig.model_validate({name: "s3://bucket/truth.json"})


def test_weights_are_not_looked_for_at_a_url():
    with pytest.raises(ValidationError, match="copy it here"):
        SemanticModel(name="s", weights="https://host/weights.safetensors")
    assert SemanticModel(name="s", weights="embedded:demo").weights == "embedded:demo"
