"""The report: one HTML file with everything in it."""

import base64
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.metrics.results import Evaluation, ModelEvaluation
from pixelmill.tasks.report.gallery import Layer, Tile, build_tiles, choose_images, ranking_name
from pixelmill.tasks.report.palette import HUES, ClassColours, assign_colours, colour_css
from pixelmill.tasks.report.plots import (
    Bar,
    Part,
    bar_chart,
    format_count,
    format_value,
    heat_map,
    histogram,
    line_chart,
    stacked_bar,
)
from pixelmill.tasks.report.references import load_references
from pixelmill.tasks.report.summary import (
    ModelLedger,
    RunSummary,
    collection_images,
    find_models,
    find_run,
    open_failures,
    summarise_run,
)
from pixelmill.tasks.store import Store

__all__ = ["build_report"]

_FOLDER = Path(__file__).parent
# boxes below it are hidden until the reader moves the slider
SHOWN_SCORE = 0.3
_SCORE_BINS = 20
_LEGEND = 10

KIND_TITLES = {
    "boxes": "Boxes",
    "masks": "Instance masks",
    "semantic": "Semantic regions",
    "captions": "Captions",
    "labels": "Image labels",
}
TRUTH_OF_KIND = {
    "boxes": "instances",
    "masks": "instances",
    "semantic": "semantic",
    "captions": "captions",
    "labels": "labels",
}
TASK_TITLES = {
    "detection": "object detection",
    "instance_segmentation": "instance segmentation",
    "semantic_segmentation": "semantic segmentation",
    "captioning": "captioning",
    "classification": "classification",
}
REASON_TITLES = {
    "weakest": "Weakest",
    "strongest": "Strongest",
    "random": "Random",
    "empty": "Nothing found",
    "failed": "Failed",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure; `legend` pairs names with their CSS class, `more` counts the grey lines."""

    heading: str
    svg: Markup
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    more: int = 0


@dataclass(frozen=True, slots=True)
class EvaluationView:
    """One evaluation of a model as the page shows it."""

    title: str
    truth: str
    result: ModelEvaluation
    value_names: tuple[str, ...]
    plots: tuple[Plot, ...]


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model's section.

    Attributes:
        anchor: of the section.
        facts: name and value pairs of the model's description and its predictions.
        skipped: why it was not evaluated, or "".
    """

    key: str
    name: str
    task: str
    anchor: str
    ledger: ModelLedger
    ledger_bar: Markup
    facts: tuple[tuple[str, str], ...]
    plots: tuple[Plot, ...]
    evaluations: tuple[EvaluationView, ...]
    skipped: str


def _ledger_bar(ledger: ModelLedger) -> Markup:
    states = (
        ("scored", ledger.num_scored, "state-scored"),
        ("scored, nothing found", ledger.num_empty, "state-empty"),
        ("failed", ledger.num_failed, "state-failed"),
        ("missing", ledger.num_missing, "state-missing"),
    )
    parts = [Part(label, count, css, format_count(count)) for label, count, css in states]
    return stacked_bar(parts, title=f"Images by state for {ledger.model_key}")


def _curve_plots(result: ModelEvaluation, colours: ClassColours) -> Iterable[Plot]:
    def css_of(name: str) -> str:
        return colours.css(name) if name in colours.numbers else "k-mean"

    for group, members in itertools.groupby(
        sorted(result.curves, key=lambda curve: curve.group), key=lambda curve: curve.group
    ):
        curves = list(members)
        yield Plot(
            heading=group,
            svg=line_chart(curves, css_of, title=group),
            legend=tuple((curve.name, css_of(curve.name)) for curve in curves[:_LEGEND]),
            more=max(0, len(curves) - _LEGEND),
        )


def _evaluation_plots(
    result: ModelEvaluation, value_names: Sequence[str], colours: ClassColours
) -> Iterable[Plot]:
    yield from _curve_plots(result, colours)
    if result.per_class and value_names:
        first = value_names[0]
        bars = [
            Bar(row.class_name, row.values[first], colours.css(row.class_name))
            for row in result.per_class
            if first in row.values
        ]
        yield Plot(f"{first} by class", bar_chart(bars, title=f"{first} by class"))
    if result.confusion is not None:
        yield Plot(
            "Confusion",
            heat_map(result.confusion, title="Confusion"),
            f"Rows are truth, columns predictions, in {result.confusion.unit}; colour is the share "
            "of the row: blue agrees, orange does not.",
        )


def _evaluation_view(
    result: ModelEvaluation, truth: dict[str, str], colours: ClassColours
) -> EvaluationView:
    names = tuple(dict.fromkeys(name for row in result.per_class for name in row.values))
    return EvaluationView(
        title=KIND_TITLES[result.kind],
        truth=truth.get(TRUTH_OF_KIND[result.kind], ""),
        result=result,
        value_names=names,
        plots=tuple(_evaluation_plots(result, names, colours)),
    )


def _class_plots(rows: pd.DataFrame, noun: str, colours: ClassColours) -> tuple[Plot, ...]:
    """Counts by class and a histogram of scores."""
    counts = rows["class_name"].value_counts()
    bars = [Bar(str(name), int(count), colours.css(str(name))) for name, count in counts.items()]
    heights, edges = np.histogram(rows["score"], bins=_SCORE_BINS, range=(0.0, 1.0))
    return (
        Plot(f"{noun} by class", bar_chart(bars, title=f"{noun} by class", counts=True)),
        Plot(
            f"{noun} by score",
            histogram(
                [round(float(edge), 6) for edge in edges],
                heights.tolist(),
                title=f"{noun} by score",
                x_label="score",
            ),
        ),
    )


def _prediction_plots(
    store: Store, model_key: str, image_ids: pd.Series, colours: ClassColours
) -> tuple[tuple[tuple[str, str], ...], tuple[Plot, ...]]:
    """Facts and plots of all that a model said of the collection, truth or not."""

    def read(name: str, columns: list[str]) -> pd.DataFrame:
        table = store.table(name, model=model_key, columns=["image_id", *columns]).to_pandas()
        return table[table["image_id"].isin(image_ids)]

    facts: list[tuple[str, str]] = []
    plots: list[Plot] = []
    for name, noun in (("detections", "Boxes"), ("labels", "Labels")):
        rows = read(name, ["class_name", "score"])
        if len(rows):
            facts.append((noun, format_count(len(rows))))
            facts.append(("Classes found", format_count(rows["class_name"].nunique())))
            plots += _class_plots(rows, noun, colours)
    captions = read("captions", ["text", "n_tokens"])
    if len(captions):
        facts.append(("Captions", format_count(len(captions))))
        facts.append(("Different captions", format_count(captions["text"].nunique())))
        lengths = np.bincount(captions["n_tokens"])
        shortest = int(np.flatnonzero(lengths)[0])
        plots.append(
            Plot(
                "Captions by length",
                histogram(
                    [length - 0.5 for length in range(shortest, len(lengths) + 1)],
                    lengths[shortest:].tolist(),
                    title="Captions by length",
                    x_label="tokens",
                ),
            )
        )
    return tuple(facts), tuple(plots)


def _spec_facts(spec: ModelSpec) -> list[tuple[str, str]]:
    canvases = ", ".join(f"{height}\u00d7{width}" for height, width in spec.preprocess.canvases)
    return [
        ("Architecture", spec.architecture),
        ("Weights", f"sha256 {spec.weights_sha256[:12]}"),
        ("Canvas", canvases),
        ("Precision", spec.precision),
    ]


def _model_views(
    store: Store,
    models: dict[str, ModelSpec],
    summary: RunSummary,
    evaluation: Evaluation | None,
    image_ids: pd.Series,
    colours: ClassColours,
) -> Iterable[ModelView]:
    ledgers = {ledger.model_key: ledger for ledger in summary.ledgers}
    for number, (key, spec) in enumerate(models.items()):
        facts, plots = _prediction_plots(store, key, image_ids, colours)
        ledger = ledgers[key]
        results = [r for r in evaluation.models if r.model_key == key] if evaluation else []
        yield ModelView(
            key=key,
            name=spec.name,
            task=TASK_TITLES[spec.task],
            anchor=f"model-{number}",
            ledger=ledger,
            ledger_bar=_ledger_bar(ledger),
            facts=(*_spec_facts(spec), *facts),
            plots=plots,
            evaluations=tuple(
                _evaluation_view(result, evaluation.truth if evaluation else {}, colours)
                for result in results
            ),
            skipped=evaluation.skipped.get(key, "") if evaluation else "",
        )


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


def _tiles(
    store: Store,
    collection: str,
    models: dict[str, ModelSpec],
    evaluation: Evaluation | None,
    images: pd.DataFrame,
    colours: ClassColours,
    max_gallery: int,
) -> tuple[Tile, ...]:
    failures = open_failures(store, collection, models)
    picks = choose_images(
        images,
        evaluation,
        failed=dict(zip(failures["path"], failures["source_uri"], strict=True)),
        empty_ids=_empty_ids(store, models, images["image_id"]),
        count=max_gallery,
    )
    references = load_references(evaluation, [pick.path for pick in picks], images["path"])
    return build_tiles(store, picks, models, evaluation, references, colours)


def format_bytes(size: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def format_seconds(seconds: float) -> str:
    """Seconds, or hours and minutes of many."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_moment(text: str) -> str:
    """ISO 8601 to the minute, in UTC; anything else as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    if moment.tzinfo is None:
        return f"{moment:%Y-%m-%d %H:%M}"
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage's seconds, its share of all in [0, 1] and its colour."""

    name: str
    css: str
    seconds: float
    share: float


def _stage_rows(summary: RunSummary) -> tuple[StageRow, ...]:
    total = sum(stage.seconds for stage in summary.stages)
    return tuple(
        StageRow(stage.name, f"k{number % len(HUES)}", stage.seconds, stage.seconds / total)
        for number, stage in enumerate(summary.stages)
        if total
    )


def _stage_bar(rows: Sequence[StageRow]) -> Markup:
    parts = [Part(row.name, row.seconds, row.css, format_seconds(row.seconds)) for row in rows]
    return stacked_bar(parts, title="Seconds per stage", height=22) if parts else Markup()


def _tile_css(tiles: Sequence[Tile], num_models: int) -> str:
    """Rules that would otherwise be style attributes, which the page's own policy forbids."""
    ratios = sorted({aspect_class(tile) for tile in tiles})
    rules = [f".{css}{{--ratio:{int(css[1:]) / 1000:g}}}" for css in ratios]
    rules += [f".hide-m{n} .m{n}{{display:none}}" for n in range(num_models)]
    return "\n".join(rules)


def aspect_class(tile: Tile) -> str:
    """CSS class that sets `--ratio`, width over height in thousandths."""
    ratio = tile.width / tile.height if tile.width and tile.height else 4 / 3
    return f"r{round(1000 * ratio)}"


def _percent(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"


def format_share(share: float) -> str:
    """A share in [0, 1] in whole per cent."""
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else "< 1 %"


def _class_scores(layer: Layer) -> str:
    """`number:score` of each class shown, the best score each, for the filters."""
    best: dict[int, float] = {}
    for shown in (*layer.boxes, *layer.labels):
        best[shown.class_number] = max(shown.score, best.get(shown.class_number, 0.0))
    best |= {region.class_number: 1.0 for region in layer.regions}
    return " ".join(f"{number}:{score:.4f}" for number, score in sorted(best.items()))


def _describe(tile: Tile) -> str:
    """Alternative text of a tile's picture: what the models say of it."""
    parts = [tile.path]
    for layer in tile.layers:
        counts = Counter(box.class_name for box in layer.boxes if box.score >= SHOWN_SCORE)
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
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "aspect": aspect_class,
        "bytes": format_bytes,
        "class_scores": _class_scores,
        "colour": colours.css,
        "count": format_count,
        "describe": _describe,
        "moment": format_moment,
        "percent": _percent,
        "seconds": format_seconds,
        "share": format_share,
        "sort_values": sort_values,
        "value": format_value,
    }
    environment.globals |= {
        "kind_titles": KIND_TITLES,
        "orders": [(f"v{number}", title) for number, title in enumerate(orders.values())],
        "reason_titles": REASON_TITLES,
        "threshold": SHOWN_SCORE,
    }
    return environment


def _digest(text: str) -> str:
    """Source expression of a content security policy for an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def build_report(
    store: Store,
    evaluation: Evaluation | None,
    out: Path,
    *,
    collection: str,
    run_id: str | None,
    max_gallery: int = 60,
) -> Path:
    """Write one self-contained HTML file: no network, the same bytes for the same input.

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
    views = list(_model_views(store, models, summary, evaluation, images["image_id"], colours))
    tiles = _tiles(store, collection, models, evaluation, images, colours, max_gallery)
    orders = _tile_orders(evaluation, models)
    stages = _stage_rows(summary)
    # exactly what stands between the tags, or the policy refuses it
    style = "\n".join(
        ((_FOLDER / "report.css").read_text(), colour_css(), _tile_css(tiles, len(models)))
    )
    script = (_FOLDER / "report.js").read_text()
    html = (
        _environment(colours, orders)
        .get_template("report.html.j2")
        .render(
            style=Markup(style),
            script=Markup(script),
            style_digest=_digest(style),
            script_digest=_digest(script),
            summary=summary,
            evaluation=evaluation,
            views=views,
            tiles=tiles,
            tile_classes=_tile_classes(tiles),
            layer_titles=_layer_titles(tiles),
            stage_bar=_stage_bar(stages),
            stages=stages,
        )
    )
    path = out / "report.html" if out.is_dir() or not out.suffix else out
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _tile_classes(tiles: Sequence[Tile]) -> tuple[tuple[int, str], ...]:
    """(number, name) of the classes that the gallery's tiles show, by name."""
    found: dict[int, str] = {}
    for tile in tiles:
        for layer in tile.layers:
            for shown in (*layer.boxes, *layer.regions, *layer.labels):
                found[shown.class_number] = shown.class_name
    return tuple(sorted(found.items(), key=lambda item: item[1]))
