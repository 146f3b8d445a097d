"""Ground truth from files: COCO JSON, captions JSON, folders of label maps, label CSV.

A loader reads the whole file and reports every fault at once, each with its remedy. A name that
leads out of its folder is a fault.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from pixelmill.tasks.metrics.detection import Category, InstanceTruth, TruthImage
from pixelmill.tasks.names import name_fault, place_inside

__all__ = [
    "CaptionTruth",
    "LabelTruth",
    "Matches",
    "SemanticTruth",
    "load_captions",
    "load_coco_instances",
    "load_labels",
    "load_semantic",
    "match_images",
    "raise_faults",
    "read_label_map",
    "without_suffix",
]

# Any: the stubs that some type checkers bring know only a part of what it takes.
mask_codec: Any = coco_mask
_MAX_FAULTS = 20


@dataclass(frozen=True, slots=True)
class CaptionTruth:
    """Reference captions: `captions[i]` are those of image `file_names[i]`, at least one."""

    file_names: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class SemanticTruth:
    """Label maps as files.

    Attributes:
        maps: path of the image below its folder, without suffix -> PNG file.
        classes: label value -> class name from classes.json, or None where there is no such file.
    """

    maps: dict[str, Path]
    classes: dict[int, str] | None


@dataclass(frozen=True, slots=True)
class LabelTruth:
    """One class per image: file name -> class name."""

    labels: dict[str, str]

    @property
    def classes(self) -> tuple[str, ...]:
        """Sorted class names."""
        return tuple(sorted(set(self.labels.values())))


@dataclass(frozen=True, slots=True)
class Matches:
    """Which catalogued image a truth entry speaks of.

    Attributes:
        paths: name in the truth -> path in the catalog.
        missing: names without such an image, or with several.
    """

    paths: dict[str, str]
    missing: tuple[str, ...]


def match_images(
    names: Iterable[str], catalog_paths: Iterable[str], *, ignore_suffix: bool = False
) -> Matches:
    """Find the images that the truth speaks of: by path, else by a file name that is unique.

    Args:
        names: of the truth, '/'-separated.
        catalog_paths: of the collection, relative to its root.
        ignore_suffix: names have no suffix, as those of label maps.
    """
    named = sorted(set(names))
    keys = {
        path: without_suffix(path) if ignore_suffix else path for path in sorted(set(catalog_paths))
    }
    by_key = _unique((key, path) for path, key in keys.items())
    by_base = _unique((PurePosixPath(key).name, path) for path, key in keys.items())
    # Two truth names with one base name cannot both mean the image of that base name.
    bases = Counter(PurePosixPath(name).name for name in named)
    paths: dict[str, str] = {}
    for name in named:
        base = PurePosixPath(name).name
        path = by_key.get(name) or (by_base.get(base) if bases[base] == 1 else None)
        if path is not None:
            paths[name] = path
    return Matches(paths=paths, missing=tuple(name for name in named if name not in paths))


def without_suffix(path: str) -> str:
    """The path less its file's ending: how label maps are named, and subsets may be."""
    return str(PurePosixPath(path).with_suffix(""))


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Keys that occur once."""
    found: dict[str, str | None] = {}
    for key, path in pairs:
        found[key] = None if key in found else path
    return {key: path for key, path in found.items() if path is not None}


def load_coco_instances(path: Path) -> InstanceTruth:
    """Read boxes and masks from COCO's instances JSON.

    iscrowd is kept; segmentations stay polygons or RLE; a missing area is computed, and so is a
    missing bbox where there is a segmentation.

    Raises:
        ValueError: the file is not COCO instances JSON, or holds entries that cannot be used.
    """
    document = _read_coco(path)
    faults: list[str] = []
    images = _read_images(document, faults)
    categories = _read_categories(document, faults)
    sizes = {image.id: (image.height, image.width) for image in images}
    category_ids = {category.id for category in categories}
    annotations = []
    for index, raw in enumerate(document["annotations"]):
        annotation, fault = _read_annotation(raw, sizes, category_ids)
        if fault:
            faults.append(f"annotations[{index}] (id {_get(raw, 'id')!r}): {fault}")
        else:
            annotations.append(annotation)
    raise_faults(path, faults)
    return InstanceTruth(
        images=images,
        categories=categories,
        annotations=tuple(annotations),
        has_masks=bool(annotations) and all("segmentation" in one for one in annotations),
    )


def _get(raw: Any, key: str) -> Any:
    return raw.get(key) if isinstance(raw, Mapping) else None


def _read_coco(path: Path) -> Mapping[str, Any]:
    if path.is_dir():
        raise ValueError(f"{path}: expected a COCO JSON file, got a folder")
    try:
        document = json.loads(path.read_bytes())
    except ValueError as err:
        raise ValueError(f"{path}: not JSON: {err}") from err
    if not isinstance(document, Mapping):
        raise ValueError(
            f"{path}: expected an object with images and annotations, got a "
            f"{type(document).__name__}; a results file (a list) is not truth"
        )
    absent = [
        key for key in ("images", "annotations") if not isinstance(document.get(key), Sequence)
    ]
    if absent:
        raise ValueError(f"{path}: no list named {' nor '.join(absent)}; is it a COCO JSON file?")
    return document


def raise_faults(path: Path, faults: Sequence[str]) -> None:
    """Report all faults of a file or folder at once, the first ones in words.

    Raises:
        ValueError: there are any.
    """
    if not faults:
        return
    shown = list(faults[:_MAX_FAULTS])
    if len(faults) > _MAX_FAULTS:
        shown.append(f"and {len(faults) - _MAX_FAULTS} more")
    raise ValueError(f"{path} has {len(faults)} faults:\n  " + "\n  ".join(shown))


def _read_images(document: Mapping[str, Any], faults: list[str]) -> tuple[TruthImage, ...]:
    images: dict[int, TruthImage] = {}
    for index, raw in enumerate(document["images"]):
        where = f"images[{index}]"
        identity, name = _get(raw, "id"), _get(raw, "file_name")
        if not isinstance(identity, int) or not isinstance(name, str):
            faults.append(
                f"{where}: needs an integer id and a file_name, got {identity!r}, {name!r}"
            )
            continue
        if fault := name_fault(name):
            faults.append(f"{where}: file_name {fault}")
            continue
        if identity in images:
            faults.append(f"{where}: id {identity} is used twice; give each image its own")
            continue
        width, height = _get(raw, "width"), _get(raw, "height")
        if not _is_positive(width) or not _is_positive(height):
            faults.append(
                f"{where} ({name}): width and height must be > 0, got {width!r}, {height!r}; "
                "write the image's size in pixels"
            )
            continue
        images[identity] = TruthImage(identity, name, int(width), int(height))
    if not images and not faults:
        faults.append("images is empty: nothing to evaluate against")
    repeated = [
        name for name, n in Counter(one.file_name for one in images.values()).items() if n > 1
    ]
    faults.extend(
        f"images: file_name {name!r} is used twice; merge the entries" for name in repeated
    )
    return tuple(images.values())


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _read_categories(document: Mapping[str, Any], faults: list[str]) -> tuple[Category, ...]:
    categories: dict[int, Category] = {}
    names: set[str] = set()
    for index, raw in enumerate(document.get("categories") or ()):
        identity, name = _get(raw, "id"), _get(raw, "name")
        if not isinstance(identity, int) or not isinstance(name, str):
            faults.append(
                f"categories[{index}]: needs an integer id and a name, got {identity!r}, {name!r}"
            )
        elif identity in categories or name in names:
            faults.append(
                f"categories[{index}]: id {identity} or name {name!r} is used twice; "
                "classes are matched by name, so each needs its own"
            )
        else:
            categories[identity] = Category(identity, name)
            names.add(name)
    if not categories and not faults:
        faults.append("categories is empty; list the classes as {'id': 1, 'name': 'person'}")
    return tuple(categories.values())


def _read_annotation(
    raw: Any, sizes: Mapping[int, tuple[int, int]], category_ids: set[int]
) -> tuple[dict[str, Any], str | None]:
    """The annotation with the keys that `InstanceTruth` promises, or what is wrong with it."""
    image_id, category_id = _get(raw, "image_id"), _get(raw, "category_id")
    if image_id not in sizes:
        return {}, f"image_id {image_id!r} is not in images; remove it or add the image"
    if category_id not in category_ids:
        return {}, f"category_id {category_id!r} is not in categories; remove it or add the class"
    annotation = {
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": int(raw.get("iscrowd") or 0),
    }
    if raw.get("segmentation"):
        rle, fault = _read_segmentation(raw["segmentation"], *sizes[image_id])
        if fault:
            return {}, fault
        annotation["segmentation"] = rle
    box_xywh = raw.get("bbox")
    if box_xywh is None and "segmentation" in annotation:
        box_xywh = mask_codec.toBbox(annotation["segmentation"]).tolist()
    fault = _box_fault(box_xywh)
    if fault:
        return {}, fault
    annotation["bbox"] = np.asarray(box_xywh, np.float64).tolist()
    area = raw.get("area")
    if area is None and "segmentation" in annotation:
        area = float(mask_codec.area(annotation["segmentation"]))
    elif area is None:
        area = annotation["bbox"][2] * annotation["bbox"][3]
    if not isinstance(area, (int, float)) or not np.isfinite(area) or area < 0:
        return {}, f"area must be finite and >= 0, got {area!r}; leave it out to have it computed"
    annotation["area"] = area
    return annotation, None


def _box_fault(box_xywh: object) -> str | None:
    remedy = "bbox is [x, y, width, height] in pixels"
    if not isinstance(box_xywh, Sequence) or len(box_xywh) != 4:
        return f"bbox must be four numbers, got {box_xywh!r}; {remedy}"
    if not all(isinstance(value, (int, float)) and np.isfinite(value) for value in box_xywh):
        return f"bbox must be finite numbers, got {box_xywh!r}; {remedy}"
    if box_xywh[2] < 0 or box_xywh[3] < 0:
        return f"bbox has negative width or height: {box_xywh!r}; {remedy}, not two corners"
    return None


def _read_segmentation(
    segmentation: Any, height: int, width: int
) -> tuple[dict[str, Any], str | None]:
    """RLE of polygons, of uncompressed or of compressed RLE, as pycocotools' annToRLE does."""
    if isinstance(segmentation, list):
        flat = all(
            isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
            for polygon in segmentation
        )
        if not flat:
            return (
                {},
                "a polygon must be a flat list x1, y1, x2, y2, ... of 3 or more points",
            )
        if not all(np.isfinite(polygon).all() for polygon in segmentation):
            return {}, "a polygon has a number that is not finite; remove the point"
        return mask_codec.merge(mask_codec.frPyObjects(segmentation, height, width)), None
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        return {}, "segmentation must be polygons or an RLE with size and counts"
    if tuple(segmentation["size"]) != (height, width):
        return {}, (
            f"RLE size {segmentation['size']} is not the image's [height, width] "
            f"[{height}, {width}]; encode the mask at the image's size"
        )
    if isinstance(segmentation["counts"], list):
        if sum(segmentation["counts"]) != height * width:
            return {}, (
                f"RLE counts add up to {sum(segmentation['counts'])}, not to {height} x {width} "
                "pixels; encode the mask again"
            )
        return mask_codec.frPyObjects(segmentation, height, width), None
    return {"size": [height, width], "counts": segmentation["counts"]}, None


def load_captions(path: Path) -> CaptionTruth:
    """Read reference captions from COCO's captions JSON; images without any are left out.

    Raises:
        ValueError: the file is not COCO captions JSON, or holds entries that cannot be used.
    """
    document = _read_coco(path)
    faults: list[str] = []
    names: dict[int, str] = {}
    for index, raw in enumerate(document["images"]):
        identity, name = _get(raw, "id"), _get(raw, "file_name")
        if not isinstance(identity, (int, str)) or not isinstance(name, str):
            faults.append(f"images[{index}]: needs an id and a file_name, got {raw!r}")
        elif fault := name_fault(name):
            faults.append(f"images[{index}]: file_name {fault}")
        elif identity in names:
            faults.append(f"images[{index}]: id {identity!r} is used twice; give each its own")
        else:
            names[identity] = name  # type: ignore[index]
    captions: dict[int, list[str]] = {}
    for index, raw in enumerate(document["annotations"]):
        identity, text = _get(raw, "image_id"), _get(raw, "caption")
        if identity not in names:
            faults.append(
                f"annotations[{index}]: image_id {identity!r} is not in images; "
                "remove it or add the image"
            )
        elif not isinstance(text, str) or not text.strip():
            faults.append(
                f"annotations[{index}]: caption must be text, got {text!r}; remove or write it"
            )
        else:
            captions.setdefault(identity, []).append(text)
    if not captions and not faults:
        faults.append("annotations is empty: nothing to evaluate against")
    raise_faults(path, faults)
    order = sorted(captions, key=lambda identity: names[identity])
    return CaptionTruth(
        file_names=tuple(names[identity] for identity in order),
        captions=tuple(tuple(captions[identity]) for identity in order),
    )


def load_semantic(folder: Path) -> SemanticTruth:
    """List a folder of PNG label maps, named like the images, subfolders included.

    Class names come from `classes.json` in the folder or beside it: either an object (label value
    to name) or a list (names in order of the value).

    Raises:
        ValueError: no PNG there, one is a link out of the folder, or classes.json has another
            form.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: not a folder; label maps are PNG files named like the images")
    maps: dict[str, Path] = {}
    faults: list[str] = []
    for file in sorted(folder.rglob("*.png")):
        name = file.relative_to(folder).as_posix()
        try:
            maps[without_suffix(name)] = place_inside(folder, name)
        except ValueError as err:
            faults.append(str(err))
    raise_faults(folder, faults)
    if not maps:
        raise ValueError(f"{folder}: no *.png; label maps are PNG files named like the images")
    places = (folder / "classes.json", folder.parent / "classes.json")
    found = next((place for place in places if place.is_file()), None)
    return SemanticTruth(maps=maps, classes=None if found is None else _read_classes(found))


def _read_classes(path: Path) -> dict[int, str]:
    remedy = 'expected {"0": "road", "1": "sky"} or ["road", "sky"]'
    try:
        document = json.loads(path.read_bytes())
        if isinstance(document, list):
            document = dict(enumerate(document))
        classes = {int(value): name for value, name in document.items()}
    except (ValueError, AttributeError) as err:
        raise ValueError(f"{path}: {remedy}; {err}") from err
    if not all(isinstance(name, str) for name in classes.values()):
        raise ValueError(f"{path}: {remedy}; a name is not text")
    return classes


def read_label_map(path: Path) -> NDArray[np.integer[Any]]:
    """Read one label map.

    Returns:
        (H, W) uint8 or uint16: the palette index or the grey value of each pixel.

    Raises:
        ValueError: the file has colours instead of one value per pixel.
    """
    with Image.open(path) as image:
        if image.mode not in {"P", "L", "1", "I", "I;16", "I;16B", "I;16L"}:
            raise ValueError(
                f"{path}: a label map has one value per pixel (palette or greyscale PNG), got "
                f"mode {image.mode}; convert colours to label values first"
            )
        values = np.asarray(image)
    return values.astype(
        np.uint8 if values.dtype == np.bool_ or values.max(initial=0) < 256 else np.uint16
    )


def load_labels(path: Path) -> LabelTruth:
    """Read a CSV with the columns file_name and label, one row per image.

    Raises:
        ValueError: a column is missing, a row is incomplete, or an image has two labels.
    """
    faults: list[str] = []
    labels: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        absent = {"file_name", "label"} - set(reader.fieldnames or ())
        if absent:
            raise ValueError(
                f"{path}: no column {' nor '.join(sorted(absent))}; the first line must name them, "
                f"got {','.join(reader.fieldnames or ())!r}"
            )
        for row in reader:
            name, label = row["file_name"], row["label"]
            if not name or not label:
                faults.append(f"line {reader.line_num}: file_name and label must not be empty")
            elif fault := name_fault(name):
                faults.append(f"line {reader.line_num}: file_name {fault}")
            elif labels.get(name, label) != label:
                faults.append(
                    f"line {reader.line_num}: {name!r} is {label!r} here and {labels[name]!r} "
                    "before; keep one"
                )
            else:
                labels[name] = label
    if not labels and not faults:
        faults.append("no rows: nothing to evaluate against")
    raise_faults(path, faults)
    return LabelTruth(labels=labels)
