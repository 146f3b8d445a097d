import numpy as np
import pytest

from pixelmill.tasks.scenes.setting import PLACES, SEMANTIC_CLASSES, draw_backdrop, sample_setting

GROUND = {
    "meadow": {"grass"},
    "street": {"grass", "road"},
    "beach": {"sand", "water"},
    "lake": {"grass", "water"},
    "desert": {"sand"},
}


def _settings(place, count=6):
    found = []
    for seed in range(200):
        rng = np.random.Generator(np.random.PCG64(seed))
        setting = sample_setting(rng)
        if setting.place == place:
            found.append((setting, draw_backdrop(setting, rng)))
        if len(found) == count:
            break
    return found


@pytest.mark.parametrize("place", PLACES)
def test_ground_is_made_of_what_the_place_has(place):
    for setting, backdrop in _settings(place):
        kinds = {SEMANTIC_CLASSES[k] for k in np.unique(backdrop.semantic[setting.horizon :])}
        assert kinds == GROUND[place]
        above = {SEMANTIC_CLASSES[k] for k in np.unique(backdrop.semantic[: setting.horizon])}
        assert above == ({"sky", "mountain"} if setting.mountains else {"sky"})


def test_the_sea_reaches_the_horizon():
    for setting, backdrop in _settings("beach"):
        assert np.all(backdrop.semantic[setting.horizon] == SEMANTIC_CLASSES.index("water"))


def test_light_is_a_unit_vector_from_above():
    for seed in range(50):
        setting = sample_setting(np.random.Generator(np.random.PCG64(seed)))
        assert np.linalg.norm(setting.light.direction) == pytest.approx(1)
        assert setting.light.direction[1] > 0.1
