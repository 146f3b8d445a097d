"""Training of the models of our own: a network, a split, a record of what was done."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pixelmill.configs.schema import TrainConfig
from pixelmill.models.checkpoint import CheckpointMeta
from pixelmill.models.spec import Arguments
from pixelmill.models.zoo import ARCHITECTURES
from pixelmill.tasks.datasets import Dataset, load_dataset
from pixelmill.tasks.holdout import measure_held_out
from pixelmill.tasks.stage import stage
from pixelmill.tasks.training.fit import EpochReport, Job, fit
from pixelmill.tasks.training.record import draw_curves, model_card

__all__ = ["EpochReport", "TrainSummary", "train", "train_task"]


@dataclass(frozen=True, slots=True)
class TrainSummary:
    """What a training made.

    Attributes:
        weights: the checkpoint.
        held_out: text file with the names of the images that were not trained on, a line each,
            relative to `images`.
        images: folder of the training data.
        losses: of the last epoch, by term.
        metrics: on the held-out images, by name; empty if there are none.
        intervals: 95 % intervals of the metrics that have one.
        best_epoch: whose weights were kept; None: those of the last step.
        resumed_from: steps that an earlier, interrupted run had done; 0: none.
        seconds: of this run; training_seconds: of all epochs, interrupted runs included.
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
    intervals: Mapping[str, tuple[float, float]]
    best_epoch: int | None
    resumed_from: int
    seconds: float
    training_seconds: float


def train(
    config: TrainConfig,
    out: Path,
    base: Path,
    *,
    on_epoch: Callable[[EpochReport], None] | None = None,
    fresh: bool = False,
) -> TrainSummary:
    """Train a model, check it on the images kept apart, and write it.

    Writes `<out>/<name>.safetensors` and beside it `<name>.val.txt` (names kept apart),
    `<name>.json` (the summary), `<name>.curve.jsonl` and `<name>.html` (the curves) and
    `<name>.md` (the model card). The same config on the same machine and number of threads gives
    the same weights, also if it was interrupted: it goes on from `<name>.state`, which is removed
    at the end.

    Args:
        config: what is trained, and on what.
        out: folder of the results.
        base: folder that relative paths of the config start from; scenes are rendered below it.
        on_epoch: told of each finished epoch; with several devices it must be a function of a
            module, because another process calls it.
        fresh: begin anew, whatever an interrupted training left.

    Raises:
        ValueError: the architecture is not ours or not for this task, the data cannot be used, or
            an interrupted training of another config lies there.
        FileNotFoundError: data or initial weights are not there.
    """
    started = time.perf_counter()
    _check_architecture(config)
    dataset = load_dataset(config, base)
    metadata = CheckpointMeta(
        name=config.name,
        task=config.task,
        architecture=config.architecture,
        arguments=_arguments(config, dataset),
        classes=dataset.classes,
        vocabulary=dataset.vocabulary,
        preprocess=config.preprocess,
        training=_provenance(config, dataset),
    )
    out.mkdir(parents=True, exist_ok=True)
    job = Job(config, dataset, metadata, out / f"{config.name}.safetensors", base, on_epoch)
    if fresh:
        job.state.unlink(missing_ok=True)
    result = fit(job)
    metrics = measure_held_out(job.weights, dataset.source, dataset.held_out)
    held_out = out / f"{config.name}.val.txt"
    held_out.write_text("".join(f"{name}\n" for name in dataset.held_out), encoding="utf-8")
    summary = TrainSummary(
        name=config.name,
        weights=job.weights,
        held_out=held_out,
        images=dataset.source.images,
        num_parameters=result.num_parameters,
        num_trained=len(dataset.names),
        num_held_out=len(dataset.held_out),
        losses=result.epochs[-1].losses,
        metrics={each.name: each.value for each in metrics},
        intervals={each.name: each.interval for each in metrics if each.interval is not None},
        best_epoch=result.best_epoch,
        resumed_from=result.resumed_from,
        seconds=time.perf_counter() - started,
        training_seconds=sum(report.seconds for report in result.epochs),
    )
    document = json.dumps(asdict(summary), indent=2, default=str)
    (out / f"{config.name}.json").write_text(document + "\n", encoding="utf-8")
    page = draw_curves(config.name, result.epochs)
    (out / f"{config.name}.html").write_text(page, encoding="utf-8")
    card = model_card(config, dataset, result, metrics)
    (out / f"{config.name}.md").write_text(card, encoding="utf-8")
    # Last: until here the training can be gone on with
    job.state.unlink(missing_ok=True)
    return summary


def _check_architecture(config: TrainConfig) -> None:
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
        "num_images": len(dataset.names),
    }


train_task = stage("train")(train)
