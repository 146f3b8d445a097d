import pytest
import torch
import yaml

from pixelmill.configs.load import load_train_config
from pixelmill.models.checkpoint import load_state
from pixelmill.tasks.scenes import SEMANTIC_CLASSES
from pixelmill.tasks.train import train

pytestmark = pytest.mark.slow


@pytest.fixture
def config(scenes, tmp_path):
    document = {
        "name": "tiny",
        "task": "semantic_segmentation",
        "architecture": "unet",
        "arguments": {"width": 4, "depth": 2},
        "preprocess": {"canvases": [[96, 128], [128, 96]]},
        "images": str(scenes / "images"),
        "truth": str(scenes / "semantic"),
        "classes": list(SEMANTIC_CLASSES),
        "epochs": 40,
        "batch_size": 2,
        "check_every": 10,
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_killed_training_is_gone_on_with_to_the_same_weights(config, tmp_path, launch, wait_for):
    """The command is killed; whoever goes on, the command itself or Python, ends the same."""
    pieced, curve = tmp_path / "pieced", tmp_path / "pieced" / "tiny.curve.jsonl"
    command = launch("pixelmill.flows.cli", "train", config, "--out", pieced, OMP_NUM_THREADS="1")
    wait_for(lambda: curve.exists() and len(curve.read_text().splitlines()) > 2, "third epoch")
    command.kill()
    state = pieced / "tiny.state"
    assert state.exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        summaries = [
            train(load_train_config(config), out, tmp_path) for out in (pieced, tmp_path / "whole")
        ]
    finally:
        torch.set_num_threads(threads)
    resumed, whole = summaries
    assert resumed.resumed_from > 0
    assert whole.resumed_from == 0
    torch.testing.assert_close(
        load_state(resumed.weights), load_state(whole.weights), rtol=0, atol=0
    )
    assert resumed.metrics == whole.metrics
    assert not state.exists()
