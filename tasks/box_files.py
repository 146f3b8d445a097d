"""Boxes and masks from the files that people have: COCO JSON, Pascal VOC XML, YOLO txt.

All become `InstanceTruth`. Of VOC and YOLO a file belongs to the image of the same path without
suffix, below the folder of the images; images without such a file have no truth, an empty file says
that there is nothing to be seen.
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pycocotools import mask as coco_mask

from pixelmill.configs.schema import IngestConfig
from pixelmill.tasks.engine.header import DecodeError, read_header
from pixelmill.tasks.metrics.detection import Category, InstanceTruth, TruthImage
from pixelmill.tasks.names import place_inside
from pixelmill.tasks.truth import load_coco_instances, raise_faults, without_suffix

__all__ = ["load_boxes", "load_voc", "load_yolo"]

# Any: the stubs that some type checkers bring know only a part of what it takes.
mask_codec: Any = coco_mask


def load_boxes(truth: Path, images: Path, classes: Sequence[str] | None = None) -> InstanceTruth:
    """Read boxes, and masks where there are, in the format that the path has.

    Args:
        truth: COCO JSON, or a folder of VOC *.xml or of YOLO *.txt.
        images: folder of the images.
        classes: names of YOLO's numbers, where no file beside the labels has them.

    Raises:
        ValueError: another format, or entries that cannot be used.
    """
    if truth.is_file():
        return load_coco_instances(truth)
    if any(truth.rglob("*.xml")):
        return load_voc(truth, images)
    if any(truth.rglob("*.txt")):
        return load_yolo(truth, images, classes)
    raise ValueError(
        f"{truth}: expected a COCO JSON file, or a folder of Pascal VOC *.xml or of YOLO *.txt"
    )


def load_voc(folder: Path, images: Path) -> InstanceTruth:
    """Read Pascal VOC annotations: an XML file per image.

    Corners count from 1 and the last pixel is inside, as in the challenge. "difficult" objects
    become crowds: they are not learnt, and finding them is neither right nor wrong. Classes are in
    alphabetical order.

    Raises:
        ValueError: with every fault of every file.

    Source: Everingham et al., The PASCAL VOC Challenge 2012 Development Kit, section 9.
    """
    faults: list[str] = []
    found: list[tuple[TruthImage, list[dict[str, Any]]]] = []
    for label, name in _pairs(folder, images, "*.xml", faults):
        try:
            root = _parse_xml(label)
            size = _size_of(images, name)
            objects = [_voc_object(each, size) for each in root.findall("object")]
        except (ValueError, OSError) as err:
            faults.append(f"{label.relative_to(folder)}: {err}")
            continue
        found.append((TruthImage(len(found) + 1, name, size[1], size[0]), objects))
    raise_faults(folder, faults)
    names = sorted({each["name"] for _, objects in found for each in objects})
    return _truth(folder, found, names)


def _parse_xml(path: Path) -> ET.Element:
    data = path.read_bytes()
    # Entities are how XML files blow up or read other files; annotations have no use for them
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ValueError("declares a document type; remove the DOCTYPE")
    try:
        return ET.fromstring(data)
    except ET.ParseError as err:
        raise ValueError(f"not XML: {err}") from err


def _voc_object(element: ET.Element, size: tuple[int, int]) -> dict[str, Any]:
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
    if left < -1 or top < -1 or right > size[1] + 1 or bottom > size[0] + 1:
        raise ValueError(f"{name}: box {corners} leaves the image of {size[1]} x {size[0]} pixels")
    box_xywh = [left, top, right - left, bottom - top]
    return {
        "name": name,
        "bbox": box_xywh,
        "area": box_xywh[2] * box_xywh[3],
        "iscrowd": int((element.findtext("difficult") or "0").strip() == "1"),
    }


_VOC_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def load_yolo(folder: Path, images: Path, classes: Sequence[str] | None = None) -> InstanceTruth:
    """Read YOLO labels: a text file per image, a line per object, all numbers shares of the image.

    `class x_centre y_centre width height`, or `class x1 y1 x2 y2 x3 y3 ...` for a polygon.

    Args:
        folder: of the text files.
        images: folder of the images.
        classes: names by number; None: from `classes.txt` (a name a line) or `data.yaml` (`names`)
            in the folder or above it.

    Raises:
        ValueError: with every fault of every file.
    """
    names = list(classes) if classes else _yolo_names(folder)
    faults: list[str] = []
    found: list[tuple[TruthImage, list[dict[str, Any]]]] = []
    for label, name in _pairs(folder, images, "*.txt", faults):
        try:
            size = _size_of(images, name)
            lines = label.read_text(encoding="utf-8").splitlines()
        except (ValueError, OSError) as err:
            faults.append(f"{label.relative_to(folder)}: {err}")
            continue
        objects = []
        for number, line in enumerate(lines, start=1):
            try:
                if line.strip():
                    objects.append(_yolo_object(line, names, size))
            except ValueError as err:
                faults.append(f"{label.relative_to(folder)}, line {number}: {err}")
        found.append((TruthImage(len(found) + 1, name, size[1], size[0]), objects))
    raise_faults(folder, faults)
    return _truth(folder, found, names)


def _yolo_names(folder: Path) -> list[str]:
    for place in (folder, folder.parent):
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
        f"{folder}: YOLO labels have numbers for classes; name them in classes (of the config), in "
        "classes.txt (a name a line), or in data.yaml (names)"
    )


def _yolo_object(line: str, names: Sequence[str], size: tuple[int, int]) -> dict[str, Any]:
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


def _pairs(folder: Path, images: Path, pattern: str, faults: list[str]) -> list[tuple[Path, str]]:
    """Label files with the image that each is about, as a path relative to `images`."""
    suffixes = IngestConfig().suffixes
    by_stem: dict[str, str] = {}
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() in suffixes:
            name = path.relative_to(images).as_posix()
            by_stem[without_suffix(name)] = name
    pairs = []
    for path in sorted(folder.rglob(pattern)):
        if path.name == "classes.txt":
            continue
        stem = without_suffix(path.relative_to(folder).as_posix())
        try:
            place_inside(folder, path.relative_to(folder).as_posix())
        except ValueError as err:
            faults.append(str(err))
            continue
        if stem in by_stem:
            pairs.append((path, by_stem[stem]))
        else:
            faults.append(f"{path.relative_to(folder)}: no image {stem}.* in {images}")
    return pairs


def _size_of(images: Path, name: str) -> tuple[int, int]:
    """(height, width) of an image as its file says: what truth files say of it is often wrong."""
    try:
        header = read_header(place_inside(images, name).read_bytes())
    except DecodeError as err:
        raise ValueError(f"image {name}: {err}") from err
    return header.height, header.width


def _truth(
    folder: Path,
    found: Sequence[tuple[TruthImage, Sequence[dict[str, Any]]]],
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
