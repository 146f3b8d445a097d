"""Networks of torch.export: run where they are trusted, and what opening one may do."""

import json
import re
import zipfile

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pixelmill.configs.schema import PreprocessConfig, SemanticModel
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.exported import ExportedNetwork
from pixelmill.models.interface import SemanticOutput
from pixelmill.models.trust import load_program

PREPROCESS = PreprocessConfig(resize="stretch", canvases=((8, 8),), mean=(0, 0, 0), std=(1, 1, 1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    ).eval()


def save(path, module, batch: int = 2, *, dynamic: bool = False) -> None:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(module, (torch.zeros(batch, 3, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, path)


def config(**changes) -> SemanticModel:
    known = {"name": "m", "weights": "m.pt2", "classes": ("a", "b"), "preprocess": PREPROCESS}
    return SemanticModel.model_validate(known | {"trust": True} | changes)


@pytest.mark.parametrize("dynamic", [True, False])
def test_any_batch_is_scored_also_by_a_network_of_a_fixed_one(tmp_path, dynamic) -> None:
    module = network()
    save(tmp_path / "m.pt2", module, dynamic=dynamic)
    spec = resolve_model(config(), tmp_path)
    assert spec.architecture == "exported"
    images = torch.randint(256, (5, 8, 8, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = module(images.permute(0, 3, 1, 2) / 255)
    for output, logits in zip(build_network(spec).predict(images), expected, strict=True):
        assert isinstance(output, SemanticOutput)
        assert_close(output.logits, logits, atol=1e-5, rtol=1e-5)


def test_a_forged_file_runs_code_when_it_is_opened_and_so_is_refused(tmp_path) -> None:
    """PyTorch evaluates the sizes that the file names."""
    save(tmp_path / "m.pt2", network(), dynamic=True)
    command = f"__import__('os').mkdir('{tmp_path / 'owned'}')"
    with (
        zipfile.ZipFile(tmp_path / "m.pt2") as sound,
        zipfile.ZipFile(tmp_path / "forged.pt2", "w") as forged,
    ):
        for name in sound.namelist():
            content = sound.read(name)
            if name.endswith("model.json"):
                text = json.dumps(json.loads(content))
                told = json.dumps(command)
                content = re.sub(r'"expr_str": "[^"]*"', f'"expr_str": {told}', text).encode()
            forged.writestr(name, content)
    for weights in ("m.pt2", "forged.pt2"):
        with pytest.raises(ValueError, match=r"program of torch\.export.*--trust"):
            resolve_model(config(weights=weights, trust=False), tmp_path)
    with pytest.raises(ValueError, match="--trust"):
        load_program("m", tmp_path / "forged.pt2", "exported", trusted=False)
    assert not (tmp_path / "owned").exists()
    with pytest.raises(ValueError, match=r"expected a file that torch\.export\.save wrote"):
        ExportedNetwork(tmp_path / "forged.pt2")
    assert (tmp_path / "owned").exists()


def test_canvases_of_another_size_are_refused(tmp_path) -> None:
    save(tmp_path / "m.pt2", network())
    larger = PREPROCESS.model_copy(update={"canvases": ((8, 8), (16, 8))})
    spec = resolve_model(config(preprocess=larger), tmp_path)
    with pytest.raises(ValueError, match="exported for images of 8x8 pixels, the canvases have 16"):
        build_network(spec)


def test_what_is_no_image_network_is_refused(tmp_path) -> None:
    torch.export.save(
        torch.export.export(nn.Linear(3, 2), (torch.zeros(2, 3),)), tmp_path / "m.pt2"
    )
    with pytest.raises(ValueError, match=r"one input \(B, 3, H, W\)"):
        ExportedNetwork(tmp_path / "m.pt2")


def test_another_name_does_not_hide_a_program(tmp_path) -> None:
    save(tmp_path / "weights.pt", network())
    with pytest.raises(ValueError, match=r"program of torch\.export"):
        resolve_model(config(weights="weights.pt", architecture="unet", trust=False), tmp_path)
