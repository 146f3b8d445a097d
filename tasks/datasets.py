"""Images with truth, laid on their canvases as the engine lays them, for training."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as mask_codec
from torch import Tensor

from pixelmill.configs.schema import IngestConfig, TrainConfig
from pixelmill.models.captioning import build_vocabulary, encode_caption
from pixelmill.models.ops.boxes import clip_boxes, large_enough
from pixelmill.models.targets import BoxTarget, CaptionTarget, SemanticTarget, Target
from pixelmill.tasks.engine.decode import decode_image
from pixelmill.tasks.engine.views import Placement, draw_view, place_whole
from pixelmill.tasks.metrics.detection import InstanceTruth, TruthImage
from pixelmill.tasks.names import name_fault, place_inside
from pixelmill.tasks.scenes import SEMANTIC_CLASSES, write_scenes
from pixelmill.tasks.truth import (
    load_captions,
    load_coco_instances,
    load_semantic,
    read_label_map,
)

__all__ = ["DataSource", "Dataset", "Example", "load_dataset", "locate_data", "split_names"]

_VOID = 255
_MIN_SIDE = 2.0
_SCENES = "scenes:"


@dataclass(frozen=True, slots=True)
class Example:
    """One training image.

    Attributes:
        image: (3, H, W) uint8 RGB canvas.
        targets: one is learnt at a time; several where a picture has several captions.
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
    """What is trained on, and what is kept apart.

    Attributes:
        examples: of the training images.
        held_out: paths of the other images that have truth, relative to the source's folder.
        classes: names by index; empty for captions.
        vocabulary: tokens by index, of captions; else empty.
    """

    source: DataSource
    examples: tuple[Example, ...]
    held_out: tuple[str, ...]
    classes: tuple[str, ...]
    vocabulary: tuple[str, ...]


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
    truths = {"semantic_segmentation": "semantic", "captioning": "captions.json"}
    return DataSource(folder / "images", folder / truths.get(config.task, "instances.json"))


def load_dataset(config: TrainConfig, base: Path) -> Dataset:
    """Read all training images and their truth into memory.

    Raises:
        ValueError: the truth cannot be used, or no image is left to train on.
    """
    source = locate_data(config, base)
    loaders = {
        "semantic_segmentation": _load_semantic,
        "captioning": _load_captions,
        "detection": _load_boxes,
        "instance_segmentation": _load_boxes,
    }
    dataset = loaders[config.task](config, source, base)
    if not dataset.examples:
        raise ValueError(f"{config.name}: no image of {source.images} has truth to train on")
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


def _load_boxes(config: TrainConfig, source: DataSource, base: Path) -> Dataset:
    truth = load_coco_instances(source.truth)
    with_masks = config.task == "instance_segmentation"
    if with_masks and not truth.has_masks:
        raise ValueError(f"{source.truth} has boxes without masks; use task: detection")
    by_name = {image.file_name: image for image in truth.images}
    names, held_out = split_names(tuple(by_name), config, base)
    examples = []
    for name in names:
        image, placement = _read_canvas(place_inside(source.images, name), config)
        target = _box_target(truth, by_name[name], placement, with_masks=with_masks)
        examples.append(Example(image, (target,)))
    return Dataset(
        source,
        tuple(examples),
        held_out,
        classes=tuple(category.name for category in truth.categories),
        vocabulary=(),
    )


def _load_semantic(config: TrainConfig, source: DataSource, base: Path) -> Dataset:
    truth = load_semantic(source.truth)
    suffixes = IngestConfig().suffixes
    files = {
        path.relative_to(source.images).as_posix(): path
        for path in sorted(source.images.rglob("*"))
        if path.suffix.lower() in suffixes
    }
    maps = {
        name: truth.maps[stem] for name in files if (stem := name.rpartition(".")[0]) in truth.maps
    }
    names, held_out = split_names(tuple(maps), config, base)
    examples = []
    for name in names:
        image, placement = _read_canvas(files[name], config)
        labels = torch.from_numpy(read_label_map(maps[name]).astype(np.uint8))
        examples.append(Example(image, (SemanticTarget(_lay(labels, placement, _VOID)),)))
    return Dataset(
        source, tuple(examples), held_out, classes=_semantic_classes(config), vocabulary=()
    )


def _semantic_classes(config: TrainConfig) -> tuple[str, ...]:
    if config.classes is not None:
        return config.classes
    if config.images.startswith(_SCENES):
        return SEMANTIC_CLASSES
    raise ValueError(f"{config.name}: classes must list the names of the label values 0, 1, ...")


def _load_captions(config: TrainConfig, source: DataSource, base: Path) -> Dataset:
    truth = load_captions(source.truth)
    captions = dict(zip(truth.file_names, truth.captions, strict=True))
    names, held_out = split_names(truth.file_names, config, base)
    vocabulary = build_vocabulary(caption for name in names for caption in captions[name])
    examples = []
    for name in names:
        image, _ = _read_canvas(place_inside(source.images, name), config)
        sentences = (encode_caption(caption, vocabulary) for caption in captions[name])
        examples.append(Example(image, tuple(CaptionTarget(tokens) for tokens in sentences)))
    return Dataset(source, tuple(examples), held_out, classes=(), vocabulary=vocabulary)


def _read_canvas(path: Path, config: TrainConfig) -> tuple[Tensor, Placement]:
    decoded = decode_image(path.read_bytes(), max_pixels=IngestConfig().max_pixels)
    placement = place_whole(decoded.original_size, config.preprocess)
    canvas = draw_view(decoded.pixels, placement, config.preprocess)
    return torch.from_numpy(canvas).permute(2, 0, 1).contiguous(), placement


def _box_target(
    truth: InstanceTruth, image: TruthImage, placement: Placement, *, with_masks: bool
) -> BoxTarget:
    """Objects of one image on its canvas; crowds are left out."""
    class_index = {category.id: index for index, category in enumerate(truth.categories)}
    notes = [
        note for note in truth.annotations if note["image_id"] == image.id and not note["iscrowd"]
    ]
    corners = torch.tensor([note["bbox"] for note in notes]).reshape(-1, 4).float()
    corners[:, 2:] += corners[:, :2]
    boxes_xyxy = clip_boxes(_to_canvas(corners, placement), placement.canvas)
    labels = torch.tensor([class_index[note["category_id"]] for note in notes], dtype=torch.int64)
    kept = large_enough(boxes_xyxy, _MIN_SIDE)
    masks = None
    if with_masks:
        masks = torch.zeros((len(notes), *placement.canvas), dtype=torch.uint8)
        for index, note in enumerate(notes):
            masks[index] = _lay(torch.from_numpy(_decode_mask(note, image)), placement, 0)
        masks = masks[kept]
    return BoxTarget(boxes_xyxy[kept], labels[kept], masks)


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


def _to_canvas(boxes_xyxy: Tensor, placement: Placement) -> Tensor:
    """Undo `pixelmill.tasks.engine.views.to_original` of the whole image."""
    scale_y, scale_x = placement.scale
    scale = boxes_xyxy.new_tensor((scale_x, scale_y) * 2)
    return boxes_xyxy / scale - boxes_xyxy.new_tensor((placement.crop_left, placement.crop_top) * 2)


def _lay(labels: Tensor, placement: Placement, fill: int) -> Tensor:
    """Lay a (H, W) uint8 map on the canvas as the image is, by the nearest pixel."""
    resized = F.interpolate(labels[None, None], size=placement.resized, mode="nearest-exact")[0, 0]
    rows, columns = placement.content
    canvas = torch.full(placement.canvas, fill, dtype=torch.uint8)
    top, left = placement.crop_top, placement.crop_left
    canvas[:rows, :columns] = resized[top : top + rows, left : left + columns]
    return canvas
