"""The flow `train`: fit one of our models to images with truth."""

import sys
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict, Field

from pixelmill.configs.load import load_train_config
from pixelmill.configs.schema import TrainConfig
from pixelmill.tasks.train import EpochReport, TrainSummary, train_task

__all__ = ["TrainParams", "train_flow", "train_model"]


class TrainParams(BaseModel):
    """Parameters of the flow `train`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: TrainConfig | str = Field(description="a preset's name, a YAML file, or the whole")
    out: str = Field(default="runs/train", description="folder of the weights")
    fresh: bool = Field(
        default=False, description="begin anew instead of going on with an interrupted training"
    )


def train_model(params: TrainParams) -> TrainSummary:
    """Train a model, check it on the images kept apart, and write its weights."""
    config = params.config
    config = config if isinstance(config, TrainConfig) else load_train_config(config)
    summary = train_task(config, Path(params.out), Path.cwd(), on_epoch=_tell, fresh=params.fresh)
    card = summary.weights.with_suffix(".md").read_text(encoding="utf-8")
    create_markdown_artifact(card, key="training", description="model card")
    return summary


train_flow = flow(name="train", flow_run_name="train-{params.config}", persist_result=False)(
    train_model
)


def _tell(epoch: EpochReport) -> None:
    losses = ", ".join(f"{name} {value:.3f}" for name, value in epoch.losses.items())
    metrics = "".join(f", {name} {value:.3f}" for name, value in epoch.metrics.items())
    place = f"epoch {epoch.epoch} of {epoch.num_epochs}"
    print(f"{place}: {losses}{metrics} ({epoch.seconds:.0f} s)", file=sys.stderr, flush=True)
