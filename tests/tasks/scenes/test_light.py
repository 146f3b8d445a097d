import numpy as np
import pytest

from pixelmill.tasks.scenes.light import Light, sphere_normals

FROM_ABOVE = Light((0.0, 1.0, 0.0), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def test_normals_of_the_sphere_have_unit_length_inside_and_outside():
    y, x = np.mgrid[-1.5:1.5:31j, -1.5:1.5:31j].astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(sphere_normals(x, y), axis=-1), 1, atol=1e-5)


def test_a_face_towards_the_source_gets_all_of_its_light():
    np.testing.assert_allclose(FROM_ABOVE.on_face(0, 2, 0), (0.7, 0.6, 0.5), rtol=1e-6)


@pytest.mark.parametrize(("up", "glow"), [(-1.0, 0.12), (0.0, 0.16)])
def test_a_face_that_is_turned_away_gets_only_the_glow(up, glow):
    light = FROM_ABOVE.on_face(0, up, 1 - abs(up))
    np.testing.assert_allclose(light, (glow,) * 3, rtol=1e-6)
