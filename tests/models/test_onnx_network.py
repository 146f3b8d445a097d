import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pixelmill.configs.schema import DetectionModel, PreprocessConfig, SemanticModel
from pixelmill.models.build import build_network, resolve_model
from pixelmill.models.interface import BoxOutput, SemanticOutput

HERE = Path(__file__).parents[2]
EXAMPLE = HERE / "docs/examples/fastestdet_decode.py"
FASTESTDET = HERE.parent / "shared/data/weights/fastestdet"
RAW = PreprocessConfig(resize="stretch", canvases=((8, 8),), mean=(0, 0, 0), std=(1, 1, 1))


def save_pooling(path: Path, batch: int | str) -> None:
    """A network that halves the image: (B, 3, 8, 8) -> (B, 3, 4, 4)."""
    from onnx import TensorProto, helper, save

    kind = TensorProto.FLOAT
    node = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    graph = helper.make_graph(
        [node],
        "pooling",
        [helper.make_tensor_value_info("x", kind, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [batch, 3, 4, 4])],
    )
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_any_batch_axis_is_served_image_by_image(tmp_path, batch, engine) -> None:
    pytest.importorskip(engine)
    save_pooling(tmp_path / "pool.onnx", batch)
    config = SemanticModel(
        name="pool", weights="pool.onnx", classes=("r", "g", "b"), preprocess=RAW, engine=engine
    )
    spec = resolve_model(config, tmp_path)
    assert spec.engine == engine, spec.engine_note
    network = build_network(spec)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 8, 8, 3), dtype=torch.uint8, generator=generator)
    outputs = network.predict(images)
    expected = torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2) / 255, 2)
    assert len(outputs) == 3
    for output, logits in zip(outputs, expected, strict=True):
        assert isinstance(output, SemanticOutput)
        assert_close(output.logits, logits)


def test_channels_are_in_the_networks_order(tmp_path) -> None:
    save_pooling(tmp_path / "pool.onnx", 1)
    config = SemanticModel(
        name="pool",
        weights="pool.onnx",
        classes=("b", "g", "r"),
        preprocess=RAW.model_copy(update={"channels": "bgr"}),
    )
    red = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    red[..., 0] = 255
    (output,) = build_network(resolve_model(config, tmp_path)).predict(red)
    assert isinstance(output, SemanticOutput)
    assert output.logits[:, 0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("engine", ["torch", "torch-compile"])
def test_engines_that_run_no_onnx_file_are_refused(tmp_path, engine) -> None:
    save_pooling(tmp_path / "pool.onnx", 1)
    config = SemanticModel(
        name="p", weights="pool.onnx", classes=("a",), preprocess=RAW, engine=engine
    )
    with pytest.raises(ValueError, match="set engine: onnxruntime or openvino"):
        resolve_model(config, tmp_path)


def test_an_onnx_file_has_the_key_that_it_had_before_there_was_a_choice(tmp_path) -> None:
    save_pooling(tmp_path / "pool.onnx", 1)
    config = SemanticModel(name="p", weights="pool.onnx", classes=("a",), preprocess=RAW)
    spec = resolve_model(config, tmp_path)
    assert spec.engine == "onnxruntime"
    stored = spec.model_dump(exclude={"engine", "engine_note"})
    assert type(spec).model_validate(stored) == spec
    named = config.model_copy(update={"engine": "onnxruntime"})
    assert resolve_model(named, tmp_path).key == spec.key


def test_without_onnxruntime_the_error_says_how_to_install_it(tmp_path, monkeypatch) -> None:
    save_pooling(tmp_path / "pool.onnx", 1)
    config = SemanticModel(name="p", weights="pool.onnx", classes=("a", "b", "c"), preprocess=RAW)
    spec = resolve_model(config, tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'pixelmill\[onnx\]'"):
        build_network(spec)


def test_a_detector_without_a_decode_function_is_refused(tmp_path) -> None:
    save_pooling(tmp_path / "pool.onnx", 1)
    config = DetectionModel(name="p", weights="pool.onnx", classes=("a",), preprocess=RAW)
    network = build_network(resolve_model(config, tmp_path))
    with pytest.raises(ValueError, match=r"decode: file\.py:function"):
        network.predict(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("return []", "one result for each of 1 images"),
        ("return [([[0, 0, 1]], [0.5], [0])]", r"boxes \(N, 4\)"),
        ("return [([[0, 0, 1, 1]], [0.5], [7])]", r"labels must be in \[0, 1\)"),
    ],
)
def test_what_a_decode_function_returns_is_checked(tmp_path, source: str, message: str) -> None:
    save_pooling(tmp_path / "pool.onnx", 1)
    (tmp_path / "d.py").write_text(f"def decode(outputs, canvas):\n    {source}\n")
    config = DetectionModel(
        name="p", weights="pool.onnx", classes=("a",), preprocess=RAW, decode="d.py:decode"
    )
    network = build_network(resolve_model(config, tmp_path))
    with pytest.raises(ValueError, match=message):
        network.predict(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


def test_a_decode_function_that_changed_since_planning_is_refused(tmp_path) -> None:
    save_pooling(tmp_path / "pool.onnx", 1)
    (tmp_path / "d.py").write_text("def decode(outputs, canvas):\n    return []\n")
    config = DetectionModel(
        name="p", weights="pool.onnx", classes=("a",), preprocess=RAW, decode="d.py:decode"
    )
    spec = resolve_model(config, tmp_path)
    (tmp_path / "d.py").write_text("def decode(outputs, canvas):\n    return [1]\n")
    with pytest.raises(ValueError, match="changed since"):
        build_network(spec)
    assert resolve_model(config, tmp_path).key != spec.key


def fastestdet() -> DetectionModel:
    return DetectionModel(
        name="fastestdet",
        weights=str(FASTESTDET / "fastestdet_coco_352.onnx"),
        decode=f"{EXAMPLE}:decode",
        classes=tuple(f"class {index}" for index in range(80)),
        preprocess=PreprocessConfig(
            resize="stretch",
            canvases=((352, 352),),
            channels="bgr",
            antialias=False,
            mean=(0, 0, 0),
            std=(1, 1, 1),
        ),
    )


@pytest.mark.slow
@pytest.mark.skipif(not FASTESTDET.exists(), reason="needs ../shared")
def test_the_documented_example_finds_what_its_authors_found() -> None:
    """AP50 on real photos; 0.305 was measured with the authors' code on 128 of them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from pixelmill.tasks.engine.decode import decode_image
    from pixelmill.tasks.engine.merge import merge_views
    from pixelmill.tasks.engine.views import draw_view, plan_views

    folder = FASTESTDET.parents[1] / "coco_small"
    truth: Any = COCO(str(folder / "instances.json"))
    categories = sorted(truth.getCatIds())
    spec = resolve_model(fastestdet(), HERE)
    network = build_network(spec)
    names = {i: image for i, image in truth.imgs.items() if "val2017" in image["coco_url"]}
    results = []
    for image_index, image in names.items():
        data = (folder / "images" / image["file_name"]).read_bytes()
        decoded = decode_image(data, max_pixels=10**8)
        placements = plan_views(decoded.original_size, spec)
        canvas = draw_view(decoded.pixels, placements[0], spec.preprocess)
        outputs = network.predict(torch.from_numpy(canvas)[None])
        found = merge_views(outputs, placements, spec, decoded.original_size).detections
        assert found is not None
        corner, sides = found.boxes_xyxy[:, :2], np.diff(found.boxes_xyxy.reshape(-1, 2, 2), axis=1)
        results += [
            {
                "image_id": image_index,
                "category_id": categories[label],
                "bbox": [*map(float, xy), *map(float, size[0])],
                "score": float(score),
            }
            for xy, size, score, label in zip(
                corner, sides, found.scores, found.labels, strict=True
            )
        ]
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.params.imgIds = list(names)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[1] > 0.28


@pytest.mark.skipif(not FASTESTDET.exists(), reason="needs ../shared")
def test_the_documented_example_gives_one_candidate_per_cell() -> None:
    network = build_network(resolve_model(fastestdet(), HERE))
    outputs = network.predict(torch.zeros(2, 352, 352, 3, dtype=torch.uint8))
    assert len(outputs) == 2
    assert isinstance(outputs[0], BoxOutput)
    assert outputs[0].boxes_xyxy.shape == (len(outputs[0].scores), 4)
    assert ((outputs[0].scores >= 0) & (outputs[0].scores <= 1)).all()
