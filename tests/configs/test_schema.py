import pytest
from pydantic import ValidationError

from pixelmill.configs.schema import TilingConfig


@pytest.mark.parametrize("overlap", [0, 0.2, 0.9])
def test_tiles_may_overlap(overlap: float):
    assert TilingConfig(tile=(64, 64), overlap=overlap).overlap == overlap


@pytest.mark.parametrize("overlap", [-0.1, 0.91, 0.999, 1])
def test_tiles_that_would_be_countless_are_refused(overlap: float):
    with pytest.raises(ValidationError, match=r"overlap\n.*(or equal to 0.9|or equal to 0)"):
        TilingConfig(tile=(64, 64), overlap=overlap)
