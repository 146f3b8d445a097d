"""One colour per class, the same in every plot, table and overlay of a report."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["HUES", "ClassColours", "assign_colours", "colour_css"]

# Of Paul Tol's "vibrant", "bright" and "muted" schemes, less the pairs that a colour-blind reader
# confuses; the first seven are the most distinct, and most reports need no more.
# Source: https://personal.sron.nl/~pault/ (SRON/EPS/TN/09-002, issue 3.2).
_BASE = (
    "#0077bb",
    "#ee7733",
    "#009988",
    "#cc3311",
    "#aa3377",
    "#33bbee",
    "#bbaa22",
    "#6a6fd6",
    "#ddcc77",
    "#117733",
    "#cc6677",
    "#882255",
)
_WHITE = (255, 255, 255)
_BLACK = (0, 0, 0)


def _mix(colour: str, other: tuple[int, int, int], share: float) -> str:
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    mixed = (round(a * (1 - share) + b * share) for a, b in zip(parts, other, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


HUES = (
    *_BASE,
    *(_mix(colour, _WHITE, 0.4) for colour in _BASE),
    *(_mix(colour, _BLACK, 0.4) for colour in _BASE),
)


def _luminance(colour: str) -> float:
    """Relative luminance in [0, 1] (WCAG 2.2)."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@dataclass(frozen=True, slots=True)
class ClassColours:
    """Which number, CSS class and colour a class name has.

    Attributes:
        numbers: class name -> position; names beyond the number of hues share a colour, so a
            colour never stands without the name.
    """

    numbers: Mapping[str, int]

    def css(self, name: str) -> str:
        """CSS class that sets `--c` (the colour) and `--on` (legible text upon it)."""
        return f"k{self.numbers[name] % len(HUES)}" if name in self.numbers else "k-other"

    def rgb(self, name: str) -> tuple[int, int, int]:
        """Red, green, blue in 0..255."""
        colour = HUES[self.numbers[name] % len(HUES)]
        return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def assign_colours(class_names: Iterable[str]) -> ClassColours:
    """Give colours in the order of first appearance.

    Args:
        class_names: the models' classes by index, then any others; repeats are ignored. Class
            lists do not depend on what was found, so neither do the colours.
    """
    return ClassColours({name: number for number, name in enumerate(dict.fromkeys(class_names))})


def colour_css() -> str:
    """Style rules of the colour classes."""
    rules = [".k-other{--c:var(--quiet);--on:var(--card)}"]
    for number, colour in enumerate(HUES):
        # 0.179: where black and white text have the same WCAG contrast
        text = "#000" if _luminance(colour) > 0.179 else "#fff"
        rules.append(f".k{number}{{--c:{colour};--on:{text}}}")
    return "\n".join(rules)
