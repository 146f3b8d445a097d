import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms import v2

from pixelmill.configs.schema import AugmentationConfig, PreprocessConfig, TilingConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.views import choose_canvas, draw_view, plan_views, to_original


def make_spec(**changes) -> ModelSpec:
    values = {
        "name": "m",
        "task": "detection",
        "architecture": "a",
        "arguments": {},
        "weights_path": "w",
        "weights_sha256": "0",
        "classes": ("x",),
        "preprocess": PreprocessConfig(canvases=((320, 320),)),
        "precision": "fp32",
    }
    return ModelSpec.model_validate(values | changes)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_the_canvas_that_the_image_fills_most_is_chosen() -> None:
    preprocess = PreprocessConfig(canvases=((320, 320), (320, 448), (448, 320), (640, 640)))
    assert choose_canvas((480, 640), preprocess) == (320, 448)
    assert choose_canvas((640, 480), preprocess) == (448, 320)


def test_of_equally_full_canvases_the_larger_is_chosen() -> None:
    preprocess = PreprocessConfig(canvases=((320, 320), (640, 640), (160, 160)))
    assert choose_canvas((500, 500), preprocess) == (640, 640)
    assert choose_canvas((37, 111), preprocess) == (640, 640)


def test_letterbox_keeps_the_aspect_and_pads_right_and_below() -> None:
    spec = make_spec()
    (placement,) = plan_views((240, 640), spec)
    canvas = draw_view(noise(240, 640), placement, spec.preprocess)
    assert canvas.shape == (320, 320, 3)
    assert placement.content == (120, 320)
    assert (canvas[120:] == 114).all()
    assert not (canvas[:120] == 114).all()


def test_resizing_is_pillows() -> None:
    pixels = noise(241, 333)
    spec = make_spec(preprocess=PreprocessConfig(resize="stretch", canvases=((100, 140),)))
    (placement,) = plan_views((241, 333), spec)
    expected = Image.fromarray(pixels).resize((140, 100), Image.Resampling.BILINEAR)
    difference = draw_view(pixels, placement, spec.preprocess).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("size", [(300, 411), (411, 300), (256, 256), (224, 900)])
def test_center_crop_equals_torchvision(size: tuple[int, int]) -> None:
    preprocess = PreprocessConfig(resize="center_crop", crop_from=256, canvases=((224, 224),))
    pixels = noise(*size)
    (placement,) = plan_views(size, make_spec(preprocess=preprocess))
    reference = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    expected = reference(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(draw_view(pixels, placement, preprocess), expected)


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.sampled_from(["letterbox", "stretch", "center_crop"]),
)
def test_any_size_gets_a_full_canvas_and_maps_back_inside_the_image(size, resize) -> None:
    preprocess = PreprocessConfig(
        resize=resize,
        canvases=((96, 64), (64, 64)),
        crop_from=80 if resize == "center_crop" else None,
    )
    spec = make_spec(
        preprocess=preprocess,
        augmentation=AugmentationConfig(horizontal_flip=True, vertical_flip=True, scales=(1, 2)),
    )
    placements = plan_views(size, spec)
    assert len(placements) == 6
    for placement in placements[:3]:
        canvas = draw_view(noise(*size), placement, preprocess)
        assert canvas.shape == (*placement.canvas, 3)
        height, width = placement.content
        box = to_original(torch.tensor([[0.0, 0, width, height]]), placement)
        assert (box >= -1e-3).all()
        assert box[0, 2] <= size[1] + 1e-2
        assert box[0, 3] <= size[0] + 1e-2


@pytest.mark.parametrize("size", [(480, 640), (97, 33)])
def test_mapping_back_undoes_scale_offset_and_mirrors(size: tuple[int, int]) -> None:
    spec = make_spec(
        augmentation=AugmentationConfig(horizontal_flip=True, vertical_flip=True, scales=(1, 1.5)),
        tiling=TilingConfig(tile=(64, 64), overlap=0.25),
    )
    for placement in plan_views(size, spec):
        marked = np.zeros((*size, 3), np.uint8)
        top, left = placement.top + 8, placement.left + 4
        marked[top : top + 20, left : left + 16] = 255
        canvas = draw_view(marked, placement, make_spec().preprocess)
        rows, columns = placement.content
        y, x = np.nonzero(canvas[:rows, :columns, 0] > 127)
        box = torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]], dtype=torch.float32)
        pixel = max(placement.scale)
        assert_close(
            to_original(box, placement)[0],
            torch.tensor([left, top, left + 16, top + 20], dtype=torch.float32),
            rtol=0,
            atol=1.01 * max(1.0, pixel),
        )


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from([0.0, 0.2, 0.5]),
)
def test_tiles_cover_every_pixel_and_stay_inside(size, tile, overlap: float) -> None:
    tile = (max(tile[0], size[0] // 10), max(tile[1], size[1] // 10))
    spec = make_spec(tiling=TilingConfig(tile=tile, overlap=overlap, include_full=False))
    placements = plan_views(size, spec)
    rows, columns = np.zeros(size[0], bool), np.zeros(size[1], bool)
    for placement in placements:
        height, width = placement.source_size
        assert (height, width) == (min(tile[0], size[0]), min(tile[1], size[1]))
        assert placement.top + height <= size[0]
        assert placement.left + width <= size[1]
        rows[placement.top : placement.top + height] = True
        columns[placement.left : placement.left + width] = True
    assert rows.all()
    assert columns.all()
    assert len({(p.top, p.left) for p in placements}) == len(placements)


def test_small_images_are_not_tiled() -> None:
    tiling = TilingConfig(tile=(64, 64), min_pixels=10_000)
    assert len(plan_views((90, 90), make_spec(tiling=tiling))) == 1
    assert len(plan_views((64, 64), make_spec(tiling=TilingConfig(tile=(64, 64))))) == 1
    assert len(plan_views((128, 128), make_spec(tiling=tiling))) == 1 + 9


def test_only_inner_edges_of_tiles_are_cut() -> None:
    spec = make_spec(tiling=TilingConfig(tile=(60, 100), overlap=0, include_full=True))
    full, upper, lower = plan_views((120, 100), spec)
    assert full.cut == (False, False, False, False)
    assert upper.cut == (False, False, False, True)
    assert lower.cut == (False, True, False, False)


def test_without_antialiasing_a_pixel_is_interpolated_from_its_neighbours_alone():
    stripes = np.zeros((8, 64, 3), np.uint8)
    stripes[:, ::8] = 255
    drawn = {}
    for antialias in (True, False):
        spec = make_spec(
            preprocess=PreprocessConfig(resize="stretch", canvases=((8, 8),), antialias=antialias)
        )
        drawn[antialias] = draw_view(stripes, plan_views((8, 64), spec)[0], spec.preprocess)
    assert not drawn[False].any()  # falls between the stripes
    assert drawn[True].min() > 0
