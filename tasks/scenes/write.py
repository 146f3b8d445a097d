"""Scenes as files: JPEG images, and their truth in the usual formats."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from pixelmill.tasks.result_files import replace_whole
from pixelmill.tasks.scenes.render import Scene, render_scene
from pixelmill.tasks.scenes.things import CLASSES

__all__ = ["scene_seed", "write_scenes"]


def scene_seed(seed: int, index: int) -> int:
    """Seed of scene number `index` of the series `seed`; series do not share scenes."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


def write_scenes(folder: Path, count: int, seed: int, *, start: int = 0, prefix: str = "") -> None:
    """Write a series of scenes with its truth.

    Scene k depends on `seed` and k alone: a longer series begins with the shorter one. All bytes
    written are the same each time; every file is replaced whole, so two such calls at once do no
    harm. To write a long series in parts, give each part its own `folder` and `start`.

    Files: `images/<name>.jpg`; `instances.json` (COCO, run-length masks); `semantic/<name>.png`
    (class indices); `captions.json` (COCO captions); `labels.csv` (file_name, label: the place),
    which is written last: where it is, the rest is whole.

    Args:
        folder: is made; files of other names in it are left alone.
        count: number of scenes.
        seed: of the series, >= 0.
        start: index of the first scene.
        prefix: of the file names, which go on with six digits of the index.

    Raises:
        ValueError: if `count` or `start` is negative.
    """
    if count < 0 or start < 0:
        raise ValueError(f"count and start must be at least 0, got {count} and {start}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "semantic").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    places: list[tuple[str, str]] = []
    for index in range(start, start + count):
        scene = render_scene(scene_seed(seed, index))
        name = f"{prefix}{index:06d}"
        # cameras differ in how hard they compress
        replace_whole(
            folder / "images" / f"{name}.jpg", _encoded(scene.image, "JPEG", 82 + index % 4 * 4)
        )
        replace_whole(folder / "semantic" / f"{name}.png", _encoded(scene.semantic, "PNG"))
        height, width = scene.size
        image_id = index + 1
        images.append(
            {"id": image_id, "file_name": f"{name}.jpg", "width": width, "height": height}
        )
        objects += _coco_objects(scene, image_id, first_id=len(objects) + 1)
        captions += [
            {"id": len(captions) + 1 + k, "image_id": image_id, "caption": caption}
            for k, caption in enumerate(scene.captions)
        ]
        places.append((f"{name}.jpg", scene.place))
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
    _replace_json(
        folder / "instances.json",
        {"images": images, "annotations": objects, "categories": categories},
    )
    _replace_json(folder / "captions.json", {"images": images, "annotations": captions})
    _replace_csv(folder / "labels.csv", ("file_name", "label"), places)


def _coco_objects(scene: Scene, image_id: int, *, first_id: int) -> list[dict[str, Any]]:
    objects = []
    for index, (label, mask, box_xyxy) in enumerate(
        zip(scene.labels, scene.masks, scene.boxes_xyxy, strict=True)
    ):
        # its counts are bytes, whatever the stubs of pycocotools say
        rle: Any = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        x1, y1, x2, y2 = (int(value) for value in box_xyxy)
        objects.append(
            {
                "id": first_id + index,
                "image_id": image_id,
                "category_id": int(label) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(mask.sum()),
                "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
                "iscrowd": 0,
            }
        )
    return objects


def _encoded(pixels: NDArray[np.uint8], format_name: str, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_name, quality=quality)
    return buffer.getvalue()


def _replace_json(path: Path, document: Mapping[str, Any]) -> None:
    replace_whole(path, json.dumps(document, separators=(",", ":")).encode())


def _replace_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    replace_whole(path, text.getvalue().encode())
