import pytest

from pixelmill.configs.schema import SemanticModel
from pixelmill.models.build import resolve_model


@pytest.fixture
def weights(tmp_path, write_unet):
    """A small U-Net's checkpoint."""
    return write_unet(tmp_path / "unet.safetensors", ((32, 48),))


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
