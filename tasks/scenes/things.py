"""The things that scenes contain: one drawing function per class."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pixelmill.tasks.scenes.light import Colour, Light, sphere_normals
from pixelmill.tasks.scenes.noise import TILE, FloatArray, fractal_tile, sample_tile
from pixelmill.tasks.scenes.sprite import Painter, Sprite, box, capsule, convex, disk, ellipse

__all__ = ["CLASSES", "COLOURS", "KINDS", "Kind", "Thing", "draw_thing"]

CLASSES = ("car", "house", "tree", "boat", "ball", "ring", "balloon")
"""Names of the thing classes, by label."""

COLOURS: dict[str, Colour] = {
    "red": (0.80, 0.10, 0.09),
    "blue": (0.10, 0.27, 0.78),
    "yellow": (0.95, 0.78, 0.10),
    "green": (0.12, 0.55, 0.20),
    "orange": (0.95, 0.47, 0.08),
    "white": (0.90, 0.90, 0.88),
    "black": (0.10, 0.10, 0.11),
    "purple": (0.47, 0.16, 0.62),
}
"""What a colour word looks like in white light."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object before it is drawn.

    Attributes:
        label: index into CLASSES.
        colour: key of COLOURS.
        foot: (x, y) where it stands (a balloon: where its basket ends), pixels.
        height: nominal height, pixels.
        rotation: radians, anticlockwise.
        mirrored: left and right exchanged.
        seed: of its small irregularities.
    """

    label: int
    colour: str
    foot: tuple[float, float]
    height: float
    rotation: float
    mirrored: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Kind:
    """What is true of every thing of a class.

    Attributes:
        draw: paints one, in the order painter, colour, light, random numbers, night.
        extent: left, right, bottom, top of what it paints, units of its height.
        height: height relative to the camera's, which sets its size at a depth;
            0 where the size does not depend on the ground.
        footprint: depth of what it covers of the ground, as seen, relative to its own height.
        tilt: largest rotation either way, radians.
        stands_on: semantic classes of the ground beneath it.
        colours: words that it comes in.
    """

    draw: Callable[[Painter, FloatArray, Light, np.random.Generator, bool], None]
    extent: tuple[float, float, float, float]
    height: float
    footprint: float
    tilt: float
    stands_on: tuple[str, ...]
    colours: tuple[str, ...]


def draw_thing(thing: Thing, light: Light, *, night: bool) -> Sprite:
    """Draw an object as it looks in that light, without its surroundings."""
    kind = KINDS[CLASSES[thing.label]]
    painter = Painter(thing.foot, thing.height, kind.extent, thing.rotation, thing.mirrored)
    right, up, towards = light.direction
    if thing.mirrored:
        right = -right
    cos, sin = float(np.cos(thing.rotation)), float(np.sin(thing.rotation))
    if thing.mirrored:
        sin = -sin
    # light as the object sees it, which is drawn upright and unmirrored
    own_light = Light((right * cos + up * sin, up * cos - right * sin, towards), light.source,
                      light.ambient)  # fmt: skip
    rng = np.random.Generator(np.random.PCG64(thing.seed))
    base = np.array(COLOURS[thing.colour], np.float32)
    base = np.clip(base * rng.uniform(0.85, 1.1) + rng.uniform(-0.03, 0.03, 3), 0.03, 1)
    kind.draw(painter, base.astype(np.float32), own_light, rng, night)
    return painter.sprite()


def _rgb(red: float, green: float, blue: float) -> FloatArray:
    return np.array((red, green, blue), np.float32)


def _speckle(
    painter: Painter, rng: np.random.Generator, exponent: float, size: float
) -> FloatArray:
    """Noise fixed to the object: (h, w) float32, standard deviation 1; `size` of a feature."""
    row, column = rng.uniform(0, TILE, 2).astype(np.float32)
    step = np.float32(16 / size)
    return sample_tile(fractal_tile(exponent), painter.y * step + row, painter.x * step + column)


def _car(p: Painter, base: FloatArray, light: Light, rng: np.random.Generator, night: bool) -> None:
    x, y = p.x, p.y
    side, top = light.on_face(0.1, 0.1, 1), light.on_face(0.2, 1, 0.4)
    long_roof = rng.uniform(-0.75, -0.45)
    cabin = convex(x, y, (long_roof - 0.12, 0.5), (0.62, 0.5), (0.26, 0.97), (long_roof, 0.97))
    p.paint(box(x, y, (-1.0, 1.0, 0.12, 0.3), 0.08), _rgb(0.07, 0.07, 0.07) * side)
    p.paint(cabin - 0.03, base * top)
    glass = _rgb(0.22, 0.28, 0.33) * (0.5 + 0.7 * np.clip(y, 0, 1)[..., None]) * side * 1.4
    inner = convex(
        x, y, (long_roof - 0.06, 0.54), (0.52, 0.54), (0.22, 0.9), (long_roof + 0.03, 0.9)
    )
    pillar = np.minimum(np.abs(x - (long_roof + 0.3) / 2 - 0.05), np.abs(x - 0.3)) - 0.03
    p.paint(np.maximum(inner, -pillar), glass)
    # the flank is brighter where it curves up to the sky
    curve = np.clip((y - 0.2) / 0.38, 0, 1)[..., None]
    flank = base * (side * (1 - curve) * 0.8 + curve * (0.45 * top + 0.55 * side))
    p.paint(box(x, y, (-1.08, 1.1, 0.2, 0.57), 0.13), flank)
    p.paint(box(x, y, (-1.08, 1.1, 0.26, 0.3)), base * side * 0.55)
    for seam in (-0.32, 0.28):
        p.paint(box(x, y, (seam - 0.012, seam + 0.012, 0.28, 0.53)), base * side * 0.5)
    lamp, tail = _rgb(0.95, 0.92, 0.75), _rgb(0.75, 0.05, 0.04)
    p.paint(ellipse(x, y, (1.0, 0.43), (0.09, 0.06)), lamp * (1.3 if night else side))
    p.paint(box(x, y, (-1.08, -0.98, 0.38, 0.5), 0.03), tail * (1.2 if night else side))
    for wheel in (-0.62, 0.64):
        p.paint(disk(x, y, (wheel, 0.2), 0.25), base * side * 0.25)
        p.paint(disk(x, y, (wheel, 0.2), 0.21), _rgb(0.06, 0.06, 0.065) * side)
        p.paint(disk(x, y, (wheel, 0.2), 0.11), _rgb(0.62, 0.63, 0.66) * side)
        p.paint(disk(x, y, (wheel, 0.2), 0.04), _rgb(0.2, 0.2, 0.2) * side)


def _house(
    p: Painter, base: FloatArray, light: Light, rng: np.random.Generator, night: bool
) -> None:
    x, y = p.x, p.y
    eaves, ridge = rng.uniform(0.5, 0.6), rng.uniform(0.9, 1.0)
    corner, gable = -0.05, rng.uniform(0.0, 0.08)
    front, side = light.on_face(-0.45, 0, 1), light.on_face(0.75, 0, 0.7)
    roof = _rgb(*((0.42, 0.16, 0.11) if rng.random() < 0.6 else (0.22, 0.22, 0.26)))
    # rows of tiles and boards show from near only
    near = min(p.scale / 120, 1.0)
    courses = (
        1 + 0.07 * near * np.sin(y * 95)[..., None] + 0.06 * _speckle(p, rng, 0.6, 0.25)[..., None]
    )
    plaster = 0.3 * _rgb(0.85, 0.82, 0.76) + 0.7 * base
    wall = (
        plaster
        * (1 + 0.04 * _speckle(p, rng, 0.8, 0.4)[..., None])
        * (1 + 0.04 * near * np.sin(y * 70)[..., None])
    )
    middle = (-0.72 + corner) / 2
    chimney = rng.uniform(0.2, 0.45)
    p.paint(box(x, y, (chimney, chimney + 0.12, 0.7, 1.1)), _rgb(0.4, 0.22, 0.17) * front)
    p.paint(box(x, y, (-0.72, corner, 0, eaves + gable)), wall * front)
    p.paint(
        convex(x, y, (-0.72, eaves - 0.01), (corner, eaves - 0.01), (middle, ridge)), wall * front
    )
    p.paint(box(x, y, (corner, 0.78, 0, eaves)), wall * side)
    slope = convex(x, y, (corner - 0.03, eaves - 0.05), (0.86, eaves - 0.05),
                   (0.86 + middle - corner, ridge), (middle, ridge))  # fmt: skip
    p.paint(slope, roof * courses * light.on_face(0.5, 1, 0.5))
    p.paint(capsule(x, y, (middle, ridge), (-0.78, eaves - 0.05), 0.022), roof * front * 0.7)
    p.paint(
        capsule(x, y, (middle, ridge), (corner - 0.02, eaves - 0.06), 0.022), roof * front * 0.7
    )
    lit = night and bool(rng.random() < 0.8)
    glass = _rgb(1.0, 0.8, 0.42) if lit else _rgb(0.16, 0.2, 0.26) * (0.6 + 0.9 * side)
    trim = _rgb(0.92, 0.92, 0.9)
    panes = [(0.1, 0.3), (0.45, 0.65)]
    for left, right in panes:
        p.paint(box(x, y, (left - 0.025, right + 0.025, 0.2, 0.43)), trim * side)
        p.paint(box(x, y, (left, right, 0.225, 0.405)), glass)
        p.paint(
            box(x, y, ((left + right) / 2 - 0.01, (left + right) / 2 + 0.01, 0.2, 0.42)),
            trim * side,
        )
    p.paint(box(x, y, (middle - 0.1, middle + 0.1, 0, 0.36)), trim * front)
    p.paint(box(x, y, (middle - 0.075, middle + 0.075, 0, 0.335)), _rgb(0.3, 0.18, 0.1) * front)
    p.paint(disk(x, y, (middle, eaves + 0.1), 0.065), trim * front)
    p.paint(disk(x, y, (middle, eaves + 0.1), 0.045), glass)


def _tree(
    p: Painter, base: FloatArray, light: Light, rng: np.random.Generator, night: bool
) -> None:
    x, y = p.x, p.y
    bark = _rgb(0.27, 0.18, 0.11) * (1 + 0.2 * _speckle(p, rng, 0.5, 0.1)[..., None])
    trunk = bark * light.on(sphere_normals(x / 0.06, np.zeros_like(y)))
    leaves = base * _rgb(0.75, 0.8, 0.75)
    tuft = _speckle(p, rng, 0.75, 0.2)
    rough = 0.022 * tuft
    mottled = leaves * np.clip(1 + 0.24 * tuft, 0.4, 1.7)[..., None]
    if rng.random() < 0.4:  # a conifer
        p.paint(box(x, y, (-0.045, 0.045, 0, 0.25)), trunk)
        for bottom, top, half in ((0.14, 0.58, 0.33), (0.36, 0.8, 0.26), (0.58, 1.02, 0.18)):
            tier = convex(x, y, (-half, bottom), (half, bottom), (0, top)) + rough
            width = np.maximum(half * (top - y) / (top - bottom), 0.02)
            shade = light.on(sphere_normals(x / width, (y - bottom) * 0.6))
            dim = (0.55 + 0.6 * np.clip((y - bottom) / (top - bottom), 0, 1))[..., None]
            p.paint(tier, mottled * shade * dim)
        return
    p.paint(convex(x, y, (-0.07, 0), (0.07, 0), (0.035, 0.55), (-0.035, 0.55)), trunk)
    fork = rng.uniform(0.1, 0.2)
    p.paint(capsule(x, y, (0, 0.3), (fork, 0.52), 0.022), trunk)
    p.paint(capsule(x, y, (0, 0.34), (-fork, 0.56), 0.02), trunk)
    puffs = [(0.0, 0.68, 0.27)]
    for angle in np.linspace(0.1, 3.04, 5) + rng.uniform(-0.2, 0.2, 5):
        reach = rng.uniform(0.15, 0.2)
        puffs.append((float(np.cos(angle)) * reach * 1.15, 0.6 + float(np.sin(angle)) * reach,
                      float(rng.uniform(0.15, 0.2))))  # fmt: skip
    for cx, cy, radius in puffs:
        shade = light.on(sphere_normals((x - cx) / radius, (y - cy) / radius))
        whole = light.on(sphere_normals(x / 0.4, (y - 0.62) / 0.4))
        p.paint(disk(x, y, (cx, cy), radius) + 1.1 * rough, mottled * (0.5 * shade + 0.5 * whole))


def _boat(
    p: Painter, base: FloatArray, light: Light, rng: np.random.Generator, night: bool
) -> None:
    x, y = p.x, p.y
    side = light.on_face(0.1, 0.1, 1)
    mast = rng.uniform(-0.08, 0.05)
    wood = _rgb(0.45, 0.3, 0.17) * side
    p.paint(box(x, y, (mast - 0.014, mast + 0.014, 0.1, 1.0)), wood)
    billow = 1 + 0.16 * np.sin((x - mast) * 6 + y * 2)[..., None]
    cloth = _rgb(0.93, 0.91, 0.86) if rng.random() < 0.75 else _rgb(0.9, 0.75, 0.5)
    main = convex(x, y, (mast + 0.035, 0.3), (mast + 0.5, 0.3), (mast + 0.035, 0.97))
    jib = convex(x, y, (mast - 0.44, 0.26), (mast - 0.05, 0.3), (mast - 0.05, 0.86))
    p.paint(main, cloth * billow * light.on_face(0.4, 0.2, 0.9))
    band = np.maximum(main, np.abs(y - 0.5) - 0.045)
    p.paint(band, base * light.on_face(0.4, 0.2, 0.9))
    p.paint(jib, cloth * billow * light.on_face(-0.4, 0.2, 0.9))
    p.paint(capsule(x, y, (mast, 0.265), (mast + 0.52, 0.265), 0.014), wood)
    hull = convex(x, y, (-0.42, 0.0), (0.46, 0.0), (0.56, 0.2), (-0.66, 0.22))
    curve = np.clip(y / 0.2, 0, 1)[..., None]
    p.paint(hull - 0.01, base * side * (0.6 + 0.45 * curve))
    p.paint(np.maximum(hull, np.abs(y - 0.19) - 0.022), _rgb(0.93, 0.92, 0.88) * side)
    p.paint(box(x, y, (0.16, 0.42, 0.2, 0.27), 0.02), wood)


def _ball(
    p: Painter, base: FloatArray, light: Light, rng: np.random.Generator, night: bool
) -> None:
    x, y = p.x * 2, p.y * 2 - 1
    normals = sphere_normals(x, y)
    # panels run between two poles, of which one is seen somewhere on the front
    tilt, spin = rng.uniform(0.3, 1.1), rng.uniform(0, 2 * np.pi)
    pole = np.array((np.sin(tilt) * np.cos(spin), np.sin(tilt) * np.sin(spin), np.cos(tilt)))
    across = np.cross(pole, (0.0, 0.0, 1.0))
    across /= np.linalg.norm(across)
    other = np.cross(pole, across)
    angle = np.arctan2(normals @ other.astype(np.float32), normals @ across.astype(np.float32))
    height = normals @ pole.astype(np.float32)
    light_panel = np.sin(angle * 3) * np.sqrt(np.maximum(1 - height**2, 0))
    share = np.clip(0.5 + light_panel * p.scale * 0.12, 0, 1)[..., None]
    pale = _rgb(0.93, 0.92, 0.88) if base.min() < 0.7 else _rgb(0.25, 0.3, 0.55)
    colour = base * (1 - share) + pale * share
    cap = np.clip((height - 0.955) * 60, 0, 1)[..., None]
    colour = colour * (1 - cap) + base * cap
    shade = light.on(normals) * (0.55 + 0.45 * normals[..., 2:])
    half = np.array(light.direction, np.float32) + _rgb(0, 0, 1)
    gloss = np.maximum(normals @ (half / np.linalg.norm(half)), 0)[..., None] ** 40
    p.paint((np.hypot(x, y) - 1) / 2, colour * shade + 0.45 * gloss * _rgb(*light.source))


def _ring(
    p: Painter, base: FloatArray, light: Light, rng: np.random.Generator, night: bool
) -> None:
    flat = rng.uniform(0.62, 1.0)
    radius, tube = 0.34, 0.15
    x, y = p.x, (p.y - 0.5 * flat) / flat
    around = np.hypot(x, y)
    angle = np.arctan2(y, x)
    out = np.clip((around - radius) / tube, -1, 1)
    normals = np.stack((x / np.maximum(around, 1e-6) * out, y / np.maximum(around, 1e-6) * out,
                        np.sqrt(1 - out**2)), axis=-1)  # fmt: skip
    stripes = int(rng.integers(3, 6))
    share = np.clip(0.5 + np.sin(angle * stripes + rng.uniform(0, 6)) * p.scale * 0.2, 0, 1)
    pale = _rgb(0.93, 0.92, 0.88) if base.min() < 0.7 else _rgb(0.8, 0.2, 0.2)
    colour = base * (1 - share[..., None]) + pale * share[..., None]
    p.paint((np.abs(around - radius) - tube) * flat, colour * light.on(normals))


def _balloon(
    p: Painter, base: FloatArray, light: Light, rng: np.random.Generator, night: bool
) -> None:
    x, y = p.x, p.y
    wicker = _rgb(0.42, 0.27, 0.14) * light.on_face(0.2, 0, 1)
    for side in (-1, 1):
        p.paint(capsule(x, y, (side * 0.055, 0.1), (side * 0.1, 0.3), 0.008), wicker * 0.6)
    p.paint(box(x, y, (-0.075, 0.075, 0.0, 0.12), 0.015), wicker)
    p.paint(box(x, y, (-0.08, 0.08, 0.105, 0.13)), wicker * 0.65)
    # the envelope: a sphere that tapers to its mouth
    taper = np.where(y < 0.62, 1 - 0.72 * np.clip((0.62 - y) / 0.38, 0, 1) ** 1.6, 1.0)
    half_width = 0.37 * np.sqrt(np.clip(1 - (np.maximum(y - 0.62, 0) / 0.37) ** 2, 1e-4, 1)) * taper
    across = np.clip(x / half_width, -1, 1)
    gores = np.sin(np.arcsin(across) * int(rng.integers(4, 8)) + rng.uniform(0, 6))
    share = np.clip(0.5 + gores * 6, 0, 1)[..., None]
    others = ((0.93, 0.9, 0.82), (0.95, 0.75, 0.2), (0.2, 0.25, 0.5))
    pale = _rgb(*others[int(rng.integers(len(others)))])
    colour = base if rng.random() < 0.3 else base * (1 - share) + pale * share
    belt = np.clip(0.5 - (np.abs(y - 0.55) - 0.04) * p.scale, 0, 1)[..., None]
    colour = colour * (1 - belt) + base * belt
    up = np.clip((y - 0.55) / 0.42, -0.7, 1)
    normals = sphere_normals(across * np.sqrt(np.maximum(1 - up**2, 0.1)), up)
    shape = np.maximum(np.maximum(np.abs(x) - half_width, 0.27 - y), y - 0.99)
    shape = np.where(y > 0.62, disk(x, y, (0, 0.62), 0.37), shape)
    p.paint(shape, colour * light.on(normals) + (0.25 if night else 0.0) * colour)


_PAINT = ("red", "blue", "yellow", "green", "orange", "white")

KINDS: dict[str, Kind] = {
    "car": Kind(
        draw=_car, extent=(-1.15, 1.15, -0.05, 1.02), height=0.5, footprint=0.06, tilt=0.05,
        stands_on=("road", "sand", "grass"),
        colours=("red", "blue", "yellow", "white", "black", "orange"),
    ),
    "house": Kind(
        draw=_house, extent=(-0.85, 0.92, 0.0, 1.12), height=1.1, footprint=0.06, tilt=0.02,
        stands_on=("grass", "sand"),
        colours=("white", "yellow", "blue", "red"),
    ),
    "tree": Kind(
        draw=_tree, extent=(-0.46, 0.46, 0.0, 1.08), height=1.3, footprint=0.02, tilt=0.09,
        stands_on=("grass", "sand"),
        colours=("green", "green", "green", "orange"),
    ),
    "boat": Kind(
        draw=_boat, extent=(-0.72, 0.62, -0.03, 1.02), height=1.0, footprint=0.05, tilt=0.1,
        stands_on=("water",),
        colours=("red", "blue", "green", "black", "orange"),
    ),
    "ball": Kind(
        draw=_ball, extent=(-0.52, 0.52, -0.02, 1.02), height=0.42, footprint=0.12, tilt=0.0,
        stands_on=("grass", "sand", "road", "water"),
        colours=("red", "blue", "yellow", "green", "orange", "purple"),
    ),
    "ring": Kind(
        draw=_ring, extent=(-0.51, 0.51, -0.02, 1.02), height=0.46, footprint=0.12, tilt=0.25,
        stands_on=("water", "sand"),
        colours=("red", "blue", "yellow", "orange"),
    ),
    "balloon": Kind(
        draw=_balloon, extent=(-0.4, 0.4, -0.02, 1.02), height=0.0, footprint=0.0, tilt=0.12,
        stands_on=("sky",),
        colours=("red", "blue", "yellow", "green", "purple"),
    ),
}  # fmt: skip
"""Every class; the order of the keys is that of CLASSES."""
