"""Optimiser, learning rate and averaged weights, from configuration."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pixelmill.configs.schema import TrainConfig

__all__ = ["average_of", "make_optimizer", "make_scheduler", "measure_statistics", "rate_factor"]

# As torch's OneCycleLR: the first rate is a 25th of the peak, the last 1e4 times less than that
_FIRST = 1 / 25
_LAST = _FIRST / 1e4
# Zhao et al., PSPNet, 2017, section 4.1
_POWER = 0.9


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or SGD with momentum; biases and normalisation do not decay.

    Args:
        module: whose parameters are optimised.
        config: its optimizer, momentum, weight_decay and learning_rate.
    """
    parameters = [each for each in module.parameters() if each.requires_grad]
    groups = [
        {
            "params": [each for each in parameters if each.ndim > 1],
            "weight_decay": config.weight_decay,
        },
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0
        )
    return torch.optim.AdamW(groups, config.learning_rate, fused=True)


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate of every step, see `rate_factor`."""
    factor = partial(rate_factor, config=config, num_steps=num_steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def rate_factor(step: int, config: TrainConfig, num_steps: int) -> float:
    """Learning rate of a step as a share of the peak.

    Args:
        step: from 0.
        config: its schedule, warm_up, milestones and decay.
        num_steps: of the whole training.

    Returns:
        In (0, 1]. "one_cycle" is torch's OneCycleLR without its change of momentum (Smith and
        Topin, Super-Convergence, 2018). The others rise linearly, then: "cosine" falls to nothing
        on half a cosine (Loshchilov and Hutter, SGDR, 2017), "poly" by the power 0.9 of what is
        left, "step" by `decay` at each milestone, "constant" stays.
    """
    warm_up = config.warm_up * num_steps
    if config.schedule == "one_cycle":
        rise = warm_up - 1
        if rise > 0 and step <= rise:
            return _cosine(_FIRST, 1.0, step / rise)
        return _cosine(1.0, _LAST, (step - rise) / max(1e-9, num_steps - 1 - rise))
    if step < warm_up:
        return (step + 1) / (math.ceil(warm_up) + 1)
    share = (step - warm_up) / max(1e-9, num_steps - warm_up)
    if config.schedule == "cosine":
        return _cosine(1.0, 0.0, share)
    if config.schedule == "poly":
        return float((1 - share) ** _POWER)
    if config.schedule == "step":
        passed = sum(step >= milestone * num_steps for milestone in config.milestones)
        return float(config.decay**passed)
    return 1.0


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(1.0, share)))


def average_of(module: nn.Module, num_steps: int) -> AveragedModel:
    """A copy in evaluation mode whose weights follow those of the module; its buffers are the same.

    Args:
        module: that is trained.
        num_steps: the average follows over about as many of the last steps.
    """
    follow = partial(_follow, num_steps=num_steps)
    average = AveragedModel(module, multi_avg_fn=follow)
    return average.eval()


@torch.no_grad()
def _follow(
    averages: Sequence[Tensor], values: Sequence[Tensor], num_averaged: Tensor | int, num_steps: int
) -> None:
    weight = 1 / min(int(num_averaged) + 1, num_steps)
    for average, value in zip(averages, values, strict=True):
        average.lerp_(value, weight)


def measure_statistics(module: nn.Module, forward: Callable[[], object]) -> None:
    """Give batch norms the statistics of what they are shown, instead of those of the training.

    Averaged weights have none of their own, and in a short training those that were followed from
    0 and 1 with a momentum of 0.01 say more of their beginning than of the images. Sources: Pavel
    Izmailov et al., Averaging Weights Leads to Wider Optima, UAI 2018, section 3.2; Yuxin Wu,
    Justin Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3.

    Args:
        module: left in evaluation mode.
        forward: shows it batches; not called where there is no batch norm.
    """
    norms = [
        (each, each.momentum)
        for each in module.modules()
        if isinstance(each, nn.modules.batchnorm._BatchNorm) and each.track_running_stats
    ]
    if not norms:
        return
    for norm, _ in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
    module.train()
    with torch.no_grad():
        forward()
    module.eval()
    for norm, momentum in norms:
        norm.momentum = momentum
