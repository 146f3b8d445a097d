"""The stage of a scene: its place, time and weather, and the picture of it without any things."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.scenes.light import Light
from pixelmill.tasks.scenes.noise import TILE, FloatArray, fractal_tile, sample_tile

__all__ = ["PLACES", "SEMANTIC_CLASSES", "SIZES", "Backdrop", "Setting", "draw_backdrop",
           "sample_setting"]  # fmt: skip

PLACES = ("meadow", "street", "beach", "lake", "desert")
"""Scene types."""

SIZES = ((240, 320), (288, 384), (320, 240), (300, 400), (256, 448), (256, 256), (360, 270))
"""(H, W) of the images, pixels."""

SEMANTIC_CLASSES = (
    "sky", "mountain", "grass", "sand", "road", "water", "tree", "building", "vehicle", "toy",
)  # fmt: skip
"""Names of the semantic classes, by value; every pixel has one. A car, a boat and a balloon are
vehicles, a ball and a ring are toys."""

_SKY, _MOUNTAIN, _GRASS, _SAND, _ROAD, _WATER = range(6)

# zenith, horizon, light of the source, ambient light, tint of the clouds
_TIMES = {
    "day": ((0.22, 0.44, 0.80), (0.70, 0.82, 0.93), (0.62, 0.60, 0.54), (0.48, 0.51, 0.56),
            (0.97, 0.97, 0.98)),
    "sunset": ((0.30, 0.27, 0.50), (0.99, 0.62, 0.34), (0.68, 0.46, 0.28), (0.44, 0.40, 0.46),
               (0.93, 0.50, 0.40)),
    "night": ((0.03, 0.05, 0.18), (0.18, 0.24, 0.43), (0.40, 0.44, 0.56), (0.36, 0.39, 0.50),
              (0.25, 0.29, 0.41)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and when a scene is.

    Attributes:
        place: one of PLACES.
        time: day, sunset or night.
        cloudy: many clouds, and a softer light.
        mountains: whether there are any on the horizon.
        size: (H, W) of the image, pixels.
        horizon: row of the horizon, pixels.
        light: of the sun or the moon.
        sun_x: column of the sun or moon, as a share of the width; may be outside of [0, 1].
        sun_y: its row, as a share of the sky.
    """

    place: str
    time: str
    cloudy: bool
    mountains: bool
    size: tuple[int, int]
    horizon: int
    light: Light
    sun_x: float
    sun_y: float


@dataclass(frozen=True, slots=True)
class Backdrop:
    """A scene without things.

    Attributes:
        rgb: (H, W, 3) float32, about [0, 1].
        semantic: (H, W) uint8, indices into SEMANTIC_CLASSES.
        haze: (H, 1, 3) float32, colour of the air between the camera and what stands on that row.
        haze_share: (H, 1, 1) float32, how much of that air there is.
    """

    rgb: FloatArray
    semantic: NDArray[np.uint8]
    haze: FloatArray
    haze_share: FloatArray


def sample_setting(rng: np.random.Generator) -> Setting:
    """Draw a place, a time and a light."""
    size = SIZES[int(rng.integers(len(SIZES)))]
    place = PLACES[int(rng.integers(len(PLACES)))]
    time = ("day", "sunset", "night")[int(rng.choice(3, p=(0.6, 0.22, 0.18)))]
    cloudy = bool(rng.random() < 0.45)
    share = {"meadow": 0.45, "street": 0.35, "beach": 0.15, "lake": 0.7, "desert": 0.5}[place]
    sun_x, sun_y = float(rng.uniform(-0.3, 1.3)), float(rng.uniform(0.1, 0.5))
    if time == "sunset":
        sun_y = float(rng.uniform(0.6, 0.95))
    elevation = {"day": 0.9, "sunset": 0.35, "night": 0.7}[time]
    across = (sun_x - 0.5) * 1.6
    direction = np.array((across, elevation, rng.uniform(0.35, 0.8)))
    direction /= np.linalg.norm(direction)
    _, _, source, ambient, _ = _TIMES[time]
    strength = (0.55 if cloudy else 1.0) * rng.uniform(0.85, 1.1)
    light = Light(
        (float(direction[0]), float(direction[1]), float(direction[2])),
        (source[0] * strength, source[1] * strength, source[2] * strength),
        (ambient[0], ambient[1], ambient[2]),
    )
    return Setting(
        place=place,
        time=time,
        cloudy=cloudy,
        mountains=bool(rng.random() < share),
        size=size,
        horizon=round(size[0] * float(rng.uniform(0.32, 0.5))),
        light=light,
        sun_x=sun_x,
        sun_y=sun_y,
    )


def draw_backdrop(setting: Setting, rng: np.random.Generator) -> Backdrop:
    """Paint sky, mountains and ground."""
    height, width = setting.size
    semantic = np.zeros((height, width), np.uint8)
    rgb = np.empty((height, width, 3), np.float32)
    _, low, *_ = _TIMES[setting.time]
    horizon_colour = np.array(low, np.float32)
    rgb[: setting.horizon] = _sky(setting, rng)
    rgb[setting.horizon :], semantic[setting.horizon :] = _ground(setting, rng)
    if setting.mountains:
        _paint_mountains(rgb, semantic, setting, rng)
    below = np.arange(height) - setting.horizon
    depth = np.clip(below / (height - setting.horizon), 0, 1)
    share = np.where(below < 0, 0.12, 0.4 * (1 - depth) ** 4).astype(np.float32)[:, None, None]
    haze = np.broadcast_to(horizon_colour, (height, 1, 3)).astype(np.float32)
    ground = slice(setting.horizon, None)
    rgb[ground] += share[ground] * (haze[ground] - rgb[ground])
    return Backdrop(rgb, semantic, haze, share)


def _noise(
    rng: np.random.Generator, exponent: float, rows: FloatArray, columns: FloatArray
) -> FloatArray:
    """The tile from a random place on."""
    row, column = rng.uniform(0, TILE, 2).astype(np.float32)
    return sample_tile(fractal_tile(exponent), rows + row, columns + column)


def _sky(setting: Setting, rng: np.random.Generator) -> FloatArray:
    high, low, _, _, cloud = (np.array(colour, np.float32) for colour in _TIMES[setting.time])
    rows = np.arange(setting.horizon, dtype=np.float32)[:, None]
    columns = np.arange(setting.size[1], dtype=np.float32)[None, :]
    up = 1 - (rows + 0.5) / setting.horizon
    blend = (up ** rng.uniform(0.5, 0.9))[..., None]
    sky = np.repeat(low + (high - low) * blend, setting.size[1], axis=1)
    sun_column = setting.sun_x * setting.size[1]
    sun_row = setting.sun_y * setting.horizon
    from_sun = np.hypot(rows - sun_row, columns - sun_column)
    radius = (0.022 if setting.time == "day" else 0.035) * setting.size[0]
    glow = np.exp(-from_sun / (5 * radius))[..., None]
    disc = np.clip(radius - from_sun + 0.5, 0, 1)[..., None]
    source = {"day": (1.0, 0.97, 0.85), "sunset": (1.0, 0.80, 0.45), "night": (0.9, 0.9, 0.82)}
    sun = np.array(source[setting.time], np.float32)
    sky += (0.15 if setting.time == "night" else 0.5) * glow * (sun - sky)
    sky += disc * (sun - sky)
    if setting.time == "night":
        stars = rng.random(sky.shape[:2], dtype=np.float32) > 0.998
        sky[stars] += rng.uniform(0.2, 0.7)
    # clouds lie on a plane overhead: they shrink and flatten towards the horizon
    distance = 1 / (up + 0.18)
    scale = np.float32(rng.uniform(16, 30) * 320 / setting.size[1] / 100)
    density = _noise(rng, 1.7, distance * 60, (columns - setting.size[1] / 2) * distance * scale)
    threshold = rng.uniform(-0.5, 0.1) if setting.cloudy else rng.uniform(1.0, 1.9)
    cover = np.clip((density - threshold) * 1.3, 0, 1)[..., None] * (0.55 + 0.4 * up[..., None])
    thick = np.clip((density - threshold) * 0.5, 0, 1)[..., None]
    return sky + cover * (cloud * (1 - 0.33 * thick) - sky)


def _paint_mountains(
    rgb: FloatArray, semantic: NDArray[np.uint8], setting: Setting, rng: np.random.Generator
) -> None:
    columns = np.arange(setting.size[1], dtype=np.float32)
    rows = np.arange(setting.horizon, dtype=np.float32)[:, None]
    _, low, *_ = _TIMES[setting.time]
    desert = setting.place == "desert"
    rock = np.array((0.60, 0.36, 0.22) if desert else (0.36, 0.38, 0.42), np.float32)
    if not desert and rng.random() < 0.4:
        rock = np.array((0.22, 0.32, 0.2), np.float32)
    layers = int(rng.integers(1, 3))
    for layer in range(layers):
        line = _noise(rng, 1.55, np.zeros_like(columns), columns * np.float32(0.33))
        if desert:  # mesas have flat tops
            line = 0.7 * np.tanh(2.5 * line)
        reach = setting.horizon * rng.uniform(0.22, 0.4) * (1.15 if layer == 0 else 0.6)
        top = setting.horizon - np.maximum(reach * (1 + 0.55 * line), 4)
        inside = rows >= top[None, :]
        relief = _noise(rng, 1.1, rows * 1.2, columns[None, :] * np.float32(1.2))
        # ribs run down from the ridge, aslant, and one of their sides is lit
        ribs = _noise(rng, 1.2, rows * 0.25 + top * np.float32(0.5), columns + rows * 0.6)
        lit = np.clip(0.85 + 0.2 * ribs + 0.1 * relief, 0.35, 1.5)[..., None]
        colour = rock * lit * setting.light.on_face(0, 0.6, 0.8)
        if not desert:
            snow = np.clip((setting.horizon * 0.62 - rows + 6 * relief) / 6, 0, 1)[..., None]
            colour = colour + snow * (0.85 * setting.light.on_face(0, 1, 0.5) * lit - colour)
        air = 0.5 if layer < layers - 1 else 0.22
        colour += air * (np.array(low, np.float32) - colour)
        rgb[: setting.horizon][inside] = colour[inside]
        semantic[: setting.horizon][inside] = _MOUNTAIN


def _ground(setting: Setting, rng: np.random.Generator) -> tuple[FloatArray, NDArray[np.uint8]]:
    height, width = setting.size[0] - setting.horizon, setting.size[1]
    below = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    columns = np.arange(width, dtype=np.float32)[None, :]
    # a point of the plane that is seen at this pixel, in noise pixels
    distance = 1 / (below + 0.04)
    far = distance * np.float32(90)
    across = (columns - width / 2) * distance * np.float32(2.2 * 320 / width / 2)
    kind = np.full((height, width), _GRASS, np.uint8)
    sunlight = setting.light.on_face(0, 1, 0.15)
    if setting.place in ("meadow", "street"):
        rgb = _grass(rng, far, across, below) * sunlight
        if setting.place == "street":
            _paint_road(rgb, kind, rng, below, columns / width, (far, across), sunlight)
        return rgb, kind
    if setting.place == "desert":
        kind[:] = _SAND
        return _sand(rng, far, across, below, dunes=True) * sunlight, kind
    if setting.place == "beach":
        land, land_kind = _sand(rng, far, across, below, dunes=False), _SAND
    else:
        land, land_kind = _grass(rng, far, across, below), _GRASS
    line = _noise(rng, 1.4, np.zeros_like(columns), columns * np.float32(0.4))
    shore = (
        rng.uniform(0.35, 0.72) + 0.035 * line + rng.uniform(-0.12, 0.12) * (columns / width - 0.5)
    )
    water = np.broadcast_to(below < shore, kind.shape).copy()
    if setting.place == "lake":
        water &= below >= rng.uniform(0.03, 0.08) + 0.01 * line
    kind[:] = land_kind
    kind[water] = _WATER
    wet = np.exp(-np.abs(below - shore) * 30)[..., None]
    rgb = land * (1 - 0.35 * wet) * sunlight
    rgb[water] = _water(setting, rng, far, across, below)[water]
    surf = np.exp(-(((below - shore + 0.012) / 0.012) ** 2))[..., None]
    if setting.place == "beach":
        rgb += 0.75 * surf * (0.95 * sunlight - rgb)
    return rgb, kind


def _mottle(
    rng: np.random.Generator,
    exponent: float,
    rows: FloatArray,
    columns: FloatArray,
    below: FloatArray,
    strength: float,
) -> FloatArray:
    """(h, w, 1) factors around 1; the pattern fades where perspective would alias it."""
    fade = np.clip(below * 2.5, 0.15, 1)
    return np.clip(1 + strength * fade * _noise(rng, exponent, rows, columns), 0.3, 1.8)[..., None]


def _grass(
    rng: np.random.Generator, far: FloatArray, across: FloatArray, below: FloatArray
) -> FloatArray:
    fresh, dry = np.array((0.25, 0.47, 0.13), np.float32), np.array((0.50, 0.50, 0.19), np.float32)
    patches = np.clip(0.3 + 0.25 * _noise(rng, 1.4, far * 0.5, across * 0.5), 0, 1)[..., None]
    colour = fresh + (dry - fresh) * patches * np.float32(rng.uniform(0.3, 1.2))
    # blades stand upright: the grain is stretched along the rows' direction
    blades = _mottle(rng, 0.55, far * 0.8, across * 1.6, below, 0.17)
    return colour * blades * _mottle(rng, 1.1, far, across, below, 0.1)


def _sand(
    rng: np.random.Generator, far: FloatArray, across: FloatArray, below: FloatArray, *, dunes: bool
) -> FloatArray:
    colour = np.array((0.80, 0.58, 0.34) if dunes else (0.84, 0.74, 0.54), np.float32)
    ripples = _noise(rng, 1.2, far * 0.6, across * 0.5)
    waves = np.sin(far * 0.35 + across * 0.03 + 2.5 * ripples) * np.clip(below * 1.5, 0, 1)
    grain = _mottle(rng, 0.4, far * 1.3, across * 1.3, below, 0.05)
    large = _mottle(rng, 1.6, far * 0.3, across * 0.2, below, 0.10 if dunes else 0.05)
    return colour * grain * large * (1 + (0.06 if dunes else 0.025) * waves)[..., None]


def _water(
    setting: Setting,
    rng: np.random.Generator,
    far: FloatArray,
    across: FloatArray,
    below: FloatArray,
) -> FloatArray:
    high, low, source, *_ = (np.array(colour, np.float32) for colour in _TIMES[setting.time])
    body = (0.07, 0.27, 0.36) if setting.place == "lake" else (0.08, 0.40, 0.47)
    deep = np.array(body, np.float32) * setting.light.on_face(0, 1, 0.2)
    # water seen at a flat angle mirrors the sky, and is seen into near by
    mirror = np.clip(0.75 - 0.55 * below, 0.15, 0.8)[..., None]
    sky = low + (high - low) * np.clip(below * 1.2, 0, 1)[..., None]
    waves = _noise(rng, 1.0, far * 1.5, across * 0.45)
    chop = 0.11 * waves * np.clip(below * 3 + 0.25, 0, 1)
    colour = deep + (sky - deep) * np.clip(mirror + chop[..., None], 0, 1)
    column = (setting.sun_x - 0.5) * setting.size[1]
    columns = np.arange(setting.size[1], dtype=np.float32)[None, :] - setting.size[1] / 2
    path = np.exp(-(((columns - column) / (0.09 * setting.size[1])) ** 2))
    glitter = np.clip(waves - 0.4, 0, 1) * path * (0.4 if setting.cloudy else 1.0)
    return colour + glitter[..., None] * source


def _paint_road(
    rgb: FloatArray,
    kind: NDArray[np.uint8],
    rng: np.random.Generator,
    below: FloatArray,
    across: FloatArray,
    plane: tuple[FloatArray, FloatArray],
    sunlight: FloatArray,
) -> None:
    """A road, either across the image or away from the camera."""
    far, plane_across = plane
    if rng.random() < 0.6:
        centre = rng.uniform(0.45, 0.7) + rng.uniform(-0.12, 0.12) * (across - 0.5)
        half = rng.uniform(0.15, 0.22)
        offset = (below - centre) / half
        dashes = np.sin(plane_across * np.float32(0.28)) > 0
    else:
        vanishing, foot = rng.uniform(0.3, 0.7), rng.uniform(0.25, 0.75)
        centre = vanishing + (foot - vanishing) * below
        offset = (across - centre) / (0.01 + rng.uniform(0.28, 0.42) * below)
        dashes = np.sin(far * np.float32(0.6)) > 0
    inside = np.broadcast_to(np.abs(offset) < 1, kind.shape)
    tone = rng.uniform(0.30, 0.42)
    asphalt = np.array((tone, tone, tone * 1.04), np.float32)
    surface = asphalt * _mottle(rng, 0.5, far * 1.4, plane_across * 1.4, below, 0.08)
    surface = surface * _mottle(rng, 1.5, far * 0.3, plane_across * 0.3, below, 0.07)
    paint = (np.abs(offset) < 0.035) & dashes | (np.abs(np.abs(offset) - 0.9) < 0.025)
    surface = np.where(paint[..., None], np.float32(0.82), surface)
    rgb[inside] = (surface * sunlight)[inside]
    kind[inside] = _ROAD
