"""Pictures as data URIs and outlines: what the gallery's tiles are drawn with."""

import base64
import io
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixelmill.tasks.thumbnails import encode_webp, fit

__all__ = [
    "EDGES",
    "encode_picture",
    "encode_regions",
    "shrink_mask",
    "trace_loops",
    "trace_outline",
]

_T = TypeVar("_T", bound=np.generic)

# Long edges tried in turn; 640 is sharp in the tile of a double-density screen and fair enlarged.
EDGES = (640, 480, 360, 240, 160)


def encode_picture(pixels: NDArray[np.uint8], *, max_bytes: int) -> str:
    """WebP data URI, as large as fits.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        max_bytes: of the encoded picture, before base64; the smallest size is taken if none fits.
    """
    data = b""
    for edge in EDGES:
        data = encode_webp(pixels, edge)
        if len(data) <= max_bytes:
            break
    return _data_uri("image/webp", data)


def encode_regions(
    labels: NDArray[np.uint8] | NDArray[np.uint16],
    colours: Sequence[tuple[int, int, int] | None],
    *,
    edge: int = 480,
) -> str:
    """Palette PNG data URI of a label map, clear where no class is drawn.

    Args:
        labels: (H, W) class indices.
        colours: RGB by class index; None and indices beyond the end (void) are clear.
        edge: longest side of the PNG; nearest pixels are taken, labels cannot be averaged.
    """
    small = shrink_mask(labels, edge)
    distinct = list(dict.fromkeys(colour for colour in colours if colour is not None))
    # palette index 0 is clear; the colours of a report are far fewer than 255
    index_of = np.zeros(int(small.max(initial=0)) + 1, dtype=np.uint8)
    for label, colour in enumerate(colours[: len(index_of)]):
        if colour is not None:
            index_of[label] = 1 + distinct.index(colour)
    image = Image.fromarray(index_of[small], "P")
    image.putpalette([0, 0, 0, *(part for colour in distinct for part in colour)])
    sink = io.BytesIO()
    image.save(sink, "PNG", transparency=0, optimize=True)
    return _data_uri("image/png", sink.getvalue())


def shrink_mask(mask: NDArray[_T], edge: int) -> NDArray[_T]:
    """Nearest-pixel thinning of (..., H, W) arrays to a long side of at most `edge`."""
    height, width = fit((mask.shape[-2], mask.shape[-1]), edge)
    rows = ((np.arange(height) + 0.5) * mask.shape[-2] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[-1] / width).astype(int)
    return mask[..., rows[:, None], columns]


def trace_outline(mask: NDArray[np.bool_], *, tolerance: float = 1.0) -> str:
    """SVG path along a mask's pixel edges, holes included (for `fill-rule: evenodd`).

    Args:
        mask: (H, W) bool; the path is in its pixels, (0, 0) being the top left corner.
        tolerance: pixels by which the simplified path may leave the edges.

    Returns:
        The path's `d`; empty for an empty mask.
    """
    loops = trace_loops(mask, tolerance=tolerance)
    return "".join("M" + "L".join(f"{x} {y}" for x, y in points) + "Z" for points in loops)


def trace_loops(mask: NDArray[np.bool_], *, tolerance: float = 1.0) -> list[list[tuple[int, int]]]:
    """Closed loops along a mask's pixel edges, outer ones clockwise as seen, holes the other way.

    Args:
        mask: (H, W) bool.
        tolerance: pixels by which the simplified loops may leave the edges.

    Returns:
        (x, y) corners of each loop, the first not repeated; nothing for an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    found = []
    # most masks are small in their image: what is empty around them need not be looked at
    for corners in _edge_loops(mask[top : rows[-1] + 1, left : columns[-1] + 1]):
        loop = [(x + left, y + top) for x, y in corners]
        points = _simplify(loop, tolerance)
        found.append(points if len(points) >= 3 else loop)  # smaller than the tolerance
    return found


def _edge_loops(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Closed loops of (x, y) corners, with the mask always on the right hand."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # each edge between inside and outside, directed, by its first corner
    successors: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for dy, dx, begin, end in (
        (-1, 0, (0, 0), (1, 0)),
        (0, 1, (1, 0), (1, 1)),
        (1, 0, (1, 1), (0, 1)),
        (0, -1, (0, 1), (0, 0)),
    ):
        beside = padded[1 + dy : 1 + dy + mask.shape[0], 1 + dx : 1 + dx + mask.shape[1]]
        for y, x in zip(*(a.tolist() for a in np.nonzero(inside & ~beside)), strict=True):
            successors.setdefault((x + begin[0], y + begin[1]), []).append((x + end[0], y + end[1]))
    loops = []
    while successors:
        start = next(iter(successors))
        loop, corner = [start], start
        while True:
            following = successors[corner]
            corner = following.pop()
            if not following:
                del successors[loop[-1]]
            if corner == start:
                break
            loop.append(corner)
        loops.append(loop)
    return loops


def _simplify(loop: list[tuple[int, int]], tolerance: float) -> list[tuple[int, int]]:
    """Douglas-Peucker on a closed loop, halved at the corner farthest from the first.

    Source:
        Douglas and Peucker, "Algorithms for the reduction of the number of points required to
        represent a digitized line or its caricature", Cartographica 10(2), 1973.
    """
    points = np.array(loop, dtype=float)
    far = int(np.argmax(np.hypot(*(points - points[0]).T)))
    keep = np.zeros(len(points) + 1, dtype=bool)
    closed = np.vstack([points, points[:1]])
    keep[[0, far, len(points)]] = True
    pending = [(0, far), (far, len(points))]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        begin, chord = closed[first], closed[last] - closed[first]
        offsets = closed[first + 1 : last] - begin
        length = float(np.hypot(*chord))
        distances = (
            np.abs(offsets[:, 0] * chord[1] - offsets[:, 1] * chord[0]) / length
            if length
            else np.hypot(*offsets.T)
        )
        worst = int(np.argmax(distances))
        if distances[worst] > tolerance:
            middle = first + 1 + worst
            keep[middle] = True
            pending += [(first, middle), (middle, last)]
    return [loop[i] for i in np.flatnonzero(keep[:-1])]


def _data_uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
