"""The page of a comparison: what changed, by numbers and by pictures."""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.comparison.results import Comparison, ImageChange, ModelComparison
from pixelmill.tasks.metrics.results import Curve
from pixelmill.tasks.report.formats import format_moment
from pixelmill.tasks.report.gallery import Numbers, Pick, Tile, build_tiles
from pixelmill.tasks.report.layers import build_layer, read_rows
from pixelmill.tasks.report.page import write_page
from pixelmill.tasks.report.palette import ClassColours, assign_colours
from pixelmill.tasks.report.plots import line_chart
from pixelmill.tasks.report.references import References
from pixelmill.tasks.report.sections import Plot
from pixelmill.tasks.store import Store

__all__ = ["build_compare_page"]

_MOST_FINDINGS = 40
_MOST_DIFFERENCES = 200
_MOST_FLIPS = 100
_MOST_TAGS = 3
_COUNTS = frozenset({"same", "moved", "flipped", "flipped to", "lost", "gained", "change"})


@dataclass(frozen=True, slots=True)
class _PairView:
    """One pair of models as the page shows it."""

    pair: ModelComparison
    title: str
    anchor: str
    plots: tuple[Plot, ...]
    value_names: tuple[str, ...]
    flips: tuple[tuple[str, str, int], ...]
    mapping: tuple[tuple[float, float | None], ...]
    most: int = _MOST_FINDINGS
    most_differences: int = _MOST_DIFFERENCES
    counts: frozenset[str] = _COUNTS


@dataclass(frozen=True, slots=True)
class _LayerView:
    """A layer that the reader switches."""

    name: str


def build_compare_page(
    comparison: Comparison, store_a: Store, store_b: Store, path: Path, *, max_gallery: int = 60
) -> Path:
    """Write one self-contained HTML file.

    Args:
        comparison: what is told.
        store_a: pictures and predictions of the gallery's images are read from it.
        store_b: likewise.
        path: of the file.
        max_gallery: images in the gallery at most, the same number of each pair of models.

    Returns:
        The file.
    """
    specs = [
        (store_a.models()[pair.model_a], store_b.models()[pair.model_b])
        for pair in comparison.pairs
    ]
    colours = assign_colours(name for pair in specs for spec in pair for name in spec.classes)
    tiles, titles = _tiles(comparison, specs, store_a, store_b, colours, max_gallery)
    views = [
        _view(pair, number, spec_a.name if spec_a.name == spec_b.name else "")
        for number, (pair, (spec_a, spec_b)) in enumerate(zip(comparison.pairs, specs, strict=True))
    ]
    return write_page(
        path,
        "compare.html.j2",
        colours,
        tiles=tiles,
        num_layers=2 * len(specs),
        reason_titles=titles,
        orders={
            (pair.model_b, str(pair.kind), "change"): f"change, {pair.kind}"
            for pair in comparison.pairs
        },
        title=f"{comparison.a} and {comparison.b}",
        facts=[
            ("A", f"{comparison.a} in {comparison.root_a}"),
            ("B", f"{comparison.b} in {comparison.root_b}"),
            ("Compared", format_moment(comparison.created_at)),
        ],
        sections=[*((view.anchor, view.title) for view in views), ("gallery", "Images")],
        pairs=views,
        skipped=comparison.skipped,
        layers=[
            _LayerView(f"{side} {spec.key}")
            for pair in specs
            for side, spec in zip("AB", pair, strict=True)
        ],
    )


def _view(pair: ModelComparison, number: int, name: str) -> _PairView:
    flips = []
    if pair.flips is not None:
        flips = [
            (a, b, count)
            for a, row in zip(pair.flips.rows, pair.flips.counts, strict=True)
            for b, count in zip(pair.flips.columns, row, strict=True)
            if a != b and count
        ]
    mapping = (
        tuple(zip(pair.scores.thresholds, pair.scores.equivalents, strict=True))
        if pair.scores
        else ()
    )
    return _PairView(
        pair=pair,
        title=name or f"{pair.model_a} and {pair.model_b}",
        anchor=f"pair-{number}",
        plots=tuple(_plots(pair)),
        value_names=tuple(dict.fromkeys(name for row in pair.per_class for name in row.values)),
        flips=tuple(sorted(flips, key=lambda flip: (-flip[2], flip[:2]))[:_MOST_FLIPS]),
        mapping=mapping,
    )


def _plots(pair: ModelComparison) -> Iterable[Plot]:
    if pair.scores is None:
        return
    edges = pair.scores.edges
    middles = tuple((a + b) / 2 for a, b in itertools.pairwise(edges))
    curves = [
        Curve("scores", name, "score", "count", middles, tuple(map(float, counts)))
        for name, counts in (("A", pair.scores.counts_a), ("B", pair.scores.counts_b))
    ]
    css = {"A": "k0", "B": "k1"}
    svg = line_chart(curves, css.__getitem__, title="Scores in A and in B", counts=True)
    yield Plot("Scores", svg, legend=tuple(css.items()))


def _tiles(
    comparison: Comparison,
    specs: Sequence[tuple[ModelSpec, ModelSpec]],
    store_a: Store,
    store_b: Store,
    colours: ClassColours,
    max_gallery: int,
) -> tuple[list[Tile], dict[str, str]]:
    """Tiles of the images that changed most, with layers of all models, and titles of reasons."""
    share = max_gallery // max(1, len(comparison.pairs))
    changes: dict[str, list[tuple[ModelComparison, ImageChange]]] = {}
    for pair in comparison.pairs:
        for change in pair.images[:share]:
            changes.setdefault(change.image_id, []).append((pair, change))
    titles: dict[str, str] = {}
    picks = []
    for image_id, found in changes.items():
        tags = [_tag(text, titles) for _, change in found for text in change.reasons]
        first = found[0][1]
        chosen = tuple(dict.fromkeys(tags))[:_MOST_TAGS]
        picks.append(Pick(first.path, image_id, first.source_uri, chosen))
    references = References()
    tiles = build_tiles(store_a, picks, {}, None, references, colours)
    sides = [
        (store, spec, 2 * number + place)
        for number, pair_specs in enumerate(specs)
        for place, (store, spec) in enumerate(zip((store_a, store_b), pair_specs, strict=True))
    ]
    rows = (
        [read_rows(store, spec.key, list(changes)) for store, spec, _ in sides] if changes else []
    )
    shown = []
    for tile in tiles:
        assert tile.image_id is not None
        layers = [
            build_layer(store, tile.image_id, spec, number, found, colours)
            for (store, spec, number), found in zip(sides, rows, strict=True)
        ]
        numbers = tuple(
            Numbers(pair.model_b, pair.kind, {"change": change.change, **change.values})
            for pair, change in changes[tile.image_id]
        )
        kept = tuple(layer for layer in layers if layer is not None)
        shown.append(replace(tile, layers=kept, numbers=numbers))
    return shown, dict(sorted(titles.items(), key=lambda item: item[1]))


def _tag(reason: str, titles: dict[str, str]) -> str:
    """A short name for a reason less its counts, so that images can be filtered by it."""
    title = re.sub(r"^\d+ | on \d+%$", "", reason)
    title = title if len(title) <= 40 else "caption changed"
    for name, known in titles.items():
        if known == title:
            return name
    name = f"change-{len(titles)}"
    titles[name] = title
    return name
