"""A shard scored on a GPU: `pytest -m gpu`. Elsewhere these tests are skipped."""

import numpy as np
import pytest
import torch

from pixelmill.configs.schema import CaptionModel, InstanceModel, SemanticModel
from pixelmill.models.build import resolve_model
from pixelmill.models.ops.boxes import box_iou
from pixelmill.tasks.engine.device import pick_device
from pixelmill.tasks.engine.score import score_shard
from pixelmill.tasks.scenes import write_scenes
from pixelmill.tasks.store import Store, publish

MODELS = (
    InstanceModel(name="demo-detector", weights="embedded:demo-detector"),
    SemanticModel(name="demo-segmenter", weights="embedded:demo-segmenter"),
    CaptionModel(name="demo-captioner", weights="embedded:demo-captioner"),
)


@pytest.mark.parametrize(("is_available", "device"), [(True, "cuda"), (False, "cpu")])
def test_the_gpu_is_taken_where_there_is_one(monkeypatch, is_available: bool, device: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    assert pick_device() == device


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.task)
def test_the_gpu_finds_what_the_cpu_finds(tmp_path, make_run, model):
    """Not to the bit: its convolutions add up in another order, with TF32 on 10-bit mantissas."""
    try:
        spec = resolve_model(model, tmp_path)
    except FileNotFoundError as err:
        pytest.skip(str(err))
    write_scenes(tmp_path / "scenes", 16, seed=3)
    images = sorted((tmp_path / "scenes" / "images").iterdir())
    stores = {}
    for device in ("cpu", "cuda"):
        stores[device] = Store(tmp_path / device, create=True)
        outcome = score_shard(
            stores[device].root, make_run(stores[device], [spec], images), 0, device=device
        )
        assert outcome.num_scored == {spec.key: 16}
        assert outcome.num_failed == 0
        assert outcome.stats["device"] == device
        publish(stores[device])
    image_ids = sorted(stores["cpu"].images().image_id)
    assert sorted(stores["cuda"].images().image_id) == image_ids
    if model.task == "instance_segmentation":
        share = np.mean(
            [same_objects(stores["cpu"], stores["cuda"], image_id) for image_id in image_ids]
        )
    elif model.task == "semantic_segmentation":
        cpu, cuda = (
            np.concatenate([store.semantic_mask(image_id).ravel() for image_id in image_ids])
            for store in stores.values()
        )
        share = np.mean(cpu == cuda)
    else:
        cpu, cuda = (
            store.captions().set_index("image_id").text.sort_index() for store in stores.values()
        )
        share = np.mean(cpu == cuda)
    assert share > (0.99 if model.task != "captioning" else 0.8)


def same_objects(one: Store, other: Store, image_id: str) -> float:
    """Share of the sure boxes of one that the other has too, with the same class and mask."""
    left, right = one.instances(image_id), other.instances(image_id)
    names = ["x_min", "y_min", "x_max", "y_max"]
    overlap = box_iou(
        torch.tensor(left.boxes[names].to_numpy(np.float32)),
        torch.tensor(right.boxes[names].to_numpy(np.float32)),
    )
    sure = np.flatnonzero(left.boxes.score.to_numpy() > 0.3)
    found = []
    for index in sure:
        twin = int(overlap[index].argmax())
        union = (left.masks[index] | right.masks[twin]).sum()
        same_mask = (left.masks[index] & right.masks[twin]).sum() > 0.95 * union
        same_class = left.boxes.class_id[index] == right.boxes.class_id[twin]
        found.append(overlap[index, twin] > 0.95 and same_mask and same_class)
    return float(np.mean(found)) if found else 1.0
