import pytest
import torch
from torch import nn

from pixelmill.configs.schema import PreprocessConfig, TrainConfig
from pixelmill.tasks.training.optimise import (
    average_of,
    make_optimizer,
    make_scheduler,
    measure_statistics,
    rate_factor,
)


def make_config(**changes):
    settings = {
        "name": "tiny",
        "task": "detection",
        "architecture": "-",
        "preprocess": PreprocessConfig(canvases=((32, 32),)),
        "images": "images",
    }
    return TrainConfig(**{**settings, **changes})


@pytest.mark.parametrize("num_steps", [7, 40, 333])
@pytest.mark.parametrize("warm_up", [0.15, 0.3])
def test_one_cycle_is_torchs(num_steps, warm_up):
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, num_steps, pct_start=warm_up, cycle_momentum=False
    )
    config = make_config(warm_up=warm_up)
    for step in range(num_steps):
        assert rate_factor(step, config, num_steps) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        if step < num_steps - 1:
            theirs.step()


def test_the_rate_rises_and_then_falls_as_asked():
    def rates(schedule, **changes):
        config = make_config(schedule=schedule, warm_up=0.1, **changes)
        return [rate_factor(step, config, 100) for step in range(100)]

    for schedule in ("cosine", "poly", "step", "constant"):
        series = rates(schedule)
        assert series[:10] == sorted(series[:10])
        assert series[10] == pytest.approx(1.0, abs=0.02)
        assert min(series) > 0
    assert rates("constant")[-1] == 1.0
    assert rates("cosine")[55] == pytest.approx(0.5)
    assert rates("poly")[55] == pytest.approx(0.5**0.9)
    steps = rates("step", milestones=(0.5, 0.8), decay=0.2)
    assert [steps[49], steps[50], steps[80]] == pytest.approx([1.0, 0.2, 0.04])


def test_vectors_do_not_decay():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    for name in ("adamw", "sgd"):
        optimizer = make_optimizer(module, make_config(optimizer=name, weight_decay=0.3))
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        shapes = [[each.ndim for each in group["params"]] for group in optimizer.param_groups]
        assert decays == [0.3, 0.0]
        assert shapes == [[4], [1, 1, 1]]


def test_the_scheduler_sets_what_the_factor_says():
    config = make_config(schedule="poly", learning_rate=0.5, warm_up=0.0)
    optimizer = make_optimizer(nn.Linear(1, 1), config)
    scheduler = make_scheduler(optimizer, config, 10)
    for step in range(10):
        assert scheduler.get_last_lr()[0] == pytest.approx(0.5 * rate_factor(step, config, 10))
        optimizer.step()
        scheduler.step()


def test_the_average_follows_weights_and_has_the_buffers():
    module = nn.BatchNorm1d(1)
    average = average_of(module, 4)
    for value in range(1, 9):
        with torch.no_grad():
            module.weight.fill_(float(value))
            module.get_buffer("running_mean").fill_(float(-value))
            module.get_buffer("num_batches_tracked").fill_(value)
        average.update_parameters(module)
    # the mean of the first four, then a quarter of the way each
    expected = 2.5
    for value in range(5, 9):
        expected += (value - expected) / 4
    assert average.module.get_parameter("weight").item() == pytest.approx(expected)
    assert average.module.get_buffer("running_mean").item() == -8
    assert average.module.get_buffer("num_batches_tracked").item() == 8
    assert not average.module.training


def test_statistics_are_of_what_is_shown_and_nothing_else():
    norm = nn.BatchNorm2d(3, momentum=0.01)
    norm(100 + torch.randn(4, 3, 5, 5))
    torch.manual_seed(0)
    batches = [0.02 * torch.randn(4, 3, 5, 5) for _ in range(40)]
    measure_statistics(norm, lambda: [norm(batch) for batch in batches])
    variances = torch.stack([batch.var((0, 2, 3)) for batch in batches])
    torch.testing.assert_close(norm.running_var, variances.mean(0))
    assert norm.get_buffer("running_mean").abs().max() < 0.01
    assert norm.momentum == 0.01
    assert not norm.training


def test_nothing_is_shown_to_a_network_without_statistics():
    measure_statistics(nn.Linear(1, 1), lambda: pytest.fail("shown"))
