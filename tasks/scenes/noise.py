"""Fractal noise, the raw material of clouds, ridges, grass, sand and water."""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TILE", "FloatArray", "fractal_tile", "sample_tile"]

FloatArray = NDArray[np.floating[Any]]
"""float32 throughout; the checkers cannot follow that through arithmetic with Python numbers."""

TILE = 512
"""Side of a noise tile, pixels; tiles repeat seamlessly."""


@functools.cache
def fractal_tile(exponent: float) -> FloatArray:
    """Seamless noise whose amplitude falls with frequency to the power `exponent`.

    It is the same tile in every process: a scene gets its own look from where it samples, which
    is thirty times cheaper than a tile of its own.

    Args:
        exponent: 0.5 is grainy, 1 natural ground, 1.6 and more billowing clouds.

    Returns:
        (TILE, TILE) float32, mean 0, standard deviation 1.
    """
    white = np.random.Generator(np.random.PCG64(20_011)).standard_normal((TILE, TILE))
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None, :])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(white) * frequency**-exponent
    spectrum[0, 0] = 0.0
    tile = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return (tile / tile.std()).astype(np.float32)


def sample_tile(tile: FloatArray, rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Bilinear samples of a repeating tile.

    Args:
        tile: (TILE, TILE) float32.
        rows: any shape, float32, tile pixels, any finite value.
        columns: the same shape, or one that broadcasts with it.

    Returns:
        float32 of the broadcast shape.
    """
    rows, columns = np.broadcast_arrays(rows, columns)
    row_floor, column_floor = np.floor(rows), np.floor(columns)
    row_share, column_share = rows - row_floor, columns - column_floor
    top = row_floor.astype(np.int32) & (TILE - 1)
    left = column_floor.astype(np.int32) & (TILE - 1)
    bottom, right = (top + 1) & (TILE - 1), (left + 1) & (TILE - 1)
    flat = tile.ravel()
    top, bottom = top * TILE, bottom * TILE
    upper = flat[top + left] * (1 - column_share) + flat[top + right] * column_share
    lower = flat[bottom + left] * (1 - column_share) + flat[bottom + right] * column_share
    return upper * (1 - row_share) + lower * row_share
