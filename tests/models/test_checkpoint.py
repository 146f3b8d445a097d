import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.checkpoint import (
    CheckpointMeta,
    load_matching,
    load_state,
    read_metadata,
    save_checkpoint,
)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2))


@pytest.fixture
def metadata():
    return CheckpointMeta(
        name="tiny",
        task="detection",
        architecture="retinamask",
        arguments={"num_classes": 2, "anchor_sizes": (20, 40, 80, 160)},
        classes=("cat", "Füchsin"),
        preprocess=PreprocessConfig(canvases=((64, 96),)),
        training={"epochs": 3},
    )


def test_metadata_survives_the_file(tmp_path, module, metadata):
    save_checkpoint(tmp_path / "tiny.safetensors", module, metadata)
    assert read_metadata(tmp_path / "tiny.safetensors") == metadata


def test_full_precision_survives_the_file(tmp_path, module, metadata):
    save_checkpoint(tmp_path / "a.safetensors", module, metadata, half=False)
    torch.testing.assert_close(
        load_state(tmp_path / "a.safetensors"), dict(module.state_dict()), rtol=0, atol=0
    )


def test_half_precision_loses_only_rounding_and_loads_as_float32(tmp_path, module, metadata):
    # a variance that float16 cannot hold
    module[1].running_var.fill_(1e-9)
    save_checkpoint(tmp_path / "a.safetensors", module, metadata)
    state = load_state(tmp_path / "a.safetensors")
    assert state["0.weight"].dtype == torch.float32
    torch.testing.assert_close(state, dict(module.state_dict()), rtol=1e-3, atol=0)


def test_saving_twice_gives_the_same_bytes_and_leaves_no_other_file(tmp_path, module, metadata):
    save_checkpoint(tmp_path / "a.safetensors", module, metadata)
    first = (tmp_path / "a.safetensors").read_bytes()
    save_checkpoint(tmp_path / "a.safetensors", module, metadata)
    assert (tmp_path / "a.safetensors").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_only_tensors_that_fit_are_taken_over(module):
    other = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 7))
    num_copied = load_matching(other, dict(module.state_dict()))
    assert num_copied == len(module.state_dict()) - 2
    copied = other.state_dict()
    assert torch.equal(copied["0.weight"], module[0].weight)
    assert copied["2.weight"].shape == (7, 4)


@pytest.mark.parametrize("read", [read_metadata, load_state])
def test_a_file_that_is_not_there_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="missing"):
        read(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("read", [read_metadata, load_state])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path, read):
    (tmp_path / "a.safetensors").write_bytes(b"not this")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        read(tmp_path / "a.safetensors")


def test_a_checkpoint_of_others_says_what_to_do(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="name architecture, classes and preprocess"):
        read_metadata(tmp_path / "a.safetensors")
