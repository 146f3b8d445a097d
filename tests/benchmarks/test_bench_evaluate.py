"""Evaluation at COCO's size beside others, and of a million images after one more night.

    pytest -m benchmark -s tests/benchmarks/test_bench_evaluate.py

Each contender is a process of its own and gets the same truth and detections, of numbers drawn at
random: 5,000 images, 36,000 instances, 500,000 detections, 80 classes as unequally frequent as
COCO's. Prints JSON, of which docs/benchmarks/evaluation.md is made.
"""

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from evaluations import call, measured, run_columns, run_first, run_night, run_ours, run_reference

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform == "darwin", reason="peak memory is read as Linux tells it"),
]


def test_coco_val_beside_others(machine):
    size = (5_000, 36_000, 500_000)
    found = {
        "pixelmill, columns of the store": measured(run_columns, size),
        "pixelmill, lists of dicts": measured(run_ours, size),
        "pycocotools": measured(run_reference, "pycocotools", size),
    }
    packages = ["numpy", "pyarrow", "pycocotools"]
    if find_spec("faster_coco_eval") is not None:
        found["faster-coco-eval"] = measured(run_reference, "faster_coco_eval", size)
        packages.append("faster-coco-eval")
    expected = found["pycocotools"]["values"]
    for name, one in found.items():
        assert one["values"] == pytest.approx(expected, abs=1e-12), name
    for one in found.values():
        del one["values"]
    print(json.dumps({"size": size, "contenders": found, **machine(*packages)}, indent=1))


def test_a_million_images_after_one_more_night(machine, tmp_path):
    num_images, num_new = 1_000_000, 1_000
    first = call(run_first, tmp_path, num_images - num_new)
    size_mb = sum(file.stat().st_size for file in tmp_path.rglob("part-*.parquet")) / 1e6
    values, steps = call(run_night, tmp_path, num_images, num_new)
    assert all(np.isfinite(values))
    found = {"first evaluation, drawing the numbers included": first, **steps}
    found["records, MB"] = round(size_mb)
    print(json.dumps({"night": found, **machine("numpy", "pyarrow")}, indent=1))
