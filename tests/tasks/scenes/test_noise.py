import numpy as np
import pytest

from pixelmill.tasks.scenes.noise import TILE, fractal_tile, sample_tile


@pytest.mark.parametrize("exponent", [0.5, 1.7])
def test_tile_is_normalised(exponent):
    tile = fractal_tile(exponent)
    assert tile.shape == (TILE, TILE)
    assert tile.mean() == pytest.approx(0, abs=1e-4)
    assert tile.std() == pytest.approx(1, abs=1e-4)


def test_tile_has_no_seam():
    tile = fractal_tile(1.7)
    inner = np.abs(np.diff(tile, axis=0)).mean()
    assert np.abs(tile[0] - tile[-1]).mean() < 1.5 * inner


def test_larger_exponents_are_smoother():
    rough, smooth = (
        np.abs(np.diff(fractal_tile(exponent), axis=1)).mean() for exponent in (0.5, 1.7)
    )
    assert smooth < 0.2 * rough


def test_samples_interpolate_between_pixels_and_repeat():
    tile = fractal_tile(0.5)
    rows = np.array([[3.0], [3.5], [3.0 + TILE], [3.0 - 2 * TILE]], np.float32)
    columns = np.array([[10.0, 10.25]], np.float32)
    samples = sample_tile(tile, rows, columns)
    first, second = (0.75 * tile[row, 10] + 0.25 * tile[row, 11] for row in (3, 4))
    assert samples[0, 0] == tile[3, 10]
    assert samples[0, 1] == pytest.approx(first, abs=1e-5)
    assert samples[1, 1] == pytest.approx((first + second) / 2, abs=1e-5)
    np.testing.assert_allclose(samples[2:], samples[[0, 0]])
    assert samples.dtype == np.float32
