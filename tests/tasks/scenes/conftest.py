import pytest

from pixelmill.tasks.scenes import Scene, render_scene, scene_seed


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    return [render_scene(scene_seed(7, index)) for index in range(120)]
