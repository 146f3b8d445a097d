"""The light of a scene: where the sun or moon is, and what it does to a surface."""

from dataclasses import dataclass

import numpy as np

from pixelmill.tasks.scenes.noise import FloatArray

__all__ = ["Colour", "Light", "sphere_normals"]

Colour = tuple[float, float, float]
"""Red, green, blue in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Light:
    """One distant source and a glow from everywhere.

    Attributes:
        direction: unit vector towards the source: right, up, towards the camera.
        source: colour of its light on a surface that faces it.
        ambient: colour of the light in full shade.
    """

    direction: tuple[float, float, float]
    source: Colour
    ambient: Colour

    def on(self, normals: FloatArray) -> FloatArray:
        """Light that arrives at surfaces.

        Args:
            normals: (..., 3) float32 unit vectors in the axes of `direction`.

        Returns:
            (..., 3) float32 factors for the surface's colour.
        """
        facing = np.maximum(normals @ np.array(self.direction, np.float32), 0)
        # a face that looks up sees the whole sky, one that looks down sees half of the ground
        glow = 0.8 + 0.2 * normals[..., 1]
        return facing[..., None] * np.array(self.source, np.float32) + glow[..., None] * np.array(
            self.ambient, np.float32
        )

    def on_face(self, right: float, up: float, towards: float) -> FloatArray:
        """Light on one flat face; its normal need not have unit length. (3,) float32."""
        normal = np.array((right, up, towards), np.float32)
        return self.on(normal / np.linalg.norm(normal))


def sphere_normals(x: FloatArray, y: FloatArray) -> FloatArray:
    """Normals of the unit sphere seen from the front; outside it, those of its rim.

    Args:
        x: (...) float32, to the right.
        y: (...) float32, upwards.

    Returns:
        (..., 3) float32 unit vectors.
    """
    radius = np.maximum(np.hypot(x, y), 1e-6)
    inside = np.minimum(radius, 1)
    towards = np.sqrt(1 - inside**2)
    return np.stack((x / radius * inside, y / radius * inside, towards), axis=-1)
