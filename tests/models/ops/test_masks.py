import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from pixelmill.models.ops import masks
from pixelmill.models.ops.masks import Axis, PlacedScores, label_map, linear_axis, paste_masks


def placed(
    scores: Tensor, size: tuple[int, int], top: int = 0, left: int = 0, weight: float = 1.0
) -> PlacedScores:
    height, width = size
    return PlacedScores(
        scores=scores,
        top=top,
        left=left,
        rows=linear_axis(0, height, scores.shape[1], scale=scores.shape[1] / height),
        columns=linear_axis(0, width, scores.shape[2], scale=scores.shape[2] / width),
        row_weight=torch.full((height,), weight),
        column_weight=torch.ones(width),
    )


@pytest.mark.parametrize("seed", range(20))
def test_pasting_equals_torchvision(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = (171, 233)
    probs = torch.rand(12, 28, 28, generator=generator)
    centre = torch.rand(12, 2, generator=generator) * torch.tensor([233.0, 171])
    half = torch.rand(12, 2, generator=generator) * 60
    boxes = torch.cat((centre - half, centre + half), dim=1)
    expected = paste_masks_in_image(probs[:, None], boxes, size)[:, 0] > 0.5
    pasted = paste_masks(probs, boxes, size, 0.5)
    for (top, left, crop), reference in zip(pasted, expected, strict=True):
        plane = torch.zeros(size, dtype=torch.bool)
        plane[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        assert torch.equal(plane, reference)


def test_a_pasted_mask_has_no_empty_border() -> None:
    probs = torch.zeros(28, 28)
    probs[10:14, 12:20] = 1
    ((_, _, crop),) = paste_masks(probs[None], torch.tensor([[5.0, 6, 61, 62]]), (100, 100), 0.5)
    assert crop[0].any()
    assert crop[-1].any()
    assert crop[:, 0].any()
    assert crop[:, -1].any()


@pytest.mark.parametrize(
    "box", [[500.0, 500, 520, 530], [-40, -40, -20, -20], [3, 3, 3, 3], [-1e6, -1e6, 1e6, 1e6]]
)
def test_boxes_outside_empty_and_huge_are_pasted_without_large_planes(box: list[float]) -> None:
    boxes = torch.tensor([box])
    ((_, _, crop),) = paste_masks(torch.zeros(1, 28, 28), boxes, (40, 50), 0.5)
    assert crop.shape == (0, 0)
    paste_masks(torch.ones(1, 28, 28), boxes, (40, 50), 0.5)


def test_masks_pasted_together_are_those_pasted_alone(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(5)
    probs = torch.rand(9, 14, 14, generator=generator)
    corner = 90 * torch.rand(9, 2, generator=generator)
    boxes = torch.cat((corner, corner + 1 + 60 * torch.rand(9, 2, generator=generator)), dim=1)
    together = paste_masks(probs, boxes, (100, 110), 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(masks, "_PASTED_PIXELS", 1)  # each in a block of its own
        alone = paste_masks(probs, boxes, (100, 110), 0.5)
    for one, other in zip(together, alone, strict=True):
        assert one[:2] == other[:2]
        assert torch.equal(one.mask, other.mask)


def test_no_masks_are_pasted_from_no_boxes() -> None:
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (40, 50), 0.5) == []


@pytest.mark.parametrize("num_classes", [1, 2, 21])
@pytest.mark.parametrize("size", [(150, 211), (33, 40), (129, 64)])
def test_one_view_gives_the_argmax_of_the_upsampled_logits(
    num_classes: int, size: tuple[int, int]
) -> None:
    logits = torch.randn(num_classes, 33, 40, generator=torch.Generator().manual_seed(1))
    upsampled = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    labels = label_map([placed(logits, size)], size, 255, torch.uint8)
    best = upsampled.max(dim=0).values
    chosen = upsampled.gather(0, labels[None].long())[0]
    # two classes within float rounding of each other may change places
    assert (best - chosen).max() < 1e-5
    assert (labels == upsampled.argmax(dim=0)).float().mean() > 0.9999


def test_leaving_out_classes_that_cannot_win_changes_no_label(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(3)
    for shape in ((30, 9, 12), (7, 1, 5), (2, 3, 1)):
        coarse = 5 * torch.randn(1, shape[0], 3, 3, generator=generator)
        scores = F.interpolate(coarse, size=shape[1:], mode="bilinear")[0]
        scores += 0.1 * torch.randn(shape, generator=generator)
        if shape[0] > 2:
            scores[1] = scores[0]  # equal everywhere: the first one wins
        view = placed(scores, (150, 530))
        pruned = label_map([view], (150, 530), 255, torch.uint8)
        assert len(pruned.unique()) > 1
        with monkeypatch.context() as patch:
            patch.setattr(masks, "_MIN_PRUNED_SCALE", 10**9)
            assert torch.equal(pruned, label_map([view], (150, 530), 255, torch.uint8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_of_no_number_get_a_label_all_the_same(bad: float) -> None:
    scores = torch.randn(3, 4, 4)
    scores[1, 2, 2] = bad
    labels = label_map([placed(scores, (90, 90))], (90, 90), 255, torch.uint8)
    assert (labels < 3).all()


@pytest.mark.parametrize("at_once", [True, False])
def test_bands_of_many_views_give_what_tiles_of_one_give(at_once: bool) -> None:
    """At once as a GPU does it, else class by class."""
    scores = torch.randn(5, 20, 30, generator=torch.Generator().manual_seed(4))
    view = placed(scores, (100, 90))
    expected = label_map([view], (100, 90), 255, torch.uint8)
    labels = torch.full((100, 90), 255, dtype=torch.uint8)
    for start in range(0, 100, 33):
        masks._fill_from_many(labels, [view], start, min(start + 33, 100), at_once=at_once)
    assert torch.equal(labels, expected)


def test_several_views_give_the_argmax_of_the_weighted_mean() -> None:
    generator = torch.Generator().manual_seed(2)
    size = (100, 90)
    probs = torch.rand(3, 5, 20, 18, generator=generator)
    weights = (1.0, 0.25, 2.0)
    views = [placed(p, size, weight=w) for p, w in zip(probs, weights, strict=True)]
    mean = sum(
        w * F.interpolate(p[None], size=size, mode="bilinear", align_corners=False)[0]
        for p, w in zip(probs, weights, strict=True)
    )
    assert isinstance(mean, Tensor)
    labels = label_map(views, size, 255, torch.uint8)
    assert (labels == mean.argmax(dim=0)).float().mean() > 0.9999
    at_once = torch.full_like(labels, 255)
    masks._fill_from_many(at_once, views, 0, 100, at_once=True)
    assert torch.equal(labels, at_once)


def test_pixels_that_no_view_shows_are_void() -> None:
    scores = torch.zeros(2, 4, 4)
    scores[1] = 1
    one = placed(scores, (70, 10), top=5, left=3)
    labels = label_map([one], (80, 20), 255, torch.uint8)
    inside = torch.zeros(80, 20, dtype=torch.bool)
    inside[5:75, 3:13] = True
    assert torch.equal(labels == 1, inside)
    assert (labels[~inside] == 255).all()
    assert torch.equal(label_map([one, one], (80, 20), 255, torch.uint8), labels)


def test_interpolation_stops_where_the_picture_ends() -> None:
    axis = linear_axis(0, 4, 10, scale=1.0, limit=4.0)
    assert axis.low.tolist() == [0, 1, 2, 3]
    shrunk = linear_axis(0, 100, 10, scale=0.05, limit=4.5)
    assert float((shrunk.low + shrunk.weight).max()) == 4.0
    assert isinstance(axis.part(0, 2), Axis)
