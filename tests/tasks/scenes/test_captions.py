from collections import Counter

import numpy as np
import pytest

from pixelmill.tasks.scenes import CLASSES
from pixelmill.tasks.scenes.captions import Mention, describe

CAR, CAR2 = Mention("car", "red", 900, 10.0), Mention("car", "red", 400, 90.0)
TREE = Mention("tree", "", 500, 200.0)


def _describe(mentions, place="street", time="day", cloudy=False, mountains=False):
    rng = np.random.Generator(np.random.PCG64(0))
    return describe(mentions, place, time, rng, cloudy=cloudy, mountains=mountains)


def test_main_things_are_named_with_count_and_shared_colour():
    assert _describe([TREE, CAR, CAR2], cloudy=True)[0] == (
        "two red cars and a tree on a street under a cloudy sky"
    )


def test_things_of_different_colours_get_no_colour():
    blue = Mention("car", "blue", 400, 90.0)
    assert _describe([CAR, blue])[0].startswith("two cars on a street")


def test_relation_says_on_which_side_the_main_thing_is():
    assert "a red car to the left of a tree" in _describe([CAR, TREE])[2]
    assert "a red car to the right of a tree" in _describe([CAR, Mention("tree", "", 1, 2.0)])[2]


@pytest.mark.parametrize(
    ("count", "words"), [(1, "a red car"), (4, "four red cars"), (5, "several red cars")]
)
def test_counts_are_words(count, words):
    assert _describe([CAR] * count)[0].startswith(f"{words} ")


def test_article_fits_the_next_word():
    assert _describe([Mention("ball", "orange", 9, 0.0)])[0].startswith("an orange ball ")


def test_empty_scene_is_called_so():
    sentences = _describe([], "beach", "sunset")
    assert sentences[0] == "an empty view of a sandy beach at sunset"
    assert all("empty" in s or "nothing" in s for s in sentences)


def test_mountains_are_mentioned():
    assert any("mountains behind" in s for s in _describe([CAR], mountains=True))
    assert not any("mountains" in s for s in _describe([CAR]))


def test_three_different_captions_for_each_scene(scenes):
    for scene in scenes:
        assert len(scene.captions) == 3
        assert len(set(scene.captions)) == 3


def test_captions_name_only_what_is_visible(scenes):
    for scene in scenes:
        visible = {CLASSES[label] for label in scene.labels}
        words = " ".join(scene.captions).replace("hot air balloon", "balloon").split()
        named = {name for name in CLASSES if name in words or f"{name}s" in words}
        assert named <= visible
        assert bool(named) == bool(visible)


def test_vocabulary_is_small_and_no_caption_fits_all(scenes):
    captions = [caption for scene in scenes for caption in scene.captions]
    words = {word for caption in captions for word in caption.replace(",", "").split()}
    assert 60 <= len(words) <= 90
    assert Counter(captions).most_common(1)[0][1] <= 0.03 * len(captions)
