"""Masks of a shard as one write-once Zarr v3 store that opens only when it is whole.

Semantic labels lie in `semantic/<Hc>x<Wc>/labels` (image, y, x), instances in
`instances/<Hc>x<Wc>/labels` (image, layer, y, x); the canvas is the image's size rounded up to 256,
which bounds the number of arrays for +9 % bytes. Masks are compressed as they come, as the chunks
of the final arrays; at the end these are joined to whole shard objects and written, then the
metadata of the arrays, and last the root with the consolidated metadata. A half-written store
therefore fails to open, where it would otherwise read as zeros.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from pixelmill.tasks.predictions import MaskCrop
from pixelmill.tasks.store.backend import Backend

__all__ = [
    "OBJECTS_ATTRIBUTE",
    "MaskSet",
    "Place",
    "canvas_of",
    "choose_layers",
    "paint_layers",
    "read_planes",
    "semantic_dtype",
]

CANVAS_MULTIPLE = 256
# Of the root group: size and sha256 by name of every other object of the store
OBJECTS_ATTRIBUTE = "objects"
_SHARD_ROWS = 64
# Level 1 without shuffle: lz4 is 3.4 times larger, bit shuffle 2.5 times.
_ZSTD_LEVEL = 1
_GRID = (
    "original image pixels after EXIF rotation, top-left aligned; valid area is [:height,:width]"
)
_FULL_WORD = 2**32 - 1

Labels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image's mask lies in its store."""

    array: str
    row: int


@dataclass(frozen=True, slots=True)
class _Packed:
    """The compressed planes of one image, padded to the canvas; None where all is background."""

    image_id: str
    height: int
    width: int
    planes: tuple[bytes | None, ...]


def canvas_of(height: int, width: int) -> tuple[int, int]:
    """Height and width, rounded up to the multiple that bounds the number of arrays."""
    return (
        -(-height // CANVAS_MULTIPLE) * CANVAS_MULTIPLE,
        -(-width // CANVAS_MULTIPLE) * CANVAS_MULTIPLE,
    )


def semantic_dtype(num_classes: int) -> np.dtype[Any]:
    """uint8 with 255 as void, or uint16 with 65535 where the classes need it."""
    return np.dtype(np.uint8 if num_classes <= 254 else np.uint16)


def choose_layers(masks: Sequence[MaskCrop], height: int, width: int) -> NDArray[np.int32]:
    """Lay overlapping instances on as few planes without overlaps as the greedy choice needs.

    Largest first, each on the first plane where it covers nothing: no pixel is lost.

    Args:
        masks: one per instance, in rank order; an empty mask is on plane 0 without pixels.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        (N,) the plane of each instance.
    """
    # By 32 planes: of each pixel, a bit for each plane on which it is taken
    words: list[NDArray[np.uint32]] = []
    layers = np.zeros(len(masks), np.int32)
    areas = [-int(np.count_nonzero(crop.mask)) for crop in masks]
    for rank in np.argsort(areas, kind="stable"):
        window, mask = _window(masks[rank]), masks[rank].mask
        # Products and not indexing by the mask, which takes twice as long
        taken = [int(np.bitwise_or.reduce((word[window] * mask).ravel())) for word in words]
        index = next((k for k, bits in enumerate(taken) if bits != _FULL_WORD), len(words))
        if index == len(words):
            words.append(np.zeros((height, width), np.uint32))
            taken.append(0)
        bit = (taken[index] ^ (taken[index] + 1)).bit_length() - 1  # the lowest that is free
        layers[rank] = 32 * index + bit
        words[index][window] |= mask * np.uint32(1 << bit)
    return layers


def paint_layers(
    masks: Sequence[MaskCrop], layers: NDArray[np.int32], height: int, width: int
) -> Iterator[NDArray[np.uint16] | None]:
    """Each plane of disjoint instances, in turn in the same memory, which stays in the cache.

    Args:
        masks: one per instance, in rank order.
        layers: (N,) the plane of each.
        height: of the planes, pixels.
        width: of the planes, pixels.

    Yields:
        (H, W): rank + 1 on the instance, 0 elsewhere; until the next one is asked for. None for a
        plane of nothing but background.
    """
    plane = np.zeros((height, width), np.uint16)
    for layer in range(1 + layers.max(initial=0)):
        ranks = np.flatnonzero(layers == layer).tolist()
        members = [rank for rank in ranks if masks[rank].mask.any()]
        for rank in members:
            np.copyto(plane[_window(masks[rank])], rank + 1, where=masks[rank].mask)
        yield plane if members else None
        for rank in members:
            plane[_window(masks[rank])] = 0


def _window(crop: MaskCrop) -> tuple[slice, slice]:
    rows, columns = crop.mask.shape
    return np.s_[crop.top : crop.top + rows, crop.left : crop.left + columns]


class MaskSet:
    """The masks of one shard by one model: compressed in memory, then written whole.

    Args:
        classes: of the model; written beside the labels, and more than 254 need uint16.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        self._dtype = semantic_dtype(len(classes))
        self._semantic: list[_Packed] = []
        self._instances: list[_Packed] = []

    def __bool__(self) -> bool:
        return bool(self._semantic or self._instances)

    @property
    def num_bytes(self) -> int:
        """Of the compressed planes."""
        return sum(
            len(plane)
            for image in (*self._semantic, *self._instances)
            for plane in image.planes
            if plane is not None
        )

    def add_semantic(self, image_id: str, labels: Labels) -> None:
        """Take a label map.

        Args:
            image_id: of the image.
            labels: (H, W) class indices; 255 (uint8) or 65535 (uint16) is void.

        Raises:
            ValueError: not 2-dimensional, or not of the dtype that the number of classes needs.
        """
        if labels.ndim != 2 or labels.dtype != self._dtype:
            raise ValueError(
                f"image {image_id}: expected an (H, W) label map of {self._dtype} for "
                f"{len(self._classes)} classes, got {labels.shape} of {labels.dtype}"
            )
        height, width = labels.shape
        chunk = _chunk(labels, fill_value=int(np.iinfo(self._dtype).max))
        self._semantic.append(_Packed(image_id, height, width, (chunk,)))

    def add_instances(
        self, image_id: str, masks: Sequence[MaskCrop], height: int, width: int
    ) -> NDArray[np.int32]:
        """Take instance masks, in rank order.

        Returns:
            (N,) the layer of each.

        Raises:
            ValueError: a mask leaves the image.
        """
        for rank, crop in enumerate(masks):
            bottom, right = np.add((crop.top, crop.left), crop.mask.shape)
            if crop.top < 0 or crop.left < 0 or bottom > height or right > width:
                raise ValueError(
                    f"image {image_id}: mask of rank {rank} covers rows {crop.top}:{bottom}, "
                    f"columns {crop.left}:{right}, outside of {height}x{width} pixels"
                )
        layers = choose_layers(masks, height, width)
        planes = paint_layers(masks, layers, *canvas_of(height, width))
        chunks = tuple(None if plane is None else _compressed(plane) for plane in planes)
        self._instances.append(_Packed(image_id, height, width, chunks))
        return layers

    def write(
        self, backend: Backend, key: str, attributes: Mapping[str, Any]
    ) -> tuple[dict[str, Place], dict[str, Place]]:
        """Write the store.

        Args:
            backend: where to.
            key: path of the store, a name that no one else writes to.
            attributes: of the root group.

        Returns:
            The places of the semantic maps and of the instance masks, by image_id.
        """
        objects: dict[str, Buffer] = {}
        writer = {"package": "pixelmill", "version": importlib.metadata.version("pixelmill")}
        zarr.create_group(
            MemoryStore(objects),
            zarr_format=3,
            attributes={**attributes, "writer": {**writer, "zarr": zarr.__version__}},
        )
        void = int(np.iinfo(self._dtype).max)
        semantic = _add_kind(
            objects,
            "semantic",
            self._semantic,
            dtype=self._dtype,
            fill_value=void,
            attributes={
                "classes": list(self._classes),
                "void": void,
                "long_name": "semantic class",
                "grid": _GRID,
            },
        )
        instances = _add_kind(
            objects,
            "instances",
            self._instances,
            dtype=np.dtype(np.uint16),
            fill_value=0,
            attributes={"background": 0, "value_is": "detections.rank + 1", "grid": _GRID},
        )
        _seal(backend, key, {name: value.to_bytes() for name, value in objects.items()})
        return semantic, instances


def read_planes(array: "zarr.Array[Any]", row: int, height: int, width: int) -> NDArray[Any]:
    """The mask of one image without the canvas' padding: (H, W), or (L, H, W) of instances."""
    return np.asarray(array[row, ..., :height, :width])


def _add_kind(
    objects: dict[str, Buffer],
    kind: str,
    images: Sequence[_Packed],
    *,
    dtype: np.dtype[Any],
    fill_value: int,
    attributes: dict[str, Any],
) -> dict[str, Place]:
    by_canvas: dict[tuple[int, int], list[_Packed]] = {}
    for image in sorted(images, key=lambda image: image.image_id):
        by_canvas.setdefault(canvas_of(image.height, image.width), []).append(image)
    places: dict[str, Place] = {}
    for canvas, members in sorted(by_canvas.items()):
        path = f"{kind}/{canvas[0]}x{canvas[1]}"
        layer_axis = (max(len(image.planes) for image in members),) if kind == "instances" else ()
        one_layer = (1,) * len(layer_axis)
        rows = min(len(members), _SHARD_ROWS)
        zarr.create_array(
            MemoryStore(objects),
            name=f"{path}/labels",
            shape=(len(members), *layer_axis, *canvas),
            chunks=(1, *one_layer, *canvas),
            shards=(rows, *one_layer, *canvas),
            dtype=dtype,
            fill_value=fill_value,
            compressors=ZstdCodec(level=_ZSTD_LEVEL),
            dimension_names=("image", *("layer" for _ in layer_axis), "y", "x"),
            attributes=attributes,
            zarr_format=3,
        )
        for name, data in _shard_objects(members, rows, layered=bool(layer_axis)).items():
            objects[f"{path}/labels/c/{name}/0/0"] = cpu.Buffer.from_bytes(data)
        _add_coordinates(objects, path, members)
        places |= {
            image.image_id: Place(f"{path}/labels", row) for row, image in enumerate(members)
        }
    return places


def _shard_objects(images: Sequence[_Packed], rows: int, *, layered: bool) -> dict[str, bytes]:
    """Shards of one array, by their place on the image axis and, if `layered`, the layer axis.

    zarr-python would take each shard as an uncompressed block, 50 MB of mostly background for 64
    layers of 512x768 pixels; here the chunks are compressed already.
    """
    shards: dict[str, bytes] = {}
    for start in range(0, len(images), rows):
        members = images[start : start + rows]
        for layer in range(max(len(image.planes) for image in members)):
            chunks = [
                image.planes[layer] if layer < len(image.planes) else None for image in members
            ]
            if any(chunks):
                name = f"{start // rows}/{layer}" if layered else f"{start // rows}"
                shards[name] = _join_chunks(chunks, rows)
    return shards


def _join_chunks(chunks: Sequence[bytes | None], rows: int) -> bytes:
    """A shard object: the chunks, then offset and length of each, then the CRC-32C of these.

    Source: Zarr v3 specification, codec `sharding_indexed` v1.0, section "Binary shard format"
    https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
    """
    index = np.full((rows, 2), np.iinfo(np.uint64).max, "<u8")
    offset = 0
    for row, chunk in enumerate(chunks):
        if chunk is not None:
            index[row] = offset, len(chunk)
            offset += len(chunk)
    table = index.tobytes()
    checksum = google_crc32c.value(table).to_bytes(4, "little")
    return b"".join((*(chunk for chunk in chunks if chunk is not None), table, checksum))


def _add_coordinates(objects: dict[str, Buffer], path: str, images: Sequence[_Packed]) -> None:
    for name, values, meaning in (
        ("image_id", np.array([image.image_id for image in images], dtype="T"), "images.image_id"),
        ("height", np.array([image.height for image in images], np.int32), "pixels"),
        ("width", np.array([image.width for image in images], np.int32), "pixels"),
    ):
        zarr.create_array(
            MemoryStore(objects),
            name=f"{path}/{name}",
            data=values,
            chunks=values.shape,
            compressors=ZstdCodec(level=_ZSTD_LEVEL),
            dimension_names=("image",),
            attributes={"unit": meaning},
            zarr_format=3,
        )


def _seal(backend: Backend, key: str, objects: dict[str, bytes]) -> None:
    """Write all below the root, then the root, which makes the store open."""
    metadata = {name: data for name, data in objects.items() if name.endswith("zarr.json")}
    root = _consolidate(metadata, objects)
    backend.put_new(
        {f"{key}/{name}": data for name, data in objects.items() if name != "zarr.json"}
    )
    backend.put(f"{key}/zarr.json", root)


def _consolidate(metadata: Mapping[str, bytes], objects: Mapping[str, bytes]) -> bytes:
    """The root's zarr.json with the metadata of all below it, as zarr-python reads it.

    And with size and checksum of every object, because Zarr reads a missing one as background and
    zstd does not notice a flipped bit.

    Written here rather than by `zarr.consolidate_metadata`, which warns at every call that the
    Zarr v3 specification does not have it yet.
    """
    root = json.loads(metadata["zarr.json"])
    below = {
        name.removesuffix("/zarr.json"): json.loads(data)
        for name, data in sorted(metadata.items())
        if name != "zarr.json"
    }
    root["attributes"][OBJECTS_ATTRIBUTE] = {
        name: [len(data), hashlib.sha256(data).hexdigest()]
        for name, data in sorted(objects.items())
        if name != "zarr.json"
    }
    root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": below}
    return json.dumps(root, indent=2).encode()


def _chunk(plane: Labels, fill_value: int) -> bytes:
    """A plane as a chunk of its array: padded to the canvas."""
    height, width = plane.shape
    padded = np.full(canvas_of(height, width), fill_value, plane.dtype)
    padded[:height, :width] = plane
    return _compressed(padded)


def _compressed(padded: NDArray[np.uint8 | np.uint16]) -> bytes:
    """Little endian, zstd."""
    codec = pa.Codec("zstd", compression_level=_ZSTD_LEVEL)
    plane = np.ascontiguousarray(padded, padded.dtype.newbyteorder("<"))
    compressed: bytes = codec.compress(plane, asbytes=True)
    return compressed
