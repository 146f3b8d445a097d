"""Boxes and masks from the files that people have: COCO JSON, Pascal VOC XML, YOLO txt.

All become `InstanceTruth`. Of VOC and YOLO a file belongs to the image of the same path without
suffix, or else of the same file name, where only one has it. Images without such a file have no
truth; an empty file says that there is nothing to be seen.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from pycocotools import mask as coco_mask

from pixelmill.configs.schema import IngestConfig
from pixelmill.tasks.engine.header import DecodeError, read_header
from pixelmill.tasks.metrics.detection import Category, InstanceTruth, TruthImage
from pixelmill.tasks.names import place_inside
from pixelmill.tasks.truth import (
    load_coco_instances,
    match_images,
    raise_faults,
    without_suffix,
)

__all__ = ["FolderSizes", "Size", "Sizes", "load_boxes", "load_voc", "load_yolo"]

# Any: the stubs that some type checkers bring know only a part of what it takes.
mask_codec: Any = coco_mask

# (height, width) as displayed
Size = tuple[int, int]
# Of images by their path; None: nobody can tell
Sizes = Mapping[str, Size | None]

_Objects = list[dict[str, Any]]


class _Reader(Protocol):
    """Objects of a label file, and what is wrong with some."""

    def __call__(self, path: Path, size: Size, *, is_sure: bool) -> tuple[_Objects, list[str]]: ...


@dataclass(frozen=True)
class FolderSizes(Sizes):
    """The images below a folder by relative path; the size is read when it is asked for.

    What truth files say of it is often wrong.
    """

    folder: Path

    @cached_property
    def _names(self) -> dict[str, None]:
        suffixes = IngestConfig().suffixes
        return {
            path.relative_to(self.folder).as_posix(): None
            for path in sorted(self.folder.rglob("*"))
            if path.suffix.lower() in suffixes
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Size:
        """(height, width).

        Raises:
            KeyError: there is no such image.
            ValueError: it leads out of the folder, or is no image.
        """
        if name not in self._names:
            raise KeyError(name)
        try:
            header = read_header(place_inside(self.folder, name).read_bytes())
        except DecodeError as err:
            raise ValueError(f"image {name}: {err}") from err
        return header.height, header.width


def load_boxes(
    truth: Path,
    sizes: Sizes,
    classes: Sequence[str] | None = None,
    *,
    unknown: Size | None = None,
) -> InstanceTruth:
    """Read boxes, and masks where there are, in the format that the path has.

    Args:
        truth: COCO JSON, or a folder of VOC *.xml or of YOLO *.txt.
        sizes: of the images that VOC and YOLO files may be about.
        classes: names of YOLO's numbers, where no file beside the labels has them.
        unknown: what to take for the size of an image that is not among `sizes`, or has none
            there; it is named as its label. None: such a label is a fault.

    Raises:
        ValueError: another format, or entries that cannot be used.
    """
    if truth.is_file():
        return load_coco_instances(truth)
    if any(truth.rglob("*.xml")):
        return load_voc(truth, sizes, unknown=unknown)
    if any(truth.rglob("*.txt")):
        return load_yolo(truth, sizes, classes, unknown=unknown)
    raise ValueError(
        f"{truth}: expected a COCO JSON file, or a folder of Pascal VOC *.xml or of YOLO *.txt"
    )


def load_voc(folder: Path, sizes: Sizes, *, unknown: Size | None = None) -> InstanceTruth:
    """Read Pascal VOC annotations: an XML file per image.

    Corners count from 1 and the last pixel is inside, as in the challenge. "difficult" objects
    become crowds: they are not learnt, and finding them is neither right nor wrong. Classes are in
    alphabetical order.

    Args:
        folder: of the XML files.
        sizes: see `load_boxes`.
        unknown: see `load_boxes`.

    Raises:
        ValueError: with every fault of every file.

    Source: Everingham et al., The PASCAL VOC Challenge 2012 Development Kit, section 9.
    """
    found = _read_labels(folder, "*.xml", sizes, unknown, _voc_objects)
    names = sorted({each["name"] for _, objects in found for each in objects})
    return _truth(folder, found, names)


def _voc_objects(path: Path, size: Size, *, is_sure: bool) -> tuple[_Objects, list[str]]:
    bounds = size if is_sure else None
    return [_voc_object(each, bounds) for each in _parse_xml(path).findall("object")], []


def _parse_xml(path: Path) -> ET.Element:
    data = path.read_bytes()
    # Entities are how XML files blow up or read other files; annotations have no use for them
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError("declares a document type; remove the DOCTYPE")
    try:
        return ET.fromstring(data)
    except ET.ParseError as err:
        raise ValueError(f"not XML: {err}") from err


def _voc_object(element: ET.Element, bounds: Size | None) -> dict[str, Any]:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    try:
        corners = [float(element.findtext(f"bndbox/{key}") or "") for key in _VOC_CORNERS]
    except ValueError as err:
        raise ValueError(f"{name}: bndbox must have the numbers {', '.join(_VOC_CORNERS)}") from err
    left, top, right, bottom = corners[0] - 1, corners[1] - 1, corners[2], corners[3]
    if not np.isfinite(corners).all() or right <= left or bottom <= top:
        raise ValueError(f"{name}: box {corners} has no inside; corners count from 1")
    height, width = bounds or (np.inf, np.inf)
    if left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
        raise ValueError(f"{name}: box {corners} leaves the image of {width} x {height} pixels")
    box_xywh = [left, top, right - left, bottom - top]
    return {
        "name": name,
        "bbox": box_xywh,
        "area": box_xywh[2] * box_xywh[3],
        "iscrowd": int((element.findtext("difficult") or "0").strip() == "1"),
    }


_VOC_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def load_yolo(
    folder: Path,
    sizes: Sizes,
    classes: Sequence[str] | None = None,
    *,
    unknown: Size | None = None,
) -> InstanceTruth:
    """Read YOLO labels: a text file per image, a line per object, all numbers shares of the image.

    `class x_centre y_centre width height`, or `class x1 y1 x2 y2 x3 y3 ...` for a polygon.

    Args:
        folder: of the text files.
        sizes: see `load_boxes`.
        classes: names by number; None: from `classes.txt` (a name a line) or `data.yaml` (`names`)
            in the folder or one of the two above it.
        unknown: see `load_boxes`.

    Raises:
        ValueError: with every fault of every file.
    """
    names = list(classes) if classes else _yolo_names(folder)
    read = partial(_yolo_objects, names=names)
    return _truth(folder, _read_labels(folder, "*.txt", sizes, unknown, read), names)


def _yolo_objects(
    path: Path, size: Size, *, names: Sequence[str], is_sure: bool
) -> tuple[_Objects, list[str]]:
    objects, faults = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            if line.strip():
                objects.append(_yolo_object(line, names, size))
        except ValueError as err:
            faults.append(f"line {number}: {err}")
    return objects, faults


def _yolo_names(folder: Path) -> list[str]:
    # Above it, too: labels lie in labels/val, with data.yaml above
    for place in (folder, *folder.parents[:2]):
        if (place / "classes.txt").is_file():
            lines = (place / "classes.txt").read_text(encoding="utf-8").splitlines()
            return [line.strip() for line in lines if line.strip()]
        if (place / "data.yaml").is_file():
            document = yaml.safe_load((place / "data.yaml").read_text(encoding="utf-8"))
            names = document.get("names") if isinstance(document, Mapping) else None
            if isinstance(names, Mapping):
                names = [names[key] for key in sorted(names)]
            if isinstance(names, list) and names:
                return [str(name) for name in names]
            raise ValueError(f"{place / 'data.yaml'}: names must list the classes, got {names!r}")
    raise ValueError(
        f"{folder}: YOLO labels have numbers for classes; name them in classes.txt (a name a "
        "line) or data.yaml (names) there or above, or for a training in classes of its config"
    )


def _yolo_object(line: str, names: Sequence[str], size: Size) -> dict[str, Any]:
    first, *rest = line.split()
    try:
        index, values = int(first), np.array([float(each) for each in rest])
    except ValueError as err:
        raise ValueError(f"expected a class number and shares of the image, got {line!r}") from err
    if not 0 <= index < len(names):
        raise ValueError(f"class {index} has no name; there are {len(names)}: {', '.join(names)}")
    if not np.isfinite(values).all() or (values < -0.01).any() or (values > 1.01).any():
        raise ValueError(f"numbers must be shares of the image in [0, 1], got {line!r}")
    height, width = size
    if len(values) == 4:
        centre = values[:2] * (width, height)
        sides = values[2:] * (width, height)
        box_xywh = [*(centre - sides / 2), *sides]
        if (sides <= 0).any():
            raise ValueError(f"a box has no inside: {line!r}")
        return {
            "name": names[index],
            "bbox": [float(value) for value in box_xywh],
            "area": float(sides.prod()),
            "iscrowd": 0,
        }
    if len(values) < 6 or len(values) % 2:
        raise ValueError(
            "expected 4 numbers (a box) or pairs of 3 or more points (a polygon), got "
            f"{len(values)}"
        )
    polygon = (values.reshape(-1, 2) * (width, height)).ravel().tolist()
    region = mask_codec.merge(mask_codec.frPyObjects([polygon], height, width))
    return {
        "name": names[index],
        "bbox": mask_codec.toBbox(region).tolist(),
        "area": float(mask_codec.area(region)),
        "iscrowd": 0,
        "segmentation": region,
    }


def _read_labels(
    folder: Path, pattern: str, sizes: Sizes, unknown: Size | None, read: _Reader
) -> list[tuple[TruthImage, _Objects]]:
    """Each label file's image and objects.

    Raises:
        ValueError: with every fault of every file.
    """
    faults: list[str] = []
    found: list[tuple[TruthImage, _Objects]] = []
    for path, label, image in _pairs(folder, pattern, sizes):
        try:
            place_inside(folder, label)
            known = None if image is None else sizes[image]
            size = known or unknown
            if size is None:
                raise ValueError(f"no image {without_suffix(label)}.*, or several")
            objects, own = read(path, size, is_sure=known is not None)
        except (ValueError, OSError) as err:
            faults.append(f"{label}: {err}")
            continue
        faults += [f"{label}, {each}" for each in own]
        height, width = size
        found.append((TruthImage(len(found) + 1, image or label, width, height), objects))
    raise_faults(folder, faults)
    return found


def _pairs(folder: Path, pattern: str, sizes: Sizes) -> list[tuple[Path, str, str | None]]:
    """Label files, their paths below the folder, and the image that each is about."""
    paths = [path for path in sorted(folder.rglob(pattern)) if path.name != "classes.txt"]
    labels = [path.relative_to(folder).as_posix() for path in paths]
    stems = [without_suffix(label) for label in labels]
    images = match_images(stems, sizes, ignore_suffix=True).paths
    return [
        (path, label, images.get(stem))
        for path, label, stem in zip(paths, labels, stems, strict=True)
    ]


def _truth(
    folder: Path,
    found: Sequence[tuple[TruthImage, _Objects]],
    names: Sequence[str],
) -> InstanceTruth:
    if not names:
        raise ValueError(f"{folder}: no file has an object: nothing to learn or evaluate against")
    ids = {name: index + 1 for index, name in enumerate(names)}
    annotations = []
    for image, objects in found:
        for each in objects:
            entry = {key: value for key, value in each.items() if key != "name"}
            annotations.append({"image_id": image.id, "category_id": ids[each["name"]], **entry})
    return InstanceTruth(
        images=tuple(image for image, _ in found),
        categories=tuple(Category(identity, name) for name, identity in ids.items()),
        annotations=tuple(annotations),
        has_masks=bool(annotations) and all("segmentation" in each for each in annotations),
    )
