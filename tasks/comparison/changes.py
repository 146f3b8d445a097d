"""How much the boxes of each image changed, and by what, in words."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.comparison.matching import FLIPPED, MOVED, SAME, BoxColumns, Matched
from pixelmill.tasks.comparison.results import ImageChange

__all__ = ["MOST_REASONS", "box_changes"]

MOST_REASONS = 4
# Boxes or outlines of an image that differ by less in all are not worth a word
_LEAST_APART = 0.1

# (image, what it weighs, in words)
Part = tuple[int, float, str]


def box_changes(
    image_ids: Sequence[str],
    paths: Sequence[str],
    source_uris: Sequence[str],
    a: BoxColumns,
    b: BoxColumns,
    matched: Matched,
    classes: Sequence[str],
    mask_iou: NDArray[np.float64] | None,
) -> list[ImageChange]:
    """How far the boxes of each image are apart, each weighed by its score.

    Of a pair counts what is common: IoU times the lower score. One more than all scores stands
    below the line, so that a single faint box is no great change.

    Args:
        image_ids: of images 0, 1, ...
        paths: theirs.
        source_uris: theirs.
        a: boxes of A.
        b: of B.
        matched: of these.
        classes: of both models together.
        mask_iou: as of `BoxTally.add`.
    """
    number = len(image_ids)
    owner = a.image[matched.index_a]
    pair_score = np.minimum(a.scores[matched.index_a], b.scores[matched.index_b])
    overlap = (
        matched.iou if mask_iou is None else np.where(np.isnan(mask_iou), matched.iou, mask_iou)
    )
    kept = matched.kind != FLIPPED
    total = np.bincount(a.image, a.scores, number) + np.bincount(b.image, b.scores, number)
    common = 2 * np.bincount(owner[kept], (overlap * pair_score)[kept], number)
    change = np.maximum(0, total - common) / (1 + total)
    same = matched.kind == SAME
    apart = np.bincount(owner[same], (2 * (1 - overlap) * pair_score)[same], number).astype(float)
    parts = (
        *_unmatched(a, matched.lost, classes, "lost"),
        *_unmatched(b, matched.gained, classes, "gained"),
        *_changed(a, b, matched, owner, pair_score, classes),
        *_apart(apart, "boxes differ" if mask_iou is None else "outlines differ"),
    )
    reasons = _reasons(parts)
    counts = {
        "same": owner[same],
        "flipped": owner[~kept],
        "moved": owner[matched.kind == MOVED],
        "lost": a.image[matched.lost],
        "gained": b.image[matched.gained],
    }
    columns = [np.bincount(each, minlength=number).astype(float) for each in counts.values()]
    values = np.column_stack(columns).tolist()
    rows = zip(image_ids, paths, source_uris, change.tolist(), values, strict=True)
    return [
        ImageChange(
            image_id, path, uri, worth, reasons.get(k, ()), dict(zip(counts, row, strict=True))
        )
        for k, (image_id, path, uri, worth, row) in enumerate(rows)
    ]


def _unmatched(
    boxes: BoxColumns, rows: NDArray[np.int64], classes: Sequence[str], what: str
) -> Iterator[Part]:
    """Boxes without a partner, those of one image and class together."""
    keys, group = np.unique(
        boxes.image[rows] * len(classes) + boxes.labels[rows], return_inverse=True
    )
    worth = np.bincount(group, boxes.scores[rows], len(keys)).tolist()
    counts = np.bincount(group, minlength=len(keys)).tolist()
    for key, one, count in zip(keys.tolist(), worth, counts, strict=True):
        image, label = divmod(key, len(classes))
        yield image, one, f"{count} {classes[label]} {what}"


def _changed(
    a: BoxColumns,
    b: BoxColumns,
    matched: Matched,
    owner: NDArray[np.int64],
    pair_score: NDArray[np.float64],
    classes: Sequence[str],
) -> Iterator[Part]:
    """Boxes that moved or are of another class."""
    rows = np.flatnonzero(matched.kind != SAME)
    columns = (
        owner[rows],
        pair_score[rows],
        matched.kind[rows],
        a.labels[matched.index_a[rows]],
        b.labels[matched.index_b[rows]],
    )
    for image, score, kind, before, after in zip(*(c.tolist() for c in columns), strict=True):
        if kind == MOVED:
            yield image, score, f"{classes[before]} moved"
        else:
            yield image, 2 * score, f"{classes[before]} became {classes[after]}"


def _apart(apart: NDArray[np.float64], text: str) -> Iterator[Part]:
    """Images on which the same boxes differ."""
    for image in np.flatnonzero(apart > _LEAST_APART).tolist():
        yield image, float(apart[image]), text


def _reasons(parts: Sequence[Part]) -> dict[int, tuple[str, ...]]:
    """The largest parts of each image."""
    found: defaultdict[int, list[tuple[float, str]]] = defaultdict(list)
    for image, worth, text in parts:
        found[image].append((-worth, text))
    return {
        image: tuple(dict.fromkeys(text for _, text in sorted(each)[:MOST_REASONS]))
        for image, each in found.items()
    }
