"""Networks that are functions of files and packages, and what other packages register."""

import sys
from importlib.metadata import entry_points

import pytest
import torch
from torch import nn

from pixelmill.configs.schema import PreprocessConfig, SemanticModel
from pixelmill.models.architectures import list_architectures
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.interface import SemanticOutput
from pixelmill.models.user_code import load_registered, registered

PREPROCESS = PreprocessConfig(resize="stretch", canvases=((8, 8),), mean=(0, 0, 0), std=(1, 1, 1))
SOURCE = """
from torch import nn

def build(width=2, kernel=1):
    return nn.Conv2d(3, width, kernel)
"""
PLUGIN = """
from torch import nn
from pixelmill.models.semantic import semantic_outputs
from pixelmill.models.zoo import Architecture

def build(width=2):
    return nn.Conv2d(3, width, 1)

one = Architecture(build, ("semantic_segmentation",), semantic_outputs)
other = "no architecture"
"""


@pytest.fixture
def folder(tmp_path):
    """net.py with a factory, and w.pt with weights for it."""
    torch.manual_seed(0)
    torch.save(nn.Conv2d(3, 2, 1).state_dict(), tmp_path / "w.pt")
    (tmp_path / "net.py").write_text(SOURCE)
    return tmp_path


@pytest.fixture
def package(folder, monkeypatch, request):
    """An installed distribution `fake-nets` with the module `request.param` or fake_nets."""
    site = folder / "site"
    about = site / "fake_nets-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "fake_nets.py").write_text(PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-nets\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[pixelmill.architectures]\nfake_net = fake_nets:one\n")
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop("fake_nets", None)
    load_registered.cache_clear()


def model(architecture: str, **changes) -> SemanticModel:
    known = {"name": "m", "weights": "w.pt", "classes": ("a", "b"), "preprocess": PREPROCESS}
    return SemanticModel.model_validate(known | {"architecture": architecture} | changes)


def check(spec, folder) -> None:
    images = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
    module = nn.Conv2d(3, 2, 1)
    module.load_state_dict(torch.load(folder / "w.pt"))
    with torch.no_grad():
        expected = module(images.permute(0, 3, 1, 2) / 255)
    for output, logits in zip(build_network(spec).predict(images), expected, strict=True):
        assert isinstance(output, SemanticOutput)
        torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=1e-5)


def test_a_function_of_a_trusted_file_builds_the_network(folder) -> None:
    spec = resolve_model(model("net.py:build", trust=True), folder)
    assert spec.architecture == "net.py:build"
    check(spec, folder)


def test_a_file_is_run_only_where_it_is_trusted(folder) -> None:
    (folder / "net.py").write_text(f"open({str(folder / 'owned')!r}, 'w')\n{SOURCE}")
    with pytest.raises(ValueError, match=r"is code that scoring would run.*--trust"):
        resolve_model(model("net.py:build"), folder)
    spec = resolve_model(model("net.py:build", trust=True), folder)
    with pytest.raises(ValueError, match="is not trusted"):
        build_network(spec.model_copy(update={"trust": False}))
    assert not (folder / "owned").exists()


def test_code_that_changed_is_another_model_and_the_place_of_the_file_is_not(folder) -> None:
    spec = resolve_model(model("net.py:build", trust=True), folder)
    there = folder / "there"
    there.mkdir()
    for name in ("net.py", "w.pt"):
        (there / name).write_bytes((folder / name).read_bytes())
    assert resolve_model(model("net.py:build", trust=True), there).key == spec.key
    (folder / "net.py").write_text(SOURCE.replace("kernel=1", "kernel=3"))
    assert resolve_model(model("net.py:build", trust=True), folder).key != spec.key
    with pytest.raises(ValueError, match="has changed since the run was planned"):
        build_network(spec)


@pytest.mark.parametrize(
    ("architecture", "error", "message"),
    [
        ("gone.py:build", FileNotFoundError, r"no Python file at .*gone\.py"),
        ("gone_package.nets:build", ImportError, "cannot import build from gone_package.nets"),
        ("torch.nn:build", ImportError, "torch.nn.* has no function 'build'"),
    ],
)
def test_what_is_not_there_is_said(folder, architecture, error, message) -> None:
    with pytest.raises(error, match=message):
        resolve_model(model(architecture, trust=True), folder)


def test_a_file_without_the_function_is_told(folder) -> None:
    spec = resolve_model(model("net.py:make", trust=True), folder)
    with pytest.raises(ValueError, match=r"net\.py' has no function 'make'"):
        build_network(spec)


def test_a_function_of_a_package_is_in_the_key_by_its_source(folder, package) -> None:
    spec = resolve_model(model("fake_nets:build"), folder)
    check(spec, folder)
    (package / "fake_nets.py").write_text(PLUGIN + "\n# another version\n")
    assert resolve_model(model("fake_nets:build"), folder).key != spec.key
    with pytest.raises(ValueError, match="another version here than where the run was planned"):
        build_network(spec)


def test_another_packages_architecture_is_found_by_its_name_alone(folder, package) -> None:
    assert "fake_net" in registered()
    assert "fake_nets" not in sys.modules  # to know its name nothing is imported
    spec = resolve_model(model("fake_net", arguments={"width": 2}), folder)
    assert spec.code_sha256 is not None
    check(spec, folder)
    assert list_architectures()["fake_net"] == ("semantic_segmentation",)
    with pytest.raises(ValueError, match="did you mean 'fake_net'"):
        resolve_model(model("fake_nett"), folder)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("fake_nets:other", TypeError, "must be a pixelmill.models.zoo.Architecture, got str"),
        ("fake_nets:gone", ImportError, "of fake-nets cannot be imported"),
    ],
)
def test_a_package_that_registers_something_else_is_named(
    package, value: str, error, message: str
) -> None:
    (package / "fake_nets-1.0.dist-info" / "entry_points.txt").write_text(
        f"[pixelmill.architectures]\nfake_net = {value}\n"
    )
    (entry,) = (e for e in entry_points(group="pixelmill.architectures") if e.name == "fake_net")
    with pytest.raises(error, match=message):
        load_registered(entry)


def test_two_packages_with_one_name_are_named_both(package) -> None:
    other = package / "twin_nets-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: twin-nets\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[pixelmill.architectures]\nfake_net = twin:net\n")
    with pytest.raises(
        ValueError, match=r"registered twice, .*fake-nets.*twin-nets|twin-nets.*fake"
    ):
        registered()
