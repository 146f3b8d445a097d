"""What pages beside the report share with it: style, script, policy, gallery."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pixelmill.tasks.report.build import (
    _STYLES,
    _environment,
    _layer_titles,
    _replace,
    _tile_classes,
    _tile_css,
    _tile_folders,
)
from pixelmill.tasks.report.formats import content_digest
from pixelmill.tasks.report.gallery import Tile
from pixelmill.tasks.report.palette import ClassColours, colour_css

__all__ = ["write_page"]

_FOLDER = Path(__file__).parent


def write_page(
    path: Path,
    template: str,
    colours: ClassColours,
    *,
    tiles: Sequence[Tile] = (),
    num_layers: int = 0,
    reason_titles: Mapping[str, str] | None = None,
    orders: Mapping[tuple[str, str, str], str] | None = None,
    **context: Any,
) -> Path:
    """Write one self-contained HTML file: no network, the same bytes for the same input.

    Args:
        path: of the file; parents are made, and an earlier file is replaced when this is whole.
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
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, html.encode())
    return path
