"""profile."""

from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pixelmill.flows.commands.options import (
    WHAT,
    WHERE,
    Folder,
    Models,
    UsageError,
    choose_config,
)
from pixelmill.flows.commands.running import ExitCode, console
from pixelmill.flows.commands.scoring import score_params

if TYPE_CHECKING:
    from rich.table import Table

    from pixelmill.tasks.profile import Limits, Profile

__all__ = ["profile"]

_MODELS = Models()


def profile(
    folder: Folder = None,
    /,
    *,
    models: Models = _MODELS,
    images: Annotated[int, Parameter(help="Sample's size, at most.", group=WHAT)] = 64,
    seconds: Annotated[
        float, Parameter(help="Scored for about as long; fewer images if slow.", group=WHAT)
    ] = 20.0,
    device: Annotated[
        str | None,
        Parameter(help="cpu, cuda or cuda:<n>; else a GPU if there is one.", group=WHERE),
    ] = None,
) -> ExitCode:
    """Score a short sample, and say what bounds the throughput.

    Example: pixelmill profile photos --preset coco --images 32

    One worker's stages, what decoding and forward pass could do alone,
    and the one thing to change. Nothing of it is kept.
    """
    if images < 1 or seconds <= 0:
        raise UsageError(f"--images and --seconds must be positive, got {images} and {seconds:g}")
    chosen = choose_config(folder, models)
    from pixelmill.flows.job import prepare_job
    from pixelmill.tasks.profile import profile_sample

    with TemporaryDirectory(prefix="pixelmill-profile-") as root:
        job = prepare_job(score_params(source=folder, store=root, config=chosen, report=False))
        found = profile_sample(
            job.source,
            job.specs,
            job.config,
            root,
            num_images=images,
            max_seconds=seconds,
            device=device,
        )
    screen = console()
    screen.print(_headline(found), highlight=False, soft_wrap=True)
    screen.print(_stage_table(found))
    screen.print(_limit_table(found.limits, found.images_per_s))
    screen.print(found.bottleneck, highlight=False, soft_wrap=True)
    return ExitCode.COMPLETE


def _headline(found: "Profile") -> str:
    memory = int(found.stats.get("peak_rss_bytes", 0)) / 2**20
    return (
        f"{found.num_images} images in {found.wall_s:.2f} s by one worker ({found.device}): "
        f"{found.images_per_s:.1f} images/s, {memory:.0f} MB at the peak"
    )


def _stage_table(found: "Profile") -> "Table":
    table = _table("stage", "busy, s", "ms/image", "of the time", "waiting, s", "threads")
    for line in found.stages:
        if line.name == "load":
            continue  # once for each worker; not of the sample's time
        table.add_row(
            line.name,
            f"{line.busy_s:.3f}",
            f"{1e3 * line.busy_s / found.num_images:.2f}",
            f"{line.busy_s / found.wall_s / line.threads:.0%}",
            f"{line.wait_s:.3f}" if line.wait_s else "",
            f"{line.threads}",
        )
        for key, seconds in line.models.items() if len(line.models) > 1 else ():
            table.add_row(
                f"  {key}, with read_out",
                f"{seconds:.3f}",
                f"{1e3 * seconds / found.num_images:.2f}",
                "",
                "",
                "",
            )
    return table


def _limit_table(limits: "Limits", images_per_s: float) -> "Table":
    table = _table("limit of one worker", "images/s", "reached")
    rows = [("raw decode", limits.decode)]
    rows += [(f"pure forward of {key}", rate) for key, rate in limits.forward.items()]
    rows.append(("bound: decode + transform + forward + post", limits.bound))
    for name, rate in rows:
        table.add_row(name, f"{rate:.1f}", f"{images_per_s / rate:.0%}")
    return table


def _table(first: str, *numbers: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
