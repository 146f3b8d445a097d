"""Weights that are programs: refused with what they would do, run where they are trusted."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pixelmill.configs.schema import DetectionModel, PreprocessConfig, SemanticModel
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.interface import BoxOutput, SemanticOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.models.trust import is_torchscript, load_program, load_tensors

PREPROCESS = PreprocessConfig(resize="stretch", canvases=((8, 8),), mean=(0, 0, 0), std=(1, 1, 1))


class Mean(nn.Module):
    """Two classes by two fixed weights of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.einsum("kc,bchw->bkhw", self.weight, images)


class Attack:
    """Opened, it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.fixture
def folder(tmp_path):
    """A TorchScript archive, a pickled module, a state dict, and three pickles that attack."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.trace(Mean(), torch.zeros(1, 3, 8, 8)), tmp_path / "script.pt")
    torch.save(Mean(), tmp_path / "module.pt")
    torch.save(Mean().state_dict(), tmp_path / "state.pt")
    attack = {"weight": torch.zeros(2, 3), "extra": Attack(tmp_path / "owned")}
    torch.save(attack, tmp_path / "attack.pt")
    torch.save(attack, tmp_path / "old_attack.pt", _use_new_zipfile_serialization=False)
    return tmp_path


def model(weights: str, **changes) -> SemanticModel:
    known = {"name": "m", "weights": weights, "classes": ("a", "b"), "preprocess": PREPROCESS}
    return SemanticModel.model_validate(known | changes)


@pytest.mark.parametrize(
    ("weights", "architecture", "message"),
    [
        ("script.pt", None, "TorchScript program"),
        ("script.pt", "torchscript", "TorchScript program"),
        ("script.pt", "torchvision/fcn_resnet50", "TorchScript program"),
        ("module.pt", "pickle", "runs the code in"),
        ("module.pt", "torchvision/fcn_resnet50", r"import and call .*test_trust\.Mean"),
        ("attack.pt", "torchvision/fcn_resnet50", r"import and call (posix|nt|os)\.mkdir"),
        ("attack.pt", "pickle", "runs the code in"),
        ("old_attack.pt", "pickle", "runs the code in"),
    ],
)
def test_programs_are_refused_before_anything_runs(folder, weights, architecture, message):
    with pytest.raises(ValueError, match=message) as caught:
        resolve_model(model(weights, architecture=architecture), folder)
    assert "--trust" in str(caught.value)
    assert not (folder / "owned").exists()


@pytest.mark.parametrize("weights", ["attack.pt", "old_attack.pt"])
def test_a_pickle_is_opened_by_nobody_who_did_not_look(folder, weights):
    with pytest.raises(ValueError, match=r"import and call .*mkdir"):
        load_tensors("m", folder / weights, trusted=False)
    with pytest.raises(ValueError, match="trust"):
        load_program("m", folder / weights, "pickle", trusted=False)
    assert not (folder / "owned").exists()


def test_a_worker_trusts_no_more_than_the_plan(folder):
    """A spec may come from anywhere: the file is looked at again where it is opened."""
    spec = resolve_model(model("script.pt", trust=True), folder)
    for architecture, weights in (("torchscript", "script.pt"), ("pickle", "module.pt")):
        forged = resolve_model(model(weights, trust=True, architecture=architecture), folder)
        with pytest.raises(ValueError, match="--trust"):
            build_network(forged.model_copy(update={"trust": False}))
    assert isinstance(spec, ModelSpec)


@pytest.mark.parametrize(
    ("weights", "architecture"),
    [("script.pt", None), ("script.pt", "torchscript"), ("module.pt", "pickle")],
)
def test_a_trusted_program_scores(folder, weights, architecture):
    spec = resolve_model(model(weights, architecture=architecture, trust=True), folder)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8))
    outputs = build_network(spec).predict(images)
    expected = images.permute(0, 3, 1, 2).float() / 255
    for output, image in zip(outputs, expected, strict=True):
        assert isinstance(output, SemanticOutput)
        torch.testing.assert_close(output.logits, torch.stack((image[0], 2 * image[2])))


def test_trust_changes_no_key(folder):
    spec = resolve_model(model("script.pt", trust=True), folder)
    assert spec.key == spec.model_copy(update={"trust": False}).key


def test_a_trusted_detector_reads_by_its_own_function(folder):
    (folder / "read.py").write_text(
        "import numpy as np\n"
        "def decode(outputs, canvas):\n"
        "    found = np.array([[0, 0, 4, 4.]]), np.array([.5]), np.array([1])\n"
        "    return [found for _ in outputs[0]]\n"
    )
    config = DetectionModel(
        name="d",
        weights="script.pt",
        classes=("a", "b"),
        preprocess=PREPROCESS,
        decode="read.py:decode",
        trust=True,
    )
    (output,) = build_network(resolve_model(config, folder)).predict(
        torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    )
    assert isinstance(output, BoxOutput)
    assert output.labels.tolist() == [1]


def test_the_wrong_kind_is_told(folder):
    for weights, architecture, other in (
        ("script.pt", "pickle", "torchscript"),
        ("module.pt", "torchscript", "pickle"),
    ):
        with pytest.raises(ValueError, match=f"set architecture: {other}"):
            load_program("m", folder / weights, architecture, trusted=True)
    with pytest.raises(ValueError, match="must hold a whole module"):
        load_program("m", folder / "state.pt", "pickle", trusted=True)


def test_pickles_of_tensors_need_no_trust(folder):
    state = load_tensors("m", folder / "state.pt", trusted=False)
    assert torch.equal(state["weight"], Mean().weight)
    assert is_torchscript(folder / "script.pt")
    assert not is_torchscript(folder / "state.pt")


def test_a_trusted_pickled_module_lends_its_weights(folder):
    state = load_tensors("m", folder / "module.pt", trusted=True)
    assert torch.equal(state["weight"], Mean().weight)
