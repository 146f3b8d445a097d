"""The page of a night's health: what is unusual, and the nights that it is compared with."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pixelmill.configs.schema import HealthConfig
from pixelmill.tasks.health.judge import Health, ModelHealth, Reading
from pixelmill.tasks.health.nights import Night
from pixelmill.tasks.metrics.results import Curve
from pixelmill.tasks.report.formats import format_moment
from pixelmill.tasks.report.page import write_page
from pixelmill.tasks.report.palette import assign_colours
from pixelmill.tasks.report.plots import line_chart
from pixelmill.tasks.report.sections import Plot

__all__ = ["build_health_page"]

_MOST_PLOTS = 8
_TAGS = {"alarm": "failed", "warning": "weakest", "note": "random"}
_VERDICTS = {"alarm": "Alarm", "warning": "Unusual, but no alarm"}
_CSS = {"before": "k0", "now": "k1"}


@dataclass(frozen=True, slots=True)
class _ModelView:
    """One model as the page shows it; `nights` newest first."""

    model: ModelHealth
    anchor: str
    nights: tuple[Night, ...]
    plots: tuple[Plot, ...]


def build_health_page(health: Health, config: HealthConfig, path: Path) -> Path:
    """Write one self-contained HTML file.

    Args:
        health: what is told.
        config: the thresholds that it was judged by.
        path: of the file.

    Returns:
        The file.
    """
    views = [
        _ModelView(
            model,
            f"model-{number}",
            (model.night, *reversed(model.baseline)),
            tuple(_plots(model)),
        )
        for number, model in enumerate(health.models)
    ]
    return write_page(
        path,
        "health.html.j2",
        assign_colours(()),
        title=f"{health.collection}, {health.date}",
        facts=[("Night", health.date), ("Judged", format_moment(health.created_at))],
        sections=[("findings", "Findings"), *((view.anchor, view.model.name) for view in views)],
        health=health,
        verdict=_VERDICTS.get(health.level or "", "As the nights before"),
        tags=_TAGS,
        models=views,
        config=config,
    )


def _plots(model: ModelHealth) -> Iterable[Plot]:
    nights = (*model.baseline, model.night)
    if len(nights) > 1:
        for name in model.means:
            known = [
                (k, night.means[name]) for k, night in enumerate(nights) if name in night.means
            ]
            curve = Curve(name, name, "night", name, *zip(*known, strict=True))
            svg = line_chart([curve], lambda _: "k0", title=name, height=220)
            dates = f"nights from {nights[0].date} to {nights[-1].date}"
            yield Plot(name.capitalize(), svg, caption=dates)
    for reading in model.readings[:_MOST_PLOTS]:
        if reading.before.is_ordered:
            yield _shares(reading)


def _shares(reading: Reading) -> Plot:
    """Shares of the bins before and now."""
    title = reading.quantity.name
    if reading.quantity.class_name is not None:
        title += f" of {reading.quantity.class_name}"
    curves = []
    for name, histogram in (("before", reading.before), ("now", reading.now)):
        total = sum(histogram.counts) or 1.0
        middles = tuple(_middle(label) for label in histogram.labels)
        shares = tuple(count / total for count in histogram.counts)
        curves.append(Curve(title, name, title, "share", middles, shares))
    svg = line_chart(curves, _CSS.__getitem__, title=title, height=220)
    caption = f"PSI {reading.shift.psi:.2f}"
    return Plot(title.capitalize(), svg, caption=caption, legend=tuple(_CSS.items()))


def _middle(label: str) -> float:
    """Of a bin, from its label."""
    low, _, high = label.partition(" to ")
    return (float(low) + float(high)) / 2 if high.replace(".", "").isdigit() else float(low)
