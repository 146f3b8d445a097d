import pytest
import torch

from pixelmill.configs.schema import PreprocessConfig, SemanticModel
from pixelmill.models.build import resolve_model
from pixelmill.models.checkpoint import CheckpointMeta, save_checkpoint
from pixelmill.models.spec import Arguments
from pixelmill.models.zoo import ARCHITECTURES

ARGUMENTS: Arguments = {"num_classes": 3, "width": 4, "depth": 1}


@pytest.fixture
def weights(tmp_path):
    """A small U-Net's checkpoint, random but always the same."""
    torch.manual_seed(0)
    meta = CheckpointMeta(
        name="unet",
        task="semantic_segmentation",
        architecture="unet",
        arguments=ARGUMENTS,
        classes=("a", "b", "c"),
        preprocess=PreprocessConfig(canvases=((32, 48),)),
    )
    path = tmp_path / "unet.safetensors"
    save_checkpoint(path, ARCHITECTURES["unet"].build(**ARGUMENTS), meta)
    return path


@pytest.fixture
def resolve(weights):
    """Builds the spec of the small U-Net with changes to its config."""

    def build(*, device="cpu", num_images=None, **changes):
        fields = {"name": "s", "weights": weights.name} | changes
        return resolve_model(
            SemanticModel.model_validate(fields),
            weights.parent,
            device=device,
            num_images=num_images,
        )

    return build
