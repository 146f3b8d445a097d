"""Files of other tools, written while images are read."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote
from xml.sax.saxutils import XMLGenerator

import numpy as np
import yaml
from numpy.typing import NDArray

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.display import printable
from pixelmill.tasks.handoff.scenes import Scene, Thing
from pixelmill.tasks.handoff.tools import ExportFormat
from pixelmill.tasks.metrics.detection import decode_mask, mask_codec
from pixelmill.tasks.names import place_inside
from pixelmill.tasks.report.pictures import trace_loops
from pixelmill.tasks.truth import load_coco_instances, match_images

__all__ = ["FORMATS", "Exported", "export_scenes"]

_LOCAL_FILES = "/data/local-files/?d="


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export left.

    Attributes:
        paths: the files; of formats with a file per image, those for all images.
        skipped: reason -> images or things that the format cannot hold.
    """

    paths: tuple[Path, ...]
    num_images: int
    num_things: int
    skipped: Mapping[str, int]


@dataclass(slots=True)
class _Counts:
    images: int = 0
    things: int = 0


def export_scenes(
    scenes: Iterable[Scene],
    spec: ModelSpec,
    format: ExportFormat,
    out: Path,
    *,
    truth: Path | None = None,
    info: Mapping[str, str] | None = None,
) -> Exported:
    """Write predictions for another tool.

    Args:
        scenes: as `read_scenes` gives them; read once.
        spec: of the model.
        format: see docs/hand-off.md for what each holds.
        out: a folder, made if it is not there; files of the same names are replaced.
        truth: COCO JSON whose ids of images and classes `coco-results` takes over.
        info: where the predictions come from, kept where the format has a place for it.

    Raises:
        ValueError: the format cannot hold what the model gives, or two images would have one name.
    """
    write, tasks = FORMATS[format]
    if spec.task not in tasks:
        able = [name for name, (_, known) in FORMATS.items() if spec.task in known]
        raise ValueError(f"{format} cannot hold {spec.task}; these can: {', '.join(able)}")
    if truth is not None and format != "coco-results":
        raise ValueError(f"ids of a truth file are for coco-results, not for {format}")
    out.mkdir(parents=True, exist_ok=True)
    counts, skipped = _Counts(), Counter[str]()

    def counted() -> Iterator[Scene]:
        for scene in scenes:
            counts.images += 1
            counts.things += len(scene.things) + len(scene.captions) + len(scene.labels)
            yield scene

    context = _Context(spec, out, truth, dict(info or {}), skipped)
    paths = tuple(write(counted(), context))
    return Exported(paths, counts.images, counts.things, dict(skipped))


@dataclass(frozen=True, slots=True)
class _Context:
    spec: ModelSpec
    out: Path
    truth: Path | None
    info: dict[str, str]
    skipped: Counter[str]


class _JsonList:
    """A list of a JSON document, kept in a file of its own until all of it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w", encoding="utf-8")
        self._is_first = True

    def add(self, item: object) -> None:
        self._file.write("" if self._is_first else ",\n")
        self._file.write(json.dumps(item, ensure_ascii=False, allow_nan=False))
        self._is_first = False

    def close(self) -> None:
        self._file.close()


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """A text file that takes its name when it is whole."""
    aside = path.with_name(f".{path.name}.new")
    with aside.open("w", encoding="utf-8", newline="\n") as file:
        yield file
    aside.replace(path)


def _write_json(path: Path, document: object) -> Path:
    with _replacing(path) as file:
        json.dump(document, file, ensure_ascii=False, allow_nan=False, indent=1)
    return path


def _join(path: Path, head: Mapping[str, object], lists: Mapping[str, _JsonList]) -> Path:
    """A document of small entries and long lists."""
    with _replacing(path) as file:
        file.write("{")
        for name, value in head.items():
            file.write(f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)},\n")
        for number, (name, items) in enumerate(lists.items()):
            items.close()
            file.write(f"{',' if number else ''}\n{json.dumps(name)}: [\n")
            with items.path.open(encoding="utf-8") as part:
                for line in part:
                    file.write(line)
            file.write("]")
            items.path.unlink()
        file.write("}\n")
    return path


# COCO


def _coco_segmentation(mask: Mapping[str, Any]) -> dict[str, object]:
    return {"size": list(mask["size"]), "counts": mask["counts"].decode()}


def _coco_box(thing: Thing) -> list[float]:
    left, top, right, bottom = thing.box_xyxy
    return [round(value, 3) for value in (left, top, right - left, bottom - top)]


def _area(thing: Thing) -> float:
    if thing.mask is not None:
        return float(mask_codec.area(thing.mask))
    return round(_coco_box(thing)[2] * _coco_box(thing)[3], 3)


def _coco_image(scene: Scene, number: int) -> dict[str, object]:
    image: dict[str, object] = {"id": number, "file_name": scene.path}
    image |= {"width": scene.width, "height": scene.height, "image_id": scene.image_id}
    return image


def _categories(spec: ModelSpec) -> list[dict[str, object]]:
    return [{"id": k, "name": name} for k, name in enumerate(spec.classes, start=1)]


def _coco(scenes: Iterable[Scene], context: _Context) -> Iterator[Path]:
    """A data set: images, annotations with scores, categories; or images and captions."""
    is_captions = context.spec.task == "captioning"
    images = _JsonList(context.out / ".images.part")
    annotations = _JsonList(context.out / ".annotations.part")
    identity = 0
    for number, scene in enumerate(scenes, start=1):
        images.add(_coco_image(scene, number))
        for caption in scene.captions:
            identity += 1
            annotations.add({"id": identity, "image_id": number, "caption": caption})
        for thing in scene.things:
            identity += 1
            entry: dict[str, object] = {"id": identity, "image_id": number}
            entry["category_id"] = thing.class_id + 1
            entry |= {"bbox": _coco_box(thing), "area": _area(thing), "iscrowd": 0}
            if thing.score is not None:
                entry["score"] = thing.score
            if thing.mask is not None:
                entry["segmentation"] = _coco_segmentation(thing.mask)
            annotations.add(entry)
    head: dict[str, object] = {"info": {"description": "Pixelmill predictions", **context.info}}
    if not is_captions:
        head["categories"] = _categories(context.spec)
    path = context.out / ("captions.json" if is_captions else "instances.json")
    yield _join(path, head, {"images": images, "annotations": annotations})


def _coco_results(scenes: Iterable[Scene], context: _Context) -> Iterator[Path]:
    """A results list, as `COCO.loadRes` reads it, with the truth's ids or with ids of its own."""
    if context.truth is not None:
        known = list(scenes)
        truth = load_coco_instances(context.truth)
        ids = {image.file_name: image.id for image in truth.images}
        places = match_images(ids, [scene.path for scene in known]).paths
        number_of = {path: ids[name] for name, path in places.items()}
        category_of = {category.name: category.id for category in truth.categories}
        scenes = known
    else:
        number_of = {}
        category_of = {name: k for k, name in enumerate(context.spec.classes, start=1)}
    images = _JsonList(context.out / ".images.part")
    path = context.out / "results.json"
    with _replacing(path) as file:
        file.write("[")
        is_first = True
        for place, scene in enumerate(scenes, start=1):
            number = number_of.get(scene.path) if context.truth else place
            if number is None:
                context.skipped["images that the truth has not"] += 1
                continue
            images.add(_coco_image(scene, number))
            for entry in _results(scene, number, category_of, context.skipped):
                file.write("\n" if is_first else ",\n")
                file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False))
                is_first = False
        file.write("]\n")
    head = {"info": context.info, "categories": _categories(context.spec)}
    if context.truth is None:
        empty = _JsonList(context.out / ".annotations.part")
        yield _join(context.out / "images.json", head, {"images": images, "annotations": empty})
    else:
        images.close()
        images.path.unlink()
    yield path


def _results(
    scene: Scene, number: int, category_of: Mapping[str, int], skipped: Counter[str]
) -> Iterator[dict[str, object]]:
    for caption in scene.captions[:1]:
        yield {"image_id": number, "caption": caption}
    for thing in scene.things:
        if thing.class_name not in category_of:
            skipped[f"of class {printable(thing.class_name)}, which the truth has not"] += 1
            continue
        entry: dict[str, object] = {"image_id": number}
        entry["category_id"] = category_of[thing.class_name]
        entry["score"] = 1.0 if thing.score is None else thing.score
        entry["bbox"] = _coco_box(thing)
        if thing.mask is not None:
            entry["segmentation"] = _coco_segmentation(thing.mask)
        yield entry


# A file per image


class _Names:
    """Names of the files of images, of which no two may be the same."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self._folder, self._suffix = folder, suffix
        self._taken: dict[str, str] = {}

    def place(self, path: str) -> Path:
        name = str(PurePosixPath(path).with_suffix(self._suffix))
        other = self._taken.setdefault(name.casefold(), path)
        if other != path:
            raise ValueError(
                f"{other!r} and {path!r} would both be {name!r}; leave one out by --where, or "
                "take a format with one file for all"
            )
        place = place_inside(self._folder, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place


def _outer_loops(mask: Mapping[str, Any]) -> tuple[list[NDArray[np.float64]], int]:
    """Polygons around the parts of a mask, and how many holes are filled up by that."""
    pixels = decode_mask(mask)
    loops = [np.array(loop, np.float64) for loop in trace_loops(pixels, tolerance=0.5)]
    outer = [loop for loop in loops if _signed_area(loop) > 0]
    return outer, len(loops) - len(outer)


def _signed_area(loop: NDArray[np.float64]) -> float:
    """Positive for loops that run clockwise as seen, y being down."""
    x, y = loop.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _yolo(scenes: Iterable[Scene], context: _Context) -> Iterator[Path]:
    """labels/<path>.txt with boxes, or polygons of masks, as shares of the image; data.yaml."""
    names = _Names(context.out / "labels", ".txt")
    (context.out / "labels").mkdir(exist_ok=True)
    for scene in scenes:
        lines = []
        for thing in scene.things:
            scale = np.array([scene.width, scene.height])
            if thing.mask is None:
                low, high = np.array(thing.box_xyxy[:2]), np.array(thing.box_xyxy[2:])
                low, high = np.clip(low / scale, 0, 1), np.clip(high / scale, 0, 1)
                values = [[*((low + high) / 2), *(high - low)]]
            else:
                loops, holes = _outer_loops(thing.mask)
                context.skipped["holes of masks, filled up"] += holes
                context.skipped["parts of masks, beside the largest"] += max(0, len(loops) - 1)
                largest = max(loops, key=_signed_area, default=None)
                values = [] if largest is None else [list((largest / scale).ravel())]
            lines += [
                " ".join([str(thing.class_id), *(f"{value:.6f}" for value in each)])
                for each in values
            ]
        names.place(scene.path).write_text("".join(f"{line}\n" for line in lines))
    for reason in [name for name, number in context.skipped.items() if not number]:
        del context.skipped[reason]
    path = context.out / "data.yaml"
    document = {"path": ".", "train": "images", "val": "images"}
    names_of = dict(enumerate(context.spec.classes))
    with _replacing(path) as file:
        yaml.safe_dump({**document, "names": names_of}, file, allow_unicode=True, sort_keys=False)
    yield path


def _voc(scenes: Iterable[Scene], context: _Context) -> Iterator[Path]:
    """Annotations/<path>.xml, corners as whole pixels from 1, the last one inside."""
    folder = context.out / "Annotations"
    folder.mkdir(exist_ok=True)
    names = _Names(folder, ".xml")
    for scene in scenes:
        with names.place(scene.path).open("w", encoding="utf-8") as file:
            xml = _Xml(file)
            with xml.element("annotation"):
                xml.leaf("folder", str(PurePosixPath(scene.path).parent))
                xml.leaf("filename", PurePosixPath(scene.path).name)
                with xml.element("size"):
                    xml.leaf("width", scene.width)
                    xml.leaf("height", scene.height)
                    xml.leaf("depth", 3)
                xml.leaf("segmented", 0)
                for thing in scene.things:
                    left, top, right, bottom = _whole_pixels(thing, scene)
                    with xml.element("object"):
                        xml.leaf("name", thing.class_name)
                        xml.leaf("pose", "Unspecified")
                        xml.leaf("truncated", 0)
                        xml.leaf("difficult", 0)
                        with xml.element("bndbox"):
                            corners = zip(
                                ("xmin", "ymin", "xmax", "ymax"),
                                (left + 1, top + 1, right, bottom),
                                strict=True,
                            )
                            for name, value in corners:
                                xml.leaf(name, value)
    yield folder


def _whole_pixels(thing: Thing, scene: Scene) -> tuple[int, int, int, int]:
    """The pixels that a box touches, at least one, within the image; max exclusive."""
    left, top, right, bottom = thing.box_xyxy
    first_x = min(max(0, int(np.floor(left))), scene.width - 1)
    first_y = min(max(0, int(np.floor(top))), scene.height - 1)
    last_x = max(first_x + 1, min(scene.width, int(np.ceil(right))))
    return first_x, first_y, last_x, max(first_y + 1, min(scene.height, int(np.ceil(bottom))))


# CVAT


class _Xml:
    """XML as it is written; control characters, which XML cannot hold, are spelt out."""

    def __init__(self, file: Any) -> None:  # a text file, which its stubs do not know
        self._writer = XMLGenerator(file, "utf-8", short_empty_elements=True)
        self._writer.startDocument()

    @contextmanager
    def element(self, tag: str, /, **attributes: object) -> Iterator[None]:
        given = {key: printable(str(value)) for key, value in attributes.items()}
        self._writer.startElement(tag, given)  # type: ignore[arg-type]  # a mapping is what it takes
        yield
        self._writer.endElement(tag)
        self._writer.ignorableWhitespace("\n")

    def leaf(self, tag: str, text: object = "", /, **attributes: object) -> None:
        with self.element(tag, **attributes):
            self._writer.characters(printable(str(text)))


def _cvat(scenes: Iterable[Scene], context: _Context) -> Iterator[Path]:
    """annotations.xml, CVAT for images 1.1: boxes, masks as run lengths, tags; labels.json."""
    path = context.out / "annotations.xml"
    kinds = {"classification": "tag", "detection": "rectangle"}
    kind = kinds.get(context.spec.task, "mask")
    with _replacing(path) as file:
        xml = _Xml(file)
        with xml.element("annotations"):
            xml.leaf("version", "1.1")
            with xml.element("meta"), xml.element("task"):
                xml.leaf("name", context.spec.key)
                xml.leaf("mode", "annotation")
                with xml.element("labels"):
                    for name in context.spec.classes:
                        with xml.element("label"):
                            xml.leaf("name", name)
                            xml.leaf("type", "bbox" if kind == "rectangle" else kind)
                            xml.leaf("attributes")
            for number, scene in enumerate(scenes):
                place = {"id": number, "name": scene.path}
                place |= {"width": scene.width, "height": scene.height}
                with xml.element("image", **place):
                    _cvat_shapes(xml, scene)
    yield path
    labels = [
        {"name": printable(name), "type": kind, "attributes": []} for name in context.spec.classes
    ]
    yield _write_json(context.out / "labels.json", labels)


def _cvat_shapes(xml: _Xml, scene: Scene) -> None:
    for place, thing in enumerate(reversed(scene.things)):  # the best lies on top
        common = {"label": thing.class_name, "source": "auto", "occluded": 0, "z_order": place}
        if thing.mask is None:
            names = ("xtl", "ytl", "xbr", "ybr")
            box = (f"{value:.2f}" for value in thing.box_xyxy)
            xml.leaf("box", **common, **dict(zip(names, box, strict=True)))
        elif mask_codec.area(thing.mask):
            xml.leaf("mask", **common, **_cvat_mask(thing.mask))
    for name, _ in scene.labels[:1]:
        xml.leaf("tag", label=name, source="auto")


def _cvat_mask(mask: Mapping[str, Any]) -> dict[str, object]:
    """Run lengths row by row within the mask's own box, background first."""
    pixels = decode_mask(mask)
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    part = pixels[top : rows[-1] + 1, left : columns[-1] + 1]
    flat = part.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    if flat[0]:
        counts = [0, *counts]
    size = {"width": part.shape[1], "height": part.shape[0]}
    return {"rle": ", ".join(map(str, counts)), "left": left, "top": top, **size}


# Label Studio


def _label_studio(scenes: Iterable[Scene], context: _Context) -> Iterator[Path]:
    """tasks.json with pre-labels, and the labelling interface that they need, config.xml."""
    path = context.out / "tasks.json"
    with _replacing(path) as file:
        file.write("[")
        for number, scene in enumerate(scenes):
            file.write(",\n" if number else "\n")
            task = _label_studio_task(scene, context)
            file.write(json.dumps(task, ensure_ascii=False, allow_nan=False))
        file.write("]\n")
    yield path
    config = context.out / "config.xml"
    with _replacing(config) as file:
        xml = _Xml(file)
        with xml.element("View"):
            xml.leaf("Image", name="image", value="$image")
            if context.spec.task == "captioning":
                xml.leaf("TextArea", name="caption", toName="image", editable="true")
            else:
                control = {
                    "classification": ("Choices", "Choice"),
                    "detection": ("RectangleLabels", "Label"),
                }.get(context.spec.task, ("PolygonLabels", "Label"))
                with xml.element(control[0], name="label", toName="image"):
                    for name in context.spec.classes:
                        xml.leaf(control[1], value=name)
    yield config


def _label_studio_task(scene: Scene, context: _Context) -> dict[str, object]:
    """An image and what the model says of it; places in percent."""
    url = scene.source_uri
    if "://" not in url:
        url = _LOCAL_FILES + quote(url.lstrip("/"))
    size = {"original_width": scene.width, "original_height": scene.height, "image_rotation": 0}
    results: list[dict[str, object]] = []

    def add(kind: str, value: Mapping[str, object], score: float | None, name: str) -> None:
        entry: dict[str, object] = {"id": f"{scene.image_id[:8]}-{len(results)}", "type": kind}
        entry |= {"value": value, "from_name": name, "to_name": "image", **size}
        results.append(entry if score is None else {**entry, "score": score})

    scale = np.array([100 / scene.width, 100 / scene.height])
    for thing in scene.things:
        if thing.mask is None:
            low, high = np.array(thing.box_xyxy[:2]) * scale, np.array(thing.box_xyxy[2:]) * scale
            box = {"x": low[0], "y": low[1], "width": high[0] - low[0], "height": high[1] - low[1]}
            rounded = {key: round(float(value), 4) for key, value in box.items()}
            value = {**rounded, "rotation": 0, "rectanglelabels": [thing.class_name]}
            add("rectanglelabels", value, thing.score, "label")
            continue
        for loop in _outer_loops(thing.mask)[0]:
            points = np.round(loop * scale, 4).tolist()
            value = {"points": points, "closed": True, "polygonlabels": [thing.class_name]}
            add("polygonlabels", value, thing.score, "label")
    for caption in scene.captions[:1]:
        add("textarea", {"text": [caption]}, None, "caption")
    for name, score in scene.labels[:1]:
        add("choices", {"choices": [name]}, score, "label")
    scores = [thing.score for thing in scene.things if thing.score is not None]
    scores += [score for _, score in scene.labels[:1]]
    prediction: dict[str, object] = {"model_version": context.spec.key, "result": results}
    if scores:
        prediction["score"] = round(float(np.mean(scores)), 6)
    data = {"image": url, "path": scene.path, "image_id": scene.image_id}
    return {"data": {**data, **context.info}, "predictions": [prediction]}


# FiftyOne


def _fiftyone(scenes: Iterable[Scene], context: _Context) -> Iterator[Path]:
    """labels.json and data.json: FiftyOneImageDetectionDataset, or ...ClassificationDataset."""
    is_labels = context.spec.task == "classification"
    parts = {name: context.out / f".{name}.part" for name in ("labels", "data")}
    with (
        parts["labels"].open("w", encoding="utf-8") as labels,
        parts["data"].open("w", encoding="utf-8") as data,
    ):
        for number, scene in enumerate(scenes):
            target: object = None
            if is_labels and scene.labels:
                name, score = scene.labels[0]
                target = {"label": name, "confidence": score}
            elif not is_labels:
                target = [_fiftyone_box(thing, scene) for thing in scene.things]
            for part, value in ((labels, target), (data, scene.source_uri)):
                comma = ",\n" if number else "\n"
                part.write(f"{comma}{json.dumps(scene.image_id)}: ")
                part.write(json.dumps(value, ensure_ascii=False, allow_nan=False))
    head = {"labels": f'{{"classes": {json.dumps(list(context.spec.classes))}, "labels": {{'}
    for name, place in parts.items():
        path = context.out / f"{name}.json"
        with _replacing(path) as file, place.open(encoding="utf-8") as lines:
            file.write(head.get(name, "{"))
            for line in lines:
                file.write(line)
            file.write("}}\n" if name in head else "}\n")
        place.unlink()
        yield path


def _fiftyone_box(thing: Thing, scene: Scene) -> dict[str, object]:
    left, top, right, bottom = thing.box_xyxy
    box = (
        left / scene.width, top / scene.height,
        (right - left) / scene.width, (bottom - top) / scene.height,
    )  # fmt: skip
    entry: dict[str, object] = {"label": thing.class_name}
    entry["bounding_box"] = [round(value, 6) for value in box]
    return entry if thing.score is None else {**entry, "confidence": thing.score}


_Writer = Callable[[Iterable[Scene], _Context], Iterator[Path]]
_BOXES = ("detection", "instance_segmentation")
_MASKS = (*_BOXES, "semantic_segmentation")
FORMATS: Mapping[ExportFormat, tuple[_Writer, Sequence[str]]] = {
    "coco": (_coco, (*_MASKS, "captioning")),
    "coco-results": (_coco_results, (*_MASKS, "captioning")),
    "yolo": (_yolo, _MASKS),
    "voc": (_voc, _BOXES),
    "cvat": (_cvat, (*_MASKS, "classification")),
    "label-studio": (_label_studio, (*_MASKS, "captioning", "classification")),
    "fiftyone": (_fiftyone, (*_BOXES, "classification")),
}
