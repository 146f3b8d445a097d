import hashlib
import subprocess
import sys
from dataclasses import fields

import numpy as np

from pixelmill.tasks.scenes import CLASSES, PLACES, SEMANTIC_CLASSES, render_scene
from pixelmill.tasks.scenes.render import _SEMANTIC_OF_THING
from pixelmill.tasks.scenes.setting import SIZES
from pixelmill.tasks.scenes.things import KINDS

DIGEST = """
import hashlib
from pixelmill.tasks.scenes import render_scene
digest = hashlib.sha256()
for seed in range(6):
    scene = render_scene(seed)
    for part in (scene.image, scene.boxes_xyxy, scene.labels, scene.masks, scene.semantic):
        digest.update(part.tobytes())
    digest.update(repr((scene.captions, scene.place)).encode())
print(digest.hexdigest())
"""


def _same(a, b):
    return all(
        np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(a)
    )


def test_the_same_seed_gives_the_same_scene():
    assert _same(render_scene(5), render_scene(5))


def test_two_processes_render_the_same_bytes():
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


def test_different_seeds_give_different_scenes(scenes):
    digests = {hashlib.sha256(scene.image.tobytes()).digest() for scene in scenes}
    assert len(digests) == len(scenes)


def test_shapes_and_types_are_those_promised(scenes):
    for scene in scenes:
        num = len(scene.labels)
        assert scene.size in SIZES
        assert scene.image.shape == (*scene.size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.boxes_xyxy.shape == (num, 4)
        assert scene.boxes_xyxy.dtype == np.float32
        assert scene.labels.dtype == np.int64
        assert scene.masks.shape == (num, *scene.size)
        assert scene.masks.dtype == np.bool_
        assert scene.semantic.dtype == np.uint8


def test_boxes_are_the_tight_bounds_of_the_visible_masks(scenes):
    for scene in scenes:
        for box_xyxy, mask in zip(scene.boxes_xyxy, scene.masks, strict=True):
            rows, columns = np.nonzero(mask)
            bounds = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_array_equal(box_xyxy, bounds)


def test_no_pixel_belongs_to_two_things(scenes):
    for scene in scenes:
        assert scene.masks.sum(axis=0).max(initial=0) <= 1


def test_instances_and_semantic_map_agree(scenes):
    for scene in scenes:
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            assert np.all(scene.semantic[mask] == _SEMANTIC_OF_THING[label])
        backdrop = ~scene.masks.any(axis=0)
        assert not np.isin(scene.semantic[backdrop], _SEMANTIC_OF_THING).any()


def test_every_pixel_has_a_semantic_class(scenes):
    assert all(scene.semantic.max() < len(SEMANTIC_CLASSES) for scene in scenes)


def test_nothing_is_too_small_to_be_learnt(scenes):
    for scene in scenes:
        sides = scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2]
        assert sides.min(initial=14) >= 14
        assert scene.masks.sum(axis=(1, 2)).min(initial=60) >= 60


def test_all_that_is_declared_occurs(scenes):
    assert {CLASSES[label] for scene in scenes for label in scene.labels} == set(CLASSES)
    assert {scene.place for scene in scenes} == set(PLACES)
    assert {scene.size for scene in scenes} == set(SIZES)
    assert set(np.unique(np.concatenate([scene.semantic.ravel() for scene in scenes]))) == set(
        range(len(SEMANTIC_CLASSES))
    )


def test_counts_range_from_none_to_many(scenes):
    counts = [len(scene.labels) for scene in scenes]
    assert min(counts) == 0
    assert max(counts) >= 6
    assert 2 < np.mean(counts) < 4


def test_things_are_occluded_and_cut_by_the_border(scenes):
    touching = sum(
        bool(box[0] == 0 or box[2] == scene.size[1]) for scene in scenes for box in scene.boxes_xyxy
    )
    assert touching >= 20
    overlapping = 0
    for scene in scenes:
        for index, (x1, y1, x2, y2) in enumerate(scene.boxes_xyxy.astype(int)):
            others = np.delete(scene.masks, index, axis=0)[:, y1:y2, x1:x2]
            overlapping += bool(others.any())
    assert overlapping >= 30


def test_rings_have_a_hole(scenes):
    ring = CLASSES.index("ring")
    holes = 0
    for scene in scenes:
        for box_xyxy, mask in zip(
            scene.boxes_xyxy[scene.labels == ring], scene.masks[scene.labels == ring], strict=True
        ):
            x, y = (box_xyxy[:2] + box_xyxy[2:]).astype(int) // 2
            holes += not mask[y, x]
    assert holes >= 20


def test_things_stand_out_from_what_is_around_them(scenes):
    contrasts = []
    for scene in scenes:
        image = scene.image.astype(float)
        for box_xyxy, mask in zip(scene.boxes_xyxy.astype(int), scene.masks, strict=True):
            x1, y1, x2, y2 = box_xyxy
            window = np.s_[max(y1 - 6, 0) : y2 + 6, max(x1 - 6, 0) : x2 + 6]
            inside, pixels = mask[window], image[window]
            contrasts.append(np.abs(pixels[inside] - pixels[~inside].mean(axis=0)).mean())
    assert np.percentile(contrasts, 5) > 15


def test_the_classes_of_things_are_those_that_can_be_drawn():
    assert tuple(KINDS) == CLASSES
