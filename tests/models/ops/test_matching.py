import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher

from pixelmill.models.ops.matching import BACKGROUND, IGNORED, match_anchors


def test_thresholds_and_the_best_anchor_of_each_object():
    iou = torch.tensor(
        [
            [0.7, 0.45, 0.1, 0.0, 0.5],
            [0.0, 0.30, 0.2, 0.0, 0.0],
        ]
    )
    # anchor 1 overlaps object 0 more, but is the best that object 1 has: it goes to its own best
    assert match_anchors(iou).tolist() == [0, 0, BACKGROUND, BACKGROUND, 0]
    without = match_anchors(iou, low_quality=False)
    assert without.tolist() == [0, IGNORED, BACKGROUND, BACKGROUND, 0]


def test_an_object_that_no_anchor_touches_gets_none():
    assert match_anchors(torch.zeros(1, 3)).tolist() == [BACKGROUND] * 3


def test_without_objects_all_is_background():
    assert match_anchors(torch.zeros(0, 4)).tolist() == [BACKGROUND] * 4


@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_matches_are_those_of_torchvision(num_objects, num_anchors, seed):
    generator = torch.Generator().manual_seed(seed)
    iou = torch.rand(num_objects, num_anchors, generator=generator) * 0.99 + 0.01
    expected = Matcher(0.5, 0.4, allow_low_quality_matches=True)(iou)
    assert torch.equal(match_anchors(iou), expected)
