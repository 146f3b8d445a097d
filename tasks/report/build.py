"""The report: one HTML file with everything in it."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.evaluation.context import read_sizes
from pixelmill.tasks.metrics.results import Evaluation
from pixelmill.tasks.report.backfill import read_backfill
from pixelmill.tasks.report.changes import change_view
from pixelmill.tasks.report.gallery import (
    Pick,
    build_tiles,
    choose_images,
    ranking_name,
)
from pixelmill.tasks.report.history import (
    Snapshot,
    encode_history,
    extend_history,
    history_table,
    read_history,
    take_snapshot,
)
from pixelmill.tasks.report.page import render_page
from pixelmill.tasks.report.palette import assign_colours
from pixelmill.tasks.report.references import load_references
from pixelmill.tasks.report.sections import KIND_TITLES, model_views, stage_bar, stage_rows
from pixelmill.tasks.report.summary import (
    collection_images,
    find_models,
    find_run,
    open_failures,
    summarise_run,
)
from pixelmill.tasks.result_files import replace_whole
from pixelmill.tasks.store import Store

__all__ = ["build_report", "report_files"]

_REASON_TITLES = {
    "weakest": "Weakest",
    "strongest": "Strongest",
    "random": "Random",
    "empty": "Nothing found",
    "failed": "Failed",
    "missed": "Missed",
    "background": "False positive",
    "class": "Wrong class",
    "localisation": "Badly placed",
    "class-and-localisation": "Wrong class, badly placed",
    "duplicate": "Found twice",
}


def _class_names(models: dict[str, ModelSpec], evaluation: Evaluation | None) -> Iterable[str]:
    for spec in models.values():
        yield from spec.classes
    for result in evaluation.models if evaluation else ():
        yield from (row.class_name for row in result.per_class)


def _empty_ids(store: Store, models: dict[str, ModelSpec], image_ids: pd.Series) -> frozenset[str]:
    """Images in which a detector found nothing."""
    found: set[str] = set()
    for key, spec in models.items():
        if spec.task in {"detection", "instance_segmentation"}:
            rows = store.table("images", model=key, columns=["image_id", "n_detections"])
            frame = rows.to_pandas()
            found |= set(frame.loc[frame["n_detections"] == 0, "image_id"])
    return frozenset(found.intersection(image_ids.dropna()))


def _pick_images(
    store: Store,
    collection: str,
    models: dict[str, ModelSpec],
    evaluation: Evaluation | None,
    images: pd.DataFrame,
    count: int,
) -> list[Pick]:
    failures = open_failures(store, collection, models)
    return choose_images(
        images,
        evaluation,
        failed=dict(zip(failures["path"], failures["source_uri"], strict=True)),
        empty_ids=_empty_ids(store, models, images["image_id"]),
        count=count,
    )


def _tile_orders(
    evaluation: Evaluation | None, models: Mapping[str, ModelSpec]
) -> dict[tuple[str, str, str], str]:
    """(model key, kind, value name) that the gallery can be sorted by -> title."""
    return {
        (result.model_key, result.kind, name): (
            f"{models[result.model_key].name}, {KIND_TITLES[result.kind].lower()}: {name}"
        )
        for result in (evaluation.models if evaluation else ())
        if (name := ranking_name(result)) is not None
    }


def build_report(
    store: Store,
    evaluation: Evaluation | None,
    out: Path,
    *,
    collection: str,
    run_id: str | None,
    max_gallery: int = 120,
) -> Path:
    """Write one self-contained HTML file: no network, the same bytes for the same input.

    Beside it, under the same name, its numbers with those of the runs before: `.json`, from which
    the next report tells what changed, and `.parquet`.

    Args:
        store: published tables are read, and pictures of the gallery's images.
        evaluation: None where there is no truth.
        out: the file, or a folder for `report.html`; parents are made.
        collection: name in the catalog.
        run_id: whose models and speed are told; None for the collection's newest run.
        max_gallery: images in the gallery at most.

    Returns:
        The file written.

    Raises:
        ValueError: if `max_gallery` is negative.
    """
    if max_gallery < 0:
        raise ValueError(f"max_gallery must not be negative, got {max_gallery}")
    record = find_run(store, collection, run_id)
    models = find_models(store, record, evaluation)
    summary = summarise_run(store, collection=collection, run_id=run_id, evaluation=evaluation)
    images = collection_images(store, collection)
    colours = assign_colours(_class_names(models, evaluation))
    views = list(model_views(store, models, summary, evaluation, images["image_id"], colours))
    picks = _pick_images(store, collection, models, evaluation, images, max_gallery)
    references = load_references(
        evaluation,
        [pick.path for pick in picks],
        images["path"],
        partial(read_sizes, store, collection),
    )
    tiles = build_tiles(store, picks, models, evaluation, references, colours)
    orders = _tile_orders(evaluation, models)
    path = out / "report.html" if out.is_dir() or not out.suffix else out
    earlier, complaint = _earlier(store, collection)
    history = extend_history(earlier, take_snapshot(summary, evaluation))
    stages = stage_rows(summary)
    page = render_page(
        "report.html.j2",
        colours,
        tiles=tiles,
        num_layers=len(models),
        reason_titles=_REASON_TITLES,
        orders=orders,
        summary=summary,
        changes=change_view(history, summary.run_id, KIND_TITLES, complaint),
        backfill=read_backfill(store, collection),
        evaluation=evaluation,
        views=views,
        absent_truth=references.absent,
        stage_bar=stage_bar(stages),
        stages=stages,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path.with_suffix(".json"), encode_history(collection, history).encode())
    replace_whole(path.with_suffix(".parquet"), history_table(history))
    replace_whole(path, page)
    return path


def report_files(report: Path) -> tuple[Path, ...]:
    """The report and its numbers, which `build_report` wrote."""
    return report, report.with_suffix(".json"), report.with_suffix(".parquet")


def _earlier(store: Store, collection: str) -> tuple[tuple[Snapshot, ...], str]:
    """The numbers of earlier reports, and why there are none if they cannot be read."""
    try:
        return read_history(store, collection), ""
    except ValueError as err:  # a night's report must not fail for what is only beside it
        return (), str(err)
