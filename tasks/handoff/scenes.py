"""Predictions image by image, as every export needs them."""

import fnmatch
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.comparison.sides import ModelRows, chunks
from pixelmill.tasks.metrics.detection import encode_plane, mask_codec
from pixelmill.tasks.store import Store
from pixelmill.tasks.store.masks import read_planes
from pixelmill.tasks.store.schemas import IMAGES

__all__ = ["Condition", "Scene", "Thing", "choose_model", "parse_condition", "read_scenes"]

_VOID = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65_535}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "=": operator.eq, "<": operator.lt,
    ">": operator.gt, "~": lambda text, pattern: fnmatch.fnmatchcase(str(text), pattern),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Thing:
    """One object, or one class of a label map, which has no score.

    Attributes:
        class_id: index into the model's classes.
        box_xyxy: pixels of the original, max exclusive.
        mask: COCO run lengths, `{"size": [H, W], "counts": bytes}`, or None.
    """

    class_id: int
    class_name: str
    score: float | None
    box_xyxy: tuple[float, float, float, float]
    mask: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """What one model says of one image; best first.

    Attributes:
        path: in the collection.
        labels: (class name, score) of the whole image.
    """

    image_id: str
    path: str
    source_uri: str
    width: int
    height: int
    things: tuple[Thing, ...] = ()
    captions: tuple[str, ...] = ()
    labels: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """A column of `images` against a value; `~` matches a pattern with * and ?."""

    column: str
    how: str
    value: str | int

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of `images` is meant."""
        found = row[self.column]
        return found is not None and _COMPARE[self.how](found, self.value)


def parse_condition(text: str) -> Condition:
    """`path~night/*`, `width>=1000`, `status!=ok`.

    Raises:
        ValueError: another form, or no such column.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", text)
    columns = [*IMAGES.names, "date"]
    if match is None or match[1] not in columns:
        raise ValueError(
            f"expected COLUMN and one of {' '.join(_COMPARE)} and a value, such as 'path~night/*', "
            f"with a column of images ({', '.join(columns)}), got {text!r}"
        )
    column, how, value = match.groups()
    is_number = column != "date" and pa.types.is_integer(IMAGES.field(column).type)
    if not is_number or how == "~":
        return Condition(column, how, value)
    try:
        return Condition(column, how, int(value))
    except ValueError:
        raise ValueError(f"{column} is a whole number, got {value!r}") from None


def choose_model(store: Store, name: str | None) -> ModelSpec:
    """The model of a key or a name, or the only one.

    Raises:
        ValueError: none or several.
    """
    models = store.models()
    found = {k: s for k, s in models.items() if name is None or name in (k, s.name)}
    if len(found) == 1:
        return next(iter(found.values()))
    what = (
        "no model is published" if not models else f"{name or 'no model'!r} names none or several"
    )
    raise ValueError(f"{what}; name one by --model: {', '.join(models) or 'none'}")


def read_scenes(
    store: Store,
    spec: ModelSpec,
    *,
    collection: str | None = None,
    min_score: float = 0.0,
    where: Sequence[Condition] = (),
    only: frozenset[str] | None = None,
    with_masks: bool = True,
) -> Iterator[Scene]:
    """Every image that the model has scored, in order of the image_id; memory stays bounded.

    Args:
        store: published predictions.
        spec: of the model.
        collection: only its images; None: there must be one.
        min_score: boxes and labels below are left out; images without any stay.
        where: all must hold.
        only: image ids; None: all.
        with_masks: read masks too.

    Raises:
        ValueError: the images are of several collections, whose paths may be the same.
    """
    columns = [name for name in IMAGES.names if name != "image_id"]
    seen: set[str] = set()
    ids = store.published_ids(spec.key)
    rows_of = ModelRows(store, spec.key, ids)
    for image_ids in chunks(ids):
        if only is not None:
            image_ids = [image_id for image_id in image_ids if image_id in only]
        if not image_ids:
            continue
        wanted = set(image_ids)
        rows = rows_of.read("images", image_ids, [*columns, "date"]).to_pylist()
        chosen = {
            row["image_id"]: row
            for row in rows
            if row["image_id"] in wanted
            and collection in (None, row["collection"])
            and all(condition.holds(row) for condition in where)
        }
        seen |= {row["collection"] for row in chosen.values()}
        if len(seen) > 1:
            raise ValueError(f"images of several collections: name one, {', '.join(sorted(seen))}")
        if chosen:
            yield from _scenes(rows_of, spec, chosen, sorted(chosen), min_score, with_masks)


def _scenes(
    rows_of: ModelRows,
    spec: ModelSpec,
    images: Mapping[str, Mapping[str, Any]],
    image_ids: Sequence[str],
    min_score: float,
    with_masks: bool,
) -> Iterator[Scene]:
    def grouped(table: str, *names: str) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        rows = rows_of.read(table, image_ids, ["rank", *names]).to_pylist()
        for row in sorted(rows, key=lambda row: row["rank"]):
            found.setdefault(row["image_id"], []).append(row)
        return found

    corners = ("x_min", "y_min", "x_max", "y_max")
    task = spec.task
    boxes = {}
    if task in ("detection", "instance_segmentation"):
        boxes = grouped(
            "detections", "class_id", "class_name", "score", *corners, "mask_layer", "mask_value"
        )
    captions = grouped("captions", "text") if task == "captioning" else {}
    labels = grouped("labels", "class_name", "score") if task == "classification" else {}
    for image_id in image_ids:
        image = images[image_id]
        rows = [row for row in boxes.get(image_id, ()) if row["score"] >= min_score]
        masks = _instance_masks(rows_of.store, image, rows) if with_masks else [None] * len(rows)
        things = [
            Thing(
                row["class_id"], row["class_name"], row["score"],
                (row["x_min"], row["y_min"], row["x_max"], row["y_max"]), mask,
            )
            for row, mask in zip(rows, masks, strict=True)
        ]  # fmt: skip
        if task == "semantic_segmentation" and with_masks:
            things = _regions(rows_of.store, spec, image)
        yield Scene(
            image_id=image_id,
            path=image["path"],
            source_uri=image["source_uri"],
            width=image["width"],
            height=image["height"],
            things=tuple(things),
            captions=tuple(row["text"] for row in captions.get(image_id, ())),
            labels=tuple(
                (row["class_name"], row["score"])
                for row in labels.get(image_id, ())
                if row["score"] >= min_score
            ),
        )


def _planes(store: Store, image: Mapping[str, Any], kind: str) -> NDArray[Any]:
    array = store.mask_array(image["mask_store"], image[f"{kind}_array"])
    return read_planes(array, image[f"{kind}_row"], image["height"], image["width"])


def _instance_masks(
    store: Store, image: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any] | None]:
    if image["instances_array"] is None or not rows:
        return [None] * len(rows)
    planes = _planes(store, image, "instances")
    by_layer: dict[int, list[int]] = {}
    for row in rows:
        if row["mask_layer"] is not None:
            by_layer.setdefault(row["mask_layer"], []).append(row["mask_value"])
    encoded = {layer: encode_plane(planes[layer], values) for layer, values in by_layer.items()}
    return [
        None if row["mask_layer"] is None else encoded[row["mask_layer"]][row["mask_value"]]
        for row in rows
    ]


def _regions(store: Store, spec: ModelSpec, image: Mapping[str, Any]) -> list[Thing]:
    """The classes of a label map, each as one mask."""
    if image["semantic_array"] is None:
        return []
    labels = _planes(store, image, "semantic")
    values = [
        int(v) for v in np.unique(labels) if v != _VOID[labels.dtype] and v < len(spec.classes)
    ]
    things = []
    for value, mask in encode_plane(labels, values).items():
        left, top, width, height = (float(v) for v in mask_codec.toBbox(mask))
        box = (left, top, left + width, top + height)
        things.append(Thing(value, spec.classes[value], None, box, mask))
    return things
