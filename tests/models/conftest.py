import pytest

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.spec import ModelSpec


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for each test."""
    monkeypatch.setenv("PIXELMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make_spec():
    """Builds the spec of a model whose weights nobody reads."""

    def make(task, *, classes=("a", "b", "c"), postprocess=None, vocabulary=()):
        return ModelSpec(
            name="tiny",
            task=task,
            architecture="-",
            arguments={},
            weights_path="-",
            weights_sha256="0" * 64,
            classes=classes,
            vocabulary=vocabulary,
            preprocess=PreprocessConfig(canvases=((64, 96),)),
            precision="fp32",
            postprocess=postprocess,
        )

    return make
