"""From a seed to a picture and the truth about it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.scenes.captions import Mention, describe
from pixelmill.tasks.scenes.noise import FloatArray
from pixelmill.tasks.scenes.setting import (
    SEMANTIC_CLASSES,
    Backdrop,
    Setting,
    draw_backdrop,
    sample_setting,
)
from pixelmill.tasks.scenes.sprite import Sprite
from pixelmill.tasks.scenes.things import CLASSES, KINDS, Thing, draw_thing

__all__ = ["Scene", "render_scene"]

_MIN_SIDE = 14
"""Least side of a visible box, pixels: anything smaller would be noise to a small model."""
_MIN_SHARE = 0.3
"""Least share of an object that must be visible, inside the image and not occluded."""

# how likely each class is at a place
_CAST = {
    "meadow": {"tree": 3, "house": 2, "ball": 2.5, "balloon": 1.5, "car": 1},
    "street": {"car": 4, "house": 2, "tree": 1.5, "ball": 1, "balloon": 0.8},
    "beach": {"ball": 2, "ring": 4, "boat": 3, "tree": 0.8, "house": 0.8, "balloon": 0.6},
    "lake": {"boat": 4, "tree": 1.2, "house": 1.2, "ring": 2.5, "balloon": 0.8, "ball": 0.8},
    "desert": {"balloon": 2.5, "car": 2.5, "ball": 1.5, "tree": 0.7, "house": 1.2, "ring": 0.7},
}
_NUM_THINGS = (0.05, 0.14, 0.2, 0.18, 0.14, 0.12, 0.08, 0.05, 0.04)

_SEMANTIC_OF_THING = np.array(
    [
        SEMANTIC_CLASSES.index(name)
        for name in ("vehicle", "building", "tree", "vehicle", "toy", "toy", "vehicle")
    ],
    np.uint8,
)


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and all that is true of it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (N, 4) float32, pixels, max exclusive: the tight bounds of each mask.
        labels: (N,) int64, indices into CLASSES; nearest object last.
        masks: (N, H, W) bool, visible pixels only, so no two overlap.
        semantic: (H, W) uint8, indices into SEMANTIC_CLASSES, no void.
        captions: three sentences.
        place: scene type, one of PLACES.
    """

    image: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]
    semantic: NDArray[np.uint8]
    captions: tuple[str, ...]
    place: str

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.semantic.shape[0], self.semantic.shape[1]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A thing that is in the picture, its drawing, and the pixels that show it."""

    thing: Thing
    sprite: Sprite
    mask: NDArray[np.bool_]


def render_scene(seed: int) -> Scene:
    """Render one scene; the same seed always gives the same scene.

    Args:
        seed: any integer >= 0.

    Returns:
        The picture before compression, and its truth.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    setting = sample_setting(rng)
    backdrop = draw_backdrop(setting, rng)
    placed = _place(_sample_things(setting, backdrop, rng), setting)
    rgb, semantic = backdrop.rgb, backdrop.semantic.copy()
    for item in placed:
        _cast_shadow(rgb, item, setting, backdrop)
    for item in placed:
        _compose(rgb, item, setting, backdrop)
        semantic[item.mask] = _SEMANTIC_OF_THING[item.thing.label]
    masks = np.zeros((len(placed), *setting.size), np.bool_)
    for index, item in enumerate(placed):
        masks[index] = item.mask
    boxes_xyxy = np.array([_bounds(mask) for mask in masks], np.float32).reshape(-1, 4)
    mentions = [
        Mention(
            CLASSES[item.thing.label],
            "" if CLASSES[item.thing.label] == "tree" else item.thing.colour,
            int(mask.sum()),
            float(box_xyxy[0] + box_xyxy[2]) / 2,
        )
        for item, mask, box_xyxy in zip(placed, masks, boxes_xyxy, strict=True)
    ]
    return Scene(
        image=_photograph(rgb, setting, rng),
        boxes_xyxy=boxes_xyxy,
        labels=np.array([item.thing.label for item in placed], np.int64),
        masks=masks,
        semantic=semantic,
        captions=describe(
            mentions,
            setting.place,
            setting.time,
            rng,
            cloudy=setting.cloudy,
            mountains=setting.mountains,
        ),
        place=setting.place,
    )


def _sample_things(setting: Setting, backdrop: Backdrop, rng: np.random.Generator) -> list[Thing]:
    """Objects on fitting ground, at the size of their distance; the farthest first."""
    cast = _CAST[setting.place]
    weights = np.array(list(cast.values()))
    things = []
    for _ in range(int(rng.choice(len(_NUM_THINGS), p=_NUM_THINGS))):
        name = list(cast)[int(rng.choice(len(cast), p=weights / weights.sum()))]
        thing = _sample_thing(name, setting, backdrop, rng)
        if thing is not None:
            things.append(thing)
    # what hangs in the sky is behind all that stands
    return sorted(
        things, key=lambda thing: (thing.label != CLASSES.index("balloon"), thing.foot[1])
    )


def _sample_thing(
    name: str, setting: Setting, backdrop: Backdrop, rng: np.random.Generator
) -> Thing | None:
    """One object, or None where there is no room for it."""
    kind = KINDS[name]
    height, width = setting.size
    allowed = [SEMANTIC_CLASSES.index(ground) for ground in kind.stands_on]
    if setting.place == "street" and name == "car":
        allowed = [SEMANTIC_CLASSES.index("road")]
    for _ in range(12):
        x = rng.uniform(0.03, 0.97) * width
        if name == "balloon":
            size = float(rng.uniform(0.25, 0.75)) * setting.horizon
            y = rng.uniform(0.9 * size, setting.horizon)
        else:
            y = setting.horizon + rng.uniform(0.06, 1.0) * (height - setting.horizon)
            size = kind.height * (y - setting.horizon) * float(rng.uniform(0.85, 1.2))
        size = max(size, 24.0)
        row, column = min(int(y), height - 1), int(x)
        if backdrop.semantic[row, column] in allowed or (name == "balloon"):
            colour = kind.colours[int(rng.integers(len(kind.colours)))]
            tilt = float(rng.uniform(-kind.tilt, kind.tilt))
            return Thing(CLASSES.index(name), colour, (float(x), float(y)), size, tilt,
                         bool(rng.random() < 0.5), int(rng.integers(2**32)))  # fmt: skip
    return None


def _place(things: Sequence[Thing], setting: Setting) -> list[_Placed]:
    """Draw the objects that are visible enough; the others are not in the picture at all.

    The nearest are decided first, so that what hides an object is known when its turn comes.
    """
    taken = np.zeros(setting.size, np.bool_)
    placed = []
    for thing in reversed(things):
        sprite = draw_thing(thing, setting.light, night=setting.time == "night")
        solid = sprite.alpha > 0.5
        inside, part = _overlap(sprite, setting.size)
        mask = np.zeros(setting.size, np.bool_)
        mask[inside] = solid[part] & ~taken[inside]
        if mask.sum() < _MIN_SHARE * solid.sum():
            continue
        left, top, right, bottom = _bounds(mask)
        if min(right - left, bottom - top) < _MIN_SIDE:
            continue
        taken |= mask
        placed.append(_Placed(thing, sprite, mask))
    return placed[::-1]


def _overlap(
    sprite: Sprite, size: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a sprite lies in the image, and the part of the sprite that does."""
    spans = [
        (max(start, 0), max(min(start + length, limit), max(start, 0)))
        for start, length, limit in zip(
            (sprite.top, sprite.left), sprite.alpha.shape, size, strict=True
        )
    ]
    (y1, y2), (x1, x2) = spans
    part = (slice(y1 - sprite.top, y2 - sprite.top), slice(x1 - sprite.left, x2 - sprite.left))
    return (slice(y1, y2), slice(x1, x2)), part


def _bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Tight xyxy of a mask, max exclusive; of an empty one zeros."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _compose(rgb: FloatArray, item: _Placed, setting: Setting, backdrop: Backdrop) -> None:
    inside, part = _overlap(item.sprite, setting.size)
    row = min(int(item.thing.foot[1]), setting.size[0] - 1)
    colour = item.sprite.rgb[part]
    colour = colour + backdrop.haze_share[row] * (backdrop.haze[row] - colour)
    alpha = item.sprite.alpha[part][..., None]
    rgb[inside] += alpha * (colour - rgb[inside])


def _cast_shadow(rgb: FloatArray, item: _Placed, setting: Setting, backdrop: Backdrop) -> None:
    """Darken the ground where the object keeps the light away, or mirror it in water."""
    if CLASSES[item.thing.label] == "balloon":
        return
    height, width = setting.size
    foot_x, foot_y = item.thing.foot
    water = SEMANTIC_CLASSES.index("water")
    row = min(int(foot_y), height - 1)
    in_water = backdrop.semantic[row, min(int(foot_x), width - 1)] == water
    across, up, _ = setting.light.direction
    # towards the camera, as long as the source is low; water mirrors straight down
    length = 0.55 if in_water else float(np.clip(0.22 / up, 0.15, 0.6))
    shear = 0.0 if in_water else float(np.clip(-across / up, -1.6, 1.6))
    # a thing meets the ground behind its lowest visible point
    footprint = KINDS[CLASSES[item.thing.label]].footprint
    foot_y -= 0.0 if in_water else footprint * item.thing.height
    reach = item.thing.height * 1.1 * length
    rows = np.arange(max(int(foot_y), setting.horizon), min(int(foot_y + reach) + 2, height))
    if not len(rows):
        return
    above = (rows + 0.5 - foot_y)[:, None] / length
    columns = np.arange(width)[None, :] + 0.5 - shear * above
    source_row = np.floor(item.thing.foot[1] - above).astype(np.int64) - item.sprite.top
    source_column = np.floor(columns).astype(np.int64) - item.sprite.left
    source_row, source_column = np.broadcast_arrays(source_row, source_column)
    sprite_height, sprite_width = item.sprite.alpha.shape
    within = (
        (source_row >= 0)
        & (source_row < sprite_height)
        & (source_column >= 0)
        & (source_column < sprite_width)
    )
    source_row = np.clip(source_row, 0, sprite_height - 1)
    source_column = np.clip(source_column, 0, sprite_width - 1)
    cover = np.where(within, item.sprite.alpha[source_row, source_column], 0)
    cover = _soften(cover.astype(np.float32))[..., None]
    on_ground = (backdrop.semantic[rows] == water) == in_water
    cover = cover * on_ground[..., None]
    if in_water:
        mirrored = item.sprite.rgb[source_row, source_column]
        rgb[rows] += 0.4 * cover * (mirrored - rgb[rows])
        return
    lit = setting.light.on_face(0, 1, 0)
    dark = np.array(setting.light.ambient, np.float32) / lit
    rgb[rows] *= 1 - cover * 0.85 * (1 - dark)


def _soften(values: FloatArray) -> FloatArray:
    """Blur over three pixels each way; the edges repeat."""
    padded = np.pad(values, 1, mode="edge")
    rows = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    return 0.25 * rows[:, :-2] + 0.5 * rows[:, 1:-1] + 0.25 * rows[:, 2:]


def _photograph(rgb: FloatArray, setting: Setting, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a camera makes of the scene: lens blur, vignette, white balance, exposure, noise."""
    height, width = setting.size
    blur = np.float32(rng.uniform(0.1, 0.8))
    padded = np.pad(rgb, ((1, 1), (1, 1), (0, 0)), mode="edge")
    side = blur / 4
    rows = padded[1:-1] * (1 - 2 * side) + side * (padded[:-2] + padded[2:])
    image = rows[:, 1:-1] * (1 - 2 * side) + side * (rows[:, :-2] + rows[:, 2:])
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    vignette = 1 - np.float32(rng.uniform(0.03, 0.16)) * (x * x + y * y)
    warmth = rng.normal(0, 0.035)
    balance = np.array((1 + warmth, 1, 1 - warmth), np.float32) * np.float32(rng.uniform(0.92, 1.1))
    image *= vignette[..., None] * balance
    # highlights roll off instead of clipping
    over = np.maximum(image - 0.8, 0)
    image -= over * over / (over + 0.3)
    level = rng.uniform(0.004, 0.018) * (1.4 if setting.time == "night" else 1.0)
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    # shot noise grows with the light; read-out noise is there in the dark as well
    image += np.float32(level) * np.sqrt(np.maximum(image, 0) + np.float32(0.15)) * grain
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
