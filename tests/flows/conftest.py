"""Scenes and tiny random models for the flows; one Prefect server for all of them."""

import os
from pathlib import Path

import pytest
import torch
import yaml

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.checkpoint import CheckpointMeta, save_checkpoint
from pixelmill.models.zoo import ARCHITECTURES
from pixelmill.tasks.scenes.render import SEMANTIC_CLASSES
from pixelmill.tasks.scenes.things import CLASSES
from pixelmill.tasks.scenes.write import write_scenes

NUM_SCENES = 40


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, NUM_SCENES, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory) -> Path:
    """A detector and a segmenter with random weights; five shards of 40 images."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    preprocess = PreprocessConfig(canvases=((96, 128), (128, 96)))
    things, regions = tuple(CLASSES), tuple(SEMANTIC_CLASSES)
    builds = {
        "detector": ("retinamask", "detection", {"num_classes": len(things)}, things),
        "segmenter": (
            "unet",
            "semantic_segmentation",
            {"num_classes": len(regions), "width": 4, "depth": 2},
            regions,
        ),
    }
    models = []
    for name, (architecture, task, arguments, classes) in builds.items():
        meta = CheckpointMeta(
            name=name,
            task=task,
            architecture=architecture,
            arguments=arguments,
            classes=classes,
            vocabulary=(),
            preprocess=preprocess,
            training={},
        )
        module = ARCHITECTURES[architecture].build(**arguments)
        save_checkpoint(folder / f"{name}.safetensors", module, meta)
        models.append({"name": name, "task": task, "weights": f"{name}.safetensors"})
    document = {
        "name": "tiny",
        "models": models,
        "shard": {"max_images": 8},
        "evaluation": {"instances": "instances.json", "semantic": "semantic"},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory) -> Path:
    """One home for all commands that tests start: only the first pays for the migrations."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture
def command_environment(prefect_home) -> dict[str, str]:
    """For subprocesses that run the command line."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "DASK_"))}
    return clean | {"PREFECT_HOME": str(prefect_home)}
