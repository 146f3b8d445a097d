"""Scoring a shard with the three embedded models, beside the loop that one would write at first.

`pytest -m benchmark -s tests/benchmarks/test_bench_score.py` prints one line of JSON: images and
CPU seconds, seconds per stage, peak memory. The engine decodes each image once for all models,
batches, folds and stores; the loop takes image by image through plain modules, and stores nothing.
Both use one thread. Rounds of both alternate, and figures are medians over the rounds.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pixelmill.models.build import locate_weights
from pixelmill.tasks.scenes import write_scenes

pytestmark = pytest.mark.benchmark

NUM_IMAGES = 16
NUM_MODELS = 3


@pytest.fixture
def scenes(tmp_path):
    try:
        for name in ("demo-detector", "demo-segmenter", "demo-captioner"):
            locate_weights(f"embedded:{name}")
    except FileNotFoundError as err:
        pytest.skip(str(err))
    write_scenes(tmp_path / "scenes", NUM_IMAGES, seed=3)
    return tmp_path / "scenes" / "images"


def test_scoring_by_the_engine_and_by_a_naive_loop(tmp_path, scenes, machine):
    script = Path(__file__).with_name("score_rounds.py")
    result = subprocess.run(
        [sys.executable, "-P", str(script), str(scenes), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    for way in ("engine", "loop"):
        figures = measured[way]
        assert figures["num_predictions"] == NUM_IMAGES * NUM_MODELS
        figures["images_per_s"] = round(NUM_IMAGES / figures["wall_s"], 2)
        figures["cpu_s_per_image"] = round(figures["cpu_s"] / NUM_IMAGES, 4)
    engine, loop = measured["engine"], measured["loop"]
    # Folding and batching round differently: a box at the threshold may be on either side of it
    assert abs(engine["num_boxes"] - loop["num_boxes"]) <= 2
    ratios = {f"loop_to_engine_{name}": loop[name] / engine[name] for name in ("wall_s", "cpu_s")}
    print(
        json.dumps(
            {"benchmark": "score_scenes_demo_models", "num_images": NUM_IMAGES}
            | measured
            | {name: round(ratio, 2) for name, ratio in ratios.items()}
            | machine("torch", "torchvision", "numpy", "pillow", "simplejpeg")
        )
    )
