"""What one model says of one image, ready to be drawn over it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.report.palette import ClassColours
from pixelmill.tasks.report.pictures import encode_regions, shrink_mask, trace_outline
from pixelmill.tasks.store import Store
from pixelmill.tasks.thumbnails import fit

__all__ = ["Box", "Chip", "Layer", "Region", "Rows", "build_layer", "read_rows"]

_MAX_BOXES = 60
_OUTLINE_EDGE = 400
# Tracing takes time; boxes of lower scores are shown without their masks
_LEAST_OUTLINED = 0.05
_BACKGROUND = frozenset({"background", "__background__", "void", "unlabeled", "unlabelled"})


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


Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """A model's published rows of the gallery's images, by image_id, best rank first."""

    images: dict[str, list[Row]]
    detections: dict[str, list[Row]]
    captions: dict[str, list[Row]]
    labels: dict[str, list[Row]]


def read_rows(store: Store, model_key: str, image_ids: Sequence[str]) -> Rows:
    """A model's published rows of a few images."""
    chosen = [("image_id", "in", list(image_ids))]

    def read(name: str, *columns: str) -> dict[str, list[Row]]:
        table = store.table(name, model=model_key, columns=["image_id", *columns], filters=chosen)
        found: dict[str, list[Row]] = {}
        for row in table.to_pylist():
            found.setdefault(row["image_id"], []).append(row)
        return found

    classed = ("rank", "class_name", "score")
    return Rows(
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
    drawn = (found.boxes["rank"] < _MAX_BOXES) & (found.boxes["score"] >= _LEAST_OUTLINED)
    ranks = found.boxes.loc[drawn, "rank"].tolist()
    masks = shrink_mask(found.masks[drawn.to_numpy()], _OUTLINE_EDGE)
    outlines = {int(rank): trace_outline(mask) for rank, mask in zip(ranks, masks, strict=True)}
    return outlines, size


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


def build_layer(
    store: Store,
    image_id: str,
    spec: ModelSpec,
    number: int,
    rows: Rows,
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
