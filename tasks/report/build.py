"""The report: one HTML file with everything in it."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.display import printable
from pixelmill.tasks.metrics.results import Evaluation
from pixelmill.tasks.report.backfill import read_backfill
from pixelmill.tasks.report.changes import change_view
from pixelmill.tasks.report.formats import (
    content_digest,
    format_bytes,
    format_count,
    format_interval,
    format_moment,
    format_percent,
    format_seconds,
    format_share,
    format_value,
)
from pixelmill.tasks.report.gallery import (
    Pick,
    Tile,
    build_tiles,
    choose_images,
    mistake_reason,
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
from pixelmill.tasks.report.layers import Box, Chip, Layer, Region
from pixelmill.tasks.report.palette import ClassColours, assign_colours, colour_css
from pixelmill.tasks.report.references import load_references
from pixelmill.tasks.report.sections import KIND_TITLES, model_views, stage_bar, stage_rows
from pixelmill.tasks.report.summary import (
    collection_images,
    find_models,
    find_run,
    open_failures,
    summarise_run,
)
from pixelmill.tasks.store import Store

__all__ = ["build_report", "report_files"]

_FOLDER = Path(__file__).parent
_STYLES = ("theme.css", "report.css", "overlays.css")
# boxes below it are hidden until the reader moves the slider
_SHOWN_SCORE = 0.3
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


def _tile_css(tiles: Sequence[Tile], num_models: int) -> str:
    """Rules that would otherwise be style attributes, which the page's own policy forbids."""
    ratios = sorted({_aspect_class(tile) for tile in tiles})
    rules = [f".{css}{{--ratio:{int(css[1:]) / 1000:g}}}" for css in ratios]
    rules += [f".hide-m{n} .m{n}{{display:none}}" for n in range(num_models)]
    return "\n".join(rules)


def _aspect_class(tile: Tile) -> str:
    """CSS class that sets `--ratio`, width over height in thousandths."""
    ratio = tile.width / tile.height if tile.width and tile.height else 4 / 3
    return f"r{round(1000 * ratio)}"


def _class_scores(layer: Layer) -> str:
    """`number:score` of each class shown, the best score each, for the filters."""
    best: dict[int, float] = {}
    scored: tuple[Box | Chip, ...] = (*layer.boxes, *layer.labels)
    for shown in scored:
        best[shown.class_number] = max(shown.score, best.get(shown.class_number, 0.0))
    best |= {region.class_number: 1.0 for region in layer.regions}
    return " ".join(f"{number}:{score:.4f}" for number, score in sorted(best.items()))


def _describe(tile: Tile) -> str:
    """Alternative text of a tile's picture: what the models say of it."""
    parts = [tile.path]
    for layer in tile.layers:
        counts = Counter(box.class_name for box in layer.boxes if box.score >= _SHOWN_SCORE)
        said = [f"{count} {name}" for name, count in counts.most_common()]
        said += [
            f"{region.class_name} {format_share(region.share)}" for region in layer.regions[:5]
        ]
        said += [f"{label.class_name} {label.score:.2f}" for label in layer.labels[:1]]
        said += [f"“{caption}”" for caption in layer.captions]
        parts.append(f"{layer.model_key}: {', '.join(said) or 'nothing'}")
    return ". ".join(parts)


def _layer_titles(tiles: Sequence[Tile]) -> dict[str, str]:
    """CSS class -> title of the kinds of overlay that the gallery has."""
    layers = [layer for tile in tiles for layer in tile.layers]
    kinds = (
        ("boxes", "Boxes", any(layer.boxes for layer in layers)),
        ("masks", "Masks", any(layer.outline_size for layer in layers)),
        ("regions", "Regions", any(layer.regions_uri for layer in layers)),
        ("captions", "Captions", any(layer.captions for layer in layers)),
        ("labels", "Labels", any(layer.labels for layer in layers)),
        ("mistakes", "Mistakes", any(tile.marks for tile in tiles)),
        ("truth", "Truth", any(tile.true_boxes or tile.true_captions for tile in tiles)),
    )
    return {css: title for css, title, there in kinds if there}


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


def _environment(
    colours: ClassColours, orders: Mapping[tuple[str, str, str], str]
) -> jinja2.Environment:
    def sort_values(tile: Tile) -> list[tuple[str, str]]:
        by_key = {
            (found.model_key, str(found.kind), name): value
            for found in tile.numbers
            for name, value in found.values.items()
        }
        return [
            (f"v{number}", f"{by_key[key]:.6g}")
            for number, key in enumerate(orders)
            if math.isfinite(by_key.get(key, math.nan))
        ]

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        finalize=_tame,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "aspect": _aspect_class,
        "bytes": format_bytes,
        "class_scores": _class_scores,
        "colour": colours.css,
        "count": format_count,
        "describe": _describe,
        "moment": format_moment,
        "percent": format_percent,
        "seconds": format_seconds,
        "share": format_share,
        "sort_values": sort_values,
        "value": format_value,
        "interval": format_interval,
    }
    environment.globals |= {
        "kind_titles": KIND_TITLES,
        "orders": [(f"v{number}", title) for number, title in enumerate(orders.values())],
        "reason_titles": _REASON_TITLES,
        "threshold": _SHOWN_SCORE,
        "mistake_reason": mistake_reason,
    }
    return environment


def _tame(value: object) -> object:
    """Names of others without control characters, of which markup escaping lets all pass."""
    return printable(value, keep="\n\t") if type(value) is str else value


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
    references = load_references(evaluation, [pick.path for pick in picks], images["path"])
    tiles = build_tiles(store, picks, models, evaluation, references, colours)
    orders = _tile_orders(evaluation, models)
    path = out / "report.html" if out.is_dir() or not out.suffix else out
    earlier, complaint = _earlier(store, collection)
    history = extend_history(earlier, take_snapshot(summary, evaluation))
    stages = stage_rows(summary)
    # exactly what stands between the tags, or the policy refuses it
    style = "\n".join(
        (
            *((_FOLDER / name).read_text() for name in _STYLES),
            colour_css(),
            _tile_css(tiles, len(models)),
        )
    )
    script = (_FOLDER / "report.js").read_text()
    html = (
        _environment(colours, orders)
        .get_template("report.html.j2")
        .render(
            style=Markup(style),
            script=Markup(script),
            style_digest=content_digest(style),
            script_digest=content_digest(script),
            summary=summary,
            changes=change_view(history, summary.run_id, KIND_TITLES, complaint),
            backfill=read_backfill(store, collection),
            evaluation=evaluation,
            views=views,
            tiles=tiles,
            absent_truth=references.absent,
            tile_classes=_tile_classes(tiles),
            tile_folders=_tile_folders(tiles),
            tile_reasons=Counter(reason for tile in tiles for reason in tile.reasons),
            layer_titles=_layer_titles(tiles),
            stage_bar=stage_bar(stages),
            stages=stages,
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path.with_suffix(".json"), encode_history(collection, history).encode())
    _replace(path.with_suffix(".parquet"), history_table(history))
    _replace(path, html.encode())
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


def _replace(path: Path, data: bytes) -> None:
    """Whole, also for who opens the report while it is made again."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(data)
    aside.replace(path)


def _tile_folders(tiles: Sequence[Tile]) -> tuple[tuple[str, int], ...]:
    """First folders of the gallery's paths and their images; none where all lie in one."""
    counts = Counter(tile.path.partition("/")[0] for tile in tiles if "/" in tile.path)
    loose = sum("/" not in tile.path for tile in tiles)
    folders = sorted(counts.items())
    return tuple(folders) if len(folders) + bool(loose) > 1 else ()


def _tile_classes(tiles: Sequence[Tile]) -> tuple[tuple[int, str], ...]:
    """(number, name) of the classes that the gallery's tiles show, by name."""
    found: dict[int, str] = {}
    for tile in tiles:
        for layer in tile.layers:
            classed: tuple[Box | Chip | Region, ...]
            classed = (*layer.boxes, *layer.regions, *layer.labels)
            for shown in classed:
                found[shown.class_number] = shown.class_name
    return tuple(sorted(found.items(), key=lambda item: item[1]))
