import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resize_image

from pixelmill.configs.schema import AugmentationConfig, PreprocessConfig, TilingConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.decode import decode_image, read_header
from pixelmill.tasks.engine.header import Header
from pixelmill.tasks.engine.views import (
    choose_canvas,
    decode_scale,
    draw_view,
    place_whole,
    plan_views,
    to_original,
)


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


# --- As others draw -------------------------------------------------------------------------------


def reference_view(pixels, placement, preprocess) -> np.ndarray:
    """As torchvision resizes, with a copy for each step."""
    height, width = placement.source_size
    part = pixels[placement.top :, placement.left :][:height, :width]
    image = torch.from_numpy(part.copy()).permute(2, 0, 1)
    resized = resize_image(
        image,
        list(placement.resized),
        v2.InterpolationMode(preprocess.interpolation),
        antialias=preprocess.antialias,
    )
    rows, columns = placement.content
    content = resized.permute(1, 2, 0).numpy()[placement.crop_top :, placement.crop_left :]
    content = content[:rows, :columns]
    content = content[::-1] if placement.flip_y else content
    content = content[:, ::-1] if placement.flip_x else content
    canvas = np.full((*placement.canvas, 3), preprocess.pad_value, np.uint8)
    canvas[:rows, :columns] = content
    return canvas


@pytest.mark.parametrize("smoothing", [{}, {"antialias": False}, {"interpolation": "bicubic"}])
@pytest.mark.parametrize(
    "resize", [{}, {"resize": "stretch"}, {"resize": "center_crop", "crop_from": 70}]
)
@pytest.mark.parametrize("size", [(64, 96), (50, 201), (203, 51), (30, 40), (90, 90)])
def test_a_view_is_torchvisions_and_on_a_device_nearly(size, resize, smoothing) -> None:
    preprocess = PreprocessConfig(canvases=((64, 64),), **smoothing, **resize)
    flips = AugmentationConfig(horizontal_flip=True, vertical_flip=True)
    spec = make_spec(preprocess=preprocess, augmentation=flips)
    pixels = noise(*size)
    for placement in plan_views(size, spec):
        expected = reference_view(pixels, placement, preprocess)
        assert (draw_view(pixels, placement, preprocess) == expected).all()
        on_device = draw_view(torch.from_numpy(pixels), placement, preprocess).astype(int)
        off = np.abs(on_device - expected)
        assert off.mean() < 0.3 if preprocess.interpolation == "bicubic" else off.max() <= 1


def test_pixels_of_another_size_than_the_placement_is_for_are_refused() -> None:
    preprocess = PreprocessConfig(canvases=((64, 64),))
    with pytest.raises(ValueError, match=r"\(50, 60\) decoded at 1/1, got \(25, 30\)"):
        draw_view(noise(25, 30), place_whole((50, 60), preprocess), preprocess)


# --- Scaled decoding ------------------------------------------------------------------------------

SCALED = PreprocessConfig(canvases=((320, 320),), decode="scaled")


def jpeg_header(height: int, width: int, orientation: int = 1) -> Header:
    return Header("jpeg", width, height, orientation)


@pytest.mark.parametrize(
    ("size", "scale"),
    [((480, 640), 1), ((958, 958), 1), ((960, 960), 2), ((1080, 1920), 4), ((3024, 4032), 8)],
)
def test_an_image_is_decoded_at_one_and_a_half_times_what_is_drawn_or_more(size, scale) -> None:
    assert decode_scale(jpeg_header(*size), make_spec(preprocess=SCALED)) == scale


def test_images_are_decoded_in_full_unless_the_model_says_otherwise() -> None:
    full = PreprocessConfig(canvases=((320, 320),))
    assert decode_scale(jpeg_header(3024, 4032), make_spec(preprocess=full)) == 1
    assert decode_scale(Header("png", 4032, 3024), make_spec(preprocess=SCALED)) == 1


def test_images_that_are_tiled_are_decoded_in_full() -> None:
    spec = make_spec(preprocess=SCALED, tiling=TilingConfig(tile=(640, 640)))
    assert decode_scale(jpeg_header(3024, 4032), spec) == 1
    assert decode_scale(jpeg_header(3024, 4032), make_spec(preprocess=SCALED)) == 8


def test_a_larger_view_of_an_image_asks_for_a_larger_decode() -> None:
    scales = AugmentationConfig(scales=(1.0, 2.0))
    spec = make_spec(preprocess=SCALED, augmentation=scales)
    assert decode_scale(jpeg_header(3024, 4032), spec) == 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mirrored_image_is_scaled_only_where_no_padding_would_come_first(orientation) -> None:
    spec = make_spec(preprocess=SCALED)
    assert decode_scale(jpeg_header(3024, 4032, orientation), spec) == 8
    expected = 8 if orientation in (1, 5) else 1
    assert decode_scale(jpeg_header(3023, 4031, orientation), spec) == expected


@pytest.mark.parametrize("orientation", [1, 5])
@pytest.mark.parametrize("size", [(963, 1277), (1280, 960)])
def test_a_scaled_decode_changes_the_key_and_not_where_things_are(size, orientation) -> None:
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
    picture = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, exif=exif)
    spec = make_spec(preprocess=PreprocessConfig(canvases=((200, 200),), decode="scaled"))
    header = read_header(file.getvalue())
    scale = decode_scale(header, spec)
    assert scale == 4
    full, scaled = (
        decode_image(file.getvalue(), max_pixels=10**7, scale=each) for each in (1, scale)
    )
    assert scaled.original_size == full.original_size == (header.height, header.width)
    (whole_view,) = plan_views(full.original_size, spec)
    (view,) = plan_views(scaled.original_size, spec, scale)
    expected = draw_view(full.pixels, whole_view, spec.preprocess)
    found = draw_view(scaled.pixels, view, spec.preprocess)
    rows, columns = (min(sides) for sides in zip(view.content, whole_view.content, strict=True))
    error = found[:rows, :columns].astype(float) - expected[:rows, :columns]
    assert 10 * np.log10(255**2 / (error**2).mean()) > 38
    # The far corner of the canvas' content is the far corner of what the decode covers
    height, width = view.content
    corner = to_original(torch.tensor([[0.0, 0.0, width, height]]), view)[0, 2:]
    assert corner.tolist() == pytest.approx([-(-s // 4) * 4 for s in full.original_size[::-1]])
    assert spec.key != make_spec(preprocess=PreprocessConfig(canvases=((200, 200),))).key
