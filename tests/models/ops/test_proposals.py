import numpy as np
import pytest
import torch

from pixelmill.models.ops.boxes import box_iou
from pixelmill.models.ops.proposals import segment, selective_search, sliding_windows


@pytest.fixture
def picture():
    image = np.full((64, 96, 3), 40, np.uint8)
    image[10:30, 10:40] = (255, 0, 0)
    image[30:60, 50:90] = (0, 255, 0)
    image[40:50, 60:80] = (0, 0, 255)
    return image


TRUTH = ((10, 10, 40, 30), (50, 30, 90, 60), (60, 40, 80, 50))


def best_overlaps(boxes):
    return box_iou(torch.tensor(TRUTH, dtype=torch.float32), torch.from_numpy(boxes)).amax(dim=1)


def test_flat_areas_are_regions_and_small_ones_join_a_neighbour():
    pixels = np.zeros((6, 8, 3), np.float32)
    pixels[:, 4:] = 200
    pixels[2, 1] = 100
    labels = segment(pixels, scale=1, sigma=0.01, min_pixels=1)
    assert len(np.unique(labels)) == 3
    assert (labels[:, 4:] == labels[0, 4]).all()
    joined = segment(pixels, scale=1, sigma=0.01, min_pixels=2)
    assert len(np.unique(joined)) == 2
    assert joined[2, 1] == joined[0, 0] != joined[0, 7]


def test_a_difference_joins_where_the_scale_allows_it():
    """Two single pixels join if they differ by at most scale / 1 (equation 5 of the paper)."""
    pixels = np.array([[[0.0], [3.0]]], np.float32)
    assert segment(pixels, scale=2.9, sigma=0.01, min_pixels=1).tolist() == [[0, 1]]
    assert segment(pixels, scale=3.1, sigma=0.01, min_pixels=1).tolist() == [[0, 0]]


def test_a_ramp_is_one_region_and_its_end_a_border():
    """Steps within a region do not add up to a border, however far its ends are apart."""
    ramp = np.arange(0, 200, 2, dtype=np.float32)[None, :, None].repeat(4, axis=0)
    labels = segment(ramp, scale=10, sigma=0.01, min_pixels=1)
    assert (labels == labels[0, 0]).all()


def test_selective_search_finds_objects_and_parts(picture):
    boxes = selective_search(picture)
    assert boxes.dtype == np.float32
    assert boxes[0].tolist() == [0, 0, 96, 64]
    assert best_overlaps(boxes).min() > 0.7
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert np.array_equal(boxes, selective_search(picture))


def test_selective_search_of_a_large_image_is_in_its_own_pixels(picture):
    large = picture.repeat(4, axis=0).repeat(4, axis=1)[:-3]
    boxes = selective_search(large, max_side=96)
    assert boxes[:, 2].max() == 384
    assert boxes[:, 3].max() == 253
    assert best_overlaps(boxes / 4).min() > 0.6


def test_more_scales_give_more_boxes(picture):
    noise = np.random.default_rng(0).integers(0, 60, picture.shape, dtype=np.uint8)
    noisy = np.minimum(picture, 190) + noise
    assert len(selective_search(noisy, scales=(50, 200))) > len(selective_search(noisy))


def test_a_flat_image_is_one_region():
    assert selective_search(np.zeros((40, 50, 3), np.uint8)).tolist() == [[0, 0, 50, 40]]


def test_windows_cover_the_image_to_its_borders():
    image = np.zeros((30, 50, 3), np.uint8)
    boxes = sliding_windows(image, sides=(20,), ratios=(1.0,), step=0.5)
    assert sorted(set(boxes[:, 0].tolist())) == [0, 10, 20, 30]
    assert sorted(set(boxes[:, 1].tolist())) == [0, 10]
    assert len(boxes) == 8
    assert sliding_windows(image, sides=(99,), ratios=(1.0,)).tolist() == [[0, 0, 50, 30]]
    tall = sliding_windows(image, sides=(10,), ratios=(4.0,))
    assert (tall[0, 2:] - tall[0, :2]).tolist() == [5, 20]
