"""What every page shares: style, script, policy, gallery."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pixelmill.tasks.display import printable
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
from pixelmill.tasks.report.gallery import Tile, mistake_reason
from pixelmill.tasks.report.layers import Box, Chip, Layer, Region
from pixelmill.tasks.report.palette import ClassColours, colour_css
from pixelmill.tasks.report.sections import KIND_TITLES
from pixelmill.tasks.result_files import replace_whole

__all__ = ["render_page", "write_page"]

_FOLDER = Path(__file__).parent
_STYLES = ("theme.css", "report.css", "overlays.css")
# boxes below it are hidden until the reader moves the slider
_SHOWN_SCORE = 0.3


def render_page(
    template: str,
    colours: ClassColours,
    *,
    tiles: Sequence[Tile] = (),
    num_layers: int = 0,
    reason_titles: Mapping[str, str] | None = None,
    orders: Mapping[tuple[str, str, str], str] | None = None,
    **context: Any,
) -> bytes:
    """A self-contained HTML page: no network, the same bytes for the same input.

    Args:
        template: in this folder; it extends `page.html.j2`.
        colours: of all classes shown.
        tiles: of the gallery, in the order shown.
        num_layers: different `Layer.number`s, which the reader switches.
        reason_titles: reason in `Tile.reasons` -> its title.
        orders: (model key, kind, value name) that the gallery can be sorted by -> title.
        **context: what else the template shows.
    """
    # exactly what stands between the tags, or the policy refuses it
    style = "\n".join(
        (
            *((_FOLDER / name).read_text() for name in _STYLES),
            colour_css(),
            _tile_css(tiles, num_layers),
        )
    )
    script = (_FOLDER / "report.js").read_text()
    environment = _environment(colours, orders or {})
    environment.globals["reason_titles"] = dict(reason_titles or {})
    html = environment.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        style_digest=content_digest(style),
        script_digest=content_digest(script),
        tiles=tiles,
        tile_classes=_tile_classes(tiles),
        tile_folders=_tile_folders(tiles),
        tile_reasons=Counter(reason for tile in tiles for reason in tile.reasons),
        layer_titles=_layer_titles(tiles),
        **context,
    )
    return html.encode()


def write_page(path: Path, template: str, colours: ClassColours, **shown: Any) -> Path:
    """Write what `render_page` makes of the same arguments; parents are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path, render_page(template, colours, **shown))
    return path


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
        "threshold": _SHOWN_SCORE,
        "mistake_reason": mistake_reason,
    }
    return environment


def _tame(value: object) -> object:
    """Names of others without control characters, of which markup escaping lets all pass."""
    return printable(value, keep="\n\t") if type(value) is str else value


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
