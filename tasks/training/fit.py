"""The training loop, on Lightning Fabric: any number of devices, interrupted and resumed.

After every epoch, and every ten minutes within one, all that is needed to go on is written whole
or not at all: weights, optimiser, schedule, averaged weights, the best weights so far and the
curve. Random numbers need no saving: every step seeds them from the config's seed, the epoch, the
step and the device. A training that was killed at any moment therefore ends with the very weights
that it would have ended with.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pixelmill.configs.schema import TrainConfig
from pixelmill.models.build import EMBEDDED, locate_weights
from pixelmill.models.checkpoint import CheckpointMeta, load_matching, load_state, save_checkpoint
from pixelmill.models.losses import balanced_weights, weighted_sum
from pixelmill.models.targets import Target
from pixelmill.models.zoo import ARCHITECTURES, Loss
from pixelmill.tasks.datasets import Dataset, class_frequencies
from pixelmill.tasks.holdout import check_held_out
from pixelmill.tasks.training.batches import Batch, Batches, mix_seed, normalise
from pixelmill.tasks.training.optimise import (
    average_of,
    make_optimizer,
    make_scheduler,
    measure_statistics,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["EpochReport", "Fit", "Job", "fit", "read_curve"]

T = TypeVar("T")

# Seconds between savings within an epoch, looked at every so many steps
SAVE_EVERY_S = 600.0
_LOOK_EVERY = 25
# Batch norm's statistics are of about so many
_IMAGES_MEASURED = 256

# The first number that `evaluate` reports of each task
_MAIN = {
    "classification": "top-1",
    "detection": "box AP",
    "instance_segmentation": "mask AP",
    "semantic_segmentation": "mIoU",
    "captioning": "CIDEr-D",
}


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What is known after an epoch.

    Attributes:
        epoch: from 1.
        losses: mean of each term over the epoch, by name.
        learning_rate: of its last step.
        metrics: of the averaged weights on the images kept apart; empty where not computed.
        seconds: that the epoch took.
    """

    epoch: int
    num_epochs: int
    losses: Mapping[str, float]
    learning_rate: float
    metrics: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Job:
    """All that a training process is told; it can be pickled.

    Attributes:
        weights: file that the trained weights go to.
        metadata: goes into its header.
        base: folder that relative paths of the config start from.
        on_epoch: told of each finished epoch, in the process of the first device.
    """

    config: TrainConfig
    dataset: Dataset
    metadata: CheckpointMeta
    weights: Path
    base: Path
    on_epoch: Callable[[EpochReport], None] | None = None

    @property
    def state(self) -> Path:
        """File that an interrupted training goes on from."""
        return self.weights.with_suffix(".state")

    @property
    def curve(self) -> Path:
        """JSON lines, one for each epoch."""
        return self.weights.with_suffix(".curve.jsonl")

    def digest(self) -> str:
        """Of all that decides the weights, so that only the same training is resumed."""
        # How many processes read, and where the data lies, changes nothing
        config = self.config.model_dump(
            mode="json", exclude={"workers", "images", "truth", "split", "init", "data_licence"}
        )
        known = {
            "config": config,
            "arguments": dict(self.metadata.arguments),
            "names": self.dataset.names,
            "held_out": self.dataset.held_out,
            "classes": self.dataset.classes,
            "vocabulary": self.dataset.vocabulary,
        }
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Fit:
    """What a training came to.

    Attributes:
        epochs: reports of all epochs, those before an interruption included.
        best_epoch: whose weights were kept; None: those of the last step.
        resumed_from: steps that an earlier, interrupted run had done.
        device: in words.
    """

    epochs: tuple[EpochReport, ...]
    best_epoch: int | None
    resumed_from: int
    num_parameters: int
    device: str


@dataclass(slots=True)
class _Progress:
    """Where a training stands.

    Attributes:
        epoch: that the next step belongs to, from 1.
        step: of that epoch, from 0.
        totals: sum of each loss term over the epoch's steps so far.
        seconds: spent on the epoch so far.
        best: score, epoch and weights of the best checking.
        waited: checkings since.
    """

    epoch: int
    step: int
    totals: dict[str, float]
    seconds: float
    history: list[dict[str, Any]]
    best: tuple[float, int, dict[str, Tensor]] | None
    waited: int
    is_stopped: bool = False


class _Sealed(Generic[T]):
    """Something that Fabric leaves alone: it would rebuild lists and dataclasses, or refuse to."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


class _Learner(nn.Module):
    """A network with its loss: what is wrapped for several devices."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, images: Tensor, truth: _Sealed[list[Target]]) -> dict[str, Tensor]:
        """(B, 3, H, W) normalised float -> scalar terms of the loss."""
        return dict(self.loss(self.network, self.network(images), truth.value))


def fit(job: Job) -> Fit:
    """Train, or go on with a training that was interrupted, and write the weights.

    Raises:
        ValueError: an interrupted training of another config lies there, or `best_by` is no metric
            of the task.
        FloatingPointError: the loss is not finite.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    config = job.config
    several = config.devices > 1
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=config.devices,
        # spawn: the processes start from this module, not from the program that called it.
        # Unused: a batch without objects reaches no mask head.
        strategy=DDPStrategy(start_method="spawn", find_unused_parameters=True)
        if several
        else "auto",
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
    )
    result: _Sealed[Fit] = fabric.launch(partial(_fit, job=job))
    return result.value


def read_curve(path: Path) -> tuple[EpochReport, ...]:
    """The epochs that `fit` wrote down."""
    return tuple(EpochReport(**json.loads(line)) for line in path.read_text("utf-8").splitlines())


@dataclass(slots=True)
class _Loop:
    """A training that is under way on one device.

    Attributes:
        network: that is trained, as it was built.
        learner: the same with its loss, as Fabric wrapped it.
        saved: when its state was last written, monotonic seconds.
    """

    fabric: "Fabric"
    job: Job
    network: nn.Module
    loss: Loss
    learner: Any
    optimizer: Any
    scheduler: torch.optim.lr_scheduler.LambdaLR
    average: AveragedModel
    batches: Batches
    progress: _Progress
    saved: float

    def objects(self) -> dict[str, Any]:
        """What is saved of them, and restored in place."""
        return {
            "learner": self.learner,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "average": self.average,
        }


def _fit(fabric: "Fabric", job: Job) -> _Sealed[Fit]:
    if job.config.devices > 1 and fabric.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // job.config.devices))
    loop = _prepare(fabric, job)
    if job.state.is_file():
        loop.progress = _resume(loop)
    resumed_from = (loop.progress.epoch - 1) * len(loop.batches) + loop.progress.step
    while loop.progress.epoch <= job.config.epochs and not loop.progress.is_stopped:
        _run_epoch(loop)
        _end_epoch(loop)
        _save(loop)
    return _Sealed(_finish(loop, resumed_from))


def _prepare(fabric: "Fabric", job: Job) -> _Loop:
    config = job.config
    torch.manual_seed(config.seed)
    architecture = ARCHITECTURES[config.architecture]
    assert architecture.loss is not None  # whoever made the job has seen to it
    network = architecture.build(**job.metadata.arguments)
    if config.init is not None:
        _start_from(network, config, job.base)
    network = network.to(memory_format=torch.channels_last).train()
    loss = _configured(architecture.loss, config, job.dataset)
    batches = Batches(job.dataset, config, fabric.global_rank)
    if not len(batches):
        raise ValueError(
            f"{config.name}: {len(job.dataset.names)} training images are too few for "
            f"{config.devices} devices; each needs one in every batch"
        )
    average = average_of(network, config.average_steps).to(fabric.device)
    bare = make_optimizer(network, config)
    learner, optimizer = fabric.setup(_Learner(network, loss), bare)
    return _Loop(
        fabric,
        job,
        network,
        loss,
        learner,
        optimizer,
        make_scheduler(bare, config, config.epochs * len(batches)),
        average,
        batches,
        _Progress(1, 0, {}, 0.0, [], None, 0),
        saved=time.monotonic(),
    )


def _run_epoch(loop: _Loop) -> None:
    """The steps of an epoch that are left to do."""
    fabric, config, progress = loop.fabric, loop.job.config, loop.progress
    started = time.monotonic() - progress.seconds
    for batch in loop.batches.epoch(progress.epoch, progress.step):
        rank = fabric.global_rank
        torch.manual_seed(mix_seed(config.seed, progress.epoch, progress.step, 2, rank))
        _step(loop, batch)
        progress.step += 1
        progress.seconds = time.monotonic() - started
        is_time_to_look = progress.step % _LOOK_EVERY == 0 and progress.step < len(loop.batches)
        # the first device's clock decides for all
        if is_time_to_look and fabric.broadcast(time.monotonic() - loop.saved > SAVE_EVERY_S):
            _save(loop)


def _configured(loss: Loss, config: TrainConfig, dataset: Dataset) -> Loss:
    """The loss with what the config says of semantic classes and pixels."""
    changes: dict[str, Any] = {}
    if config.class_weights == "balanced":
        frequencies = torch.from_numpy(class_frequencies(dataset))
        changes["class_weights"] = balanced_weights(frequencies)
    elif config.class_weights is not None:
        if unknown := sorted(set(config.class_weights) - set(dataset.classes)):
            raise ValueError(
                f"class_weights names {', '.join(unknown)}; the classes are "
                f"{', '.join(dataset.classes)}"
            )
        weights = [config.class_weights.get(name, 1.0) for name in dataset.classes]
        changes["class_weights"] = torch.tensor(weights)
    if config.hard_pixels is not None:
        changes["hard_share"] = config.hard_pixels
    return partial(loss, **changes) if changes else loss


def _start_from(module: nn.Module, config: TrainConfig, base: Path) -> None:
    name = str(config.init)
    path = locate_weights(name if name.startswith(EMBEDDED) else str(base / name))
    if load_matching(module, load_state(path)) == 0:
        raise ValueError(f"{config.name}: no tensor of {name!r} fits {config.architecture}")


def _placed(
    batch: Batch, config: TrainConfig, device: torch.device
) -> tuple[Tensor, _Sealed[list[Target]]]:
    """What a learner is called with."""
    images = normalise(batch.images.to(device), config)
    return images, _Sealed([_to_device(each, device) for each in batch.targets])


def _to_device(target: Target, device: torch.device) -> Target:
    moved: dict[str, Any] = {
        field.name: value.to(device)
        for field in fields(target)
        if isinstance(value := getattr(target, field.name), Tensor)
    }
    return replace(target, **moved)


def _step(loop: _Loop, batch: Batch) -> None:
    """One step down.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    fabric, config, totals = loop.fabric, loop.job.config, loop.progress.totals
    terms: dict[str, Tensor] = loop.learner(*_placed(batch, config, fabric.device))
    loss = weighted_sum(terms, config.loss_weights)
    values = {name: float(term.detach()) for name, term in terms.items()}
    if not torch.isfinite(loss):
        raise FloatingPointError(f"{config.name}: the loss is {values}; lower learning_rate")
    loop.optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    fabric.clip_gradients(
        loop.learner, loop.optimizer, max_norm=config.max_norm, error_if_nonfinite=False
    )
    loop.optimizer.step()
    loop.scheduler.step()
    loop.average.update_parameters(loop.network)
    for name, value in values.items():
        totals[name] = totals.get(name, 0.0) + value


def _end_epoch(loop: _Loop) -> None:
    """Check the averaged weights where it is time, and write the curve on."""
    fabric, job, progress = loop.fabric, loop.job, loop.progress
    config = job.config
    means = {
        name: fabric.all_reduce(torch.tensor(total / progress.step), reduce_op="mean")
        for name, total in sorted(progress.totals.items())
    }
    is_last = progress.epoch == config.epochs
    is_checked = config.check_every and (progress.epoch % config.check_every == 0 or is_last)
    if is_checked or is_last:
        measure_statistics(loop.average.module, lambda: _show_batches(loop))
    metrics = _check(loop) if is_checked else {}
    if metrics:
        _compare(progress, _score(metrics, config), loop.average.module, config.patience)
    report = EpochReport(
        epoch=progress.epoch,
        num_epochs=config.epochs,
        losses={name: float(mean) for name, mean in means.items()},  # type: ignore[arg-type]
        learning_rate=float(loop.scheduler.get_last_lr()[0]),
        metrics=metrics,
        seconds=progress.seconds,
    )
    progress.history.append(asdict(report))
    progress.epoch += 1
    progress.step, progress.totals, progress.seconds = 0, {}, 0.0
    if fabric.is_global_zero:
        lines = "".join(json.dumps(each) + "\n" for each in progress.history)
        _write_whole(job.curve, lines.encode())
        if job.on_epoch is not None:
            job.on_epoch(report)


def _show_batches(loop: _Loop) -> None:
    """The averaged weights see some of the epoch's batches, as training shows them."""
    config, device = loop.job.config, loop.fabric.device
    torch.manual_seed(mix_seed(config.seed, loop.progress.epoch, 0, 3, loop.fabric.global_rank))
    learner = _Learner(loop.average.module, loop.loss)
    count = -(-_IMAGES_MEASURED // config.batch_size)
    for batch in islice(loop.batches.epoch(loop.progress.epoch), count):
        learner(*_placed(batch, config, device))


def _compare(progress: _Progress, score: float, network: nn.Module, patience: int | None) -> None:
    """Keep the weights if they are the best so far; of equals the later, which learnt longer."""
    is_better = progress.best is None or score > progress.best[0]
    if progress.best is None or score >= progress.best[0]:
        kept = {key: each.detach().cpu().clone() for key, each in network.state_dict().items()}
        progress.best = (score, progress.epoch, kept)
    progress.waited = 0 if is_better else progress.waited + 1
    progress.is_stopped = progress.waited == patience


def _check(loop: _Loop) -> dict[str, float]:
    """The numbers of the images kept apart, by the path that scoring takes."""
    job = loop.job
    metrics: dict[str, float] = {}
    if loop.fabric.is_global_zero:
        trial = job.weights.with_suffix(".check.safetensors")
        save_checkpoint(trial, loop.average.module, job.metadata)
        metrics = check_held_out(trial, job.dataset.source, job.dataset.held_out)
        trial.unlink()
    found: dict[str, float] = loop.fabric.broadcast(metrics)
    return found


def _score(metrics: Mapping[str, float], config: TrainConfig) -> float:
    name = config.best_by or _MAIN[config.task]
    if name not in metrics:
        raise ValueError(f"best_by must be one of {', '.join(metrics)}, got {name!r}")
    return metrics[name]


def _save(loop: _Loop) -> None:
    """Whole or not at all; a kill leaves what was there before."""
    job = loop.job
    partly = job.state.with_name(job.state.name + ".partial")
    known = {each.name: getattr(loop.progress, each.name) for each in fields(loop.progress)}
    loop.fabric.save(partly, {**loop.objects(), "digest": job.digest(), "progress": known})
    if loop.fabric.is_global_zero:
        with partly.open("rb") as file:
            os.fsync(file.fileno())
        partly.replace(job.state)
    loop.fabric.barrier()
    loop.saved = time.monotonic()


def _resume(loop: _Loop) -> _Progress:
    job = loop.job
    digest = torch.load(job.state, map_location="cpu", weights_only=True)["digest"]
    if digest != job.digest():
        raise ValueError(
            f"{str(job.state)!r} is of an interrupted training with another config or other "
            "images. Train with what it was begun with to go on, name another --out, or begin "
            "anew with --fresh"
        )
    rest = loop.fabric.load(job.state, loop.objects(), weights_only=True)
    return _Progress(**rest["progress"])


def _finish(loop: _Loop, resumed_from: int) -> Fit:
    """Write the weights that are kept."""
    fabric, job, progress, network = loop.fabric, loop.job, loop.progress, loop.average.module
    best_epoch = None
    if job.config.keep == "best" and progress.best is not None:
        _, best_epoch, kept = progress.best
        network.load_state_dict(kept)
    if fabric.is_global_zero:
        save_checkpoint(job.weights, network, job.metadata)
    fabric.barrier()
    epochs = tuple(EpochReport(**each) for each in progress.history)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    return Fit(epochs, best_epoch, resumed_from, num_parameters, _device_name(fabric))


def _device_name(fabric: "Fabric") -> str:
    if fabric.device.type == "cuda":
        return f"{fabric.world_size} x {torch.cuda.get_device_name(fabric.device)}"
    return f"CPU, {fabric.world_size} x {torch.get_num_threads()} threads"


def _write_whole(path: Path, data: bytes) -> None:
    partly = path.with_name(path.name + ".partial")
    partly.write_bytes(data)
    partly.replace(path)
