import warnings
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelmill.tasks.predictions import MaskCrop
from pixelmill.tasks.store.backend import LocalBackend, open_backend
from pixelmill.tasks.store.masks import (
    MaskSet,
    canvas_of,
    choose_layers,
    paint_layers,
    read_planes,
)

ID = "0123456789abcdef0123456789abcdef"


@st.composite
def overlapping_masks(draw):
    """Up to 12 masks, some empty, on an image of at most 24x24 pixels."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    crops = []
    for _ in range(draw(st.integers(0, 12))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        shape = (draw(st.integers(1, height - top)), draw(st.integers(1, width - left)))
        density = draw(st.sampled_from([0.0, 0.3, 1.0]))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        crops.append(MaskCrop(top, left, rng.random(shape) < density))
    return tuple(crops), height, width


def open_array(path, name) -> "zarr.Array[Any]":
    """By way of the root, as a reader that follows `images` does."""
    found = zarr.open_group(path, mode="r", zarr_format=3)[name]
    assert isinstance(found, zarr.Array)
    return found


def spread(crops, height, width):
    full = np.zeros((len(crops), height, width), bool)
    for plane, crop in zip(full, crops, strict=True):
        rows, columns = crop.mask.shape
        plane[crop.top : crop.top + rows, crop.left : crop.left + columns] = crop.mask
    return full


def pack_layers(crops, height, width):
    """(L, height, width) planes, and the layer of each crop."""
    layers = choose_layers(crops, height, width)
    planes = [
        np.zeros((height, width), np.uint16) if plane is None else plane.copy()
        for plane in paint_layers(crops, layers, height, width)
    ]
    return np.stack(planes), layers


@given(overlapping_masks())
def test_packing_loses_no_pixel(scene):
    crops, height, width = scene
    planes, layers = pack_layers(crops, height, width)
    values = np.arange(1, len(crops) + 1)
    np.testing.assert_array_equal(
        planes[layers] == values[:, None, None], spread(crops, height, width)
    )


@given(overlapping_masks())
@settings(max_examples=15, deadline=None)
def test_instances_survive_the_store(tmp_path_factory, scene):
    crops, height, width = scene
    backend = LocalBackend(str(tmp_path_factory.mktemp("masks")))
    masks = MaskSet(("a",))
    layers = masks.add_instances(ID, crops, height, width)
    _, places = masks.write(backend, "m.zarr", {})
    place = places[ID]
    array = open_array(backend.zarr_store("m.zarr"), place.array)
    planes = read_planes(array, place.row, height, width)
    values = np.arange(1, len(crops) + 1)
    np.testing.assert_array_equal(
        planes[layers] == values[:, None, None], spread(crops, height, width)
    )


def test_disjoint_masks_share_one_plane():
    crops = [MaskCrop(0, i, np.ones((4, 1), bool)) for i in range(5)]
    planes, layers = pack_layers(crops, 4, 5)
    assert planes.shape == (1, 4, 5)
    assert layers.tolist() == [0] * 5


def test_more_planes_than_bits_of_a_word():
    crops = [MaskCrop(0, 0, np.ones((2, 3), bool)) for _ in range(70)]
    planes, layers = pack_layers(crops, 2, 3)
    assert sorted(layers) == list(range(70))
    assert (planes[layers] == np.arange(1, 71)[:, None, None]).all()


def test_the_largest_lies_on_the_first_plane():
    small = MaskCrop(1, 1, np.ones((2, 2), bool))
    large = MaskCrop(0, 0, np.ones((4, 4), bool))
    assert pack_layers([small, large], 4, 4)[1].tolist() == [1, 0]


def test_canvases_round_up_to_256():
    assert canvas_of(256, 257) == (256, 512)
    assert canvas_of(1, 1) == (256, 256)


@pytest.fixture
def written(tmp_path):
    """70 label maps on one canvas, so two Zarr shards, and one on another."""
    backend = LocalBackend(str(tmp_path))
    rng = np.random.default_rng(0)
    maps = {
        f"{i:032x}": rng.integers(0, 3, (20 + i, 30), dtype=np.uint8) for i in reversed(range(70))
    }
    maps["f" * 32] = rng.integers(0, 3, (300, 30), dtype=np.uint8)
    masks = MaskSet(("a", "b", "c"))
    for image_id, labels in maps.items():
        masks.add_semantic(image_id, labels)
    places, _ = masks.write(backend, "m.zarr", {"shard_id": "s"})
    return tmp_path / "m.zarr", maps, places


def test_label_maps_survive_the_store(written):
    path, maps, places = written
    for image_id, labels in maps.items():
        place = places[image_id]
        found = read_planes(open_array(path, place.array), place.row, *labels.shape)
        np.testing.assert_array_equal(found, labels)


def test_arrays_are_laid_out_as_designed(written):
    path, *_ = written
    labels = open_array(path, "semantic/256x256/labels")
    assert labels.shape == (70, 256, 256)
    assert labels.chunks == (1, 256, 256)
    assert labels.shards == (64, 256, 256)
    assert labels.dtype == np.uint8
    assert labels.fill_value == 255
    metadata = labels.metadata.to_dict()
    assert metadata["dimension_names"] == ("image", "y", "x")
    assert labels.attrs["classes"] == ["a", "b", "c"]
    sharding: Any = metadata["codecs"]
    codecs = sharding[0]["configuration"]["codecs"]
    assert [codec["name"] for codec in codecs] == ["bytes", "zstd"]
    assert codecs[1]["configuration"]["level"] == 1
    assert {file.name for file in (path / "semantic/256x256/labels/c").iterdir()} == {"0", "1"}


def test_padding_is_void(written):
    path, _, places = written
    plane = np.asarray(open_array(path, "semantic/512x256/labels")[0])
    assert (plane[300:] == 255).all()
    assert (plane[:, 30:] == 255).all()
    assert places["f" * 32].array == "semantic/512x256/labels"


def test_coordinates_name_the_rows(written):
    path, maps, places = written
    image_id, height, width = (
        np.asarray(open_array(path, f"semantic/256x256/{name}")[:]).tolist()
        for name in ("image_id", "height", "width")
    )
    ids = [str(name) for name in image_id]
    assert ids == sorted(image_id for image_id in maps if image_id != "f" * 32)
    assert [places[image_id].row for image_id in ids] == list(range(70))
    assert height == [maps[image_id].shape[0] for image_id in ids]
    assert set(width) == {30}


def test_the_root_is_consolidated(written):
    path, *_ = written
    group = zarr.open_group(path, mode="r", use_consolidated=True)
    assert group.metadata.consolidated_metadata is not None
    assert "semantic/512x256/labels" in {name for name, _ in group.members(max_depth=None)}
    assert group.attrs["shard_id"] == "s"


def test_more_than_254_classes_are_uint16(tmp_path):
    backend = LocalBackend(str(tmp_path))
    masks = MaskSet([str(i) for i in range(255)])
    labels = np.full((3, 4), 254, np.uint16)
    masks.add_semantic(ID, labels)
    places, _ = masks.write(backend, "m.zarr", {})
    array = open_array(tmp_path / "m.zarr", places[ID].array)
    assert array.dtype == np.uint16
    assert array.fill_value == 65535
    np.testing.assert_array_equal(read_planes(array, 0, 3, 4), labels)


@pytest.mark.parametrize("labels", [np.zeros((3, 4), np.uint16), np.zeros((1, 3, 4), np.uint8)])
def test_label_maps_of_another_type_are_refused(labels):
    with pytest.raises(ValueError, match="uint8 for 2 classes"):
        MaskSet(("a", "b")).add_semantic(ID, labels)


@pytest.mark.parametrize(("top", "left"), [(-1, 0), (0, -1), (2, 0), (0, 3)])
def test_masks_outside_of_the_image_are_refused(top, left):
    crop = MaskCrop(top, left, np.ones((3, 3), bool))
    with pytest.raises(ValueError, match="outside of 4x5"):
        MaskSet(("a",)).add_instances(ID, [crop], 4, 5)


class StopAfter(LocalBackend):
    """Dies after a number of objects, as a killed process would."""

    left = 0

    def put_new(self, objects):
        for key, data in objects.items():
            self.put(key, data)

    def put(self, key, data):
        if StopAfter.left == 0:
            raise KeyboardInterrupt
        StopAfter.left -= 1
        super().put(key, data)


def test_a_half_written_store_does_not_open(tmp_path):
    masks = MaskSet(("a",))
    masks.add_semantic(ID, np.zeros((3, 4), np.uint8))
    masks.add_instances(ID, [MaskCrop(0, 0, np.ones((2, 2), bool))], 3, 4)
    whole = LocalBackend(str(tmp_path / "whole"))
    (tmp_path / "whole").mkdir()
    masks.write(whole, "m.zarr", {})
    num_objects = len(list(whole.list("m.zarr")))
    assert num_objects > 10
    for number in range(num_objects):
        path = tmp_path / str(number)
        path.mkdir()
        StopAfter.left = number
        with pytest.raises(KeyboardInterrupt):
            masks.write(StopAfter(str(path)), "m.zarr", {})
        with pytest.raises(FileNotFoundError):
            zarr.open_group(path / "m.zarr", mode="r", zarr_format=3)


def test_the_same_masks_are_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        masks = MaskSet(("a",))
        ids = [ID, "f" * 32] if name == "one" else ["f" * 32, ID]
        for image_id in ids:
            masks.add_semantic(image_id, np.full((3, 4), int(image_id[0], 16), np.uint8))
        (tmp_path / name).mkdir()
        masks.write(LocalBackend(str(tmp_path / name)), "m.zarr", {"shard_id": "s"})
    backends = [LocalBackend(str(tmp_path / name)) for name in ("one", "two")]
    one, two = [{e.key: b.get(e.key) for e in b.list("m.zarr")} for b in backends]
    assert one == two


def test_writing_and_opening_warn_of_nothing():
    backend = open_backend("memory://quiet-masks")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = MaskSet(("a",))
        masks.add_semantic(ID, np.zeros((3, 4), np.uint8))
        masks.write(backend, "m.zarr", {})
        zarr.open_group(backend.zarr_store("m.zarr"), mode="r", zarr_format=3)
