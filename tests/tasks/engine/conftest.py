import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pixelmill.configs.schema import (
    BoxPostprocess,
    CaptionModel,
    CaptionPostprocess,
    DetectionModel,
    InstanceModel,
    PreprocessConfig,
    RunConfig,
    SemanticModel,
)
from pixelmill.models.build import resolve_model
from pixelmill.models.checkpoint import CheckpointMeta, save_checkpoint
from pixelmill.models.zoo import ARCHITECTURES
from pixelmill.tasks.engine.score import score_shard
from pixelmill.tasks.ingest import KNOWN_COLUMNS, ingest
from pixelmill.tasks.plan import plan_run, save_plan
from pixelmill.tasks.store import PLAN, RunRecord, Store, new_run_id, publish

PREPROCESS = PreprocessConfig(canvases=((64, 96), (96, 64), (64, 64)))
WORDS = ("<pad>", "<start>", "<end>", "<unk>", "a", "red", "cat", "sits")
SMALL = {"width": 8, "depths": (1, 1, 1, 1), "fpn_channels": 8}
BUILDERS = {
    "detector": ("detection", "retinamask", {"num_classes": 3, **SMALL}),
    "masker": (
        "instance_segmentation",
        "retinamask",
        {"num_classes": 3, "mask_head": True, **SMALL},
    ),
    "segmenter": ("semantic_segmentation", "unet", {"num_classes": 4, "width": 4, "depth": 2}),
    "captioner": (
        "captioning",
        "show_attend_tell",
        {
            "vocabulary_size": len(WORDS),
            "width": 8,
            "embed_dim": 8,
            "hidden_dim": 16,
            "attention_dim": 8,
        },
    ),
}


def save_random(folder: Path, name: str) -> Path:
    task, architecture, arguments = BUILDERS[name]
    torch.manual_seed(0)
    module = ARCHITECTURES[architecture].build(**arguments)
    path = folder / f"{name}.safetensors"
    num_classes = arguments.get("num_classes", 0)
    meta = CheckpointMeta(
        name=name,
        task=task,
        architecture=architecture,
        arguments=arguments,
        classes=tuple("abcdef"[:num_classes]),
        vocabulary=WORDS if task == "captioning" else (),
        preprocess=PREPROCESS,
    )
    save_checkpoint(path, module, meta)
    return path


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name in BUILDERS:
        save_random(folder, name)
    return folder


@pytest.fixture(scope="session")
def small_spec(weights_folder):
    """Function name -> spec of a small network of random weights that finds something."""

    def make(name: str, batch_size: int = 4, **changes):
        boxes = BoxPostprocess(score_threshold=0.0, max_detections=10, pre_nms_top_k=60)
        models = {"detector": DetectionModel, "masker": InstanceModel, "segmenter": SemanticModel}
        if name == "captioner":
            changes["postprocess"] = CaptionPostprocess(beam_size=2, max_tokens=5)
        elif name != "segmenter":
            changes.setdefault("postprocess", boxes)
        model = models.get(name, CaptionModel)
        config = model(name=name, weights=f"{name}.safetensors", batch_size=batch_size, **changes)
        return resolve_model(config, weights_folder)

    return make


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of twelve small JPEGs of three shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(12):
        height, width = [(48, 72), (90, 60), (50, 50)][index % 3]
        coarse = generator.integers(0, 256, (6, 8, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:02d}.jpg", quality=90)
    return folder


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", create=True)


@pytest.fixture(scope="session")
def make_run():
    """Function that writes a run of all files of a folder into a store, and returns its id."""

    def make(store, specs, paths, *, shard_of=lambda index: 0, masks=None, run_id=None, **config):
        run_id = run_id or new_run_id(datetime.now(UTC))
        rows = [
            {
                "shard": shard_of(index),
                "path": path.name,
                "source_uri": str(path),
                "size_bytes": path.stat().st_size if path.exists() else 5,
                "modified": "1",
                "width": None,
                "height": None,
                "image_id": None,
                "model_mask": masks[index] if masks else 2 ** len(specs) - 1,
            }
            for index, path in enumerate(paths)
        ]
        record = RunRecord(
            run_id=run_id,
            date="2026-01-01",
            collection="pictures",
            source="pictures",
            created_at="2026-01-01T00:00:00+00:00",
            config=json.loads(json.dumps(config)),
            models=tuple(specs),
            num_images=len(rows),
            num_shards=len({row["shard"] for row in rows}),
        )
        store.create_run(record, pa.Table.from_pylist(rows, schema=PLAN))
        return run_id

    return make


@pytest.fixture(scope="session")
def score_night():
    """Function that lists a source, scores what is missing from a store, and returns the plan."""

    def score(store, source, specs):
        model = DetectionModel(name="stands-for-the-specs", weights="not.read")
        config = RunConfig(name="night", models=(model,))
        chosen = [("collection", "=", "pictures")]
        listing = ingest(
            source, config.ingest, store.table("catalog", columns=KNOWN_COLUMNS, filters=chosen)
        )
        plan = plan_run(
            store,
            listing,
            specs,
            config,
            collection="pictures",
            source=source,
            date="2026-01-01",
            num_workers=2,
        )
        if plan.record is not None:
            save_plan(store, plan)
            for index in range(plan.num_shards):
                score_shard(store.root, plan.record.run_id, index, device="cpu")
            publish(store)
        return plan

    return score


@pytest.fixture(scope="session")
def read_results():
    """Function that gives all that a store holds of each image, comparable bit by bit."""

    def read(store) -> dict:
        publish(store)
        found: dict = {}
        for name in ("detections", "candidates", "captions", "labels"):
            frame = store.table(name).to_pandas()
            for (model, image_id), rows in frame.groupby(["model", "image_id"]):
                ordered = rows.sort_values("rank").drop(columns="date")
                found[name, model, image_id] = ordered.to_csv(index=False, float_format="%.17g")
        images = store.images()
        for model, image_id, semantic, instances in zip(
            images.model,
            images.image_id,
            images.semantic_array,
            images.instances_array,
            strict=True,
        ):
            if isinstance(semantic, str):
                found["semantic", model, image_id] = store.semantic_mask(image_id, model).tobytes()
            if isinstance(instances, str):
                found["masks", model, image_id] = store.instances(image_id, model).masks.tobytes()
        return found

    return read
