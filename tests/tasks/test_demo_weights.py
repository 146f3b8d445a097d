"""The embedded models on scenes that nobody trained on."""

import pytest

from pixelmill.models.build import locate_weights
from pixelmill.tasks.datasets import DataSource
from pixelmill.tasks.holdout import check_held_out
from pixelmill.tasks.scenes import write_scenes

# pycocotools 2.0.11 decodes run lengths with what NumPy 2 calls deprecated
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    # a series that no preset trains on
    write_scenes(folder, 48, seed=2)
    names = [f"{index:06d}.jpg" for index in range(48)]

    def run(name, truth):
        weights = locate_weights(f"embedded:{name}")
        return check_held_out(weights, DataSource(folder / "images", folder / truth), names)

    return run


def test_the_detector_finds_objects_and_their_masks(check):
    metrics = check("demo-detector", "instances.json")
    assert metrics["box AP50"] > 0.75
    assert metrics["mask AP50"] > 0.75


def test_the_segmenter_labels_pixels(check):
    assert check("demo-segmenter", "semantic")["mIoU"] > 0.75


def test_the_captioner_says_more_than_the_commonest_caption(check):
    metrics = check("demo-captioner", "captions.json")
    assert metrics["CIDEr-D"] > 2 * metrics["CIDEr-D baseline"]
