"""Every engine over the same small networks: the same outputs, their structure and their memory."""

import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.build import build_network
from pixelmill.models.engines.export import export_trunk, plan_outputs
from pixelmill.models.engines.onnxruntime import OnnxTrunk
from pixelmill.models.engines.openvino import OpenVinoTrunk
from pixelmill.models.engines.pixels import PixelTrunk, normalise

PREPROCESS = PreprocessConfig(canvases=((8, 12),), channels="bgr", mean=(0.1, 0.2, 0.3))
Raw = namedtuple("Raw", ["logits", "levels", "anchors"])


class Tiny(nn.Module):
    """Outputs in a tree, one of them constant; keeps what it computed, as anchor generators do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.kept = [torch.zeros(2)]

    def forward(self, images):
        self.kept = [torch.arange(2.0) + image for image in [images.shape[-1]]]
        x = self.conv(images)
        return Raw(x.mean((2, 3)), {"a": x, "b": (x[:, :2] > 0).float()}, self.kept[0])


def images_of(*shape: int):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(params=["openvino", "onnxruntime"])
def make_trunk(request, tmp_path):
    """Function from a module to the trunk of an engine that is installed."""
    if request.param == "openvino":
        pytest.importorskip("openvino")
        return lambda pixels: OpenVinoTrunk(pixels, "fp32", tmp_path / "graphs")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return lambda pixels: OnnxTrunk(pixels, tmp_path / "graphs")


def test_converted_graphs_give_the_modules_tree_for_every_shape(make_trunk, tmp_path):
    pixels = PixelTrunk(Tiny().eval(), PREPROCESS)
    trunk, again = make_trunk(pixels), make_trunk(pixels)
    for batch in (images_of(2, 8, 12), images_of(3, 8, 12), images_of(2, 12, 8)):
        with torch.inference_mode():
            expected = pixels(batch)
            found = trunk(batch)
            kept = again(batch)  # from the disk
        assert isinstance(found, Raw)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(kept, found, rtol=0, atol=0)
    names = {path.name for path in (tmp_path / "graphs").iterdir()}
    assert names == {"anyx8x12x3", "anyx12x8x3"}


def test_a_module_that_counts_its_images_has_a_graph_for_each_number(make_trunk, tmp_path):
    class Counts(nn.Module):
        def forward(self, images):
            return images * len(list(images))

    trunk = make_trunk(PixelTrunk(Counts(), PREPROCESS))
    with torch.inference_mode():
        for count in (2, 3):
            batch = images_of(count, 8, 12)
            torch.testing.assert_close(trunk(batch), Counts()(normalise(batch, PREPROCESS)))
    names = {path.name for path in (tmp_path / "graphs").iterdir()}
    assert names == {"2x8x12x3", "3x8x12x3"}


def test_outputs_are_not_overwritten_by_the_next_batch(make_trunk):
    trunk = make_trunk(PixelTrunk(Tiny().eval(), PREPROCESS))
    with torch.inference_mode():
        first = trunk(images_of(2, 8, 12))
        before = [leaf.clone() for leaf in tree_leaves(first)]
        trunk(255 - images_of(2, 8, 12))
    torch.testing.assert_close(tree_leaves(first), before, rtol=0, atol=0)


def test_an_images_outputs_do_not_depend_on_its_batch_mates(make_trunk):
    trunk = make_trunk(PixelTrunk(Tiny().eval(), PREPROCESS))
    one, other = images_of(4, 8, 12), images_of(4, 8, 12)
    other[1:] = 255 - other[1:]
    with torch.inference_mode():
        assert torch.equal(trunk(one).levels["a"][0], trunk(other).levels["a"][0])


def test_tracing_leaves_the_module_as_it_was():
    module = Tiny().eval()
    pixels = PixelTrunk(module, PREPROCESS)
    before = module.kept[0]
    plan = plan_outputs(pixels, (2, 8, 12, 3))
    export_trunk(pixels, (2, 8, 12, 3))
    assert module.kept[0] is before
    assert plan.dtypes == [torch.float32] * 4


def test_what_cannot_be_a_graph_is_refused_with_the_remedy():
    class Asks(nn.Module):
        def forward(self, images):
            return images * 2 if float(images.sum()) > 0 else images

    with pytest.raises(ValueError, match="Asks cannot be exported as a graph, set engine: torch"):
        export_trunk(PixelTrunk(Asks(), PREPROCESS), (1, 8, 12, 3))


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_model_passes_its_gate_in_every_engine_that_is_installed(resolve, engine: str):
    pytest.importorskip({"openvino": "openvino", "onnxruntime": "onnxscript"}[engine])
    spec = resolve(engine=engine)
    assert spec.engine == engine, spec.engine_note
    batch = images_of(2, 32, 48)
    expected = build_network(resolve()).predict(batch)
    for one, other in zip(build_network(spec).predict(batch), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_model_passes_its_gate(resolve, tmp_path):
    spec = resolve(engine="torch-compile")
    if "compiler" in spec.engine_note:
        pytest.skip(spec.engine_note)
    assert spec.engine == "torch-compile", spec.engine_note


def test_openvino_is_imported_without_its_reports_and_computes_in_one_thread(tmp_path):
    pytest.importorskip("openvino")
    script = """
import sys, time, torch
from torch import nn
from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.engines.openvino import OpenVinoTrunk
from pixelmill.models.engines.pixels import PixelTrunk, normalise
torch.set_num_threads(1)
module = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3)).eval()
trunk = OpenVinoTrunk(PixelTrunk(module, PreprocessConfig(canvases=((128, 128),))), "fp32")
images = torch.zeros((4, 128, 128, 3), dtype=torch.uint8)
trunk(images)
wall, cpu = time.perf_counter(), time.process_time()
for _ in range(10):
    trunk(images)
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
assert cpu < 1.3 * wall, (cpu, wall)
sent = [name for name in sys.modules if name.startswith("openvino_telemetry")]
assert not [name for name in sent if sys.modules[name] is not None], sent
"""
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False, env=home
    )
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "intel").exists()
