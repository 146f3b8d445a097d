import numpy as np
import pytest
import torch

from pixelmill.configs.schema import (
    AugmentationConfig,
    BoxPostprocess,
    ClassificationPostprocess,
    PreprocessConfig,
    TilingConfig,
)
from pixelmill.models.interface import BoxOutput, CaptionOutput, ClassOutput, SemanticOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.merge import merge_views
from pixelmill.tasks.engine.views import Placement, draw_view, plan_views, to_original

CANVAS = PreprocessConfig(canvases=((64, 64),))


def make_spec(task: str, **changes) -> ModelSpec:
    values = {
        "name": "m",
        "task": task,
        "architecture": "a",
        "arguments": {},
        "weights_path": "w",
        "weights_sha256": "0",
        "classes": ("x", "y"),
        "preprocess": CANVAS,
        "precision": "fp32",
    }
    if task in ("detection", "instance_segmentation"):
        values["postprocess"] = BoxPostprocess()
    return ModelSpec.model_validate(values | changes)


def boxes(*rows, labels=None, masks=None) -> BoxOutput:
    """Rows of x_min, y_min, x_max, y_max, score."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    labels = torch.zeros(len(table), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return BoxOutput(table[:, :4], table[:, 4], labels, masks)


def seen_at(box_xyxy, placement: Placement):
    """Where an original box lies on a canvas, as far as the canvas shows it."""
    zero, one = to_original(torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1]]), placement)[:, [0, 1]]
    corners = (torch.tensor(box_xyxy).reshape(2, 2) - zero) / (one - zero)
    limit = torch.tensor(placement.content[::-1], dtype=torch.float32)
    return torch.cat((corners.amin(0), corners.amax(0))).clamp(min=0).minimum(limit.repeat(2))


@pytest.mark.parametrize("masks", [None, torch.zeros(0, 28, 28)])
def test_nothing_found_is_an_empty_prediction(masks) -> None:
    spec = make_spec("instance_segmentation" if masks is not None else "detection")
    prediction = merge_views([boxes(masks=masks)], plan_views((50, 80), spec), spec, (50, 80))
    assert prediction.detections is not None
    assert prediction.detections.boxes_xyxy.shape == (0, 4)
    assert prediction.detections.masks == (None if masks is None else ())


def test_boxes_are_scaled_clipped_and_sorted() -> None:
    spec = make_spec("detection")
    output = boxes([0, 0, 32, 16, 0.6], [32, 8, 90, 90, 0.9], [5, 5, 5, 9, 0.8], [0, 0, 9, 9, 0.01])
    found = merge_views([output], plan_views((64, 128), spec), spec, (64, 128)).detections
    assert found is not None
    np.testing.assert_allclose(found.boxes_xyxy, [[64, 16, 128, 64], [0, 0, 64, 32]])
    np.testing.assert_allclose(found.scores, [0.9, 0.6])
    assert found.labels.dtype == np.int32


def test_boxes_without_a_number_are_dropped() -> None:
    spec = make_spec("detection")
    output = boxes([0, 0, float("nan"), 8, 0.9], [0, 0, 8, 8, float("nan")], [1, 1, 9, 9, 0.5])
    found = merge_views([output], plan_views((64, 64), spec), spec, (64, 64)).detections
    assert found is not None
    assert found.scores.tolist() == [0.5]


def test_mirrors_find_the_same_object_and_its_mask() -> None:
    augmentation = AugmentationConfig(horizontal_flip=True, vertical_flip=True)
    spec = make_spec("instance_segmentation", augmentation=augmentation)
    size = (128, 100)
    placements = plan_views(size, spec)
    upper_left = torch.zeros(1, 28, 28)
    upper_left[:, :14, :14] = 1
    outputs = []
    for placement in placements:
        axes = [axis for axis, on in ((1, placement.flip_y), (2, placement.flip_x)) if on]
        box = seen_at([20.0, 30, 60, 90], placement)
        outputs.append(
            boxes([*box.tolist(), 0.9], masks=upper_left.flip(axes) if axes else upper_left)
        )
    found = merge_views(outputs, placements, spec, size).detections
    assert found is not None
    assert len(found.scores) == 1
    np.testing.assert_allclose(found.boxes_xyxy, [[20, 30, 60, 90]], atol=1e-3)
    assert found.masks is not None
    (mask,) = found.masks
    np.testing.assert_allclose((mask.top, mask.left), (30, 20), atol=1)
    assert mask.mask.mean() > 0.95  # but for rounded corners
    np.testing.assert_allclose(mask.mask.shape, (30, 20), atol=2)
    for output, placement in zip(outputs, placements, strict=True):
        spec_of_one = make_spec("instance_segmentation")
        alone = merge_views([output], [placement], spec_of_one, size).detections
        assert alone is not None
        assert alone.masks is not None
        assert alone.masks[0].mask.shape == pytest.approx(mask.mask.shape, abs=1)
        assert abs(alone.masks[0].top - mask.top) <= 1
        assert abs(alone.masks[0].left - mask.left) <= 1


@pytest.mark.parametrize("include_full", [True, False])
def test_an_object_cut_by_a_tile_edge_is_found_once_and_whole(include_full: bool) -> None:
    tiling = TilingConfig(tile=(64, 64), overlap=0.5, include_full=include_full, border=4)
    spec = make_spec("detection", tiling=tiling)
    size = (64, 160)
    placements = plan_views(size, spec)
    truth = [50.0, 20, 78, 44]  # across the first tile's right edge at 64, whole in the second
    outputs = []
    for placement in placements:
        x_min, y_min, x_max, y_max = seen_at(truth, placement).tolist()
        visible = x_max - x_min > 1
        # the cut part is what the tile is most sure of
        score = 0.99 if placement.left == 0 and placement.source_size[1] == 64 else 0.8
        outputs.append(boxes([x_min, y_min, x_max, y_max, score]) if visible else boxes())
    found = merge_views(outputs, placements, spec, size).detections
    assert found is not None
    np.testing.assert_allclose(found.boxes_xyxy, [truth], atol=0.01)


def test_an_object_larger_than_any_tile_is_kept_in_parts_rather_than_lost() -> None:
    tiling = TilingConfig(tile=(64, 64), overlap=0, include_full=False, border=4)
    spec = make_spec("detection", tiling=tiling)
    placements = plan_views((64, 128), spec)
    outputs = [boxes([0, 8, 64, 56, 0.9]) for _ in placements]
    found = merge_views(outputs, placements, spec, (64, 128)).detections
    assert found is not None
    assert len(found.scores) == 2


def test_candidates_are_kept_before_suppression() -> None:
    postprocess = BoxPostprocess(keep_candidates=True)
    spec = make_spec("detection", postprocess=postprocess)
    output = boxes([0, 0, 20, 20, 0.9], [0, 0, 20, 21, 0.8])
    prediction = merge_views([output], plan_views((64, 64), spec), spec, (64, 64))
    assert prediction.detections is not None
    assert prediction.candidates is not None
    assert len(prediction.detections.scores) == 1
    assert len(prediction.candidates.scores) == 2


def painted(size: tuple[int, int]) -> np.ndarray:
    """Labels 0 and 1: the right third of the upper half is 1."""
    labels = np.zeros(size, np.uint8)
    labels[: size[0] // 2, 2 * size[1] // 3 :] = 1
    return labels


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("stride", [1, 4])
def test_labels_come_back_to_the_pixels_they_were_seen_at(resize, several, stride: int) -> None:
    """A network that sees the labels painted into the image as they are."""
    changes: dict = {"preprocess": PreprocessConfig(resize=resize, canvases=((64, 96),))}
    if several:
        changes["tiling"] = TilingConfig(tile=(60, 60), overlap=0.3)
        changes["augmentation"] = AugmentationConfig(horizontal_flip=True, vertical_flip=True)
    spec = make_spec("semantic_segmentation", **changes)
    size = (120, 130)
    truth = painted(size)
    pixels = np.repeat(truth[:, :, None] * 255, 3, axis=2)
    outputs = []
    placements = plan_views(size, spec)
    for placement in placements:
        canvas = draw_view(pixels, placement, spec.preprocess)
        one = torch.from_numpy(canvas[..., 0] / 255.0).float()
        one = torch.nn.functional.avg_pool2d(one[None], stride)[0]
        outputs.append(SemanticOutput(torch.stack((1 - one, one)) * 20))
    labels = merge_views(outputs, placements, spec, size).semantic
    assert labels is not None
    assert labels.dtype == np.uint8
    wrong = labels != truth
    assert wrong.mean() < (0.01 if stride == 1 else 0.05)
    # and only at the border between the classes
    assert not wrong[70:].any()
    assert not wrong[:, :70].any()


def test_what_a_center_crop_does_not_show_is_void() -> None:
    preprocess = PreprocessConfig(resize="center_crop", crop_from=64, canvases=((64, 64),))
    spec = make_spec("semantic_segmentation", preprocess=preprocess)
    output = SemanticOutput(torch.stack((torch.ones(64, 64), torch.zeros(64, 64))))
    labels = merge_views([output], plan_views((64, 128), spec), spec, (64, 128)).semantic
    assert labels is not None
    assert (labels[:, 32:96] == 0).all()
    assert (labels[:, :32] == 255).all()
    assert (labels[:, 96:] == 255).all()


def test_more_classes_than_a_byte_holds_take_two() -> None:
    spec = make_spec("semantic_segmentation", classes=tuple(map(str, range(300))))
    logits = torch.zeros(300, 16, 16)
    logits[299] = 1
    labels = merge_views([SemanticOutput(logits)], plan_views((64, 64), spec), spec, (64, 64))
    assert labels.semantic is not None
    assert labels.semantic.dtype == np.uint16
    assert (labels.semantic == 299).all()


def test_class_probabilities_of_views_are_averaged() -> None:
    spec = make_spec(
        "classification", postprocess=ClassificationPostprocess(top_k=2, score_threshold=0.3)
    )
    outputs = [ClassOutput(torch.tensor([0.2, 0.8])), ClassOutput(torch.tensor([0.3, 0.7]))]
    placements = plan_views((64, 64), spec) * 2
    (label,) = merge_views(outputs, placements, spec, (64, 64)).labels
    assert label.class_id == 1
    assert label.score == pytest.approx(0.75)


def test_a_sentence_is_handed_on() -> None:
    spec = make_spec("captioning", classes=())
    output = CaptionOutput("a cat", -1.5, 3)
    (caption,) = merge_views([output], plan_views((9, 9), spec), spec, (9, 9)).captions
    assert (caption.text, caption.logprob, caption.num_tokens) == ("a cat", -1.5, 3)


def test_outputs_of_another_task_are_refused() -> None:
    spec = make_spec("detection")
    with pytest.raises(TypeError, match="detection needs BoxOutput, the network gave ClassOutput"):
        merge_views([ClassOutput(torch.ones(2))], plan_views((9, 9), spec), spec, (9, 9))
