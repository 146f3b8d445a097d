# pyright: reportAttributeAccessIssue=false
# (what a target is, the test knows)

import pytest
import torch

from pixelmill.configs.schema import PreprocessConfig, TrainConfig
from pixelmill.tasks.datasets import load_dataset
from pixelmill.tasks.training.batches import Batches, mix_seed, normalise, plan_epoch


def make_config(**changes):
    settings = {
        "name": "tiny",
        "task": "semantic_segmentation",
        "architecture": "-",
        "preprocess": PreprocessConfig(canvases=((64, 96), (96, 64))),
        "images": "scenes:6:5",
        "train_fraction": 1.0,
        "batch_size": 4,
    }
    return TrainConfig(**{**settings, **changes})


SIZES = [(64, 96)] * 9 + [(96, 64)] * 6


def indices(plan):
    return [[pick.index for pick in batch] for batch in plan]


def test_every_image_is_seen_once_an_epoch_and_canvases_do_not_mix():
    plan = indices(plan_epoch(SIZES, make_config(batch_size=3), 1))
    assert sorted(index for batch in plan for index in batch) == list(range(15))
    assert all(len({SIZES[index] for index in batch}) == 1 for batch in plan)
    assert plan != indices(plan_epoch(SIZES, make_config(batch_size=3), 2))


def test_a_batch_of_one_is_left_out_unless_there_is_no_other():
    plan = indices(plan_epoch(SIZES, make_config(batch_size=4), 1))
    assert sorted(len(batch) for batch in plan) == [2, 4, 4, 4]
    assert indices(plan_epoch([(8, 8)], make_config(), 1)) == [[0]]
    assert plan_epoch([(8, 8)], make_config(devices=2), 1) == []


def test_devices_share_out_each_batch():
    config = make_config(devices=2)
    shares = [plan_epoch(SIZES, config, 3, rank) for rank in (0, 1)]
    whole = indices(plan_epoch(SIZES, make_config(), 3))
    for first, second, both in zip(*map(indices, shares), whole, strict=True):
        assert sorted(first + second) == sorted(both)
        assert first
        assert second


def test_multi_scale_batches_have_one_canvas_each(tmp_path):
    config = make_config(canvas_scales=(0.5, 1.0, 1.5), batch_size=2)
    batches = Batches(load_dataset(config, tmp_path), config)
    shapes = {
        tuple(batch.images.shape[2:]) for epoch in (1, 2, 3) for batch in batches.epoch(epoch)
    }
    assert len(shapes) > 2
    assert all(side % 32 == 0 for shape in shapes for side in shape)


def test_what_is_learnt_from_depends_on_no_worker_and_no_start(tmp_path):
    config = make_config(batch_size=2)
    dataset = load_dataset(config, tmp_path)
    whole = list(Batches(dataset, config).epoch(2))
    later = list(Batches(dataset, config).epoch(2, start=1))
    assert len(later) == len(whole) - 1
    for mine, theirs in zip(later, whole[1:], strict=True):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.targets[0].labels, theirs.targets[0].labels)


@pytest.mark.slow
def test_worker_processes_read_the_same(tmp_path):
    config = make_config(batch_size=2)
    dataset = load_dataset(config, tmp_path)
    alone = list(Batches(dataset, config).epoch(1))
    helped = list(Batches(dataset, config.model_copy(update={"workers": 1})).epoch(1))
    assert all(
        torch.equal(mine.images, theirs.images) for mine, theirs in zip(alone, helped, strict=True)
    )


def test_reading_leaves_the_random_numbers_of_the_network_alone(tmp_path):
    config = make_config()
    batches = Batches(load_dataset(config, tmp_path), config)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    next(iter(batches.epoch(1)))
    assert torch.equal(torch.rand(3), expected)


def test_seeds_differ_in_every_part():
    seeds = {mix_seed(*parts) for parts in ((0, 1), (1, 0), (0, 1, 0), (10,), (1, 0, 1))}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_pixels_are_normalised_as_in_scoring():
    preprocess = PreprocessConfig(
        canvases=((2, 2),), channels="bgr", mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5)
    )
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    normalised = normalise(images, make_config(preprocess=preprocess))
    torch.testing.assert_close(normalised[0, :, 0, 0], torch.tensor([1.8, 0.0, -0.6]))
