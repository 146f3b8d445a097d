"""Images with truth for training: what is trained on, what is kept apart, read one by one."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_codec
from torch import Tensor

from pixelmill.configs.schema import IngestConfig, PixelWeights, TrainConfig
from pixelmill.models.captioning import build_vocabulary, encode_caption
from pixelmill.models.losses import pixel_weights
from pixelmill.models.ops.boxes import large_enough
from pixelmill.models.targets import BoxTarget, CaptionTarget, ClassTarget, SemanticTarget, Target
from pixelmill.tasks.box_files import FolderSizes, load_boxes
from pixelmill.tasks.engine.decode import decode_image
from pixelmill.tasks.engine.header import read_header
from pixelmill.tasks.metrics.detection import TruthImage
from pixelmill.tasks.metrics.membranes import label_components
from pixelmill.tasks.names import name_fault, place_inside
from pixelmill.tasks.scenes import SEMANTIC_CLASSES, write_scenes
from pixelmill.tasks.truth import load_captions, load_labels, load_semantic, read_label_map

__all__ = [
    "DataSource",
    "Dataset",
    "Example",
    "class_frequencies",
    "load_dataset",
    "locate_data",
    "split_names",
]

_VOID = 255
_MIN_SIDE = 2.0
_SCENES = "scenes:"

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Example:
    """One training image.

    Attributes:
        image: (3, H, W) uint8 RGB, as large as the file.
        targets: in its pixels; one is learnt at a time, several where a picture has several
            captions.
    """

    image: Tensor
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where images and truth are."""

    images: Path
    truth: Path


@dataclass(frozen=True, slots=True)
class Dataset:
    """What is trained on, and what is kept apart. It can be pickled for other processes.

    Attributes:
        names: paths of the training images, relative to the source's folder.
        held_out: those of the other images that have truth.
        classes: names by index; empty for captions.
        vocabulary: tokens by index, of captions; else empty.
        read: name of a training image -> image and truth.
    """

    source: DataSource
    names: tuple[str, ...]
    held_out: tuple[str, ...]
    classes: tuple[str, ...]
    vocabulary: tuple[str, ...]
    read: Callable[[str], Example]

    def sizes(self) -> list[Size]:
        """(height, width) of every training image, as its header says."""
        headers = (read_header(self.locate(name).read_bytes()) for name in self.names)
        return [(header.height, header.width) for header in headers]

    def locate(self, name: str) -> Path:
        """The file of an image, which is inside of the source's folder."""
        return place_inside(self.source.images, name)


def locate_data(config: TrainConfig, base: Path) -> DataSource:
    """Find images and truth; scenes are rendered below `base` unless they already are.

    Args:
        config: paths in it are relative to `base`.
        base: folder.

    Raises:
        ValueError: truth is not named, or `scenes:` is not followed by two numbers.
        FileNotFoundError: a folder or file is not there.
    """
    if config.images.startswith(_SCENES):
        return _render(config, base)
    if config.truth is None:
        raise ValueError(f"{config.name}: truth must name a file or folder, got none")
    source = DataSource(base / config.images, base / config.truth)
    for path in (source.images, source.truth):
        if not path.exists():
            raise FileNotFoundError(f"{config.name}: expected training data at {path}, got none")
    return source


def _render(config: TrainConfig, base: Path) -> DataSource:
    numbers = config.images.removeprefix(_SCENES).split(":")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"expected scenes:<count>:<seed>, got {config.images!r}")
    count, seed = (int(number) for number in numbers)
    folder = base / "runs" / f"scenes-{count}-{seed}"
    # what write_scenes writes last
    if not (folder / "labels.csv").exists():
        write_scenes(folder, count, seed)
    truths = {
        "semantic_segmentation": "semantic",
        "captioning": "captions.json",
        "classification": "labels.csv",
    }
    return DataSource(folder / "images", folder / truths.get(config.task, "instances.json"))


def load_dataset(config: TrainConfig, base: Path) -> Dataset:
    """Read the truth, and share its images out; the images themselves are read while training.

    Raises:
        ValueError: the truth cannot be used, an image leads out of its folder, or none is left to
            train on.
        FileNotFoundError: images or truth are not there.
    """
    source = locate_data(config, base)
    loaders = {
        "semantic_segmentation": _load_semantic,
        "captioning": _load_captions,
        "classification": _load_classes,
        "detection": _load_boxes,
        "instance_segmentation": _load_boxes,
    }
    dataset = loaders[config.task](config, source, base)
    if not dataset.names:
        raise ValueError(f"{config.name}: no image of {source.images} has truth to train on")
    missing = [name for name in dataset.names if not dataset.locate(name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{config.name}: {len(missing)} of {len(dataset.names)} images of the truth are not in "
            f"{source.images}, first {missing[0]!r}"
        )
    return dataset


def split_names(
    names: Sequence[str], config: TrainConfig, base: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Share the images out between training and checking, the same way every time.

    Args:
        names: relative paths, '/'-separated.
        config: `split` names a file of the stems to train on; without one each name decides for
            itself by its hash, so that new images move no old one.
        base: folder that `split` is relative to.

    Returns:
        Names to train on and names to check with, both in the order given.
    """
    if config.split is not None:
        lines = (base / config.split).read_text(encoding="utf-8").split()
        if faults := [fault for line in lines if (fault := name_fault(line))]:
            raise ValueError(f"{base / config.split}: {faults[0]}")
        stems = {Path(line).stem for line in lines}
        chosen = {name for name in names if Path(name).stem in stems}
    else:
        chosen = {name for name in names if _share(name) < config.train_fraction}
    return (
        tuple(name for name in names if name in chosen),
        tuple(name for name in names if name not in chosen),
    )


def _share(name: str) -> float:
    """A number in [0, 1) that only the name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def class_frequencies(dataset: Dataset) -> NDArray[np.int64]:
    """(K,) pixels of each class over all training label maps; void is not counted."""
    counts = np.zeros(len(dataset.classes), np.int64)
    for name in dataset.names:
        for target in dataset.read(name).targets:
            assert isinstance(target, SemanticTarget)
            values = target.labels[target.labels != _VOID].numpy().ravel()
            counts += np.bincount(values, minlength=len(counts))[: len(counts)]
    return counts


def _read_image(path: Path) -> Tensor:
    """(3, H, W) uint8 RGB."""
    pixels = decode_image(path.read_bytes(), max_pixels=IngestConfig().max_pixels).pixels
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _load_boxes(config: TrainConfig, source: DataSource, base: Path) -> Dataset:
    truth = load_boxes(source.truth, FolderSizes(source.images), config.classes)
    with_masks = config.task == "instance_segmentation"
    if with_masks and not truth.has_masks:
        raise ValueError(f"{source.truth} has boxes without masks; use task: detection")
    by_name = {image.file_name: image for image in truth.images}
    names, held_out = split_names(tuple(by_name), config, base)
    notes: dict[int, list[Mapping[str, Any]]] = {image.id: [] for image in truth.images}
    for note in truth.annotations:
        # crowds are not learnt
        if not note["iscrowd"]:
            notes[note["image_id"]].append(note)
    read = _ReadBoxes(
        folder=source.images,
        images={name: by_name[name] for name in names},
        notes={name: tuple(notes[by_name[name].id]) for name in names},
        class_index={category.id: index for index, category in enumerate(truth.categories)},
        with_masks=with_masks,
    )
    classes = tuple(category.name for category in truth.categories)
    return Dataset(source, names, held_out, classes, (), read)


@dataclass(frozen=True, slots=True)
class _ReadBoxes:
    """Objects of one image in its pixels."""

    folder: Path
    images: Mapping[str, TruthImage]
    notes: Mapping[str, tuple[Mapping[str, Any], ...]]
    class_index: Mapping[int, int]
    with_masks: bool

    def __call__(self, name: str) -> Example:
        image, notes = self.images[name], self.notes[name]
        pixels = _read_image(place_inside(self.folder, name))
        if tuple(pixels.shape[1:]) != (image.height, image.width):
            raise ValueError(
                f"{name!r} is {pixels.shape[2]} x {pixels.shape[1]} pixels, its truth is of "
                f"{image.width} x {image.height}; label it again, or correct width and height"
            )
        boxes_xyxy = torch.tensor([note["bbox"] for note in notes]).reshape(-1, 4).float()
        boxes_xyxy[:, 2:] += boxes_xyxy[:, :2]
        labels = [self.class_index[note["category_id"]] for note in notes]
        kept = large_enough(boxes_xyxy, _MIN_SIDE)
        masks = None
        if self.with_masks:
            masks = torch.zeros((len(notes), image.height, image.width), dtype=torch.uint8)
            for index, note in enumerate(notes):
                masks[index] = torch.from_numpy(_decode_mask(note, image))
            masks = masks[kept]
        target = BoxTarget(boxes_xyxy[kept], torch.tensor(labels, dtype=torch.int64)[kept], masks)
        return Example(pixels, (target,))


def _load_semantic(config: TrainConfig, source: DataSource, base: Path) -> Dataset:
    truth = load_semantic(source.truth)
    suffixes = IngestConfig().suffixes
    files = [
        path.relative_to(source.images).as_posix()
        for path in sorted(source.images.rglob("*"))
        if path.suffix.lower() in suffixes
    ]
    maps = {
        name: truth.maps[stem] for name in files if (stem := name.rpartition(".")[0]) in truth.maps
    }
    names, held_out = split_names(tuple(maps), config, base)
    classes = _semantic_classes(config, truth.classes)
    if config.pixel_weights is not None and config.pixel_weights.background not in classes:
        raise ValueError(
            f"{config.name}: pixel_weights.background must be one of {', '.join(classes)}, got "
            f"{config.pixel_weights.background!r}"
        )
    read = _ReadLabels(
        folder=source.images,
        maps={name: maps[name] for name in names},
        classes=classes,
        gaps=config.pixel_weights,
        known={},
    )
    return Dataset(source, names, held_out, classes, (), read)


def _semantic_classes(config: TrainConfig, named: Mapping[int, str] | None) -> tuple[str, ...]:
    if config.classes is not None:
        return config.classes
    if config.images.startswith(_SCENES):
        return SEMANTIC_CLASSES
    if named is not None and sorted(named) == list(range(len(named))):
        return tuple(named[value] for value in range(len(named)))
    raise ValueError(
        f"{config.name}: classes must list the names of the label values 0, 1, ..., here or in "
        "classes.json beside the label maps"
    )


@dataclass(frozen=True, slots=True)
class _ReadLabels:
    """The label map of one image.

    Attributes:
        known: weight maps that were computed before, by name, float16: of one image they take
            up to a second.
    """

    folder: Path
    maps: Mapping[str, Path]
    classes: tuple[str, ...]
    gaps: PixelWeights | None
    known: dict[str, Tensor]

    def __call__(self, name: str) -> Example:
        pixels = _read_image(place_inside(self.folder, name))
        labels = torch.from_numpy(read_label_map(self.maps[name]).astype(np.uint8))
        if labels.shape != pixels.shape[1:]:
            raise ValueError(
                f"{name!r} is {tuple(pixels.shape[1:])} pixels (height, width), its label map "
                f"{self.maps[name]} {tuple(labels.shape)}; draw it at the image's size"
            )
        weights = None
        if self.gaps is not None:
            if name not in self.known:
                self.known[name] = _gap_weights(labels, self.gaps, self.classes).half()
            weights = self.known[name].float()
        return Example(pixels, (SemanticTarget(labels, weights),))


def _gap_weights(labels: Tensor, gaps: PixelWeights, classes: tuple[str, ...]) -> Tensor:
    """(H, W) float: 1, and more between objects: parts that hang together and are no background."""
    background = classes.index(gaps.background)
    is_object = (labels != background) & (labels != _VOID)
    instances = torch.from_numpy(label_components(is_object.numpy()))
    return pixel_weights(
        torch.zeros_like(instances),
        instances,
        torch.ones(1),
        border_weight=gaps.border_weight,
        sigma=gaps.sigma,
    )


def _load_captions(config: TrainConfig, source: DataSource, base: Path) -> Dataset:
    truth = load_captions(source.truth)
    captions = dict(zip(truth.file_names, truth.captions, strict=True))
    names, held_out = split_names(truth.file_names, config, base)
    vocabulary = build_vocabulary(caption for name in names for caption in captions[name])
    targets = {
        name: tuple(CaptionTarget(encode_caption(each, vocabulary)) for each in captions[name])
        for name in names
    }
    read = partial(_read_known, source.images, targets)
    return Dataset(source, names, held_out, (), vocabulary, read)


def _load_classes(config: TrainConfig, source: DataSource, base: Path) -> Dataset:
    truth = load_labels(source.truth)
    names, held_out = split_names(tuple(truth.labels), config, base)
    index = {name: place for place, name in enumerate(truth.classes)}
    targets = {name: (ClassTarget(torch.tensor(index[truth.labels[name]])),) for name in names}
    read = partial(_read_known, source.images, targets)
    return Dataset(source, names, held_out, truth.classes, (), read)


def _read_known(folder: Path, targets: Mapping[str, tuple[Target, ...]], name: str) -> Example:
    return Example(_read_image(place_inside(folder, name)), targets[name])


def _decode_mask(note: Mapping[str, Any], image: TruthImage) -> NDArray[np.uint8]:
    """(H, W) of 0 and 1, from polygons or either form of run lengths."""
    region = note["segmentation"]
    if isinstance(region, list):
        parts = mask_codec.frPyObjects(region, image.height, image.width)
    elif isinstance(region["counts"], list):
        parts = [mask_codec.frPyObjects(region, image.height, image.width)]
    else:
        parts = [region]
    mask: NDArray[np.uint8] = np.maximum.reduce([mask_codec.decode(part) for part in parts])
    return mask
