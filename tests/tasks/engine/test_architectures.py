"""Each of our architectures, with random weights, goes through a run: two images, all rows."""

import pytest
import torch
from pydantic import TypeAdapter

from pixelmill.configs.schema import ModelConfig, PreprocessConfig
from pixelmill.models.build import resolve_model
from pixelmill.models.checkpoint import CheckpointMeta, save_checkpoint
from pixelmill.models.zoo import ARCHITECTURES
from pixelmill.tasks.scenes import write_scenes
from pixelmill.tasks.store import Store

CLASSES = ("one", "two", "three")
WORDS = ("<pad>", "<start>", "<end>", "<unk>", "a", "cat")
CANVASES = {"ssd": (300, 300), "yolo_v1": (64, 64)}


def write(folder, name, task, arguments):
    """The spec of a checkpoint with random weights."""
    torch.manual_seed(0)
    is_captioner = task == "captioning"
    arguments = arguments | (
        {"vocabulary_size": len(WORDS)} if is_captioner else {"num_classes": len(CLASSES)}
    )
    meta = CheckpointMeta(
        name="m",
        task=task,
        architecture=name,
        arguments=arguments,
        classes=() if is_captioner else CLASSES,
        vocabulary=WORDS if is_captioner else (),
        preprocess=PreprocessConfig(canvases=(CANVASES.get(name, (64, 96)),)),
    )
    slug = f"{name}-{task}".replace("_", "-")
    save_checkpoint(folder / f"{slug}.safetensors", ARCHITECTURES[name].build(**arguments), meta)
    about = {"task": task, "name": slug, "weights": f"{slug}.safetensors"}
    if task in ("detection", "instance_segmentation"):  # random scores are low
        about["postprocess"] = {"score_threshold": 0.0, "max_detections": 5}
    config: ModelConfig = TypeAdapter(ModelConfig).validate_python(about)
    return resolve_model(config, folder, device="cpu")


@pytest.fixture(scope="module")
def night(tmp_path_factory, score_night, small_arguments):
    """A store after one run of all, with the spec of each by architecture and task."""
    folder = tmp_path_factory.mktemp("all")
    write_scenes(folder, 2, 0)
    specs = {
        (name, task): write(folder, name, task, small_arguments[name])
        for name, architecture in ARCHITECTURES.items()
        for task in architecture.tasks
    }
    store = Store(folder / "out", create=True)
    score_night(store, str(folder / "images"), list(specs.values()))
    return store, specs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"),
    [(name, task) for name, each in ARCHITECTURES.items() for task in each.tasks],
)
def test_every_image_is_scored_by_every_architecture(night, name, task):
    store, specs = night
    key = specs[name, task].key
    images = store.table("images", model=key).to_pandas()
    assert images["status"].tolist() == ["ok", "ok"]
    assert store.failures().empty
    tables = {"captioning": "captions", "classification": "labels"}
    if task == "semantic_segmentation":
        assert images["semantic_array"].notna().all()
        return
    rows = store.table(tables.get(task, "detections"), model=key).to_pandas()
    # Untrained, YOLO's squared sides are next to nothing, and such boxes are left out
    expected = set() if name == "yolo_v1" else set(images["image_id"])
    assert set(rows["image_id"]) == expected
    if task == "instance_segmentation":
        assert images["instances_array"].notna().all()
        assert rows["mask_value"].notna().any()
