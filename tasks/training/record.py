"""What stands beside trained weights: the curves as a page, and the model card."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup

from pixelmill.configs.schema import TrainConfig
from pixelmill.tasks.datasets import Dataset
from pixelmill.tasks.display import printable
from pixelmill.tasks.metrics.results import Curve, Metric
from pixelmill.tasks.report.formats import (
    content_digest,
    format_count,
    format_interval,
    format_seconds,
    format_value,
)
from pixelmill.tasks.report.palette import assign_colours, colour_css
from pixelmill.tasks.report.plots import line_chart
from pixelmill.tasks.training.fit import EpochReport, Fit

__all__ = ["draw_curves", "model_card"]

_STYLE = Path(__file__).parents[1] / "report" / "report.css"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src {{ digest }}">
<meta name="color-scheme" content="light dark">
<title>{{ name }} · Pixelmill training</title>
<style>{{ style }}</style>
</head>
<body>
<header class="top"><div class="wrap"><h1>{{ name }}</h1>
<dl class="meta"><div><dt>Epochs</dt><dd>{{ epochs | length }}</dd></div>
<div><dt>Time</dt><dd>{{ time }}</dd></div></dl></div></header>
<main class="wrap" id="content"><div class="plots">
{% for plot in plots %}<section class="panel"><h3>{{ plot.heading }}</h3>{{ plot.svg }}
<ul class="legend">{% for label, css in plot.legend %}
<li class="{{ css }}"><span class="swatch"></span>{{ label }}</li>{% endfor %}</ul></section>
{% endfor %}</div></main>
</body>
</html>
"""


def draw_curves(name: str, epochs: Sequence[EpochReport]) -> str:
    """A self-contained page: loss, metrics and learning rate over the epochs.

    Args:
        name: of the model.
        epochs: at least one.
    """
    numbers = tuple(float(report.epoch) for report in epochs)
    rate = Curve(
        "Learning rate",
        "learning rate",
        "epoch",
        "rate",
        numbers,
        tuple(report.learning_rate for report in epochs),
    )
    groups = [
        ("Loss", _curves("Loss", "loss", epochs, [report.losses for report in epochs])),
        (
            "On the images kept apart",
            _curves("Metrics", "metric", epochs, [report.metrics for report in epochs]),
        ),
        ("Learning rate", [rate]),
    ]
    plots = []
    for heading, curves in groups:
        if curves:
            css_of = assign_colours(curve.name for curve in curves).css
            plots.append(
                {
                    "heading": heading,
                    "svg": line_chart(curves, css_of, title=f"{heading} of {name} by epoch"),
                    "legend": [(curve.name, css_of(curve.name)) for curve in curves],
                }
            )
    style = Markup(f"{_STYLE.read_text('utf-8')}\n{colour_css()}")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_PAGE).render(
        name=printable(name),
        epochs=epochs,
        time=format_seconds(sum(report.seconds for report in epochs)),
        plots=plots,
        style=style,
        digest=Markup(content_digest(style)),
    )


def _curves(
    group: str, label: str, epochs: Sequence[EpochReport], values: Sequence[Mapping[str, float]]
) -> list[Curve]:
    """A line for each name that any epoch has, in order of appearance."""
    lines = []
    for name in dict.fromkeys(name for each in values for name in each):
        points = [
            (float(report.epoch), each[name])
            for report, each in zip(epochs, values, strict=True)
            if name in each
        ]
        x, y = zip(*points, strict=True)
        lines.append(Curve(group, name, "epoch", label, x, y))
    return lines


def model_card(
    config: TrainConfig, dataset: Dataset, result: Fit, metrics: Sequence[Metric]
) -> str:
    """Markdown that says what the weights are, where they come from and how good they are.

    Args:
        config: of the training.
        dataset: that it was trained on.
        result: of the training.
        metrics: on the images kept apart.
    """
    kept = (
        f"of epoch {result.best_epoch}, the best by these very images: the numbers flatter a little"
        if result.best_epoch is not None
        else "of the last step; the images kept apart decided nothing"
    )
    rows = [
        f"| {each.name} | {format_value(each.value)} | {format_interval(each.interval)} |"
        for each in metrics
    ] or ["| none: no image was kept apart | | |"]
    definitions = [f"- {each.name}: {each.definition}" for each in metrics]
    split = (
        f"by the list `{Path(config.split).name}`"
        if config.split is not None
        else f"by the hash of each file name, {config.train_fraction:g} to train on"
    )
    settings = config.model_dump(
        mode="json",
        exclude_defaults=True,
        exclude={"images", "truth", "split", "init", "classes", "data_licence", "name"},
    )
    packages = ("pixelmill", "torch", "torchvision", "lightning-fabric")
    start = Path(config.init).name if config.init else "random weights"
    classes = ", ".join(dataset.classes) or f"{len(dataset.vocabulary)} words"
    lines = [
        f"# {config.name}",
        "",
        f"{config.architecture} for {config.task.replace('_', ' ')}, "
        f"{format_count(result.num_parameters)} parameters. Classes: {classes}.",
        "",
        "## Data",
        "",
        f"- Images: `{Path(config.images).name}`, {len(dataset.names)} to train on and "
        f"{len(dataset.held_out)} kept apart, shared out {split}.",
        f"- Licence of the data: {config.data_licence or 'not stated (data_licence)'}. "
        "Weights learnt from data may fall under its terms.",
        f"- Started from: {start}.",
        "",
        "## Numbers on the images kept apart",
        "",
        f"Weights {kept}. [low, high]: 95 % interval, BCa bootstrap over the images; "
        "fewer than 10 images have none.",
        "",
        "| metric | value | interval |",
        "|---|---|---|",
        *rows,
        "",
        *definitions,
        "",
        "## Training",
        "",
        f"- {len(result.epochs)} of {config.epochs} epochs in "
        f"{format_seconds(sum(report.seconds for report in result.epochs))} on {result.device}.",
        f"- Versions: {', '.join(f'{name} {version(name)}' for name in packages)}.",
        "- Again: `pixelmill train CONFIG`, with the images, the truth and",
        "",
        "```yaml",
        *_as_yaml(settings),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _as_yaml(settings: Mapping[str, object]) -> list[str]:
    text = yaml.safe_dump(dict(settings), sort_keys=False, default_flow_style=None, width=100)
    return text.rstrip().splitlines()
