import numpy as np
import pytest

from pixelmill.tasks.scenes.sprite import Painter, box, capsule, convex, disk, ellipse

WHITE = np.ones(3, np.float32)
SHAPES = {
    "disk": (lambda x, y: disk(x, y, (0.1, 0.4), 0.3), np.pi * 0.09),
    "ellipse": (lambda x, y: ellipse(x, y, (0, 0.5), (0.4, 0.2)), np.pi * 0.08),
    "box": (lambda x, y: box(x, y, (-0.3, 0.2, 0.1, 0.9)), 0.4),
    "rounded box": (lambda x, y: box(x, y, (-0.4, 0.4, 0.1, 0.9), 0.1), 0.64 - 0.04 + np.pi * 0.01),
    "triangle": (lambda x, y: convex(x, y, (-0.4, 0.1), (0.4, 0.1), (0, 0.9)), 0.32),
    "capsule": (lambda x, y: capsule(x, y, (-0.2, 0.2), (0.2, 0.2), 0.1), 0.08 + np.pi * 0.01),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rotation", [0.0, 0.7])
def test_painted_area_is_that_of_the_shape(name, rotation):
    distance, area = SHAPES[name]
    painter = Painter((50.3, 80.8), 60.0, (-0.5, 0.5, 0, 1), rotation)
    painter.paint(distance(painter.x, painter.y), WHITE)
    sprite = painter.sprite()
    assert sprite.alpha.sum() / 60**2 == pytest.approx(area, rel=0.01)
    np.testing.assert_allclose(sprite.rgb[sprite.alpha == 1], 1)


def _centre(**options):
    painter = Painter((100.0, 90.0), 40.0, (-0.5, 0.5, 0, 1), **options)
    painter.paint(disk(painter.x, painter.y, (0.3, 0.5), 0.2), WHITE)
    sprite = painter.sprite()
    rows, columns = np.nonzero(sprite.alpha > 0.5)
    return columns.mean() + 0.5 + sprite.left, rows.mean() + 0.5 + sprite.top


def test_coordinates_are_right_and_up_from_the_foot():
    assert _centre() == pytest.approx((112, 70), abs=0.1)


def test_mirroring_exchanges_left_and_right():
    assert _centre(mirrored=True) == pytest.approx((88, 70), abs=0.1)


def test_rotation_is_anticlockwise_around_the_foot():
    assert _centre(rotation=np.pi / 2) == pytest.approx((80, 78), abs=0.1)


def test_later_paint_covers_earlier_paint():
    painter = Painter((20.0, 20.0), 20.0, (-0.5, 0.5, 0, 1))
    painter.paint(box(painter.x, painter.y, (-0.5, 0.5, 0, 1)), WHITE)
    painter.paint(disk(painter.x, painter.y, (0, 0.5), 0.25), np.zeros(3, np.float32))
    sprite = painter.sprite()
    assert sprite.rgb[sprite.alpha == 1].min() == 0
    assert sprite.alpha.sum() == pytest.approx(400, rel=0.01)
