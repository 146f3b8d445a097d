"""Training of the models of our own, sized for minutes on a CPU."""

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pixelmill.configs.schema import TrainConfig
from pixelmill.models.build import EMBEDDED, locate_weights
from pixelmill.models.checkpoint import CheckpointMeta, load_matching, load_state, save_checkpoint
from pixelmill.models.losses import weighted_sum
from pixelmill.models.spec import Arguments
from pixelmill.models.targets import Target
from pixelmill.models.zoo import ARCHITECTURES, Architecture
from pixelmill.tasks.augment import change_colours, move_image, move_target, sample_window
from pixelmill.tasks.datasets import Dataset, Example, load_dataset
from pixelmill.tasks.holdout import check_held_out
from pixelmill.tasks.stage import stage

__all__ = ["EpochReport", "TrainSummary", "train", "train_task"]

_WARM_UP = 0.15
_MAX_NORM = 10.0
# The average follows over about this many of the last steps.
_AVERAGED_STEPS = 200


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What is known after an epoch.

    Attributes:
        epoch: from 1.
        losses: mean of each term over the epoch, by name.
        seconds: that the epoch took.
    """

    epoch: int
    num_epochs: int
    losses: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What a training made.

    Attributes:
        weights: the checkpoint.
        held_out: text file with the names of the images that were not trained on, a line each,
            relative to `images`.
        images: folder of the training data.
        metrics: on the held-out images, by name; empty if there are none.
    """

    name: str
    weights: Path
    held_out: Path
    images: Path
    num_parameters: int
    num_trained: int
    num_held_out: int
    losses: Mapping[str, float]
    metrics: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Batch:
    images: Tensor
    targets: list[Target]


def train(
    config: TrainConfig,
    out: Path,
    base: Path,
    *,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> TrainSummary:
    """Train a model, check it on the images kept apart, and write it.

    Writes `<out>/<name>.safetensors`, `<name>.val.txt` (names kept apart) and `<name>.json` (the
    summary). The same config on the same machine and number of threads gives the same weights.

    Args:
        config: what is trained, and on what.
        out: folder of the results.
        base: folder that relative paths of the config start from; scenes are rendered below it.
        on_epoch: told of each finished epoch.

    Raises:
        ValueError: the architecture is not ours or not for this task, or the data cannot be used.
        FileNotFoundError: data or initial weights are not there.
    """
    started = time.perf_counter()
    architecture = _find_architecture(config)
    dataset = load_dataset(config, base)
    torch.manual_seed(config.seed)
    arguments = _arguments(config, dataset)
    module = architecture.build(**arguments)
    if config.init is not None:
        _start_from(module, config, base)
    average, losses = _fit(module, architecture, config, dataset.examples, on_epoch)
    weights = out / f"{config.name}.safetensors"
    metadata = CheckpointMeta(
        name=config.name,
        task=config.task,
        architecture=config.architecture,
        arguments=arguments,
        classes=dataset.classes,
        vocabulary=dataset.vocabulary,
        preprocess=config.preprocess,
        training=_provenance(config, dataset),
    )
    save_checkpoint(weights, average, metadata)
    metrics = check_held_out(weights, dataset.source, dataset.held_out)
    held_out = out / f"{config.name}.val.txt"
    held_out.write_text("".join(f"{name}\n" for name in dataset.held_out), encoding="utf-8")
    summary = TrainSummary(
        name=config.name,
        weights=weights,
        held_out=held_out,
        images=dataset.source.images,
        num_parameters=sum(parameter.numel() for parameter in average.parameters()),
        num_trained=len(dataset.examples),
        num_held_out=len(dataset.held_out),
        losses=losses,
        metrics=metrics,
        seconds=time.perf_counter() - started,
    )
    document = json.dumps(asdict(summary), indent=2, default=str)
    (out / f"{config.name}.json").write_text(document + "\n", encoding="utf-8")
    return summary


def _find_architecture(config: TrainConfig) -> Architecture:
    trainable = {name: each for name, each in ARCHITECTURES.items() if each.trainable}
    architecture = trainable.get(config.architecture)
    if architecture is None:
        raise ValueError(
            f"architecture must be one of {', '.join(trainable)}, got {config.architecture!r}"
        )
    if config.task not in architecture.tasks:
        raise ValueError(
            f"{config.architecture} does {', '.join(architecture.tasks)}, got task {config.task!r}"
        )
    return architecture


def _arguments(config: TrainConfig, dataset: Dataset) -> Arguments:
    """The configured arguments, and the number of outputs that the data decides."""
    if config.task == "captioning":
        return {**config.arguments, "vocabulary_size": len(dataset.vocabulary)}
    return {**config.arguments, "num_classes": len(dataset.classes)}


def _provenance(config: TrainConfig, dataset: Dataset) -> dict[str, object]:
    """Where the weights come from, without the paths of the machine that trained them."""
    numbers = config.model_dump(mode="json", exclude={"images", "truth", "split", "init"})
    return {
        "config": numbers,
        "images": Path(config.images).name,
        "init": config.init and Path(config.init).name,
        "num_images": len(dataset.examples),
    }


def _start_from(module: nn.Module, config: TrainConfig, base: Path) -> None:
    name = str(config.init)
    path = locate_weights(name if name.startswith(EMBEDDED) else str(base / name))
    if load_matching(module, load_state(path)) == 0:
        raise ValueError(f"{config.name}: no tensor of {name!r} fits {config.architecture}")


def _fit(
    module: nn.Module,
    architecture: Architecture,
    config: TrainConfig,
    examples: Sequence[Example],
    on_epoch: Callable[[EpochReport], None] | None,
) -> tuple[nn.Module, dict[str, float]]:
    """Returns the average of the last weights, and the mean losses of the last epoch."""
    module = module.to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(config.seed)
    num_steps = config.epochs * sum(1 for _ in _batches(examples, config, generator))
    optimizer = torch.optim.AdamW(_parameter_groups(module, config.weight_decay), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, num_steps, pct_start=_WARM_UP, cycle_momentum=False
    )
    step = 0
    losses: dict[str, float] = {}
    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        totals: dict[str, float] = {}
        num_batches = 0
        for indices in _batches(examples, config, generator):
            batch = _make_batch([examples[index] for index in indices], config, generator)
            terms = _step(module, architecture, config, batch, optimizer)
            schedule.step()
            step += 1
            _follow(average, module, decay=1 - 1 / min(step, _AVERAGED_STEPS))
            num_batches += 1
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value
        losses = {name: total / num_batches for name, total in totals.items()}
        if on_epoch is not None:
            seconds = time.perf_counter() - started
            on_epoch(EpochReport(epoch, config.epochs, losses, seconds))
    return average, losses


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Biases and normalisation do not decay."""
    parameters = list(module.parameters())
    return [
        {"params": [each for each in parameters if each.ndim > 1], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
    ]


def _step(
    module: nn.Module,
    architecture: Architecture,
    config: TrainConfig,
    batch: _Batch,
    optimizer: torch.optim.Optimizer,
) -> dict[str, float]:
    """One step down; returns the terms of the loss.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    assert architecture.loss is not None  # _find_architecture has seen to it
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        outputs = module(batch.images)
        terms = architecture.loss(module, outputs, batch.targets)
    loss = weighted_sum(terms, config.loss_weights)
    values = {name: float(term.detach()) for name, term in terms.items()}
    if not torch.isfinite(loss):
        raise FloatingPointError(f"{config.name}: the loss is {values}; lower learning_rate")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), _MAX_NORM)
    optimizer.step()
    return values


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move the averaged weights a little towards the trained ones."""
    theirs = module.state_dict()
    for key, own in average.state_dict().items():
        if own.is_floating_point():
            own.lerp_(theirs[key], 1 - decay)
        else:
            own.copy_(theirs[key])


def _batches(
    examples: Sequence[Example], config: TrainConfig, generator: torch.Generator
) -> Iterator[list[int]]:
    """Indices of an epoch in random order; a batch has canvases of one size."""
    order = torch.randperm(len(examples), generator=generator).tolist()
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index in order:
        by_size.setdefault(tuple(examples[index].image.shape), []).append(index)
    batches = [
        indices[start : start + config.batch_size]
        for indices in by_size.values()
        for start in range(0, len(indices), config.batch_size)
    ]
    # batch normalisation learns nothing good from a single image
    batches = [batch for batch in batches if len(batch) > 1] or batches
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


def _make_batch(
    examples: Sequence[Example], config: TrainConfig, generator: torch.Generator
) -> _Batch:
    """Augment, normalise and stack."""
    images, targets = [], []
    for example in examples:
        canvas = (example.image.shape[1], example.image.shape[2])
        window = sample_window(canvas, config, generator)
        images.append(move_image(example.image, window, config.preprocess.pad_value))
        choice = int(torch.randint(len(example.targets), (1,), generator=generator))
        targets.append(move_target(example.targets[choice], window, canvas))
    pixels = change_colours(torch.stack(images) / 255, config.color_jitter, generator)
    if config.preprocess.channels == "bgr":
        pixels = pixels.flip(1)
    mean = torch.tensor(config.preprocess.mean).view(3, 1, 1)
    std = torch.tensor(config.preprocess.std).view(3, 1, 1)
    normalised = (pixels - mean) / std
    return _Batch(normalised.contiguous(memory_format=torch.channels_last), targets)


train_task = stage("train")(train)
