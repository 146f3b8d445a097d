import torch

from pixelmill.models.padding import fill_up


def test_sides_are_filled_up_right_and_below_and_whole_ones_are_left_alone():
    images = torch.arange(6.0).view(1, 1, 2, 3)
    assert fill_up(images, 2)[0, 0].tolist() == [[0, 1, 2, 0], [3, 4, 5, 0]]
    assert fill_up(images, 4, "replicate")[0, 0].tolist() == [
        [0, 1, 2, 2],
        [3, 4, 5, 5],
        [3, 4, 5, 5],
        [3, 4, 5, 5],
    ]
    torch.testing.assert_close(fill_up(images[..., :2], 2), images[..., :2])
