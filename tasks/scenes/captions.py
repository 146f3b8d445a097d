"""Sentences about a scene, from a small grammar."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Mention", "describe"]

_COUNTS = {1: "a", 2: "two", 3: "three", 4: "four"}
_OBJECT_NOUNS = {"ring": "swim ring", "balloon": "hot air balloon"}
_PLACES = {
    "meadow": ("in a meadow", "on the grass", "a green meadow"),
    "street": ("on a street", "along a road", "a street"),
    "beach": ("on a beach", "by the sea", "a sandy beach"),
    "lake": ("at a lake", "by the water of a lake", "a lake"),
    "desert": ("in a desert", "on dry sand", "a dry desert"),
}


@dataclass(frozen=True, slots=True)
class Mention:
    """A visible object as a sentence needs it.

    Attributes:
        name: of its class.
        colour: word, or empty where the colour goes without saying.
        area: visible pixels; large objects are named first.
        x: column of its centre.
    """

    name: str
    colour: str
    area: int
    x: float


def describe(
    mentions: Sequence[Mention],
    place: str,
    time: str,
    rng: np.random.Generator,
    *,
    cloudy: bool,
    mountains: bool,
) -> tuple[str, str, str]:
    """Three sentences, each of another build, in lower case without a full stop."""
    groups = _grouped(mentions)
    where, at, noun = _PLACES[place]
    sky = _sky(time, cloudy=cloudy)
    behind = " with mountains behind" if mountains else ""
    if not groups:
        return (
            f"an empty view of {noun} {sky}{behind}",
            f"there is nothing {where} {sky}",
            f"a photo of {noun} {sky} with nothing in it",
        )
    objects = _joined([_phrase(group, coloured=True) for group in groups[:2]])
    plain = _joined([_phrase(group, coloured=False) for group in groups[:3]])
    verb = "are" if len(groups) > 1 or len(groups[0]) > 1 else "is"
    first = f"{objects} {where} {sky}"
    second = (
        f"a photo of {noun} {sky} with {plain}"
        if rng.random() < 0.5
        else f"there {verb} {plain} {at}{behind}"
    )
    return first, second, _related(groups, at, sky, behind)


def _grouped(mentions: Sequence[Mention]) -> list[list[Mention]]:
    """Objects by class, the class that fills the most pixels first."""
    by_name: dict[str, list[Mention]] = {}
    for mention in mentions:
        by_name.setdefault(mention.name, []).append(mention)
    return sorted(by_name.values(), key=lambda group: (-sum(m.area for m in group), group[0].name))


def _phrase(group: Sequence[Mention], *, coloured: bool) -> str:
    """`two red cars`; the colour where all have it."""
    noun = _OBJECT_NOUNS.get(group[0].name, group[0].name)
    if len(group) > 1:
        noun += "s"
    colours = Counter(mention.colour for mention in group)
    if coloured and len(colours) == 1 and group[0].colour:
        noun = f"{group[0].colour} {noun}"
    count = _COUNTS.get(len(group), "several")
    if count == "a" and noun[0] in "aeiou":
        count = "an"
    return f"{count} {noun}"


def _joined(phrases: Sequence[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _sky(time: str, *, cloudy: bool) -> str:
    if time == "day":
        return "under a cloudy sky" if cloudy else "under a clear blue sky"
    return "at sunset" if time == "sunset" else "at night"


def _related(groups: Sequence[Sequence[Mention]], at: str, sky: str, behind: str) -> str:
    """Where the two main objects are to each other, or the one in the picture."""
    main = max(groups[0], key=lambda mention: mention.area)
    if len(groups) == 1:
        return f"{_phrase(groups[0], coloured=True)} seen {at} {sky}{behind}"
    other = max(groups[1], key=lambda mention: mention.area)
    side = "left" if main.x < other.x else "right"
    return (
        f"{_phrase([main], coloured=True)} to the {side} of "
        f"{_phrase([other], coloured=True)} {at} {sky}"
    )
