"""review, review import."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pixelmill.flows.commands.options import AsJson, Collection, StoreRoot, UsageError
from pixelmill.flows.commands.running import ExitCode, console
from pixelmill.tasks.handoff.tools import ExportFormat

__all__ = ["review", "review_import"]


def review(
    store: StoreRoot = "pixelmill-store",
    /,
    *,
    collection: Collection = None,
    model: Annotated[
        tuple[str, ...], Parameter(help="Only these models' keys; else all.", negative=())
    ] = (),
    threshold: Annotated[float, Parameter(help="Score at which boxes count as real.")] = 0.5,
    margin: Annotated[float, Parameter(help="So near to it is uncertain.")] = 0.1,
    limit: Annotated[int, Parameter(help="Images in the queue.")] = 500,
    format: Annotated[
        ExportFormat | None,
        Parameter(help="Also pre-labels of the queue, by the first --model."),
    ] = None,
    out: Annotated[
        Path | None, Parameter(name=("--out", "-o"), help="Folder of the files; else in the store.")
    ] = None,
    json: AsJson = False,
) -> ExitCode:
    """List the images that people should look at, the most telling first.

    Example: pixelmill review results --limit 200 --format label-studio --out to-check

    Images that failed, whose file changed, with scores near the threshold,
    and of which two models (or two versions of one) say different things.
    """
    if limit < 1 or not 0 <= threshold <= 1 or margin < 0:
        raise UsageError("--limit must be at least 1, --threshold in [0, 1], --margin not negative")
    from pixelmill.flows.evaluation import find_last_run
    from pixelmill.flows.printing import print_review
    from pixelmill.flows.results import keep_results, results_folder
    from pixelmill.tasks.handoff.formats import export_scenes
    from pixelmill.tasks.handoff.review import build_queue, save_queue
    from pixelmill.tasks.handoff.scenes import choose_model, read_scenes
    from pixelmill.tasks.store import Store

    opened = Store(store)
    name = find_last_run(opened, collection).collection
    keys = tuple(choose_model(opened, each).key for each in model)
    found = build_queue(
        opened, collection=name, models=keys, threshold=threshold, margin=margin, limit=limit
    )
    folder = out or results_folder(opened, name)
    paths = save_queue(found, folder)
    if format is not None:
        spec = choose_model(opened, keys[0] if keys else None)
        only = frozenset(item.image_id for item in found.items if item.image_id)
        scenes = read_scenes(opened, spec, collection=name, only=only)
        info = {"store": opened.root, "model": spec.key}
        paths += export_scenes(scenes, spec, format, folder, info=info).paths
    if out is None:
        keep_results(opened, name, [path for path in paths if path.is_file()])
    if json:
        print(paths[0].read_text(encoding="utf-8"))
    else:
        print_review(console(), found)
        for path in paths:
            console().print(str(path), highlight=False, markup=False, soft_wrap=True)
    return ExitCode.COMPLETE


def review_import(
    file: Annotated[Path, Parameter(help="Label Studio JSON, CVAT XML, or COCO JSON.")],
    /,
    *,
    truth: Annotated[Path, Parameter(help="COCO JSON that they go into; made if not there.")],
) -> ExitCode:
    """Put what people corrected into a truth file.

    Example: pixelmill review import project-7.json --truth annotations/instances.json

    Of an image that was looked at, the truth is what the file says; all
    other images stay. Each says where it is from. Twice is as good as once.
    """
    if not file.is_file():
        raise UsageError(f"no such file: {file}")
    from pixelmill.tasks.handoff.corrections import merge_corrections, read_corrections

    tool, found = read_corrections(file)
    done = merge_corrections(truth, tool, found, source=file)
    print(
        f"{len(found):,} images from {tool}: {done.num_new:,} new, {done.num_changed:,} changed, "
        f"{done.num_same:,} the same"
    )
    return ExitCode.COMPLETE
