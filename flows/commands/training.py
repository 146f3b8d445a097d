"""train."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pixelmill.configs.load import load_train_config
from pixelmill.flows.commands.running import ExitCode, exit_code, run_flow

__all__ = ["train"]


def train(
    config: Annotated[str, Parameter(help="A training preset, or a YAML file.")],
    /,
    *,
    out: Annotated[Path, Parameter(name=("--out", "-o"), help="Folder of the weights.")] = Path(
        "runs/train"
    ),
    fresh: Annotated[
        bool, Parameter(negative="", help="Begin anew, whatever an interrupted training left.")
    ] = False,
) -> ExitCode:
    """Train one of our models on images with truth.

    Interrupted, the same command goes on where it was, to the same weights.

    Example: pixelmill train bccd, then: pixelmill score --preset bccd
    """
    chosen = load_train_config(config)
    from pixelmill.flows.training import TrainParams, train_flow

    state, summary = run_flow(train_flow, TrainParams(config=chosen, out=str(out), fresh=fresh))
    if summary is not None:
        for name, value in summary.metrics.items():
            low_high = summary.intervals.get(name)
            interval = f" [{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high else ""
            print(f"{name} {value:.4f}{interval}")
        if summary.resumed_from:
            print(f"resumed after {summary.resumed_from} steps of an interrupted run")
        print(f"weights {summary.weights}")
    return exit_code(state)
