from importlib.metadata import version

import pytest

from pixelmill.flows.versions import (
    WrongVersionsError,
    describe_difference,
    find_needs,
    refuse_others,
)
from pixelmill.models.spec import ModelSpec

NEEDS = {"pixelmill": "0.1.0", "torch": "2.15.0+cpu", "openvino": "2026.2.0"}


def spec(engine: str, architecture: str) -> ModelSpec:
    return ModelSpec.model_construct(engine=engine, architecture=architecture)


def test_a_worker_needs_what_decodes_and_computes_and_the_extras_of_the_models():
    always = find_needs()
    assert always["pixelmill"] == version("pixelmill")
    assert {"dask", "distributed", "torch", "torchvision", "simplejpeg"} <= always.keys()
    assert not {"python", "openvino", "timm"} & always.keys()
    pytest.importorskip("timm")
    pytest.importorskip("openvino")
    both = find_needs([spec("torch", "timm/resnet18"), spec("openvino", "unet")])
    assert both.keys() - always.keys() == {"timm", "openvino"}


def test_builds_of_the_same_version_are_the_same():
    found = {"pixelmill": "0.1.0", "torch": "2.15.0+cu128", "openvino": "2026.2.0", "timm": "1"}
    assert describe_difference(NEEDS, found) is None


def test_all_that_differs_is_told_with_what_to_install():
    found = {"pixelmill": "0.1.0", "torch": "2.9.0+cu128", "openvino": None}
    assert describe_difference(NEEDS, found) == (
        "has torch 2.9.0+cu128 and no openvino, this is torch 2.15.0+cpu and openvino 2026.2.0: "
        "install torch==2.15.0 openvino==2026.2.0 where the workers run"
    )


def test_a_worker_with_another_version_does_not_begin():
    refuse_others((("numpy", version("numpy")),))
    with pytest.raises(WrongVersionsError, match=r"this worker has numpy .*, this is numpy 0.1: "):
        refuse_others((("numpy", "0.1"),))
    with pytest.raises(WrongVersionsError, match="has no unheard-of"):
        refuse_others((("unheard-of", "1"),))
