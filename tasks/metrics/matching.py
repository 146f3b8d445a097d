"""COCO matching of many images at once: what each image adds to AP, once and for all.

The rules are pycocotools', step by step: the best 100 detections of an image and class, best first,
each take the instance of their class with the greatest overlap that is left (the later of equals,
one that counts before one that is ignored), at ten IoU thresholds and four ranges of area. An
image's outcome depends on that image alone, so it can be kept, and AP of any number of images be
computed from what was kept.

pycocotools walks image by image, class by class, threshold by threshold in Python. Here the n-th
detections of all images and classes are matched in one step of numpy, at all thresholds and areas:
they never compete.

Source: Lin et al., Microsoft COCO, ECCV 2014; pycocotools 2.0, `COCOeval.evaluateImg`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pixelmill.tasks.metrics.pairs import (
    LEAST_IOU,
    Pairs,
    box_pairs,
    image_blocks,
    run_begins,
    run_index,
    run_rank,
)

__all__ = [
    "AREAS",
    "IOU_THRESHOLDS",
    "MAX_DETECTIONS",
    "DetectionColumns",
    "InstanceColumns",
    "MatchRecords",
    "match_images",
]

# Any: the stubs that some type checkers bring know only a part of what it takes.
mask_codec: Any = coco_mask

IouType = Literal["bbox", "segm"]
MAX_DETECTIONS = 100
# as pycocotools has them, to the last bit
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
AREAS: dict[str, tuple[float, float]] = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
_NUM_IOUS = len(IOU_THRESHOLDS)
_REACH = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
_BITS = np.left_shift(np.int64(1), np.arange(_NUM_IOUS * len(AREAS), dtype=np.int64))
_AREA_BITS = np.array([(2**_NUM_IOUS - 1) << (_NUM_IOUS * a) for a in range(len(AREAS))])


@dataclass(frozen=True, slots=True)
class InstanceColumns:
    """Truth of images 0, 1, ..., in the order of the file within an image.

    Attributes:
        image: (G,) index, not falling; class_index: (G,).
        boxes_xywh: (G, 4) float64, pixels.
        area: (G,) float64, pixels, which COCO's sizes go by.
        crowd: (G,) bool.
        masks: RLE of each, for masks.
    """

    image: NDArray[np.int64]
    class_index: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    area: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    masks: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True)
class DetectionColumns:
    """Detections in those images.

    Attributes:
        image: (N,) index, not falling; class_index: (N,).
        position: (N,) of the detection in its image, to find it again.
        score: (N,) float64.
        boxes_xywh: (N, 4) float64, pixels; for masks it may have no rows.
        masks: RLE of each, for masks.
    """

    image: NDArray[np.int64]
    class_index: NDArray[np.int64]
    position: NDArray[np.int64]
    score: NDArray[np.float64]
    boxes_xywh: NDArray[np.float64]
    masks: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True)
class MatchRecords:
    """What matching found, as three tables of columns; images are 0 .. num_images - 1.

    Detections, by image, class and falling score, at most `MAX_DETECTIONS` of an image and class.
    Bit 10 a + t of `right` and `ignored` is that of area a of `AREAS` and IoU threshold t.

    Attributes:
        image, class_index, position, score: (N,) as they were given.
        right: (N,) int64, matched to an instance that counts.
        ignored: (N,) int64, neither right nor wrong: on a crowd, or of another size.
        iou: (N,) with its match at IoU 0.50 of any size, 0 without.
        same_iou, same_truth: (N,) greatest overlap with an instance of the class, no crowd, and
            that instance's place in its image; 0 and -1 below `LEAST_IOU`.
        other_iou, other_truth: (N,) the same of other classes.
        truth_image, truth_class: (G,) instances, in the order of the file.
        truth_place: (G,) of the instance in its image.
        truth_ignored: (G,) int64, bit a: it does not count at area a.
        found_score: (G,) of the detection that was matched to it at IoU 0.50, NaN if it was missed.
        pair_image, pair_position, pair_truth, pair_iou: (P,) detections that overlap instances of
            other classes by 0.5 or more, by positions and places.
    """

    num_images: int
    image: NDArray[np.int64]
    class_index: NDArray[np.int64]
    position: NDArray[np.int64]
    score: NDArray[np.float64]
    right: NDArray[np.int64]
    ignored: NDArray[np.int64]
    iou: NDArray[np.float64]
    same_iou: NDArray[np.float64]
    same_truth: NDArray[np.int64]
    other_iou: NDArray[np.float64]
    other_truth: NDArray[np.int64]
    truth_image: NDArray[np.int64]
    truth_class: NDArray[np.int64]
    truth_place: NDArray[np.int64]
    truth_ignored: NDArray[np.int64]
    found_score: NDArray[np.float64]
    pair_image: NDArray[np.int64]
    pair_position: NDArray[np.int64]
    pair_truth: NDArray[np.int64]
    pair_iou: NDArray[np.float64]

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The records of all parts' images, part after part."""
        starts = np.cumsum([0, *(part.num_images for part in parts)])
        columns: dict[str, Any] = {}
        for one in fields(cls)[1:]:
            arrays = [getattr(part, one.name) for part in parts]
            if one.name in _IMAGE_COLUMNS:
                arrays = [a + start for a, start in zip(arrays, starts, strict=False)]
            columns[one.name] = np.concatenate(arrays)
        return cls(int(starts[-1]), **columns)

    def bits(self, column: NDArray[np.int64], area: int = 0) -> NDArray[np.bool_]:
        """(N, 10) of `right` or `ignored` at one area."""
        found: NDArray[np.bool_] = (
            (column[:, None] >> (_NUM_IOUS * area + np.arange(_NUM_IOUS))) & 1
        ).astype(np.bool_)
        return found

    def counted_truth(self, num_classes: int, area: int = 0) -> NDArray[np.int64]:
        """(K,) instances to be found."""
        counts = (self.truth_ignored >> area) & 1 == 0
        return np.bincount(self.truth_class[counts], minlength=num_classes)

    def group_rank(self) -> NDArray[np.int64]:
        """(N,) place of each detection among those of its image and class, best first."""
        return run_rank(self.image, self.class_index)


_IMAGE_COLUMNS = ("image", "truth_image", "pair_image")


def match_images(
    truth: InstanceColumns, found: DetectionColumns, num_images: int, iou_type: IouType = "bbox"
) -> MatchRecords:
    """Match the detections of each image with its instances.

    Args:
        truth: rows in the order of their images.
        found: rows in the order of their images; equal scores keep their order.
        num_images: indices are below it; images without rows are empty.
        iou_type: overlap of boxes, or of masks, which both sides then must have.
    """
    blocks = list(image_blocks(truth.image, found.image, num_images))
    parts = [_match_block(truth, found, first, last, iou_type) for first, last in blocks]
    return MatchRecords.concatenate(parts)


def _match_block(
    truth: InstanceColumns, found: DetectionColumns, first: int, last: int, iou_type: IouType
) -> MatchRecords:
    t = slice(*np.searchsorted(truth.image, [first, last]))
    d = slice(*np.searchsorted(found.image, [first, last]))
    truth_image, image = truth.image[t] - first, found.image[d] - first
    order = np.lexsort((-found.score[d], found.class_index[d], image))
    order = order[run_rank(image[order], found.class_index[d][order]) < MAX_DETECTIONS]
    image, class_index = image[order], found.class_index[d][order]
    rows = order + d.start
    crowd, truth_class = truth.crowd[t], truth.class_index[t]
    starts = np.searchsorted(truth_image, np.arange(last - first + 1))
    if iou_type == "bbox":
        boxes = found.boxes_xywh[rows]
        area = boxes[:, 2] * boxes[:, 3]
        pairs = box_pairs(image, boxes, starts, truth.boxes_xywh[t], crowd)
    else:
        assert truth.masks is not None
        assert found.masks is not None
        masks = [found.masks[row] for row in rows]
        # one by one: of 256 or more at once, its array overflows under numpy 2
        area = np.array([mask_codec.area(mask) for mask in masks], np.float64)
        pairs = _mask_pairs(image, masks, starts, truth.masks[t], crowd)
    same = class_index[pairs.row] == truth_class[pairs.other]
    outside: NDArray[np.int64] = _outside(area).astype(np.int64) @ _AREA_BITS
    truth_outside = _outside(truth.area[t]) | crowd[:, None]
    right, ignored, iou, match = _match_rows(
        pairs.where(same & (pairs.iou >= _REACH[0])),
        run_index(image, class_index),
        truth_outside,
        crowd,
        outside,
    )
    found_score = np.full(len(truth_class), np.nan)
    hit = match >= 0
    found_score[match[hit]] = found.score[rows[hit]]
    own = pairs.where(~crowd[pairs.other])
    same = same[~crowd[pairs.other]]
    same_iou, same_truth = _greatest(own.where(same), len(rows))
    other_iou, other_truth = _greatest(own.where(~same), len(rows))
    crossed = own.where(~same & (own.iou >= 0.5))
    position = found.position[rows]
    place = np.arange(len(truth_class)) - starts[truth_image]
    return MatchRecords(
        num_images=last - first,
        image=image,
        class_index=class_index,
        position=position,
        score=found.score[rows],
        right=right,
        ignored=ignored,
        iou=iou,
        same_iou=same_iou,
        same_truth=np.where(same_truth >= 0, place[same_truth] if len(place) else -1, -1),
        other_iou=other_iou,
        other_truth=np.where(other_truth >= 0, place[other_truth] if len(place) else -1, -1),
        truth_image=truth_image,
        truth_class=truth_class,
        truth_place=place,
        truth_ignored=truth_outside @ (1 << np.arange(len(AREAS))),
        found_score=found_score,
        pair_image=image[crossed.row],
        pair_position=position[crossed.row],
        pair_truth=place[crossed.other],
        pair_iou=crossed.iou,
    )


def _outside(area: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N, A) whether an area lies outside each range."""
    low, high = np.array(list(AREAS.values())).T
    return (area[:, None] < low) | (area[:, None] > high)


def _mask_pairs(
    image: NDArray[np.int64],
    masks: Sequence[Any],
    starts: NDArray[np.int64],
    truth_masks: Sequence[Any],
    crowd: NDArray[np.bool_],
) -> Pairs:
    """Masks that overlap, in the order of detections and then instances."""
    rows, truths, ious = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    ends = np.searchsorted(image, np.arange(len(starts)))
    for one in range(len(starts) - 1):
        d, t = slice(ends[one], ends[one + 1]), slice(starts[one], starts[one + 1])
        if d.start == d.stop or t.start == t.stop:
            continue
        table = mask_codec.iou(
            list(masks[d]), list(truth_masks[t]), crowd[t].astype(np.uint8).tolist()
        )
        row, truth = np.nonzero(table >= LEAST_IOU)
        rows.append(row + d.start)
        truths.append(truth + t.start)
        ious.append(table[row, truth])
    return Pairs(np.concatenate(rows), np.concatenate(truths), np.concatenate(ious))


def _match_rows(
    pairs: Pairs,
    group: NDArray[np.int64],
    truth_outside: NDArray[np.bool_],
    crowd: NDArray[np.bool_],
    outside: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Greedy matching of detections with instances of their class that they reach.

    Args:
        pairs: of equal class, IoU 0.50 or more.
        group: (N,) number of each detection's image and class; detections of one lie together.
        truth_outside: (G, A) instances that do not count.
        crowd: (G,) instances that many detections may match.
        outside: (N,) bits of the areas that the detection itself is not of.

    Returns:
        `right`, `ignored` and `iou` of `MatchRecords`, and (N,) the match at IoU 0.50 or -1.
    """
    num_rows = len(group)
    right, ignored = np.zeros(num_rows, np.int64), outside.copy()
    iou, match = np.zeros(num_rows), np.full(num_rows, -1)
    # by detection, the best overlap last and of equals the later: the last that may be taken wins
    pairs = pairs.where(np.lexsort((pairs.other, pairs.iou, pairs.row)))
    first = np.flatnonzero(run_begins(pairs.row))
    length = np.diff(np.append(first, len(pairs.row)))
    turn = np.repeat(run_rank(group[pairs.row[first]]), length)
    by_turn = np.argsort(turn, kind="stable")
    pairs, turn = pairs.where(by_turn), turn[by_turn]
    taken = np.zeros((len(crowd), _NUM_IOUS, len(AREAS)), np.bool_)
    ends = np.searchsorted(turn, np.arange(int(turn[-1]) + 2 if len(turn) else 1))
    for begin, end in itertools.pairwise(ends.tolist()):
        now = pairs.where(slice(begin, end))
        size = end - begin
        starts = np.flatnonzero(run_begins(now.row))
        rows = now.row[starts]
        free = ~taken[now.other] | crowd[now.other][:, None, None]
        free &= (now.iou[:, None] >= _REACH)[:, :, None]
        rank = np.arange(size)[:, None] + np.where(truth_outside[now.other], 0, size)
        best = np.maximum.reduceat(np.where(free, rank[:, None, :], -1), starts, axis=0)
        hit = best >= 0
        pair = np.where(hit, best, 0) % size
        counts = best >= size
        target = now.other[pair]
        which = np.nonzero(hit)
        taken[target[which], which[1], which[2]] = True
        flat = (len(rows), -1)
        # areas are the slow index of a bit
        right[rows] = counts.transpose(0, 2, 1).reshape(flat) @ _BITS
        matched = hit.transpose(0, 2, 1).reshape(flat) @ _BITS
        ignored[rows] = (matched & ~right[rows]) | (outside[rows] & ~matched)
        at_50 = hit[:, 0, 0]
        iou[rows[at_50]] = now.iou[pair[at_50, 0, 0]]
        kept = at_50 & counts[:, 0, 0]
        match[rows[kept]] = target[kept, 0, 0]
    return right, ignored, iou, match


def _greatest(pairs: Pairs, num_rows: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(N,) greatest overlap of each detection, and with which instance; 0 and -1 without one."""
    iou, truth = np.zeros(num_rows), np.full(num_rows, -1)
    order = np.lexsort((-pairs.other, pairs.iou, pairs.row))
    # the last write of a row stays
    iou[pairs.row[order]] = pairs.iou[order]
    truth[pairs.row[order]] = pairs.other[order]
    return iou, truth
