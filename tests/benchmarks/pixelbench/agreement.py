"""Whether two contenders found the same, before their times are compared.

Equal means equal as far as decoders and order of summation allow: Pillow and libjpeg differ by a
grey level, a batch of eight is added up in another order than one image.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelbench.user_code import Result

__all__ = ["Agreement", "compare"]

# Boxes below it are noise of the threshold: a box at 0.05 is on either side of it
_SCORE = 0.1
_IOU = 0.9
_LEAST = {"boxes": 0.97, "semantic": 0.99, "captions": 0.95, "probs": 0.95}
_PROBS_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two contenders found the same.

    Attributes:
        what: was compared.
        share: of it that agrees, in [0, 1].
        least: below which the benchmark fails.
    """

    what: str
    share: float
    least: float

    @property
    def is_equal(self) -> bool:
        """Whether their times may be compared."""
        return self.share >= self.least


def compare(first: Mapping[str, Result], second: Mapping[str, Result]) -> Agreement:
    """Compare results by file name.

    Raises:
        ValueError: the images are not the same.
    """
    if first.keys() != second.keys():
        raise ValueError(f"{len(first)} and {len(second)} images, not the same ones")
    pairs = [(first[name], second[name]) for name in sorted(first)]
    kind, describe, share = _choose(pairs[0][0])
    shares = [share(a, b) for a, b in pairs]
    weights = np.array([weight for _, weight in shares], float)
    agreed = np.array([value for value, _ in shares], float)
    total = float(weights.sum())
    mean = float((agreed * weights).sum() / total) if total else math.nan
    return Agreement(f"{describe}, {len(pairs)} images", mean, _LEAST[kind])


Compared = tuple[float, float]


def _choose(result: Result) -> tuple[str, str, Callable[[Result, Result], Compared]]:
    if result.boxes_xyxy is not None:
        what = f"boxes over {_SCORE} with a partner of IoU >= {_IOU} (masks too), same class"
        return "boxes", what, _boxes
    if result.semantic is not None:
        return "semantic", "pixels of the same class", _semantic
    if result.caption is not None:
        return "captions", "captions equal word by word", _captions
    return "probs", f"probabilities within {_PROBS_TOLERANCE}", _probs


def _boxes(a: Result, b: Result) -> Compared:
    """Share of boxes of either side that have a partner on the other, and their number."""
    count, agreed = 0, 0
    for one, other in ((a, b), (b, a)):
        boxes, scores = _there(one.boxes_xyxy), _there(one.scores)
        shown = np.flatnonzero(scores >= _SCORE)
        count += len(shown)
        if not len(shown) or not len(_there(other.scores)):
            continue
        overlaps = _iou(boxes[shown], _there(other.boxes_xyxy))
        overlaps[_there(one.labels)[shown][:, None] != _there(other.labels)[None]] = 0
        partner = overlaps.argmax(axis=1)
        is_same = overlaps.max(axis=1) >= _IOU
        if one.masks is not None and other.masks is not None:
            is_same &= [
                _mask_iou(one.masks[mine], other.masks[theirs]) >= _IOU
                for mine, theirs in zip(shown, partner, strict=True)
            ]
        agreed += int(is_same.sum())
    return (agreed / count if count else 1.0), count


def _there(array: NDArray[Any] | None) -> NDArray[Any]:
    if array is None:
        raise ValueError("boxes need scores and labels")
    return array


def _iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    first, second = a.astype(float)[:, None], b.astype(float)[None]
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    inner = (high - low).clip(min=0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (first, second)]
    return inner / np.maximum(areas[0] + areas[1] - inner, 1e-9)


def _mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    union = float((a | b).sum())
    return float((a & b).sum()) / union if union else 1.0


def _semantic(a: Result, b: Result) -> Compared:
    first, second = _there(a.semantic), _there(b.semantic)
    if first.shape != second.shape:
        raise ValueError(f"label maps of {first.shape} and {second.shape}")
    return float((first == second).mean()), first.size


def _captions(a: Result, b: Result) -> Compared:
    return float(a.caption == b.caption), 1


def _probs(a: Result, b: Result) -> Compared:
    difference = np.abs(_there(a.probs).astype(float) - _there(b.probs).astype(float))
    return float((difference <= _PROBS_TOLERANCE).mean()), len(difference)
