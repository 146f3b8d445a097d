"""Anti-aliased drawing of one object on its own small canvas, by signed distances.

A distance is negative inside a shape, and in the object's own units: x to the right, y up, the
origin where the object stands, one unit its nominal height.
Source: I. Quilez, 2D distance functions, https://iquilezles.org/articles/distfunctions2d/.
"""

from dataclasses import dataclass

import numpy as np

from pixelmill.tasks.scenes.noise import FloatArray

__all__ = ["Painter", "Sprite", "box", "capsule", "convex", "disk", "ellipse"]


@dataclass(frozen=True, slots=True)
class Sprite:
    """A drawn object and where its canvas lies in the image.

    Attributes:
        rgb: (h, w, 3) float32.
        alpha: (h, w) float32 in [0, 1].
        top: row of the canvas' first pixel in the image; may lie outside of it.
        left: column of the canvas' first pixel.
    """

    rgb: FloatArray
    alpha: FloatArray
    top: int
    left: int


class Painter:
    """A canvas around one object, with the object's coordinates of every pixel.

    Args:
        foot: (x, y) of the object's origin in the image, pixels.
        scale: pixels per unit.
        extent: left, right, bottom and top of what will be drawn, units.
        rotation: radians, anticlockwise, around the origin.
        mirrored: draw what is on the right on the left.

    Attributes:
        x: (h, w) float32, to the right, units.
        y: (h, w) float32, up, units.
    """

    def __init__(
        self,
        foot: tuple[float, float],
        scale: float,
        extent: tuple[float, float, float, float],
        rotation: float = 0.0,
        mirrored: bool = False,
    ) -> None:
        left, right, bottom, top = extent
        if mirrored:
            left, right = -right, -left
        cos, sin = np.cos(rotation), np.sin(rotation)
        corners_x = np.array([x * cos - y * sin for x in (left, right) for y in (bottom, top)])
        corners_y = np.array([x * sin + y * cos for x in (left, right) for y in (bottom, top)])
        self._left = int(np.floor(foot[0] + corners_x.min() * scale)) - 1
        self._top = int(np.floor(foot[1] - corners_y.max() * scale)) - 1
        width = int(np.ceil(foot[0] + corners_x.max() * scale)) + 2 - self._left
        height = int(np.ceil(foot[1] - corners_y.min() * scale)) + 2 - self._top
        seen_x = (np.arange(width) + (self._left + 0.5 - foot[0]))[None, :] / scale
        seen_y = -(np.arange(height) + (self._top + 0.5 - foot[1]))[:, None] / scale
        x = (seen_x * cos + seen_y * sin).astype(np.float32)
        self.x: FloatArray = -x if mirrored else x
        self.y: FloatArray = (seen_y * cos - seen_x * sin).astype(np.float32)
        self.scale = scale
        self._rgb = np.zeros((height, width, 3), np.float32)
        self._alpha = np.zeros((height, width), np.float32)

    def paint(self, distance: FloatArray, colour: FloatArray) -> None:
        """Lay a shape over what is there.

        Args:
            distance: (h, w) float32, units.
            colour: (3,) or (h, w, 3) float32.
        """
        cover = np.clip(0.5 - distance * self.scale, 0, 1)
        self._rgb += cover[..., None] * (colour - self._rgb)
        self._alpha += cover * (1 - self._alpha)

    def sprite(self) -> Sprite:
        """What has been painted."""
        return Sprite(self._rgb, self._alpha, self._top, self._left)


def disk(x: FloatArray, y: FloatArray, centre: tuple[float, float], radius: float) -> FloatArray:
    """Distance to a disk."""
    return np.hypot(x - centre[0], y - centre[1]) - radius


def ellipse(
    x: FloatArray, y: FloatArray, centre: tuple[float, float], radii: tuple[float, float]
) -> FloatArray:
    """Distance to an ellipse, exact at its border only, which is where it counts."""
    x, y = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1]
    norm = np.hypot(x, y)
    slope = np.hypot(x / radii[0], y / radii[1]) / np.maximum(norm, 1e-6)
    return (norm - 1) / np.maximum(slope, 1 / max(radii))


def box(
    x: FloatArray, y: FloatArray, corners: tuple[float, float, float, float], radius: float = 0.0
) -> FloatArray:
    """Distance to a box, given as left, right, bottom, top, with rounded corners."""
    left, right, bottom, top = corners
    dx = np.abs(x - (left + right) / 2) - (right - left) / 2 + radius
    dy = np.abs(y - (bottom + top) / 2) - (top - bottom) / 2 + radius
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - radius


def convex(x: FloatArray, y: FloatArray, *corners: tuple[float, float]) -> FloatArray:
    """Distance to a convex polygon whose corners are given anticlockwise."""
    distance = np.full(np.broadcast_shapes(x.shape, y.shape), -np.inf, np.float32)
    for (x1, y1), (x2, y2) in zip(corners, (*corners[1:], corners[0]), strict=True):
        dx, dy = x2 - x1, y2 - y1
        distance = np.maximum(distance, ((x - x1) * dy - (y - y1) * dx) / float(np.hypot(dx, dy)))
    return distance


def capsule(
    x: FloatArray,
    y: FloatArray,
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
) -> FloatArray:
    """Distance to a thick line with round ends."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    share = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(x - start[0] - share * dx, y - start[1] - share * dy) - radius
