"""export."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pixelmill.flows.commands.options import Collection, StoreRoot, UsageError
from pixelmill.flows.commands.running import ExitCode
from pixelmill.tasks.handoff.tools import ExportFormat

__all__ = ["export"]


def export(
    store: StoreRoot = "pixelmill-store",
    /,
    *,
    format: Annotated[ExportFormat, Parameter(help="Of which tool.")],
    out: Annotated[Path, Parameter(name=("--out", "-o"), help="Folder of the files.")],
    model: Annotated[str | None, Parameter(help="Key or name; the only one if left out.")] = None,
    collection: Collection = None,
    min_score: Annotated[float, Parameter(help="Leave lower scores out.")] = 0.0,
    where: Annotated[
        tuple[str, ...],
        Parameter(help="Only images with COLUMN=VALUE, or != < <= > >= ~.", negative=()),
    ] = (),
    masks: Annotated[bool, Parameter(help="Masks too, where there are any.")] = True,
    truth: Annotated[
        Path | None, Parameter(help="COCO JSON whose ids coco-results takes over.")
    ] = None,
) -> ExitCode:
    """Write predictions for another tool.

    Example: pixelmill export results --format coco-results --out coco --min-score 0.05
    Example: pixelmill export results --format label-studio --out tasks --where "path~night/*"
    """
    if not 0 <= min_score <= 1:
        raise UsageError(f"--min-score must lie between 0 and 1, got {min_score}")
    from pixelmill.tasks.handoff.formats import export_scenes
    from pixelmill.tasks.handoff.scenes import choose_model, parse_condition, read_scenes
    from pixelmill.tasks.store import Store

    conditions = tuple(parse_condition(text) for text in where)
    opened = Store(store)
    spec = choose_model(opened, model)
    scenes = read_scenes(
        opened, spec, collection=collection, min_score=min_score, where=conditions,
        with_masks=masks,
    )  # fmt: skip
    info = {"store": opened.root, "model": spec.key, "min_score": str(min_score)}
    done = export_scenes(scenes, spec, format, out, truth=truth, info=info)
    print(f"{done.num_images:,} images, {done.num_things:,} predictions of {spec.key}")
    for reason, number in done.skipped.items():
        print(f"left out: {number:,} {reason}")
    for path in done.paths:
        print(path)
    return ExitCode.COMPLETE
