import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelmill.tasks.metrics.results import Confusion, Curve
from pixelmill.tasks.report.formats import format_count
from pixelmill.tasks.report.plots import (
    Bar,
    Part,
    bar_chart,
    heat_map,
    histogram,
    line_chart,
    nice_ticks,
    stacked_bar,
)

finite = st.floats(-1e9, 1e9, allow_nan=False)


def curve(name, x=(0.0, 1.0), y=(1.0, 0.0)):
    return Curve("group", name, "recall", "precision", tuple(x), tuple(y))


def plain(_name):
    return "k0"


@given(finite, finite, st.integers(2, 10))
def test_ticks_are_few_round_and_cover_the_range(low, span, count):
    high = low + abs(span)
    ticks = nice_ticks(low, high, count)
    assert ticks == sorted(set(ticks))
    slack = 1e-6 * max(abs(low), abs(high), 1e-9)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert len(ticks) <= count + 3


def test_ticks_of_a_known_range():
    assert nice_ticks(0, 7) == [0, 2, 4, 6, 8]
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert nice_ticks(0, 0)[-1] >= 1
    assert nice_ticks(0, 11) == [0, 2.5, 5, 7.5, 10, 12.5]
    assert nice_ticks(0, 11, whole=True) == [0, 5, 10, 15]
    assert nice_ticks(0, 2, whole=True) == [0, 1, 2]


def test_lines_lie_where_their_numbers_say():
    svg = line_chart([curve("car", (0.0, 0.5, 1.0), (1.0, 0.5, 0.0))], plain, title="t", height=300)
    # the plotting area is 44..468 by 30..256
    assert 'points="44,30 256,143 468,256"' in svg


def test_counts_have_whole_ticks_and_large_ones_are_told_apart():
    def ticks(high, *, counts):
        svg = line_chart([curve("A", y=(0.0, high))], plain, title="t", counts=counts)
        return [part.partition("<")[0] for part in svg.split('text-anchor="end">')[1:]][:-1]

    assert ticks(11.0, counts=False) == ["0", "2.5", "5", "7.5", "10", "12.5"]
    assert ticks(11.0, counts=True) == ["0", "5", "10", "15"]
    assert ticks(1.0, counts=True) == ["0", "1"]
    assert ticks(12_400.0, counts=False)[-2:] == ["10k", "12.5k"]


def test_points_that_are_not_finite_are_left_out():
    svg = line_chart(
        [curve("car", (0.0, 0.5, 1.0), (1.0, math.nan, 0.0))], plain, title="t", height=300
    )
    assert 'points="44,30 468,256"' in svg
    assert "nan" not in svg


def test_long_lines_are_thinned_and_keep_their_ends():
    steps = [k / 9999 for k in range(10_000)]
    svg = line_chart([curve("car", steps, steps)], plain, title="t")
    points = svg.split('points="')[1].split('"')[0].split()
    assert len(points) <= 202
    assert points[0].startswith("44,")
    assert points[-1].startswith("468,")


def test_only_ten_lines_are_coloured():
    svg = line_chart([curve(f"class {k}") for k in range(30)], plain, title="t")
    assert svg.count("series k0") == 10
    assert svg.count("series k-other thin") == 20


def test_bars_are_sorted_and_in_proportion():
    svg = bar_chart([Bar("low", 0.25), Bar("high", 0.5), Bar("none", math.nan)], title="t")
    assert svg.index(">high<") < svg.index(">low<")
    assert "none" not in svg
    widths = [
        float(part.split('width="')[1].split('"')[0])
        for part in svg.split("<rect ")[1:]
        if 'class="bar"' in part
    ]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.01)


def test_of_many_bars_both_ends_are_drawn():
    svg = bar_chart([Bar(f"class {k}", k / 100) for k in range(80)], title="t")
    assert svg.count('class="bar"') == 24
    assert "56 between these" in svg
    assert "class 79" in svg
    assert "class 0<" in svg


def test_histogram_bars_are_as_high_as_their_counts():
    svg = histogram([0, 0.5, 1], [3, 10], title="t", x_label="score", height=220)
    assert "0 to 0.5: 3" in svg
    heights = [
        float(part.split('height="')[1].split('"')[0])
        for part in svg.split("<rect ")[1:]
        if 'class="bar"' in part
    ]
    assert heights[1] / heights[0] == pytest.approx(10 / 3, rel=1e-3)


def test_histogram_needs_one_edge_more_than_counts():
    with pytest.raises(ValueError, match="expected 3 edges"):
        histogram([0, 1], [1, 2], title="t", x_label="x")


def test_heat_map_is_normalised_by_row():
    svg = heat_map(Confusion(("a", "b"), ("a", "b"), ((9, 0), (3, 1)), "boxes"), title="t")
    assert "truth b, predicted a: 3 boxes (75.0% of the row)" in svg
    assert 'class="right" fill-opacity="1"' in svg
    assert 'class="wrong" fill-opacity="0.87"' in svg


def test_large_heat_map_adds_up_the_rare_classes():
    names = tuple(f"c{k}" for k in range(50))
    counts = tuple(tuple(100 - i if i == j else 0 for j in range(50)) for i in range(50))
    svg = heat_map(Confusion(names, names, counts, "boxes"), title="t")
    assert svg.count('class="mark"') == 24 * 24
    rest = sum(100 - k for k in range(23, 50))
    assert f"truth 27 others, predicted 27 others: {format_count(rest)} boxes" in svg


def test_stacked_bar_leaves_no_gap():
    parts = [Part("a", 1, "k0", "1"), Part("none", 0, "k1", "0"), Part("b", 3, "k2", "3")]
    svg = stacked_bar(parts, title="t")
    assert 'x="0.000%" width="25.000%"' in svg
    assert 'x="25.000%" width="75.000%"' in svg
    assert svg.count("<rect") == 2


def test_nothing_to_draw_is_said():
    for svg in (
        line_chart([], plain, title="none"),
        line_chart([curve("x", (), ())], plain, title="none"),
        bar_chart([], title="none"),
        bar_chart([Bar("a", math.nan)], title="none"),
        histogram([0, 1], [0], title="none", x_label="x"),
        heat_map(Confusion((), (), (), "boxes"), title="none"),
        heat_map(Confusion(("a",), ("a",), ((0,),), "boxes"), title="none"),
    ):
        assert "nothing to draw" in svg


def test_text_is_escaped():
    evil = "<b onload='x'>\""
    svgs = [
        line_chart([curve(evil)], plain, title=evil),
        bar_chart([Bar(evil, 0.5)], title=evil),
        heat_map(Confusion((evil,), (evil,), ((1,),), evil), title=evil),
        histogram([0, 1], [1], title=evil, x_label=evil),
        stacked_bar([Part(evil, 1, "k0", evil)], title=evil),
    ]
    assert all("<b" not in svg for svg in svgs)
