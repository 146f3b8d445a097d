import pytest
import torch

from pixelmill.models.ops.anchors import make_anchors


def test_anchors_of_one_cell_worked_by_hand():
    anchors = make_anchors((8, 8), [8], [10], [1.0, 2.0], [1.0, 4.0])
    expected = torch.tensor(
        # centre (4, 4); ratio 4 is twice as high and half as wide
        [[-1, -1, 9, 9], [1.5, -6, 6.5, 14], [-6, -6, 14, 14], [-1, -16, 9, 24]]
    )
    torch.testing.assert_close(anchors, expected)


def test_every_level_covers_a_canvas_that_is_no_multiple_of_its_stride():
    anchors = make_anchors((20, 33), [8, 16], [4, 4], [1.0], [1.0])
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert len(anchors) == 3 * 5 + 2 * 3
    assert centres[0].tolist() == [4, 4]
    assert centres[1].tolist() == [12, 4]
    assert centres[15].tolist() == [8, 8]
    assert centres[-1].tolist() == [40, 24]


def test_the_ratio_does_not_change_the_area():
    anchors = make_anchors((16, 16), [16], [20], [1.0], [0.3, 1.0, 3.0])
    sides = anchors[:, 2:] - anchors[:, :2]
    torch.testing.assert_close(sides.prod(dim=1), torch.full((3,), 400.0))
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.3, 1.0, 3.0]))


def test_a_size_for_each_stride_is_needed():
    with pytest.raises(ValueError, match="one size per stride, got 1 for 2"):
        make_anchors((16, 16), [8, 16], [20], [1.0], [1.0])
