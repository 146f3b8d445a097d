"""Plots as inline SVG: pure functions from numbers to markup.

Colours and fonts come from the page's style sheet, so that a plot follows light, dark and print.
Marks carry a `<title>`: readable by hovering without any script. Every plot is `role="img"` with
a description; values by class stand in a table of the report too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pixelmill.tasks.display import printable
from pixelmill.tasks.metrics.results import Confusion, Curve
from pixelmill.tasks.report.formats import format_count, format_value

__all__ = [
    "Bar",
    "Part",
    "bar_chart",
    "heat_map",
    "histogram",
    "line_chart",
    "nice_ticks",
    "sparkline",
    "stacked_bar",
]

_WIDTH = 480
_MAX_POINTS = 201
_MAX_COLOURED = 10
_MAX_BARS = 24
_LONGEST_LABEL = 22
_MAX_HEAT = 24
_MAX_HEAT_TEXT = 14


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; `css` is the class that colours it."""

    label: str
    value: float
    css: str = "k0"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a stacked bar; `text` is its value as shown."""

    label: str
    value: float
    css: str
    text: str


def nice_ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers that cover [low, high].

    Args:
        low: finite.
        high: finite; a range of next to no width is widened upwards.
        count: intervals wanted, about.
        whole: only whole numbers, of which things are counted.

    Returns:
        Increasing; the first is <= low, the last >= high.

    Source:
        Heckbert, "Nice Numbers for Graph Labels", Graphics Gems (1990), p. 61.
    """
    if high - low <= max(1e-9 * abs(low), 1e-300):
        high = low + (abs(low) if abs(low) > 1e-300 else 1.0)
    rough = (high - low) / count
    if whole:
        rough = max(rough, 1.0)
    power = 10.0 ** math.floor(math.log10(rough))
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(factor * power for factor in factors if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 1 - math.floor(math.log10(step))
    return [round(k * step, digits) for k in range(first, last + 1)]


def _element(_tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """An element, all its text escaped; `class_` and `stroke_width` lose their underscores."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    texts = (child if isinstance(child, Markup) else printable(child) for child in children)
    inside = Markup("").join(texts)
    return Markup(f"<{_tag}{written}>{inside}</{_tag}>")


def _number(value: str | float) -> str:
    return (
        f"{value:.2f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else printable(str(value))
    )


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> Markup:
    return _element("text", text, x=x, y=y, class_=css or None, text_anchor=anchor)


def _title(text: str) -> Markup:
    return _element("title", text)


def _svg(
    height: float, label: str, *children: Markup, css: str = "plot", **attributes: str
) -> Markup:
    return _element(
        "svg",
        *children,
        viewBox=f"0 0 {_WIDTH} {_number(float(height))}",
        class_=css,
        role="img",
        aria_label=label,
        **attributes,
    )


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _label_width(labels: Sequence[str], longest: int = _LONGEST_LABEL) -> float:
    """Pixels that labels need at the plots' font size, by a usual glyph width."""
    return 6.6 * max((min(len(label), longest) for label in labels), default=0) + 10


def _tick_text(value: float) -> str:
    return f"{value:g}" if abs(value) < 10_000 else f"{value / 1000:,g}k"


@dataclass(frozen=True, slots=True)
class _Frame:
    """The plotting area in the plot's pixels, and the values that its edges stand for."""

    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    is_counting: bool = False

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def axes(self, x_label: str, y_label: str) -> Markup:
        x_ticks = _ticks_within(self.x_range)
        y_ticks = _ticks_within(self.y_range, whole=self.is_counting)
        lines = (
            f"M{_number(self.left)} {_number(self.y(tick))}H{_number(self.right)}"
            for tick in y_ticks
        )
        return Markup("").join(
            [
                _element("path", d="".join(lines), class_="grid"),
                *(
                    _text(self.left - 7, self.y(tick) + 4, _tick_text(tick), "tick", "end")
                    for tick in y_ticks
                ),
                *(
                    _text(self.x(tick), self.bottom + 17, _tick_text(tick), "tick", "middle")
                    for tick in x_ticks
                ),
                _text(self.right, self.bottom + 35, x_label, "axis", "end"),
                _text(self.left - 7, self.top - 12, y_label, "axis"),
            ]
        )


def _ticks_within(bounds: tuple[float, float], *, whole: bool = False) -> list[float]:
    low, high = bounds
    return [tick for tick in nice_ticks(low, high, whole=whole) if low <= tick <= high]


def _range_of(values: Sequence[float], *, whole: bool = False) -> tuple[float, float]:
    """From zero or below to a round number: [0, 1] for shares that fill some of it."""
    low, high = min(values), max(values)
    if low >= 0 and 0.2 < high <= 1:
        return 0.0, 1.0
    ticks = nice_ticks(min(low, 0.0), high, whole=whole)
    return ticks[0], ticks[-1]


def line_chart(
    curves: Sequence[Curve],
    css_of: Callable[[str], str],
    *,
    title: str,
    height: int = 300,
    counts: bool = False,
) -> Markup:
    """Lines over shared axes.

    Args:
        curves: of one group; points that are not finite are left out, long lines are thinned.
        css_of: curve name -> CSS class of its colour. Only the first ten lines are coloured, the
            rest are thin and grey: more colours than that cannot be told apart.
        title: for screen readers.
        height: in the plot's own pixels; it is 480 wide.
        counts: heights are whole numbers.
    """
    lines = []
    for curve in curves:
        points = [
            (x, y)
            for x, y in zip(curve.x, curve.y, strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]
        stride = max(1, math.ceil(len(points) / _MAX_POINTS))
        thinned = points[::stride] + (points[-1:] if (len(points) - 1) % stride else [])
        lines.append((curve, thinned))
    every = [point for _, points in lines for point in points]
    if not every:
        return _nothing(title)
    frame = _Frame(
        left=44,
        top=30,
        right=_WIDTH - 12,
        bottom=height - 44,
        x_range=_range_of([x for x, _ in every]),
        y_range=_range_of([y for _, y in every], whole=counts),
        is_counting=counts,
    )
    series = []
    # the coloured ones last, so that they lie on top
    for number, (curve, points) in reversed(list(enumerate(lines))):
        if not points:
            continue
        path = " ".join(f"{_number(frame.x(x))},{_number(frame.y(y))}" for x, y in points)
        css = css_of(curve.name) if number < _MAX_COLOURED else "k-other thin"
        series.append(
            _element(
                "g",
                _title(curve.name),
                _element("polyline", points=path, class_="hit"),
                _element("polyline", points=path, class_="line"),
                class_=f"series {css}",
            )
        )
    label = f"{title}. {len(curves)} lines: {', '.join(c.name for c in curves[:_MAX_COLOURED])}"
    axes = frame.axes(curves[0].x_label, curves[0].y_label)
    # by which the page's script reads values off the lines
    sides = (frame.left, frame.top, frame.right, frame.bottom, *frame.x_range, *frame.y_range)
    return _svg(
        height,
        label,
        axes,
        *series,
        data_frame=" ".join(f"{side:.6g}" for side in sides),
        data_x=curves[0].x_label,
        data_y=curves[0].y_label,
    )


def bar_chart(
    bars: Sequence[Bar], *, title: str, counts: bool = False, to_largest: bool = False
) -> Markup:
    """Horizontal bars, highest first; of very many only both ends are drawn.

    Args:
        bars: values that are not finite are left out.
        title: for screen readers.
        counts: whole numbers, on an axis of their own; else the axis is [0, 1] where it fits.
        to_largest: the longest bar fills the axis.
    """
    drawn = sorted(
        (bar for bar in bars if math.isfinite(bar.value)), key=lambda bar: (-bar.value, bar.label)
    )
    if not drawn:
        return _nothing(title)
    rows: list[Bar | None] = list(drawn)
    if len(drawn) > _MAX_BARS:
        half = _MAX_BARS // 2
        rows = [*drawn[:half], None, *drawn[-half:]]
    show = format_count if counts else format_value
    row_height, top = 22, 6
    left = _label_width([bar.label for bar in drawn])
    right = _WIDTH - 60
    values = [bar.value for bar in drawn]
    high = max(values) if counts or to_largest or max(values) > 1 else 1.0
    low = min(0.0, *values)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return left + (value - low) / span * (right - left)

    marks = []
    for number, bar in enumerate(rows):
        y = top + number * row_height
        if bar is None:
            text = f"⋯ {len(drawn) - _MAX_BARS} between these, see the table"
            marks.append(_text(left, y + 15, text, "axis"))
            continue
        begin, end = sorted((x(0.0), x(bar.value)))
        marks.append(
            _element(
                "g",
                _title(f"{bar.label}: {show(bar.value)}"),
                _element(
                    "rect", x=left, y=y + 3.0, width=right - left, height=16, rx=3, class_="track"
                ),
                _element(
                    "rect",
                    x=begin,
                    y=y + 3.0,
                    width=max(end - begin, 1.5),
                    height=16,
                    rx=3,
                    class_="bar",
                ),
                _text(left - 8, y + 15, _shorten(bar.label, _LONGEST_LABEL), "name", "end"),
                _text(right + 8, y + 15, show(bar.value), "value"),
                class_=f"mark {bar.css}",
            )
        )
    best, worst = drawn[0], drawn[-1]
    label = (
        f"{title}. {len(drawn)} bars, from {best.label} {show(best.value)} "
        f"to {worst.label} {show(worst.value)}"
    )
    return _svg(top * 2 + len(rows) * row_height, label, *marks)


def histogram(
    edges: Sequence[float], counts: Sequence[int], *, title: str, x_label: str, height: int = 220
) -> Markup:
    """Counts per bin.

    Args:
        edges: (n + 1,) increasing.
        counts: (n,).
        title: for screen readers.
        x_label: what is counted.
        height: in the plot's own pixels; it is 480 wide.

    Raises:
        ValueError: if there is not one edge more than counts.
    """
    if len(edges) != len(counts) + 1:
        raise ValueError(f"expected {len(counts) + 1} edges, got {len(edges)}")
    if not any(counts):
        return _nothing(title)
    frame = _Frame(
        left=52,
        top=30,
        right=_WIDTH - 12,
        bottom=height - 44,
        x_range=(edges[0], edges[-1]),
        y_range=(0.0, nice_ticks(0, max(counts), whole=True)[-1]),
        is_counting=True,
    )
    marks = []
    for begin, end, count in zip(edges[:-1], edges[1:], counts, strict=True):
        text = f"{begin:g} to {end:g}: {format_count(count)}"
        x, width = frame.x(begin), frame.x(end) - frame.x(begin)
        marks.append(
            _element(
                "g",
                _title(text),
                _element(
                    "rect",
                    x=x,
                    y=frame.top,
                    width=width,
                    height=frame.bottom - frame.top,
                    class_="hit-area",
                ),
                _element(
                    "rect",
                    x=x + 0.75,
                    y=frame.y(count),
                    width=max(width - 1.5, 0.5),
                    height=frame.bottom - frame.y(count),
                    rx=1.5,
                    class_="bar",
                ),
                class_="mark accent",
            )
        )
    label = f"{title}. {format_count(sum(counts))} in {len(counts)} bins"
    return _svg(height, label, frame.axes(x_label, "count"), *marks)


def _fold(confusion: Confusion) -> Confusion:
    """Keep the classes with most counts and add up the rest, so that a matrix stays legible."""
    totals: dict[str, int] = {}
    for row, row_counts in zip(confusion.rows, confusion.counts, strict=True):
        for column, count in zip(confusion.columns, row_counts, strict=True):
            totals[row] = totals.get(row, 0) + count
            if column != row:
                totals[column] = totals.get(column, 0) + count
    if len(totals) <= _MAX_HEAT:
        return confusion
    kept = set(sorted(totals, key=lambda name: (-totals[name], name))[: _MAX_HEAT - 1])
    other = f"{len(totals) - len(kept)} others"

    def places(names: Sequence[str]) -> tuple[list[str], list[int]]:
        new = [name for name in names if name in kept]
        if len(new) < len(names):
            new.append(other)
        where = {name: number for number, name in enumerate(new)}
        return new, [where[name] if name in kept else where[other] for name in names]

    rows, row_of = places(confusion.rows)
    columns, column_of = places(confusion.columns)
    counts = [[0] * len(columns) for _ in rows]
    for i, row_counts in zip(row_of, confusion.counts, strict=True):
        for j, count in zip(column_of, row_counts, strict=True):
            counts[i][j] += count
    return Confusion(tuple(rows), tuple(columns), tuple(map(tuple, counts)), confusion.unit)


def heat_map(confusion: Confusion, *, title: str) -> Markup:
    """Confusion matrix: colour by share of the row, right answers in one hue, wrong in another.

    Args:
        confusion: of many classes only the most frequent are drawn, the others added up.
        title: for screen readers.
    """
    if not any(map(any, confusion.counts)):
        return _nothing(title)
    folded = _fold(confusion)
    left = _label_width(folded.rows, 16)
    # the last column's slanted name reaches beyond its cell
    beyond = max(0.64 * _label_width(folded.columns[-1:], 16) - 14, 4)
    cell = min((_WIDTH - left - beyond) / len(folded.columns), 52.0)
    tall = min(cell, 34.0)
    top = _label_width(folded.columns, 16) * 0.78 + 8
    marks = []
    for number, column in enumerate(folded.columns):
        x = left + (number + 0.5) * cell + 3
        marks.append(
            _element(
                "text",
                _shorten(column, 16),
                x=x,
                y=top - 8,
                class_="name",
                transform=f"rotate(-50 {_number(x)} {_number(top - 8)})",
            )
        )
    for i, (row, row_counts) in enumerate(zip(folded.rows, folded.counts, strict=True)):
        y, total = top + i * tall, sum(row_counts)
        marks.append(_text(left - 8, y + tall / 2 + 4, _shorten(row, 16), "name", "end"))
        for j, (column, count) in enumerate(zip(folded.columns, row_counts, strict=True)):
            share = count / total if total else 0.0
            right = row == column
            x = left + j * cell
            parts = [
                _title(
                    f"truth {row}, predicted {column}: {format_count(count)} {folded.unit} "
                    f"({share:.1%} of the row)"
                ),
                _element(
                    "rect", x=x, y=y, width=cell - 1, height=tall - 1, rx=2, class_="cell-back"
                ),
                _element(
                    "rect",
                    x=x,
                    y=y,
                    width=cell - 1,
                    height=tall - 1,
                    rx=2,
                    class_="right" if right else "wrong",
                    # the square root shows errors of a few per cent, which are what one looks for
                    fill_opacity=math.sqrt(share),
                ),
            ]
            if count and len(folded.columns) <= _MAX_HEAT_TEXT:
                text = _short_count(count) if confusion.unit == "pixels" or count > 9999 else count
                css = "cell strong" if share > 0.36 else "cell"
                parts.append(
                    _text(x + cell / 2 - 0.5, y + tall / 2 + 3.5, str(text), css, "middle")
                )
            marks.append(_element("g", *parts, class_="mark"))
    label = f"{title}. Rows are truth, columns predictions; {len(confusion.rows)} rows"
    return _svg(top + tall * len(folded.rows) + 6, label, *marks, css="plot heat")


def _short_count(count: int) -> str:
    for power, letter in ((9, "G"), (6, "M"), (3, "k")):
        if count >= 10**power:
            scaled = count / 10**power
            return f"{scaled:.1f}{letter}" if scaled < 10 else f"{scaled:.0f}{letter}"
    return str(count)


def stacked_bar(parts: Sequence[Part], *, title: str, height: int = 14) -> Markup:
    """One bar that is divided as the parts are.

    Args:
        parts: values >= 0; those of nothing are left out.
        title: for screen readers.
        height: pixels; the width is the container's.
    """
    total = sum(part.value for part in parts)
    marks, at = [], 0.0
    for part in parts:
        if not part.value:
            continue
        share = 100 * part.value / total
        marks.append(
            _element(
                "g",
                _title(f"{part.label}: {part.text} ({share:.1f} %)"),
                _element("rect", x=f"{at:.3f}%", width=f"{share:.3f}%", height="100%"),
                class_=f"mark {part.css}",
            )
        )
        at += share
    label = f"{title}: " + ", ".join(f"{part.label} {part.text}" for part in parts)
    return _element("svg", *marks, class_="stacked", height=height, role="img", aria_label=label)


def sparkline(points: Sequence[tuple[str, float]], *, title: str) -> Markup:
    """A small line of one number over its dates, without axes; nothing for a single point.

    Args:
        points: (date, value) in order; the line spans the least and the greatest value.
        title: for screen readers.
    """
    drawn = [(name, value) for name, value in points if math.isfinite(value)]
    if len(drawn) < 2:
        return Markup()
    values = [value for _, value in drawn]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    places = [
        (100 * number / (len(drawn) - 1), 26 - 22 * (value - low) / span)
        for number, value in enumerate(values)
    ]
    line = _element(
        "polyline",
        points=" ".join(f"{_number(x)},{_number(y)}" for x, y in places),
        class_="line",
    )
    (first, old), (last, new) = drawn[0], drawn[-1]
    label = (
        f"{title}: {len(drawn)} runs, {format_value(old)} on {first}, {format_value(new)} on {last}"
    )
    return _element(
        "svg",
        _title(label),
        line,
        viewBox="0 0 100 28",
        preserveAspectRatio="none",
        class_="spark",
        role="img",
        aria_label=label,
    )


def _nothing(title: str) -> Markup:
    return _element("p", f"{title}: nothing to draw.", class_="nothing")
