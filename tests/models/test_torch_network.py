"""Networks on another device, which the meta device stands for: it only knows where things are."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.engines.pixels import normalise
from pixelmill.models.interface import ClassOutput
from pixelmill.models.torch_network import TorchNetwork
from pixelmill.models.zoo import ARCHITECTURES

ARGUMENTS = {
    "retinamask": {"num_classes": 3, "mask_head": True, "width": 8, "fpn_channels": 8},
    "unet": {"num_classes": 3, "width": 4, "depth": 2},
    "show_attend_tell": {"vocabulary_size": 8, "width": 8, "embed_dim": 8, "hidden_dim": 8},
}


def tensors_of(outputs) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if torch.is_tensor(leaf)]


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_module_and_images_meet_on_the_networks_device(make_spec, name: str, precision: str):
    architecture = ARCHITECTURES[name]
    spec = make_spec(architecture.tasks[0]).model_copy(update={"precision": precision})
    seen = []

    def read_out(module, outputs, spec, canvas):
        seen.extend([*module.parameters(), *module.buffers(), *tensors_of(outputs)])
        return [ClassOutput(torch.ones(3))] * 2

    network = TorchNetwork(architecture.build(**ARGUMENTS[name]), spec, read_out, device="meta")
    assert len(network.predict(torch.zeros((2, 64, 96, 3), dtype=torch.uint8))) == 2
    assert {tensor.device.type for tensor in seen} == {"meta"}
    dtypes = {tensor.dtype for tensor in seen if tensor.is_floating_point()}
    assert dtypes == {{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}


def test_images_are_normalised_as_the_network_was_trained():
    preprocess = PreprocessConfig(
        canvases=((1, 1),), channels="bgr", mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0)
    )
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    found = normalise(images, preprocess)
    assert found.shape == (1, 3, 1, 1)
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, -0.2, 0.0]))


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_normalised_pixels_have_the_bits_of_the_formula(channels):
    preprocess = PreprocessConfig(canvases=((5, 7),), channels=channels)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 5, 7, 3), dtype=torch.uint8, generator=generator)
    ordered = images if channels == "rgb" else images.flip(-1)
    mean, std = torch.tensor(preprocess.mean) * 255, torch.tensor(preprocess.std) * 255
    found = normalise(images, preprocess)
    assert torch.equal(found, ((ordered - mean) / std).permute(0, 3, 1, 2))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_switch_for_denormal_numbers_is_off_again(make_spec):
    def read_out(module, outputs, spec, canvas):
        assert torch.tensor([1e-40]).mul(0.5).item() == 0
        raise ValueError("no")

    module = ARCHITECTURES["unet"].build(**ARGUMENTS["unet"])
    network = TorchNetwork(module, make_spec("semantic_segmentation"), read_out)
    with pytest.raises(ValueError, match="no"):
        network.predict(torch.zeros((1, 64, 96, 3), dtype=torch.uint8))
    assert torch.tensor([1e-40]).mul(0.5).item() > 0
