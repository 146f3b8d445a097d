"""Weights beside an ONNX graph: found, digested, and held inside the graph's folder."""

import numpy as np
import pytest

from pixelmill.configs.schema import PreprocessConfig, SemanticModel
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.onnx_files import external_files

RAW = PreprocessConfig(resize="stretch", canvases=((8, 8),), mean=(0, 0, 0), std=(1, 1, 1))


def save_graph(path, location, *, nested=False):
    """A network that multiplies the channels by numbers in another file."""
    from onnx import TensorProto, helper

    kind = TensorProto.FLOAT
    scale = TensorProto(name="scale", data_type=kind, dims=[1, 3, 1, 1])
    scale.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        entry = scale.external_data.add()
        entry.key, entry.value = key, value
    nodes = [helper.make_node("Mul", ["x", "scale"], ["y"])]
    initializers = [scale]
    if nested:
        nodes = [helper.make_node("Constant", [], ["scale"], value=scale), *nodes]
        initializers = []
    graph = helper.make_graph(
        nodes,
        "scaling",
        [helper.make_tensor_value_info("x", kind, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [1, 3, 8, 8])],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(made.SerializeToString())


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "model"
    inside.mkdir()
    np.array([1, 2, 3], np.float32).tofile(inside / "weights.bin")
    np.array([1, 2, 3], np.float32).tofile(tmp_path / "secret.bin")
    (inside / "link.bin").symlink_to("../secret.bin")
    return inside


@pytest.mark.parametrize("nested", [False, True])
def test_files_of_weights_are_found(folder, nested):
    save_graph(folder / "m.onnx", "weights.bin", nested=nested)
    assert external_files(folder / "m.onnx") == (folder / "weights.bin",)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "{outside}/secret.bin", "link.bin", "a/../../secret.bin", "..\\secret.bin"],
)
def test_files_outside_of_the_folder_are_refused(folder, location, nested):
    location = location.replace("{outside}", str(folder.parent))
    save_graph(folder / "m.onnx", location, nested=nested)
    config = SemanticModel(name="m", weights="m.onnx", classes=("a", "b", "c"), preprocess=RAW)
    with pytest.raises(ValueError, match="outside of its folder"):
        resolve_model(config, folder)


def test_other_weights_are_another_model(folder):
    save_graph(folder / "m.onnx", "weights.bin")
    config = SemanticModel(name="m", weights="m.onnx", classes=("a", "b", "c"), preprocess=RAW)
    spec = resolve_model(config, folder)
    build_network(spec)
    np.array([3, 2, 1, 0], np.float32).tofile(folder / "weights.bin")
    assert resolve_model(config, folder).key != spec.key
    with pytest.raises(ValueError, match="is not the file that the run was planned with"):
        build_network(spec)


def test_a_missing_file_is_named(folder):
    save_graph(folder / "m.onnx", "gone.bin")
    with pytest.raises(FileNotFoundError, match=r"gone\.bin"):
        external_files(folder / "m.onnx")


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x3a\x7f\x0a", b"not a graph at all"])
def test_what_is_no_graph_is_told(folder, data):
    (folder / "m.onnx").write_bytes(data)
    with pytest.raises(ValueError, match="ONNX file"):
        external_files(folder / "m.onnx")
