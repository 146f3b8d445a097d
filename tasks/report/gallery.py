"""Which images the gallery shows, and what is drawn over them."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.decode import DecodeError, decode_image
from pixelmill.tasks.metrics.results import Evaluation, Kind, ModelEvaluation
from pixelmill.tasks.report.palette import ClassColours
from pixelmill.tasks.report.pictures import (
    encode_picture,
    encode_regions,
    fit,
    shrink_mask,
    trace_outline,
)
from pixelmill.tasks.report.references import References, TrueBox
from pixelmill.tasks.sources import read_bytes
from pixelmill.tasks.store import Store

__all__ = [
    "Box",
    "Chip",
    "Layer",
    "Numbers",
    "Pick",
    "Region",
    "Tile",
    "build_tiles",
    "choose_images",
    "ranking_name",
]

# Pictures of all tiles together, before base64, so that a report stays small enough to mail.
_PICTURES_BYTES = 9_000_000
_MAX_PICTURE_BYTES = 120_000
_MAX_BOXES = 60
_MAX_PIXELS = 400_000_000
_OUTLINE_EDGE = 400
# of the numbers per image, the one that ranks: higher is better
_RANKING = ("F1", "mIoU", "CIDEr-D", "top-1")
_BACKGROUND = frozenset({"background", "__background__", "void", "unlabeled", "unlabelled"})


@dataclass(frozen=True, slots=True)
class Pick:
    """An image of the gallery.

    Attributes:
        reasons: why it was chosen: "weakest", "strongest", "random", "empty" or "failed".
    """

    path: str
    image_id: str | None
    source_uri: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A box in percent of the image, which needs no scale where it is drawn.

    Attributes:
        outline: SVG path of its mask in the layer's outline pixels, or None.
    """

    left: float
    top: float
    width: float
    height: float
    class_name: str
    class_number: int
    css: str
    score: float
    outline: str | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A class of a label map and its share of the image in [0, 1]."""

    class_name: str
    class_number: int
    css: str
    share: float


@dataclass(frozen=True, slots=True)
class Chip:
    """A class given to the whole image, with its score in [0, 1]."""

    class_name: str
    class_number: int
    css: str
    score: float


@dataclass(frozen=True, slots=True)
class Layer:
    """What one model says of one image.

    Attributes:
        number: position of the model in the report.
        boxes: lowest score first, so that the best is drawn on top.
        num_boxes: all boxes of the image, drawn or not.
        outline_size: (H, W) of the pixels that the boxes' outlines are in.
        regions_uri: label map as a data URI; `regions` are its classes, largest first.
        labels: best first.
    """

    model_key: str
    number: int
    boxes: tuple[Box, ...] = ()
    num_boxes: int = 0
    outline_size: tuple[int, int] | None = None
    regions_uri: str | None = None
    regions: tuple[Region, ...] = ()
    captions: tuple[str, ...] = ()
    labels: tuple[Chip, ...] = ()


@dataclass(frozen=True, slots=True)
class Numbers:
    """What one evaluation says of an image."""

    model_key: str
    kind: Kind
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of the gallery, ready to be drawn.

    Attributes:
        anchor: identifies the tile in links: the image_id, or the path's digest without one.
        picture: data URI, or None with the reason in `note`.
        width: of the original in pixels, 0 if unknown; height likewise.
    """

    anchor: str
    path: str
    image_id: str | None
    width: int
    height: int
    picture: str | None
    note: str
    reasons: tuple[str, ...]
    layers: tuple[Layer, ...]
    numbers: tuple[Numbers, ...]
    true_boxes: tuple[TrueBox, ...] = ()
    true_captions: tuple[str, ...] = ()


def ranking_name(result: ModelEvaluation) -> str | None:
    """Which of the numbers per image says how well the image went; None without any."""
    names = list(dict.fromkeys(name for row in result.per_image for name in row.values))
    return next((name for name in _RANKING if name in names), names[0] if names else None)


def _rankings(evaluation: Evaluation | None) -> list[list[str]]:
    """Per evaluated model: image paths, lowest value first; undefined ones left out."""
    ranked = []
    for result in evaluation.models if evaluation else ():
        name = ranking_name(result)
        values = [
            (row.values[name], row.path)
            for row in result.per_image
            if name in row.values and math.isfinite(row.values[name])
        ]
        ranked.append([path for _, path in sorted(values)])
    return ranked


def _alternate(lists: Sequence[Sequence[str]], count: int) -> list[str]:
    """The first `count` different names, taking turns among the lists."""
    longest = max(map(len, lists), default=0)
    turns = (names[i] for i in range(longest) for names in lists if i < len(names))
    return list(dict.fromkeys(turns))[:count]


def choose_images(
    images: pd.DataFrame,
    evaluation: Evaluation | None,
    *,
    failed: Mapping[str, str],
    empty_ids: frozenset[str],
    count: int,
) -> list[Pick]:
    """A spread that depends on nothing but its arguments.

    A tenth each at most for failed images and for those where nothing was found; of the rest, with
    an evaluation, two fifths are the weakest, one fifth the strongest and the others random;
    without one, all are random. Models take turns. Random is the order of the image_id, which is a
    digest.

    Args:
        images: path, image_id and source_uri of every image that may be shown.
        evaluation: its `per_image` rows name images by path and rank them.
        failed: path -> source_uri of images that could not be scored.
        empty_ids: image_ids with an empty prediction.
        count: images at most.

    Returns:
        Each image_id once, in the order: weakest, random, strongest, empty, failed.
    """
    known = images.dropna(subset=["image_id"]).drop_duplicates("image_id")
    known = known[~known["path"].isin(list(failed))].sort_values("image_id")
    id_of = dict(zip(known["path"], known["image_id"], strict=True))
    uri_of = dict(zip(known["path"], known["source_uri"], strict=True))
    ranked = [[path for path in paths if path in id_of] for paths in _rankings(evaluation)]
    special = count // 10
    failed_paths = sorted(failed)[: special or int(not len(known))]
    empty = [path for path in id_of if id_of[path] in empty_ids][:special]
    left = count - len(failed_paths) - len(empty)
    weakest = _alternate(ranked, left * 2 // 5)
    strongest = [
        path
        for path in _alternate([paths[::-1] for paths in ranked], left // 5)
        if path not in weakest
    ]
    taken = {*weakest, *strongest, *empty}
    num_random = count - len(failed_paths) - len(taken)
    random = [path for path in id_of if path not in taken][: max(num_random, 0)]
    reasons: dict[str, list[str]] = {}
    for reason, paths in (
        ("weakest", weakest),
        ("random", random),
        ("strongest", strongest),
        ("empty", empty),
        ("failed", failed_paths),
    ):
        for path in paths:
            reasons.setdefault(path, []).append(reason)
    return [
        Pick(path, id_of.get(path), uri_of.get(path) or failed[path], tuple(why))
        for path, why in reasons.items()
    ]


Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Rows:
    """A model's published rows of the gallery's images, by image_id, best rank first."""

    images: dict[str, list[Row]]
    detections: dict[str, list[Row]]
    captions: dict[str, list[Row]]
    labels: dict[str, list[Row]]


def _read_rows(store: Store, model_key: str, image_ids: Sequence[str]) -> _Rows:
    chosen = [("image_id", "in", list(image_ids))]

    def read(name: str, *columns: str) -> dict[str, list[Row]]:
        table = store.table(name, model=model_key, columns=["image_id", *columns], filters=chosen)
        found: dict[str, list[Row]] = {}
        for row in table.to_pylist():
            found.setdefault(row["image_id"], []).append(row)
        return found

    classed = ("rank", "class_name", "score")
    return _Rows(
        images=read("images", "width", "height", "semantic_array"),
        detections=_ranked(
            read("detections", *classed, "x_min", "y_min", "x_max", "y_max", "mask_value")
        ),
        captions=_ranked(read("captions", "rank", "text")),
        labels=_ranked(read("labels", *classed)),
    )


def _ranked(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    return {key: sorted(found, key=lambda row: row["rank"]) for key, found in rows.items()}


def _boxes(
    rows: Sequence[Row],
    size: tuple[int, int],
    colours: ClassColours,
    outlines: Mapping[int, str],
) -> tuple[Box, ...]:
    height, width = size
    drawn = [
        Box(
            left=100 * row["x_min"] / width,
            top=100 * row["y_min"] / height,
            width=100 * (row["x_max"] - row["x_min"]) / width,
            height=100 * (row["y_max"] - row["y_min"]) / height,
            class_name=row["class_name"],
            class_number=colours.numbers[row["class_name"]],
            css=colours.css(row["class_name"]),
            score=row["score"],
            outline=outlines.get(row["rank"]),
        )
        for row in rows[:_MAX_BOXES]
    ]
    return tuple(reversed(drawn))


def _outlines(
    store: Store, image_id: str, model_key: str
) -> tuple[dict[int, str], tuple[int, int]]:
    """SVG paths of the best boxes' masks by rank, and the (H, W) that they are drawn in."""
    found = store.instances(image_id, model=model_key)
    size = fit((found.masks.shape[1], found.masks.shape[2]), _OUTLINE_EDGE)
    ranks = found.boxes["rank"].tolist()
    return {
        int(rank): trace_outline(shrink_mask(mask, _OUTLINE_EDGE))
        for rank, mask in zip(ranks, found.masks, strict=True)
        if rank < _MAX_BOXES
    }, size


def _regions(
    labels: NDArray[Any], classes: Sequence[str], colours: ClassColours
) -> tuple[str, tuple[Region, ...]]:
    counts = np.bincount(labels.ravel(), minlength=len(classes))[: len(classes)]
    shown = [name.lower() not in _BACKGROUND for name in classes]
    uri = encode_regions(
        labels,
        [colours.rgb(name) if ok else None for name, ok in zip(classes, shown, strict=True)],
    )
    regions = [
        Region(name, colours.numbers[name], colours.css(name), int(count) / labels.size)
        for name, count, ok in zip(classes, counts, shown, strict=True)
        if ok and count
    ]
    return uri, tuple(sorted(regions, key=lambda region: (-region.share, region.class_name)))


def _layer(
    store: Store,
    image_id: str,
    spec: ModelSpec,
    number: int,
    rows: _Rows,
    colours: ClassColours,
) -> Layer | None:
    """What the model says of the image; None if it has not scored it."""
    if image_id not in rows.images:
        return None
    (image,) = rows.images[image_id]
    detections = rows.detections.get(image_id, [])
    outlines: dict[int, str] = {}
    outline_size = None
    if any(row["mask_value"] is not None for row in detections):
        outlines, outline_size = _outlines(store, image_id, spec.key)
    regions_uri: str | None = None
    regions: tuple[Region, ...] = ()
    if image["semantic_array"] is not None:
        labels = store.semantic_mask(image_id, model=spec.key)
        regions_uri, regions = _regions(labels, spec.classes, colours)
    return Layer(
        model_key=spec.key,
        number=number,
        boxes=_boxes(detections, (image["height"], image["width"]), colours, outlines),
        num_boxes=len(detections),
        outline_size=outline_size,
        regions_uri=regions_uri,
        regions=regions,
        captions=tuple(row["text"] for row in rows.captions.get(image_id, [])),
        labels=tuple(
            Chip(
                class_name=row["class_name"],
                class_number=colours.numbers[row["class_name"]],
                css=colours.css(row["class_name"]),
                score=row["score"],
            )
            for row in rows.labels.get(image_id, [])
        ),
    )


def _read_picture(source_uri: str, max_bytes: int) -> tuple[str | None, str, tuple[int, int]]:
    """Data URI or None, why there is none, and the original's (H, W), (0, 0) if unknown."""
    try:
        decoded = decode_image(read_bytes(source_uri), max_pixels=_MAX_PIXELS)
    except DecodeError as err:
        return None, f"not readable: {err}", (0, 0)
    except OSError as err:
        return None, f"not readable: {err.strerror or type(err).__name__}", (0, 0)
    height, width = decoded.pixels.shape[:2]
    return encode_picture(decoded.pixels, max_bytes=max_bytes), "", (height, width)


def _anchor(pick: Pick) -> str:
    return pick.image_id or hashlib.sha256(pick.path.encode()).hexdigest()[:32]


def build_tiles(
    store: Store,
    picks: Sequence[Pick],
    models: Mapping[str, ModelSpec],
    evaluation: Evaluation | None,
    references: References,
    colours: ClassColours,
    *,
    read_picture: Callable[[str, int], tuple[str | None, str, tuple[int, int]]] = _read_picture,
) -> tuple[Tile, ...]:
    """Read the pictures and the predictions of the chosen images.

    Args:
        store: read only for these images, except that Parquet is filtered part by part.
        picks: the images, in the order shown; an unreadable one becomes a tile that says so.
        models: model_key -> spec, in the report's order.
        evaluation: gives each image its values.
        references: give it its truth.
        colours: of all classes of the report.
        read_picture: (source_uri, bytes at most) -> data URI or None, the reason, original (H, W).
    """
    image_ids = [pick.image_id for pick in picks if pick.image_id]
    rows = {key: _read_rows(store, key, image_ids) for key in models if image_ids}
    max_bytes = min(_MAX_PICTURE_BYTES, _PICTURES_BYTES // max(len(picks), 1))
    numbers: dict[str, list[Numbers]] = {}
    for result in evaluation.models if evaluation else ():
        for row in result.per_image:
            found = Numbers(result.model_key, result.kind, row.values)
            numbers.setdefault(row.path, []).append(found)
    with ThreadPoolExecutor(max_workers=4) as pool:
        pictures = list(pool.map(lambda pick: read_picture(pick.source_uri, max_bytes), picks))
    tiles = []
    for pick, (picture, note, size) in zip(picks, pictures, strict=True):
        layers = [
            _layer(store, pick.image_id, spec, number, rows[spec.key], colours)
            for number, spec in enumerate(models.values())
            if pick.image_id
        ]
        tiles.append(
            Tile(
                anchor=_anchor(pick),
                path=pick.path,
                image_id=pick.image_id,
                width=size[1],
                height=size[0],
                picture=picture,
                note=note,
                reasons=pick.reasons,
                layers=tuple(layer for layer in layers if layer is not None),
                numbers=tuple(numbers.get(pick.path, ())),
                true_boxes=references.boxes.get(pick.path, ()),
                true_captions=references.captions.get(pick.path, ()),
            )
        )
    return tuple(tiles)
