"""int8's files; the graphs in them are float32, which only NNCF's own test makes int8."""

import pytest
import torch

from pixelmill.models.build import build_network, load_network
from pixelmill.models.engines.openvino import OpenVinoTrunk
from pixelmill.models.engines.quantized import QuantizedFile, quantize_graph, save_quantized
from pixelmill.models.network import EngineNetwork

pytest.importorskip("openvino")

CANVAS = (32, 48)


def images_of(count: int):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, *CANVAS, 3), dtype=torch.uint8, generator=generator)


def trunk_of(spec) -> OpenVinoTrunk:
    network = build_network(spec)
    assert isinstance(network, EngineNetwork)
    assert isinstance(network.trunk, OpenVinoTrunk)
    return network.trunk


@pytest.fixture
def spec(resolve):
    return resolve(engine="openvino")


@pytest.fixture
def quantized(tmp_path, spec):
    """Name of a file of the small U-Net's graph as it is."""
    graph = trunk_of(spec).float_graph(CANVAS)
    save_quantized(tmp_path / "int8.safetensors", {CANVAS: graph}, spec, {"loss": 0.01})
    return "int8.safetensors"


@pytest.fixture
def resolve_int8(resolve, quantized):
    def build(**changes):
        fields = {"engine": "openvino", "precision": "int8", "quantized": quantized}
        return resolve(**fields | changes)

    return build


def test_the_graph_of_the_file_is_what_scores(resolve_int8, spec):
    small = resolve_int8()
    assert (small.engine, small.precision) == ("openvino", "int8"), small.engine_note
    network = load_network(small)
    assert network.engine_used == "openvino int8"
    assert network.gate is not None
    assert network.gate.passed
    expected = build_network(spec).forward(images_of(3))
    torch.testing.assert_close(network.forward(images_of(3)), expected)


def test_the_key_follows_from_the_files_content_and_not_from_its_place(
    resolve_int8, spec, tmp_path, quantized
):
    path = tmp_path / quantized
    key = resolve_int8().key
    path.rename(tmp_path / "moved.safetensors")
    assert resolve_int8(quantized="moved.safetensors").key == key != spec.key
    graph = trunk_of(spec).float_graph(CANVAS)
    save_quantized(path, {CANVAS: graph}, spec, {"loss": 0.5})
    assert resolve_int8().key != key


def test_graphs_of_other_weights_means_or_canvases_are_refused(
    resolve, spec, tmp_path, quantized, resolve_int8
):
    graph = QuantizedFile(tmp_path / quantized).graph(CANVAS)
    preprocess = {"canvases": [[64, 64]], "mean": [0.1, 0.2, 0.3]}
    with pytest.raises(ValueError, match="with other pixels, canvases; run `pixelmill models"):
        resolve_int8(preprocess=preprocess)
    other = spec.model_copy(update={"weights_sha256": "0" * 64})
    save_quantized(tmp_path / quantized, {CANVAS: graph}, other, {})
    with pytest.raises(ValueError, match="with other weights; run"):
        resolve_int8()
    with pytest.raises(FileNotFoundError, match="no file of int8 graphs"):
        resolve_int8(quantized="nowhere.safetensors")
    with pytest.raises(ValueError, match="was not written by `pixelmill models quantize`"):
        resolve_int8(quantized=resolve().weights_path)


def test_a_canvas_without_a_graph_is_refused(resolve_int8):
    network = build_network(resolve_int8())
    with pytest.raises(ValueError, match="has graphs for 32x48 and none for 64x64"):
        network.forward(torch.zeros((1, 64, 64, 3), dtype=torch.uint8))


def test_a_file_that_has_changed_since_the_plan_is_refused(resolve_int8, tmp_path, quantized):
    planned = resolve_int8()
    (tmp_path / quantized).write_bytes((tmp_path / quantized).read_bytes() + b" ")
    with pytest.raises(ValueError, match="is not the file that the run was planned with"):
        build_network(planned)


@pytest.mark.parametrize(
    "changes", [{"quantized": None}, {"precision": "fp32"}, {"engine": "torch"}, {"engine": "auto"}]
)
def test_int8_its_file_and_openvino_belong_together(resolve_int8, changes):
    with pytest.raises(ValueError, match=r"belong together|computes in"):
        resolve_int8(**changes)


def test_what_fails_its_gate_is_replaced_by_float32_and_its_key(
    resolve, resolve_int8, spec, tmp_path, quantized
):
    torch.manual_seed(3)
    wrong = trunk_of(spec)
    for parameter in wrong._trunk.parameters():
        parameter.data = torch.randn_like(parameter)
    save_quantized(tmp_path / quantized, {CANVAS: wrong.float_graph(CANVAS)}, spec, {})
    found = resolve_int8()
    assert "raw_error is" in found.engine_note
    assert found.key == resolve().key


def test_nncf_makes_int8_and_an_image_does_not_depend_on_its_batch(spec, tmp_path, resolve_int8):
    pytest.importorskip("nncf")
    trunk = trunk_of(spec)
    graph = quantize_graph(trunk.float_graph(CANVAS), list(images_of(4)), trunk.sample)
    assert "FakeQuantize" in {operation.get_type_name() for operation in graph.get_ops()}
    save_quantized(tmp_path / "int8.safetensors", {CANVAS: graph}, spec, {})
    network = build_network(resolve_int8())
    whole, other = images_of(5), images_of(5)
    other[1:] = 255 - other[1:]
    logits = network.forward(whole)
    assert torch.equal(logits[0], network.forward(other)[0])
    for count in (1, 2, 3):
        assert torch.equal(network.forward(whole[:count]), logits[:count])
