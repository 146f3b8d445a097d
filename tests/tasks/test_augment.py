# pyright: reportAttributeAccessIssue=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false
# (what a target is, the test knows)

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelmill.configs.schema import PreprocessConfig, TrainConfig
from pixelmill.models.targets import BoxTarget, CaptionTarget, SemanticTarget
from pixelmill.tasks.augment import augment, canvas_size, make_transform
from pixelmill.tasks.engine.views import draw_view, place_whole

SIZE = (80, 120)


def make_config(**changes):
    settings = {
        "name": "tiny",
        "task": "instance_segmentation",
        "architecture": "retinamask",
        "preprocess": PreprocessConfig(canvases=((40, 60),)),
        "images": "images",
        "horizontal_flip": False,
        "color_jitter": 0.0,
    }
    return TrainConfig(**{**settings, **changes})


def square(box_xyxy=(40, 28, 68, 56)):
    """An image that is white exactly in the box, and its truth."""
    left, top, right, bottom = box_xyxy
    mask = torch.zeros(1, *SIZE, dtype=torch.uint8)
    mask[:, top:bottom, left:right] = 1
    boxes_xyxy = torch.tensor([box_xyxy], dtype=torch.float32)
    return mask.expand(3, -1, -1) * 255, BoxTarget(boxes_xyxy, torch.tensor([1]), mask)


def change(image, target, config, seed=0, scale=1.0):
    torch.manual_seed(seed)
    return augment(image, target, make_transform(config, scale))


CHANGES = {
    "nothing": {"scale_range": (1.0, 1.0)},
    "scale": {"scale_range": (0.5, 2.0)},
    "flips": {"horizontal_flip": True, "vertical_flip": True},
    "right angles": {"right_angles": True},
    "stretch": {"preprocess": PreprocessConfig(canvases=((50, 50),), resize="stretch")},
    "crop": {"crop": (32, 32), "scale_range": (1.0, 1.5)},
    "iou crop": {"iou_crop": True},
}


@pytest.mark.parametrize("name", CHANGES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_image_box_and_mask_move_together(name, seed):
    config = make_config(**CHANGES[name])
    image, moved = change(*square(), config, seed)
    white = image[0] > 127
    if not len(moved.boxes_xyxy):
        # of what is mostly cut off nothing is learnt
        assert white.float().mean() < 0.5
        return
    rows, columns = torch.nonzero(moved.masks[0], as_tuple=True)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert moved.boxes_xyxy[0].tolist() == pytest.approx([float(each) for each in seen], abs=1.01)
    union = (white | moved.masks[0].bool()).sum()
    assert (white & moved.masks[0].bool()).sum() / union > 0.85
    assert moved.labels.tolist() == [1]


def test_bending_moves_image_and_mask_alike():
    config = make_config(elastic=60.0, scale_range=(1.0, 1.0))
    straight, _ = change(*square(), make_config(scale_range=(1.0, 1.0)))
    image, moved = change(*square(), config, seed=3)
    assert not torch.equal(image, straight)
    white = image[0] > 127
    union = (white | moved.masks[0].bool()).sum()
    assert (white & moved.masks[0].bool()).sum() / union > 0.85


@pytest.mark.parametrize("resize", ["letterbox", "stretch", "center_crop"])
def test_without_changes_an_image_lies_as_the_engine_lays_it(resize):
    crop_from = 48 if resize == "center_crop" else None
    preprocess = PreprocessConfig(canvases=((40, 64),), resize=resize, crop_from=crop_from)
    config = make_config(preprocess=preprocess, scale_range=(1.0, 1.0))
    image = torch.randint(256, (3, 70, 90), dtype=torch.uint8)
    nothing = BoxTarget(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    changed, _ = change(image, nothing, config)
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    expected = draw_view(pixels, place_whole((70, 90), preprocess), preprocess)
    assert (changed.permute(1, 2, 0).numpy() == expected).all()


def test_label_maps_and_weights_move_with_the_image_and_padding_is_void():
    config = make_config(task="semantic_segmentation", scale_range=(0.5, 0.5))
    image, boxes = square()
    labels = boxes.masks[0] * 3
    target = SemanticTarget(labels, labels.float() / 2)
    image, moved = change(image, target, config, seed=1)
    inside = moved.labels == 3
    assert ((image[0] > 127) == inside).float().mean() > 0.98
    assert torch.equal(moved.weights[inside], torch.full((int(inside.sum()),), 1.5))
    assert (moved.labels == 255).float().mean() == pytest.approx(0.75, abs=0.03)
    assert (image[:, moved.labels == 255] == config.preprocess.pad_value).all()


def test_masks_are_resized_without_a_shift():
    """Each size is 1 / 2.5 of a stripe pattern whose middle pixels are known."""
    stripes = (torch.arange(120) // 5 % 2).to(torch.uint8).expand(80, 120)
    preprocess = PreprocessConfig(canvases=((32, 48),))
    config = make_config(
        task="semantic_segmentation", preprocess=preprocess, scale_range=(1.0, 1.0)
    )
    _, moved = change(stripes.expand(3, -1, -1) * 255, SemanticTarget(stripes), config)
    middles = ((torch.arange(48) + 0.5) * 2.5).long()
    assert torch.equal(moved.labels[0], stripes[0, middles])


def test_an_object_that_is_mostly_cut_off_is_not_learnt():
    config = make_config(crop=(10, 60), scale_range=(1.0, 1.0))
    image, target = square((0, 0, 30, 60))  # 30 rows on the canvas
    for seed in range(20):
        changed, moved = change(image, target, config, seed)
        rows = int((changed[0] > 127).any(dim=1).sum())
        assert len(moved.boxes_xyxy) == len(moved.labels) == len(moved.masks)
        assert len(moved.boxes_xyxy) == (rows >= 0.3 * 30)


def test_a_caption_stays_as_it_is():
    target = CaptionTarget(torch.tensor([1, 4, 2]))
    config = make_config(task="captioning")
    assert change(square()[0], target, config)[1] is target


def test_multi_scale_canvases_are_multiples_of_32():
    config = make_config(preprocess=PreprocessConfig(canvases=((240, 320), (320, 240))))
    assert canvas_size((480, 640), config) == (240, 320)
    assert canvas_size((480, 640), config, 1.5) == (352, 480)
    assert canvas_size((640, 480), config, 0.5) == (160, 128)
    image, _ = change(*square(), make_config(), scale=2.0)
    assert image.shape[1:] == (64, 128)


def test_colours_change_within_bounds():
    config = make_config(color_jitter=0.3, scale_range=(1.0, 1.0))
    image = torch.full((3, *SIZE), 128, dtype=torch.uint8)
    nothing = BoxTarget(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    levels = {int(change(image, nothing, config, seed)[0][0, 0, 0]) for seed in range(8)}
    assert len(levels) > 4
    assert all(0.69 * 128 <= level <= 1.31 * 128 for level in levels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_range": (2.0, 1.0)}, "low, high"),
        ({"class_weights": "balanced"}, "only for task: semantic_segmentation"),
        ({"task": "captioning", "iou_crop": True}, "boxes"),
        ({"patience": 3, "check_every": 0}, "check_every"),
        ({"devices": 9}, "devices 9"),
    ],
)
def test_what_would_change_nothing_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)
