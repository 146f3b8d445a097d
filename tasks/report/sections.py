"""What the report says of each model and of the run: plots, facts and rows, ready to lay out."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.metrics.results import Curve, Evaluation, ModelEvaluation, ThresholdSweep
from pixelmill.tasks.report.formats import format_count, format_seconds, format_value
from pixelmill.tasks.report.palette import HUES, ClassColours
from pixelmill.tasks.report.plots import (
    Bar,
    Part,
    bar_chart,
    heat_map,
    histogram,
    line_chart,
    stacked_bar,
)
from pixelmill.tasks.report.summary import ModelLedger, RunSummary
from pixelmill.tasks.store import Store

__all__ = [
    "KIND_TITLES",
    "EvaluationView",
    "ModelView",
    "Plot",
    "StageRow",
    "model_views",
    "stage_bar",
    "stage_rows",
]

_SCORE_BINS = 20
_LEGEND = 10

KIND_TITLES = {
    "boxes": "Boxes",
    "masks": "Instance masks",
    "panoptic": "Panoptic",
    "semantic": "Semantic regions",
    "captions": "Captions",
    "labels": "Image labels",
}
_TRUTH_OF_KIND = {
    "boxes": "instances",
    "masks": "instances",
    "panoptic": "instances",
    "semantic": "semantic",
    "captions": "captions",
    "labels": "labels",
}
_TASK_TITLES = {
    "detection": "object detection",
    "instance_segmentation": "instance segmentation",
    "semantic_segmentation": "semantic segmentation",
    "captioning": "captioning",
    "classification": "classification",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure.

    Attributes:
        legend: names with their CSS class; `more` counts the lines that are grey.
        counts: (name, count) of all that is drawn or left out, where no other table has it.
    """

    heading: str
    svg: Markup
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    more: int = 0
    counts: tuple[tuple[str, int], ...] = ()


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
    if result.errors is not None:
        yield Plot(
            "AP50 that mending would add",
            bar_chart(
                [Bar(share.kind, share.delta_ap, "k1") for share in result.errors.shares],
                title="AP50 that mending each kind of error would add",
                to_largest=True,
            ),
            f"AP50 is {format_value(result.errors.ap)}; without any wrong detection it would be "
            f"{format_value(result.errors.delta_false_positives)} higher, with every instance "
            f"found {format_value(result.errors.delta_misses)}.",
        )
    if result.sweeps:
        yield _sweep_plot(result.sweeps, colours)
    if result.confusion is not None:
        yield Plot(
            "Confusion",
            heat_map(result.confusion, title="Confusion"),
            f"Rows are truth, columns predictions, in {result.confusion.unit}; colour is the share "
            "of the row: blue agrees, orange does not.",
        )


def _sweep_plot(sweeps: Sequence[ThresholdSweep], colours: ClassColours) -> Plot:
    heading = "F1 by score threshold"
    curves = [
        Curve(heading, sweep.class_name, "score threshold", "F1", sweep.thresholds, sweep.f1)
        for sweep in sweeps
        if sweep.thresholds
    ]
    return Plot(
        heading,
        line_chart(curves, colours.css, title=heading),
        "Each class is best kept from its own threshold on; the table has them all.",
        tuple((curve.name, colours.css(curve.name)) for curve in curves[:_LEGEND]),
        max(0, len(curves) - _LEGEND),
    )


def _evaluation_view(
    result: ModelEvaluation, truth: dict[str, str], colours: ClassColours
) -> EvaluationView:
    names = tuple(dict.fromkeys(name for row in result.per_class for name in row.values))
    return EvaluationView(
        title=KIND_TITLES[result.kind],
        truth=truth.get(_TRUTH_OF_KIND.get(result.kind, ""), ""),
        result=result,
        value_names=names,
        plots=tuple(_evaluation_plots(result, names, colours)),
    )


def _class_plots(rows: pd.DataFrame, noun: str, colours: ClassColours) -> tuple[Plot, ...]:
    """Counts by class and a histogram of scores."""
    counts = rows["class_name"].value_counts().sort_index()
    by_class = tuple((str(name), int(count)) for name, count in counts.items())
    bars = [Bar(name, count, colours.css(name)) for name, count in by_class]
    heights, edges = np.histogram(rows["score"], bins=_SCORE_BINS, range=(0.0, 1.0))
    return (
        Plot(
            f"{noun} by class",
            bar_chart(bars, title=f"{noun} by class", counts=True),
            counts=by_class,
        ),
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
        table = store.table(name, model=model_key, columns=["image_id", *columns])
        # before the rows become Python's: of a hundred thousand images there are millions
        return (
            table.filter(pc.is_in(table["image_id"], value_set=known)).select(columns).to_pandas()  # pyright: ignore[reportAttributeAccessIssue]
        )

    known = pa.array(image_ids.dropna(), pa.string())
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


def model_views(
    store: Store,
    models: Mapping[str, ModelSpec],
    summary: RunSummary,
    evaluation: Evaluation | None,
    image_ids: pd.Series,
    colours: ClassColours,
) -> Iterable[ModelView]:
    """One section per model, in the order of `models`.

    Args:
        store: all the models' published rows of the collection are read, few columns of them.
        models: model_key -> spec.
        summary: has a ledger of each model.
        evaluation: None where there is no truth.
        image_ids: of the collection.
        colours: of all classes of the report.
    """
    ledgers = {ledger.model_key: ledger for ledger in summary.ledgers}
    for number, (key, spec) in enumerate(models.items()):
        facts, plots = _prediction_plots(store, key, image_ids, colours)
        ledger = ledgers[key]
        results = [r for r in evaluation.models if r.model_key == key] if evaluation else []
        yield ModelView(
            key=key,
            name=spec.name,
            task=_TASK_TITLES[spec.task],
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


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage, or one model's part of it, which has no share and no colour of its own.

    Attributes:
        ms_per_image: of work, over the images of the run's shards.
        share: of all seconds of work, in [0, 1].
        wait_s: stood still; None where nobody counted.
    """

    name: str
    css: str
    seconds: float
    ms_per_image: float
    share: float | None
    wait_s: float | None


def stage_rows(summary: RunSummary) -> tuple[StageRow, ...]:
    """The run's stages with their share of all work."""
    total = sum(stage.busy_s for stage in summary.stages)
    if not total:
        return ()
    per_image = 1e3 / max(1, summary.num_inputs)
    rows: list[StageRow] = []
    for number, stage in enumerate(summary.stages):
        css, share = f"k{number % len(HUES)}", stage.busy_s / total
        name, ms_per_image = stage.name.replace("_", " "), stage.busy_s * per_image
        wait_s = stage.wait_s or None
        rows.append(StageRow(name, css, stage.busy_s, ms_per_image, share, wait_s))
        rows += [
            StageRow(f"{key}, with read out", "", seconds, seconds * per_image, None, None)
            for key, seconds in (stage.models.items() if len(stage.models) > 1 else ())
        ]
    return tuple(rows)


def stage_bar(rows: Sequence[StageRow]) -> Markup:
    """The stages as one bar; nothing without stages."""
    parts = [
        Part(row.name, row.seconds, row.css, format_seconds(row.seconds)) for row in rows if row.css
    ]
    return stacked_bar(parts, title="Seconds per stage", height=22) if parts else Markup()
