"""What people corrected, back as truth: Label Studio JSON, CVAT XML, COCO JSON -> COCO JSON.

An image that was looked at replaces what the truth had of it, boxes and all; nothing else changes.
The same file again changes nothing.
"""

import hashlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from pixelmill.tasks.metrics.detection import encode_mask, mask_codec
from pixelmill.tasks.names import name_fault
from pixelmill.tasks.truth import load_coco_instances, raise_faults

__all__ = ["Correction", "Merged", "merge_corrections", "read_corrections"]

_PROVENANCE = "correction"


@dataclass(frozen=True, slots=True)
class Correction:
    """What is true of one image.

    Attributes:
        things: class name, box as x, y, width, height in pixels, and COCO run lengths or None.
        by: who said so, as the tool tells, or "".
    """

    file_name: str
    width: int
    height: int
    things: tuple[tuple[str, tuple[float, float, float, float], Mapping[str, Any] | None], ...]
    by: str = ""


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did; images that were equal already are in neither count."""

    num_new: int
    num_changed: int
    num_same: int


def read_corrections(path: Path) -> tuple[str, tuple[Correction, ...]]:
    """Read a tool's export.

    Args:
        path: JSON of Label Studio (a list of tasks) or of COCO, or XML of CVAT for images.

    Returns:
        The tool's name, and what it says of each image that somebody has looked at.

    Raises:
        ValueError: another form, or with every fault of its entries.
    """
    data = path.read_bytes()
    faults: list[str] = []
    if data.lstrip()[:1] == b"<":
        tool, found = "cvat", list(_cvat(data, path, faults))
    else:
        try:
            document = json.loads(data)
        except ValueError as err:
            raise ValueError(f"{path}: neither XML nor JSON: {err}") from err
        if isinstance(document, list):
            tool, found = "label-studio", list(_label_studio(document, faults))
        else:
            tool, found = "coco", list(_coco(path))
    names = [one.file_name for one in found]
    faults += [f"{name!r}: {fault}" for name in names if (fault := name_fault(name))]
    faults += [f"{name!r} comes twice" for name in sorted({n for n in names if names.count(n) > 1})]
    raise_faults(path, faults)
    return tool, tuple(found)


def _box(values: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """x, y, width, height cut to the image.

    Raises:
        ValueError: nothing is left, or a value is no number.
    """
    left, top, right, bottom = (float(value) for value in values)
    if not np.isfinite([left, top, right, bottom]).all():
        raise ValueError(f"a box must be four finite numbers, got {list(values)}")
    left, right = max(0.0, left), min(float(width), right)
    top, bottom = max(0.0, top), min(float(height), bottom)
    if right <= left or bottom <= top:
        raise ValueError(f"box {list(values)} has no inside in {width} x {height} pixels")
    return tuple(round(v, 3) for v in (left, top, right - left, bottom - top))  # type: ignore[return-value]


def _size(width: Any, height: Any) -> tuple[int, int]:
    size = int(width), int(height)
    if not all(0 < side <= 65_535 for side in size):
        raise ValueError(f"width and height must be 1 to 65535, got {width!r} and {height!r}")
    return size


def _mask_thing(
    name: str, mask: Mapping[str, Any]
) -> tuple[str, tuple[float, float, float, float], Mapping[str, Any]]:
    box = tuple(float(value) for value in mask_codec.toBbox(mask))
    if not mask_codec.area(mask):
        raise ValueError(f"{name}: the mask has no pixel")
    return name, box, mask  # type: ignore[return-value]  # toBbox gives four


def _polygon(points: Any, scale: Sequence[float], width: int, height: int) -> Mapping[str, Any]:
    flat = (np.array(points, np.float64).reshape(-1, 2) * scale).ravel()
    if len(flat) < 6 or not np.isfinite(flat).all():
        raise ValueError("a polygon must have 3 or more points of finite numbers")
    mask: Mapping[str, Any] = mask_codec.merge(
        mask_codec.frPyObjects([flat.tolist()], height, width)
    )
    return mask


def _label_studio(tasks: Sequence[Any], faults: list[str]) -> Iterator[Correction]:
    """The newest annotation of each task that was not cancelled; places are in percent."""
    for index, task in enumerate(tasks):
        try:
            data = task["data"]
            annotations = [a for a in task.get("annotations") or () if not a.get("was_cancelled")]
            if not annotations:
                continue
            newest = max(annotations, key=lambda a: str(a.get("updated_at") or ""))
            name = data.get("path") or PurePosixPath(unquote(str(data["image"]))).name
            yield _label_studio_image(str(name), newest, data)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as err:
            faults.append(f"task {index}: {_told(err)}")


def _label_studio_image(
    name: str, annotation: Mapping[str, Any], data: Mapping[str, Any]
) -> Correction:
    things: list[Any] = []
    width, height = data.get("width"), data.get("height")
    for result in annotation["result"]:
        kind, value = result.get("type"), result.get("value") or {}
        width, height = result.get("original_width", width), result.get("original_height", height)
        if kind not in ("rectanglelabels", "polygonlabels"):
            continue
        size = _size(width, height)
        label = str(value[kind][0])
        if kind == "rectanglelabels":
            if value.get("rotation"):
                raise ValueError("a turned box is no box of COCO; draw it upright, or as a polygon")
            low = value["x"] * size[0] / 100, value["y"] * size[1] / 100
            side = value["width"] * size[0] / 100, value["height"] * size[1] / 100
            corners = (*low, low[0] + side[0], low[1] + side[1])
            things.append((label, _box(corners, *size), None))
        else:
            scale = (size[0] / 100, size[1] / 100)
            things.append(_mask_thing(label, _polygon(value["points"], scale, *size)))
    if width is None or height is None:
        raise ValueError(
            "an image without any box has no size in Label Studio's export; set width and height "
            "in the task's data"
        )
    by = annotation.get("completed_by")
    by = by.get("email") or by.get("id") if isinstance(by, Mapping) else by
    return Correction(name, *_size(width, height), tuple(things), "" if by is None else str(by))


def _cvat(data: bytes, path: Path, faults: list[str]) -> Iterator[Correction]:
    # Entities are how XML files blow up or read other files; annotations have no use for them
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError(f"{path} declares a document type; remove the DOCTYPE")
    try:
        root = ET.fromstring(data)
    except ET.ParseError as err:
        raise ValueError(f"{path}: not XML: {err}") from err
    if root.tag != "annotations":
        raise ValueError(f"{path}: expected CVAT's <annotations>, got <{root.tag}>")
    by = root.findtext("meta/task/owner/username") or ""
    for image in root.iter("image"):
        name = image.get("name") or ""
        try:
            size = _size(image.get("width"), image.get("height"))
            things = tuple(_cvat_things(image, *size))
            yield Correction(name, *size, things, by)
        except (KeyError, TypeError, ValueError) as err:
            faults.append(f"image {name!r}: {_told(err)}")


def _cvat_things(image: ET.Element, width: int, height: int) -> Iterator[Any]:
    for shape in image:
        label = shape.get("label") or ""
        if shape.tag == "box":
            corners = [float(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr")]
            if float(shape.get("rotation") or 0):
                raise ValueError("a turned box is no box of COCO; draw it upright, or as a polygon")
            yield label, _box(corners, width, height), None
        elif shape.tag == "polygon":
            points = [pair.split(",") for pair in shape.attrib["points"].split(";")]
            yield _mask_thing(label, _polygon(points, (1, 1), width, height))
        elif shape.tag == "mask":
            yield _mask_thing(label, _cvat_mask(shape.attrib, width, height))


def _cvat_mask(given: Mapping[str, str], width: int, height: int) -> Mapping[str, Any]:
    left, top, columns, rows = (int(given[key]) for key in ("left", "top", "width", "height"))
    counts = [int(count) for count in given["rle"].split(",")]
    inside = left >= 0 and top >= 0 and left + columns <= width and top + rows <= height
    if not inside or min(counts) < 0 or sum(counts) != columns * rows:
        raise ValueError(
            f"a mask's run lengths must add up to its {columns} x {rows} pixels within the image, "
            f"got {sum(counts)}"
        )
    flat = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
    pixels = np.zeros((height, width), bool)
    pixels[top : top + rows, left : left + columns] = flat.reshape(rows, columns)
    return encode_mask(pixels)


def _coco(path: Path) -> Iterator[Correction]:
    truth = load_coco_instances(path)
    names = {category.id: category.name for category in truth.categories}
    things: dict[int, list[Any]] = {}
    for one in truth.annotations:
        entry = (names[one["category_id"]], tuple(one["bbox"]), one.get("segmentation"))
        things.setdefault(one["image_id"], []).append(entry)
    for image in truth.images:
        found = tuple(things.get(image.id, ()))
        yield Correction(image.file_name, image.width, image.height, found)


def _told(error: Exception) -> str:
    return f"no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)


def merge_corrections(
    truth: Path, tool: str, corrections: Sequence[Correction], *, source: Path
) -> Merged:
    """Put corrections into a COCO file; one that is not there is made.

    Each corrected image says in `correction` which tool and file (by digest) it is from, by whom
    and when. The file is replaced when the new one is whole, and not touched if nothing changes.

    Args:
        truth: COCO instances JSON.
        tool: where the corrections are from.
        corrections: one for each image.
        source: the file that they were read from.

    Raises:
        ValueError: the truth is no COCO instances JSON, or has an image in another size.
    """
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    if truth.exists():
        load_coco_instances(truth)  # with every fault of the file
        document = json.loads(truth.read_bytes())
    images = {image["file_name"]: image for image in document["images"]}
    category_of = {category["name"]: category["id"] for category in document["categories"]}
    notes: dict[int, list[dict[str, Any]]] = {}
    for note in document["annotations"]:
        notes.setdefault(note["image_id"], []).append(note)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    new = changed = same = 0
    next_image = 1 + max((image["id"] for image in document["images"]), default=0)
    next_note = 1 + max((note.get("id", 0) for note in document["annotations"]), default=0)
    for one in corrections:
        image = images.get(one.file_name)
        for name, _, _ in one.things:
            category_of.setdefault(name, 1 + max(category_of.values(), default=0))
        wanted = [_annotation(thing, category_of) for thing in one.things]
        if image is None:
            image = {"id": next_image, "file_name": one.file_name}
            image |= {"width": one.width, "height": one.height}
            images[one.file_name] = image
            next_image += 1
            new += 1
        elif (image["width"], image["height"]) != (one.width, one.height):
            raise ValueError(
                f"{truth}: {one.file_name!r} is {image['width']} x {image['height']} pixels, in "
                f"{source} {one.width} x {one.height}; correct the one that is wrong"
            )
        elif _content(notes.get(image["id"], ())) == _content(wanted):
            same += 1
            continue
        else:
            changed += 1
        image[_PROVENANCE] = {
            "tool": tool,
            "file_sha256": digest,
            "by": one.by,
            "imported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        notes[image["id"]] = [
            {"id": next_note + k, "image_id": image["id"], **note} for k, note in enumerate(wanted)
        ]
        next_note += len(wanted)
    if new or changed:
        document["images"] = list(images.values())
        document["categories"] += [
            {"id": number, "name": name}
            for name, number in category_of.items()
            if name not in {category["name"] for category in document["categories"]}
        ]
        order = [image["id"] for image in document["images"]]
        document["annotations"] = [note for key in order for note in notes.get(key, ())]
        truth.parent.mkdir(parents=True, exist_ok=True)
        aside = truth.with_name(f".{truth.name}.new")
        aside.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        load_coco_instances(aside)  # what is put in its place can be read
        aside.replace(truth)
    return Merged(new, changed, same)


def _annotation(thing: Any, category_of: Mapping[str, int]) -> dict[str, Any]:
    name, box, mask = thing
    note: dict[str, Any] = {"category_id": category_of[name], "bbox": list(box), "iscrowd": 0}
    note["area"] = box[2] * box[3]
    if mask is not None:
        counts = mask["counts"]
        text = counts.decode() if isinstance(counts, bytes) else counts
        note["segmentation"] = {"size": list(mask["size"]), "counts": text}
        note["area"] = float(mask_codec.area({"size": mask["size"], "counts": text.encode()}))
    return note


def _content(notes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Annotations without what only names them, in an order of their own."""
    kept = ({k: v for k, v in note.items() if k not in ("id", "image_id")} for note in notes)
    return sorted(json.dumps(note, sort_keys=True) for note in kept)
