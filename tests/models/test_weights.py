from pathlib import Path

import pytest

from pixelmill.models import weights
from pixelmill.models.checkpoint import load_state, read_metadata
from pixelmill.models.zoo import ARCHITECTURES

FOLDER = Path(weights.__file__).parent
FILES = sorted(FOLDER.glob("*.safetensors"))
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_there_is_a_demo_model_for_boxes_with_masks_for_regions_and_for_captions():
    assert {read_metadata(path).task for path in FILES} == {
        "instance_segmentation",
        "semantic_segmentation",
        "captioning",
    }


def test_all_weights_together_are_small_enough_for_the_repository():
    assert sum(path.stat().st_size for path in FILES) < 12_000_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_weights_fit_their_description_and_their_card(path):
    metadata = read_metadata(path)
    assert metadata.name == path.stem
    module = ARCHITECTURES[metadata.architecture].build(**metadata.arguments)
    module.load_state_dict(load_state(path))
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    assert f"## {path.stem}" in CARD
    assert f"{num_parameters:,} parameters" in CARD
    assert f"pixelmill train {path.stem}" in CARD
