import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelmill.configs.schema import PreprocessConfig, TrainConfig
from pixelmill.models.targets import BoxTarget, CaptionTarget, SemanticTarget
from pixelmill.tasks.augment import (
    Window,
    change_colours,
    move_image,
    move_target,
    sample_window,
)

CANVAS = (40, 60)


def make_config(**changes):
    return TrainConfig(
        name="tiny",
        task="detection",
        architecture="retinamask",
        preprocess=PreprocessConfig(canvases=(CANVAS,)),
        images="images",
        **changes,
    )


def square(box_xyxy):
    """A target and an image that is white exactly in the box."""
    left, top, right, bottom = box_xyxy
    mask = torch.zeros(1, *CANVAS, dtype=torch.uint8)
    mask[:, top:bottom, left:right] = 1
    boxes_xyxy = torch.tensor([box_xyxy], dtype=torch.float32)
    return BoxTarget(boxes_xyxy, torch.tensor([1]), mask), mask.expand(3, -1, -1) * 255


def move_boxes(target, window):
    moved = move_target(target, window, CANVAS)
    assert isinstance(moved, BoxTarget)
    return moved


WINDOWS = [
    Window(0, 0, CANVAS, flip=True),
    Window(10, 15, (20, 30), flip=False),
    Window(10, 15, (20, 30), flip=True),
    Window(-20, -30, (80, 120), flip=True),
]


@pytest.mark.parametrize("window", WINDOWS)
def test_image_box_and_mask_move_together(window):
    target, image = square((20, 14, 34, 28))
    moved = move_boxes(target, window)
    white = move_image(image, window, pad_value=0)[0] > 127
    rows, columns = torch.nonzero(white, as_tuple=True)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert moved.boxes_xyxy[0].tolist() == [float(value) for value in seen]
    assert moved.masks is not None
    assert (white == moved.masks[0].bool()).float().mean() > 0.99
    assert moved.labels.tolist() == [1]


def test_an_object_that_is_mostly_cut_off_is_not_learnt():
    target, _ = square((0, 0, 20, 20))
    moved = move_boxes(target, Window(15, 0, (20, 30), flip=False))
    assert moved.masks is not None
    assert len(moved.boxes_xyxy) == len(moved.labels) == len(moved.masks) == 0


def test_what_the_image_does_not_reach_is_padding_and_void():
    window = Window(-40, -60, (80, 120), flip=False)
    image = torch.full((3, *CANVAS), 200, dtype=torch.uint8)
    moved = move_image(image, window, pad_value=114)
    labels = move_target(SemanticTarget(torch.ones(CANVAS, dtype=torch.uint8)), window, CANVAS)
    assert isinstance(labels, SemanticTarget)
    assert moved[:, :19].unique().tolist() == [114]
    assert moved[:, 21:, 31:].unique().tolist() == [200]
    assert labels.labels[:20].unique().tolist() == [255]
    assert labels.labels[20:, 30:].unique().tolist() == [1]


def test_a_caption_stays_as_it_is():
    target = CaptionTarget(torch.tensor([1, 4, 2]))
    assert move_target(target, WINDOWS[1], CANVAS) is target


@given(st.integers(0, 2**32 - 1))
def test_windows_keep_to_the_config(seed):
    generator = torch.Generator().manual_seed(seed)
    window = sample_window(
        CANVAS, make_config(scale_range=(0.5, 2.0), horizontal_flip=False), generator
    )
    assert not window.flip
    assert 20 <= window.size[0] <= 80
    # inside the canvas, or around it
    assert window.top * (CANVAS[0] - window.size[0]) >= 0
    assert (CANVAS[1] - window.left - window.size[1]) * (CANVAS[1] - window.size[1]) >= 0


def test_without_changes_nothing_is_changed():
    generator = torch.Generator().manual_seed(0)
    config = make_config(scale_range=(1.0, 1.0), horizontal_flip=False)
    window = sample_window(CANVAS, config, generator)
    image = torch.randint(256, (3, *CANVAS), dtype=torch.uint8, generator=generator)
    assert torch.equal(move_image(image, window, 114), image)
    images = torch.rand(2, 3, *CANVAS, generator=generator)
    torch.testing.assert_close(change_colours(images, 0.0, generator), images)


def test_colours_change_per_image_within_bounds():
    generator = torch.Generator().manual_seed(0)
    images = torch.full((8, 3, 4, 4), 0.5)
    changed = change_colours(images, 0.3, generator)
    levels = changed[:, 0, 0, 0]
    assert len(levels.unique()) == 8
    assert (levels >= 0.35).all()
    assert (levels <= 0.65).all()
