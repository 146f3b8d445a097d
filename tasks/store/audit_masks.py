"""Auditing masks: every object that was written is there as it was, and says what the rows say."""

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from pixelmill.tasks.store.backend import Backend
from pixelmill.tasks.store.masks import OBJECTS_ATTRIBUTE, read_planes
from pixelmill.tasks.transient import is_transient

__all__ = ["UNREADABLE", "MaskFault", "check_masks"]

# What a disk says of a file whose blocks are lost; everything else is trouble, not damage.
UNREADABLE = frozenset({errno.EIO, errno.EBADMSG, errno.EUCLEAN})
_KINDS = (("semantic_array", "semantic_row"), ("instances_array", "instances_row"))


@dataclass(frozen=True, slots=True)
class MaskFault:
    """What is wrong with some masks of a store.

    Attributes:
        kind: of the finding.
        key: of the object.
        images: (N,) bool, the rows of images that it concerns.
    """

    kind: str
    key: str
    what: str
    images: NDArray[np.bool_]


def check_masks(
    backend: Backend, key: str, images: pd.DataFrame, boxes: pd.DataFrame, *, full: bool
) -> Iterator[MaskFault]:
    """Check one mask store against the rows that name it.

    Args:
        backend: of the store.
        key: of the mask store.
        images: rows of `images` that name it.
        boxes: rows of `detections` of these images.
        full: read and decode everything; else look at the metadata and at the objects' sizes.
    """
    everything = np.ones(len(images), bool)
    try:
        root = json.loads(backend.get(f"{key}/zarr.json"))
        arrays = root["consolidated_metadata"]["metadata"]
    except FileNotFoundError:
        yield MaskFault("masks_missing", f"{key}/zarr.json", "gone: it does not open", everything)
        return
    except (ValueError, KeyError, TypeError) as err:
        what = f"is no root of a mask store: {err}"
        yield MaskFault("masks_damaged", f"{key}/zarr.json", what, everything)
        return
    check = _MaskCheck(backend, key, images, boxes, arrays)
    yield from check.objects(root.get("attributes", {}).get(OBJECTS_ATTRIBUTE, {}), full=full)
    yield from check.rows()
    if full:
        yield from check.pixels()


@dataclass(eq=False)
class _MaskCheck:
    backend: Backend
    key: str
    images: pd.DataFrame
    boxes: pd.DataFrame
    arrays: Mapping[str, Any]
    bad: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.bad = np.zeros(len(self.images), bool)

    def fault(self, kind: str, name: str, what: str, rows: NDArray[np.bool_]) -> MaskFault:
        self.bad |= rows
        return MaskFault(kind, f"{self.key}/{name}", what, rows)

    def objects(self, expected: Mapping[str, Any], *, full: bool) -> Iterator[MaskFault]:
        """Whether what was written is there, as it was written."""
        sizes = {
            e.key.removeprefix(f"{self.key}/"): e.size_bytes for e in self.backend.list(self.key)
        }
        for name, (size_bytes, sha256) in expected.items():
            rows = self._rows_of(name)
            if name not in sizes:
                yield self.fault("masks_missing", name, "gone", rows)
            elif sizes[name] != size_bytes:
                what = f"expected {size_bytes} bytes, got {sizes[name]}"
                yield self.fault("masks_damaged", name, what, rows)
            elif full:
                try:
                    data = self.backend.get(f"{self.key}/{name}")
                except OSError as err:
                    if err.errno not in UNREADABLE:
                        raise
                    yield self.fault("masks_damaged", name, f"cannot be read: {err}", rows)
                    continue
                if hashlib.sha256(data).hexdigest() != sha256:
                    what = f"{size_bytes} bytes, but not those of sha256 {sha256}"
                    yield self.fault("masks_damaged", name, what, rows)
                elif name.endswith("/zarr.json") and (
                    json.loads(data) != self.arrays.get(name.removesuffix("/zarr.json"))
                ):
                    what = f"the root says otherwise of {name.removesuffix('/zarr.json')}"
                    yield self.fault("masks_damaged", "zarr.json", what, np.ones(len(rows), bool))

    def _rows_of(self, name: str) -> NDArray[np.bool_]:
        """Rows of images whose masks need an object."""
        array, is_chunk, place = name.partition("/labels/c/")
        found = np.zeros(len(self.images), bool)
        for array_column, row_column in _KINDS:
            names = self.images[array_column].fillna("").to_numpy(str)
            if is_chunk:
                rows = self.images[row_column].fillna(-1).to_numpy(np.int64)
                per_object = self._rows_per_object(f"{array}/labels")
                is_in = rows // per_object == int(place.partition("/")[0])
                found |= (names == f"{array}/labels") & is_in
            else:
                folder = name.rpartition("/")[0].split("/")[:2]
                found |= np.char.startswith(names, "/".join(folder))
        return found

    def _rows_per_object(self, array: str) -> int:
        try:
            return int(self.arrays[array]["chunk_grid"]["configuration"]["chunk_shape"][0])
        except (KeyError, TypeError, IndexError):
            return 1 << 40  # one that is unknown concerns all

    def rows(self) -> Iterator[MaskFault]:
        """Whether the places that the rows name are there."""
        height, width = (self.images[name].to_numpy(np.int64) for name in ("height", "width"))
        for array_column, row_column in _KINDS:
            names = self.images[array_column].fillna("").to_numpy(str)
            rows = self.images[row_column].fillna(-1).to_numpy(np.int64)
            for name in sorted(set(names) - {""}):
                here = names == name
                shape = self.arrays.get(name, {}).get("shape")
                if shape is None:
                    yield self.fault("masks_misfit", name, "no such array", here)
                    continue
                outside = (
                    (rows < 0) | (rows >= shape[0]) | (height > shape[-2]) | (width > shape[-1])
                )
                if (outside & here).any():
                    number = int((outside & here).sum())
                    what = f"{number} images do not fit in its shape {tuple(shape)}"
                    yield self.fault("masks_misfit", name, what, outside & here)
                if array_column == "instances_array":
                    yield from self._layers(name, here, shape[1])

    def _layers(self, name: str, here: NDArray[np.bool_], num_layers: int) -> Iterator[MaskFault]:
        boxes = self.boxes[self.boxes["image_id"].isin(self.images["image_id"][here])]
        layer = boxes["mask_layer"].fillna(-1).to_numpy(np.int64)
        value = boxes["mask_value"].fillna(-1).to_numpy(np.int64)
        wrong = (
            (layer < 0) | (layer >= num_layers) | (value < 1) | (value > np.iinfo(np.uint16).max)
        )
        if wrong.any():
            what = f"mask_layer or mask_value of {int(wrong.sum())} boxes is out of range"
            rows = self.images["image_id"].isin(boxes["image_id"][wrong]).to_numpy()
            yield self.fault("masks_misfit", name, what, rows)

    def pixels(self) -> Iterator[MaskFault]:
        """Decode the masks of every row, and count their pixels."""
        group = zarr.open_group(self.backend.zarr_store(self.key), mode="r", zarr_format=3)
        boxes_of = dict(list(self.boxes.groupby("image_id", sort=False)))
        for index, image in enumerate(self.images.to_dict("records")):
            for array_column, row_column in _KINDS:
                name = image[array_column]
                if pd.isna(name) or self.bad[index]:
                    continue
                row = int(image[row_column])
                only = np.arange(len(self.images)) == index
                try:
                    folder = name.rpartition("/")[0]
                    owner = str(_array(group, f"{folder}/image_id")[row])
                    planes = read_planes(_array(group, name), row, image["height"], image["width"])
                except Exception as err:  # of a codec's library: they have no common class
                    if is_transient(err):
                        raise
                    what = f"row {row} does not decode: {type(err).__name__}: {err}"
                    yield self.fault("masks_damaged", name, what, only)
                    continue
                if owner != image["image_id"]:
                    what = f"row {row} is of image {owner}, not of {image['image_id']}"
                    yield self.fault("masks_misfit", name, what, only)
                elif array_column == "instances_array" and image["image_id"] in boxes_of:
                    number = _wrong_areas(planes, boxes_of[image["image_id"]])
                    if number:
                        what = f"row {row}: mask_area of {number} boxes is not their pixels"
                        yield self.fault("masks_misfit", name, what, only)


def _array(group: zarr.Group, name: str) -> "zarr.Array[Any]":
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise TypeError(f"expected an array at {name}, got {type(found).__name__}")
    return found


def _wrong_areas(planes: NDArray[Any], boxes: pd.DataFrame) -> int:
    """How many boxes do not have as many pixels as they say."""
    values = boxes["mask_value"].to_numpy(np.int64)
    size = max(int(planes.max(initial=0)), int(values.max(initial=0))) + 1
    counts = np.stack([np.bincount(plane.ravel(), minlength=size) for plane in planes])
    areas = counts[boxes["mask_layer"].to_numpy(np.int64), values]
    return int((areas != boxes["mask_area"].to_numpy(np.int64)).sum())
