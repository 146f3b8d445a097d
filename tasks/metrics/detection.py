"""Box and mask average precision: pycocotools' numbers, of input that was validated first.

Every library of the field scores some bad input silently wrong (pycocotools gives AP 1.0 for NaN
scores), so the input is validated here. Matching and accumulation are `matching` and `precision`,
which give what pycocotools gives and are some thirty times faster; masks are its RLE.

Source: Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014,
https://cocodataset.org/#detection-eval.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pixelmill.tasks.metrics.calibration import reliability
from pixelmill.tasks.metrics.lrp import optimal_lrp
from pixelmill.tasks.metrics.matching import (
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    RECALL_POINTS,
    DetectionColumns,
    InstanceColumns,
    IouType,
    MatchRecords,
    match_images,
)
from pixelmill.tasks.metrics.precision import Accumulated, accumulate
from pixelmill.tasks.metrics.results import (
    ClassRow,
    Confusion,
    Curve,
    ErrorBreakdown,
    Metric,
    ThresholdSweep,
)
from pixelmill.tasks.metrics.statistics import MatchStatistics
from pixelmill.tasks.metrics.sweep import best_threshold, sweep_thresholds
from pixelmill.tasks.metrics.tide import Errors, break_down, find_errors

__all__ = [
    "Category",
    "DetectionScores",
    "InstanceTruth",
    "IouType",
    "TruthImage",
    "decode_mask",
    "encode_mask",
    "encode_plane",
    "score_detections",
    "score_matches",
    "truth_columns",
]

# Any: the stubs that some type checkers bring know only a part of what it takes.
mask_codec: Any = coco_mask

BACKGROUND = "background"
POLICIES = {
    "maxDets": f"the {MAX_DETECTIONS} best detections of an image and class are looked at",
    "IoU": "0.50, 0.55 .. 0.95; AP50, AP75 and what says so at one of these",
    "areas": "small below 32 x 32 pixels, medium to 96 x 96, large above, by the truth's area",
    "crowds": "detections on a crowd (share of the detection) are neither right nor wrong",
    "absent classes": "classes without truth are left out of every mean; their detections count "
    "in precision, recall and F1 over all classes",
}

_SIZES = {
    "small": "area below 32 x 32 pixels",
    "medium": "area from 32 x 32 to 96 x 96 pixels",
    "large": "area above 96 x 96 pixels",
}


@dataclass(frozen=True, slots=True)
class TruthImage:
    """One image of a COCO file; width and height in pixels."""

    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Category:
    """One class of a COCO file."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class InstanceTruth:
    """Annotated boxes, and masks where there are any.

    Attributes:
        annotations: COCO annotations with the keys image_id, category_id, bbox (xywh), area,
            iscrowd and, where the truth has masks, segmentation (polygons or RLE).
        has_masks: every annotation has a segmentation.
    """

    images: tuple[TruthImage, ...]
    categories: tuple[Category, ...]
    annotations: tuple[Mapping[str, Any], ...]
    has_masks: bool


@dataclass(frozen=True, slots=True)
class DetectionScores:
    """What `score_matches` found.

    Attributes:
        score_threshold: of the confusion matrix and of the per-image numbers.
        per_image: (I, 4) TP, FP, FN and F1 of each image at IoU 0.5 and `score_threshold`.
        statistics: of the images in their order, for intervals and comparisons.
        kinds: the error of each detection and instance.
    """

    metrics: tuple[Metric, ...]
    per_class: tuple[ClassRow, ...]
    curves: tuple[Curve, ...]
    confusion: Confusion
    score_threshold: float
    per_image: NDArray[np.float64]
    statistics: MatchStatistics
    notes: tuple[str, ...]
    policies: dict[str, str]
    errors: ErrorBreakdown | None
    kinds: Errors
    sweeps: tuple[ThresholdSweep, ...]


PER_IMAGE = ("TP", "FP", "FN", "F1")


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO run lengths of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        `{"size": [H, W], "counts": bytes}`.
    """
    encoded: dict[str, Any] = mask_codec.encode(np.asfortranarray(mask, dtype=np.uint8))
    return encoded


def decode_mask(encoded: Mapping[str, Any]) -> NDArray[np.bool_]:
    """(H, W) bool of compressed COCO run lengths."""
    with warnings.catch_warnings():
        # pycocotools 2.0.11 has not heard of numpy 2's copy keyword
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        mask: NDArray[np.bool_] = np.asarray(mask_codec.decode(encoded)).astype(np.bool_)
    return mask


def encode_plane(
    plane: NDArray[np.integer[Any]], values: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """COCO run lengths of many instances that share a plane, in one pass over its pixels.

    Args:
        plane: (H, W) integers.
        values: of the instances wanted; one that has no pixel gets an empty mask.

    Returns:
        Value -> `{"size": [H, W], "counts": bytes}`.
    """
    height, width = plane.shape
    pixels = plane.ravel(order="F")
    starts = np.append(0, np.flatnonzero(pixels[1:] != pixels[:-1]) + 1)
    ends = np.append(starts[1:], pixels.size)
    run_values = pixels[starts]
    encoded = {}
    for value in values:
        runs = run_values == value
        edges = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=pixels.size)
        if counts[-1] == 0:
            counts = counts[:-1]
        uncompressed = {"size": [height, width], "counts": counts.tolist()}
        encoded[int(value)] = mask_codec.frPyObjects(uncompressed, height, width)
    return encoded


def score_detections(
    truth: InstanceTruth,
    detections: Sequence[Mapping[str, Any]],
    *,
    iou_type: IouType = "bbox",
    score_threshold: float | None = None,
) -> DetectionScores:
    """Score detections against truth as COCO does; images are in the order of their ids.

    Args:
        truth: images without detections count as empty predictions.
        detections: COCO results with image_id, category_id, score, and bbox (xywh, pixels) for
            "bbox" or segmentation (RLE of the image's size) for "segm".
        iou_type: what overlap is measured on.
        score_threshold: of the confusion matrix and of the per-image numbers; None: the score at
            which F1 over all classes is best.

    Raises:
        ValueError: a detection that cannot be scored (all faults of the first twenty in one
            message), truth without images or classes, or without masks for "segm".
    """
    _check(truth, detections, iou_type)
    image_ids = sorted(image.id for image in truth.images)
    categories = sorted(truth.categories, key=lambda category: category.id)
    index = {image_id: i for i, image_id in enumerate(image_ids)}
    class_index = {category.id: k for k, category in enumerate(categories)}
    columns = _detection_columns(detections, index, class_index, iou_type)
    instances = truth_columns(truth, index, class_index, iou_type)
    records = match_images(instances, columns, len(image_ids), iou_type)
    names = [category.name for category in categories]
    return score_matches(records, names, iou_type=iou_type, score_threshold=score_threshold)


def truth_columns(
    truth: InstanceTruth,
    image_index: Mapping[int, int],
    class_index: Mapping[int, int],
    iou_type: IouType = "bbox",
) -> InstanceColumns:
    """The truth's instances by image, in the order of the file within an image.

    Args:
        truth: annotations of other images or classes than the following are left out.
        image_index: image id -> index.
        class_index: category id -> index.
        iou_type: "segm" keeps the masks.
    """
    notes = [
        note
        for note in truth.annotations
        if note["image_id"] in image_index and note["category_id"] in class_index
    ]
    image = np.array([image_index[note["image_id"]] for note in notes], dtype=np.int64)
    order = np.argsort(image, kind="stable")
    boxes = np.array([note["bbox"] for note in notes], dtype=np.float64).reshape(-1, 4)
    area = np.array([note["area"] for note in notes], dtype=np.float64)
    crowd = np.array([bool(note.get("iscrowd")) for note in notes], dtype=np.bool_)
    classes = np.array([class_index[note["category_id"]] for note in notes], dtype=np.int64)
    return InstanceColumns(
        image=image[order],
        class_index=classes[order],
        boxes_xywh=boxes[order],
        area=area[order],
        crowd=crowd[order],
        masks=[notes[i]["segmentation"] for i in order.tolist()] if iou_type == "segm" else None,
    )


def _detection_columns(
    detections: Sequence[Mapping[str, Any]],
    image_index: Mapping[int, int],
    class_index: Mapping[int, int],
    iou_type: IouType,
) -> DetectionColumns:
    image = np.array([image_index[one["image_id"]] for one in detections], dtype=np.int64)
    order = np.argsort(image, kind="stable")
    image = image[order]
    boxes = np.zeros((0, 4))
    if iou_type == "bbox":
        boxes = np.array([one["bbox"] for one in detections], dtype=np.float64).reshape(-1, 4)
        boxes = boxes[order]
    classes = np.array([class_index[one["category_id"]] for one in detections], dtype=np.int64)
    return DetectionColumns(
        image=image,
        class_index=classes[order],
        position=np.arange(len(image)) - np.searchsorted(image, image),
        score=np.array([one["score"] for one in detections], dtype=np.float64)[order],
        boxes_xywh=boxes,
        masks=[detections[i]["segmentation"] for i in order.tolist()]
        if iou_type == "segm"
        else None,
    )


def score_matches(
    records: MatchRecords,
    class_names: Sequence[str],
    *,
    iou_type: IouType = "bbox",
    score_threshold: float | None = None,
) -> DetectionScores:
    """All numbers of matched images together; the same records always give the same numbers.

    Args:
        records: of all images, in their order.
        class_names: K names, by class index.
        iou_type: that the images were matched by.
        score_threshold: of the confusion matrix and of the per-image numbers; None: the score at
            which F1 over all classes is best.
    """
    found = accumulate(records, len(class_names))
    is_right, is_ignored = (records.right & 1) == 1, (records.ignored & 1) == 1
    num_truth = records.counted_truth(len(class_names))
    by_score = np.argsort(-records.score, kind="stable")
    by_score = by_score[~is_ignored[by_score]]
    best = best_threshold(records.score[by_score], is_right[by_score], int(num_truth.sum()))
    best_score, best_f1 = best or (0.5, 0.0)
    threshold = best_score if score_threshold is None else score_threshold
    confusion, per_image = _count_at(records, class_names, threshold)
    unit = "masks" if iou_type == "segm" else "boxes"
    per_class, sweeps = _per_class(records, found, class_names, num_truth, confusion)
    calibration, reliability_curves = _calibration(records)
    kinds = find_errors(records)
    notes = [f"as pycocotools, IoU of {unit}, maxDets {MAX_DETECTIONS} per image and class"]
    if crowded := _num_crowded(records):
        notes.append(
            f"{crowded} images hold more than {MAX_DETECTIONS} truth instances of one class: "
            f"maxDets {MAX_DETECTIONS} caps even a perfect answer below AP 1"
        )
    return DetectionScores(
        metrics=(
            *_coco_metrics(found, unit),
            *_operating_metrics(confusion, threshold, best_f1),
            *_mean_lrp(per_class),
            *calibration,
        ),
        per_class=per_class,
        curves=(*_curves(found, class_names), *reliability_curves),
        confusion=confusion,
        score_threshold=threshold,
        per_image=per_image,
        statistics=_statistics(records, class_names),
        notes=tuple(notes),
        policies={"overlap": f"of {unit}", **POLICIES},
        errors=break_down(records, kinds, found.order, len(class_names)),
        kinds=kinds,
        sweeps=sweeps,
    )


def _statistics(records: MatchRecords, class_names: Sequence[str]) -> MatchStatistics:
    """What AP and AR of any draw of the images are computed from."""
    counts = (records.truth_ignored & 1) == 0
    cells = records.truth_image[counts] * len(class_names) + records.truth_class[counts]
    num_cells = records.num_images * len(class_names)
    return MatchStatistics(
        class_names=tuple(class_names),
        image=records.image,
        class_index=records.class_index,
        score=records.score,
        right=records.bits(records.right),
        ignored=records.bits(records.ignored),
        num_truth=np.bincount(cells, minlength=num_cells)
        .astype(np.int32)
        .reshape(-1, len(class_names)),
    )


def _check(
    truth: InstanceTruth, detections: Sequence[Mapping[str, Any]], iou_type: IouType
) -> None:
    if not truth.images or not truth.categories:
        raise ValueError(
            f"truth needs images and categories, got {len(truth.images)} images and "
            f"{len(truth.categories)} categories"
        )
    if iou_type == "segm" and not truth.has_masks:
        raise ValueError("truth has no masks: every annotation needs a segmentation for 'segm'")
    sizes = {image.id: (image.height, image.width) for image in truth.images}
    categories = {category.id for category in truth.categories}
    faults: list[str] = []
    for index, detection in enumerate(detections):
        fault = _fault(detection, sizes, categories, iou_type)
        if fault:
            faults.append(f"detection {index}: {fault}")
        if len(faults) == 20:
            faults.append("and perhaps more")
            break
    if faults:
        raise ValueError("detections cannot be scored:\n  " + "\n  ".join(faults))


def _fault(
    detection: Mapping[str, Any],
    sizes: Mapping[int, tuple[int, int]],
    categories: set[int],
    iou_type: IouType,
) -> str | None:
    region = "bbox" if iou_type == "bbox" else "segmentation"
    missing = [
        key for key in ("image_id", "category_id", "score", region) if detection.get(key) is None
    ]
    if missing:
        return f"missing {', '.join(missing)}"
    if detection["image_id"] not in sizes:
        return f"image_id {detection['image_id']!r} is not in the truth"
    if detection["category_id"] not in categories:
        return f"category_id {detection['category_id']!r} is not in the truth"
    if not np.isfinite(detection["score"]):
        return f"score must be finite, got {detection['score']!r}"
    if iou_type == "bbox":
        box_xywh = np.asarray(detection["bbox"], dtype=np.float64)
        if box_xywh.shape != (4,) or not np.isfinite(box_xywh).all():
            return f"bbox must be 4 finite numbers, got {detection['bbox']!r}"
        if (box_xywh[2:] < 0).any():
            return f"bbox must have width and height >= 0, got {detection['bbox']!r}"
        return None
    mask = detection["segmentation"]
    if not isinstance(mask, Mapping) or "counts" not in mask or "size" not in mask:
        return "segmentation must be an RLE with counts and size"
    if tuple(mask["size"]) != sizes[detection["image_id"]]:
        return (
            f"mask size {tuple(mask['size'])} is not the image's (height, width) "
            f"{sizes[detection['image_id']]}"
        )
    return None


def _count_at(
    records: MatchRecords, class_names: Sequence[str], threshold: float
) -> tuple[Confusion, NDArray[np.float64]]:
    """Confusion matrix and per-image counts of the detections that score at least `threshold`."""
    num_classes, num_images = len(class_names), records.num_images
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    kept = (records.score >= threshold) & ((records.ignored & 1) == 0)
    right = kept & ((records.right & 1) == 1)
    wrong = kept & ~right
    # no score is not at least the threshold: what nothing was matched to is lost
    lost = ((records.truth_ignored & 1) == 0) & ~(records.found_score >= threshold)
    diagonal = np.diag_indices(num_classes)
    counts[diagonal] = np.bincount(records.class_index[right], minlength=num_classes)
    confused_rows, confused_truth = _confused(records, wrong, lost)
    confused = records.truth_class[confused_truth], records.class_index[confused_rows]
    np.add.at(counts, confused, 1)
    alone, unfound = wrong.copy(), lost.copy()
    alone[confused_rows] = unfound[confused_truth] = False
    counts[num_classes, :-1] = np.bincount(records.class_index[alone], minlength=num_classes)
    counts[:-1, num_classes] = np.bincount(records.truth_class[unfound], minlength=num_classes)
    labels = (*class_names, BACKGROUND)
    confusion = Confusion(
        rows=labels,
        columns=labels,
        counts=tuple(tuple(int(value) for value in line) for line in counts),
        unit=f"instances at IoU 0.50 and score >= {threshold:.3g}",
    )
    tallies = np.stack(
        [
            np.bincount(images, minlength=num_images)
            for images in (records.image[right], records.image[wrong], records.truth_image[lost])
        ],
        axis=1,
    ).astype(np.float64)
    hits, total = 2 * tallies[:, 0], tallies @ np.array([2.0, 1.0, 1.0])
    # an image without objects where none was found is right
    f1 = np.divide(hits, total, out=np.ones(num_images), where=total > 0)
    return confusion, np.hstack([tallies, f1[:, None]])


def _confused(
    records: MatchRecords, wrong: NDArray[np.bool_], lost: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Wrong detections (best first) that lie on a lost instance of another class, and on which."""
    keys = _joined(records.image, records.position)
    by_key = np.argsort(keys)
    pair_keys = _joined(records.pair_image, records.pair_position)
    rows = by_key[np.searchsorted(keys[by_key], pair_keys)]
    truths = np.searchsorted(records.truth_image, records.pair_image) + records.pair_truth
    open_pairs = wrong[rows] & lost[truths]
    rows, truths, iou = rows[open_pairs], truths[open_pairs], records.pair_iou[open_pairs]
    order = np.lexsort((truths, -iou, rows, -records.score[rows]))
    taken: dict[int, int] = {}
    used: set[int] = set()
    for row, truth in zip(rows[order].tolist(), truths[order].tolist(), strict=True):
        if row not in used and truth not in taken:
            taken[truth] = row
            used.add(row)
    return (
        np.fromiter(taken.values(), np.int64, len(taken)),
        np.fromiter(taken.keys(), np.int64, len(taken)),
    )


def _joined(image: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for an image and a position in it."""
    return (image << 32) | position


def _coco_metrics(found: Accumulated, unit: str) -> tuple[Metric, ...]:
    """The twelve COCO numbers; one that has no truth (-1 in pycocotools) is left out."""
    over = f"IoU of {unit} 0.50:0.05:0.95, mean over classes that have truth"
    definitions = {
        "AP": f"average precision, 101 recall points, {over}, maxDets 100",
        "AP50": f"average precision at IoU of {unit} 0.50, mean over classes, maxDets 100",
        "AP75": f"average precision at IoU of {unit} 0.75, mean over classes, maxDets 100",
        **{f"AP {size}": f"AP of instances with {area}" for size, area in _SIZES.items()},
        **{
            f"AR{k}": f"greatest recall with {k} detections per image and class, {over}"
            for k in (1, 10, 100)
        },
        **{f"AR {size}": f"AR100 of instances with {area}" for size, area in _SIZES.items()},
    }
    sizes = (1, 2, 3)
    values = (
        found.mean_precision(),
        found.mean_precision(iou=0),
        found.mean_precision(iou=5),
        *(found.mean_precision(area=area) for area in sizes),
        *(found.mean_recall(num_best) for num_best in range(3)),
        *(found.mean_recall(area=area) for area in sizes),
    )
    return tuple(
        Metric(name, value, definition)
        for (name, definition), value in zip(definitions.items(), values, strict=True)
        if value >= 0
    )


def _operating_metrics(
    confusion: Confusion, threshold: float, best_f1: float
) -> tuple[Metric, ...]:
    counts = np.asarray(confusion.counts)
    true_positives = int(np.trace(counts))
    num_truth, num_predicted = int(counts[:-1].sum()), int(counts[:, :-1].sum())
    where = f"at IoU 0.50 and score >= {threshold:.6g}, over all classes"
    return (
        Metric(
            "score threshold",
            threshold,
            "score of the confusion matrix, the per-image numbers, precision, recall and F1",
        ),
        Metric("precision", _ratio(true_positives, num_predicted), f"TP / (TP + FP) {where}"),
        Metric("recall", _ratio(true_positives, num_truth), f"TP / (TP + FN) {where}"),
        Metric("F1", _ratio(2 * true_positives, num_truth + num_predicted), f"F1 {where}"),
        Metric("best F1", best_f1, "highest F1 of any score threshold, at IoU 0.50"),
    )


def _mean_lrp(per_class: Sequence[ClassRow]) -> tuple[Metric, ...]:
    errors = [row.values["oLRP"] for row in per_class if "oLRP" in row.values]
    if not errors:
        return ()
    definition = (
        "localisation-recall-precision error at IoU 0.50 and each class's best score threshold "
        "(oLRP threshold), mean over classes that have truth; 0 is perfect, 1 the worst"
    )
    return (Metric("oLRP", float(np.mean(errors)), definition),)


def _calibration(records: MatchRecords) -> tuple[tuple[Metric, ...], tuple[Curve, ...]]:
    """Score against precision at IoU 0.50 of all classes; nothing of scores that are no shares."""
    counts = (records.ignored & 1) == 0
    scores, right = records.score[counts], (records.right[counts] & 1) == 1
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return (), ()
    widths = reliability(scores, right)
    masses = reliability(scores, right, binning="mass")
    return (widths.error(), masses.error()), (widths.curve("all classes"),)


def _ratio(part: int, whole: int) -> float:
    """0 where there is nothing to divide by."""
    return part / whole if whole else 0.0


def _per_class(
    records: MatchRecords,
    found: Accumulated,
    class_names: Sequence[str],
    num_truth: NDArray[np.int64],
    confusion: Confusion,
) -> tuple[tuple[ClassRow, ...], tuple[ThresholdSweep, ...]]:
    counts = np.asarray(confusion.counts)
    class_rows, sweeps = [], []
    for k, name in enumerate(class_names):
        rows = found.rows(k)
        values: dict[str, float | None] = {}
        if num_truth[k]:
            hits, kept, instances = counts[k, k], counts[:, k].sum(), counts[k].sum()
            counted = rows[(records.ignored[rows] & 1) == 0]
            scores, wanted = records.score[counted], int(num_truth[k])
            lrp = optimal_lrp(scores, records.iou[counted], wanted)
            values = {
                "AP": float(np.mean(found.precision[:, :, k, 0])),
                "AP50": float(np.mean(found.precision[0, :, k, 0])),
                "AR100": float(np.mean(found.recall[:, k, 0, 2])),
                "precision": _ratio(int(hits), int(kept)),
                "recall": _ratio(int(hits), int(instances)),
                "F1": _ratio(int(2 * hits), int(kept + instances)),
                "oLRP": lrp.error,
                "oLRP threshold": lrp.threshold,
            }
            right = (records.right[counted] & 1) == 1
            sweeps.append(sweep_thresholds(name, scores, right, wanted))
            values["F1 threshold"] = sweeps[-1].recommended
        class_rows.append(
            ClassRow(
                class_name=name,
                num_truth=int(num_truth[k]),
                num_predicted=len(rows),
                values={key: value for key, value in values.items() if value is not None},
            )
        )
    return tuple(class_rows), tuple(sweeps)


def _curves(found: Accumulated, class_names: Sequence[str]) -> tuple[Curve, ...]:
    """Precision over recall at IoU 0.50: the mean over classes that have truth, then each."""
    precision = found.precision[0, :, :, 0]
    lines = {
        name: precision[:, k] for k, name in enumerate(class_names) if (precision[:, k] > -1).all()
    }
    if lines:
        lines = {"mean": np.mean(list(lines.values()), axis=0), **lines}
    recall = tuple(float(value) for value in RECALL_POINTS)
    return tuple(
        Curve(
            group=f"precision-recall @ IoU {IOU_THRESHOLDS[0]:.2f}",
            name=name,
            x_label="recall",
            y_label="precision",
            x=recall,
            y=tuple(float(value) for value in line),
        )
        for name, line in lines.items()
    )


def _num_crowded(records: MatchRecords) -> int:
    """Images with more instances of a class than are looked at."""
    counts = (records.truth_ignored & 1) == 0
    cells = np.stack([records.truth_image[counts], records.truth_class[counts]])
    groups, sizes = np.unique(cells, axis=1, return_counts=True)
    return len(np.unique(groups[0, sizes > MAX_DETECTIONS]))
