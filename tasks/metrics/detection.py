"""Box and mask average precision; pycocotools is the reference and the RLE codec.

Every library of the field scores some bad input silently wrong (pycocotools gives AP 1.0 for NaN
scores), so the input is validated here first. The numbers then are pycocotools' own, unchanged.

Source: Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014,
https://cocodataset.org/#detection-eval.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import coco, cocoeval
from pycocotools import mask as coco_mask

from pixelmill.tasks.metrics.calibration import reliability
from pixelmill.tasks.metrics.lrp import optimal_lrp
from pixelmill.tasks.metrics.results import ClassRow, Confusion, Curve, Metric
from pixelmill.tasks.metrics.statistics import MatchStatistics

__all__ = [
    "Category",
    "DetectionScores",
    "InstanceTruth",
    "IouType",
    "TruthImage",
    "encode_mask",
    "encode_plane",
    "score_detections",
]

# Any: the stubs that some type checkers bring know only a part of what these take.
mask_codec: Any = coco_mask
COCO: Any = coco.COCO
COCOeval: Any = cocoeval.COCOeval

IouType = Literal["bbox", "segm"]
BACKGROUND = "background"
MAX_DETECTIONS = 100
# Index of IoU 0.50 in pycocotools' thresholds 0.50, 0.55 .. 0.95, of area "all", of maxDets 100.
AT_50, ALL_AREAS, AT_100 = 0, 0, 2

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
    """What `score_detections` found.

    Attributes:
        score_threshold: of the confusion matrix and of the per-image numbers.
        per_image: image id -> TP, FP, FN and F1 at IoU 0.5 and `score_threshold`.
        statistics: of the images by rising id, for intervals and comparisons.
    """

    metrics: tuple[Metric, ...]
    per_class: tuple[ClassRow, ...]
    curves: tuple[Curve, ...]
    confusion: Confusion
    score_threshold: float
    per_image: dict[int, dict[str, float]]
    statistics: MatchStatistics
    notes: tuple[str, ...]


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO run lengths of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        `{"size": [H, W], "counts": bytes}`.
    """
    encoded: dict[str, Any] = mask_codec.encode(np.asfortranarray(mask, dtype=np.uint8))
    return encoded


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
    """Score detections against truth as COCO does.

    The caller's dicts are not changed. Annotation ids are given anew, because pycocotools takes
    the id 0 for "unmatched".

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
    evaluator = _run_pycocotools(truth, detections, iou_type)
    rows = _match_rows(evaluator)
    best_threshold, best_f1 = _best_f1(rows)
    threshold = best_threshold if score_threshold is None else score_threshold
    confusion, per_image = _count_at(evaluator, truth, rows, threshold)
    unit = "masks" if iou_type == "segm" else "boxes"
    per_class = _per_class(evaluator, truth, rows, confusion)
    calibration, reliability_curves = _calibration(rows)
    metrics = (
        *_coco_metrics(evaluator, unit),
        *_operating_metrics(confusion, threshold, best_f1),
        *_mean_lrp(per_class),
        *calibration,
    )
    names = {category.id: category.name for category in truth.categories}
    crowded = _num_crowded(truth)
    notes = [f"pycocotools, IoU of {unit}, maxDets {MAX_DETECTIONS} per image and class"]
    if crowded:
        notes.append(
            f"{crowded} images hold more than {MAX_DETECTIONS} truth instances of one class: "
            f"maxDets {MAX_DETECTIONS} caps even a perfect answer below AP 1"
        )
    return DetectionScores(
        metrics=metrics,
        per_class=per_class,
        curves=(*_curves(evaluator, truth), *reliability_curves),
        confusion=confusion,
        score_threshold=threshold,
        per_image=per_image,
        statistics=rows.statistics([names[class_id] for class_id in evaluator.params.catIds]),
        notes=tuple(notes),
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


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Swallow what pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _run_pycocotools(
    truth: InstanceTruth, detections: Sequence[Mapping[str, Any]], iou_type: IouType
) -> Any:
    header = {
        "images": [
            {"id": image.id, "width": image.width, "height": image.height} for image in truth.images
        ],
        "categories": [{"id": category.id, "name": category.name} for category in truth.categories],
    }
    annotations = [{**note, "id": i} for i, note in enumerate(truth.annotations, start=1)]
    with _silence():
        truth_index, detection_index = COCO(), COCO()
        truth_index.dataset = {**header, "annotations": annotations}
        detection_index.dataset = {
            **header,
            "annotations": [
                _as_annotation(detection, i, iou_type)
                for i, detection in enumerate(detections, start=1)
            ],
        }
        truth_index.createIndex()
        detection_index.createIndex()
        evaluator = COCOeval(truth_index, detection_index, iouType=iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _as_annotation(detection: Mapping[str, Any], index: int, iou_type: IouType) -> dict[str, Any]:
    """What `COCO.loadRes` makes of a detection, without changing the caller's dict."""
    annotation: dict[str, Any] = {
        "id": index,
        "image_id": detection["image_id"],
        "category_id": detection["category_id"],
        "score": float(detection["score"]),
        "iscrowd": 0,
    }
    if iou_type == "bbox":
        annotation["bbox"] = [float(value) for value in detection["bbox"]]
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    else:
        annotation["segmentation"] = detection["segmentation"]
        annotation["area"] = float(mask_codec.area(detection["segmentation"]))
    return annotation


@dataclass(frozen=True, slots=True)
class _MatchRows:
    """Each detection that COCO matching looked at (all areas, maxDets 100), as columns.

    Ordered by class, then image, then falling score.

    Attributes:
        detection_id: given by `_run_pycocotools`.
        image_index: row of the sorted images; class_index: of the sorted categories.
        matches: (N, 10) ids of truth at each IoU threshold; 0: no match.
        ignores: (N, 10) matched to a crowd, or otherwise neither right nor wrong.
        iou: with the match at IoU 0.50, 0 where there is none.
        images_truth: (I, K) instances to be found, crowds not counted.
    """

    detection_id: NDArray[np.int64]
    image_index: NDArray[np.int64]
    class_index: NDArray[np.int64]
    score: NDArray[np.float64]
    matches: NDArray[np.int64]
    ignores: NDArray[np.bool_]
    iou: NDArray[np.float64]
    images_truth: NDArray[np.int64]

    @property
    def truth_id(self) -> NDArray[np.int64]:
        """(N,) matched at IoU 0.50; 0: no match."""
        return self.matches[:, AT_50]

    @property
    def ignored(self) -> NDArray[np.bool_]:
        """(N,) at IoU 0.50."""
        return self.ignores[:, AT_50]

    @property
    def num_truth(self) -> NDArray[np.int64]:
        """(K,) of all images."""
        return self.images_truth.sum(axis=0)

    def statistics(self, class_names: Sequence[str]) -> MatchStatistics:
        """What AP and AR of any draw of the images are computed from."""
        return MatchStatistics(
            class_names=tuple(class_names),
            image=self.image_index,
            class_index=self.class_index,
            score=self.score,
            right=(self.matches > 0) & ~self.ignores,
            ignored=self.ignores,
            num_truth=self.images_truth,
        )


def _match_rows(evaluator: Any) -> _MatchRows:
    parameters = evaluator.params
    num_images, num_areas = len(parameters.imgIds), len(parameters.areaRng)
    num_ious, num_classes = len(parameters.iouThrs), len(parameters.catIds)
    detection_id, ious = [np.zeros(0, np.int64)], [np.zeros(0, np.float64)]
    matches, ignores = [np.zeros((num_ious, 0), np.int64)], [np.zeros((num_ious, 0), np.bool_)]
    score = [np.zeros(0, np.float64)]
    places: list[tuple[int, int]] = []
    num_rows: list[int] = []
    images_truth = np.zeros((num_images, num_classes), dtype=np.int64)
    for class_index in range(num_classes):
        # evalImgs is ordered by class, then area range ("all" comes first), then image
        start = class_index * num_areas * num_images
        for image_index, found in enumerate(evaluator.evalImgs[start : start + num_images]):
            if found is None:
                continue
            wanted = np.count_nonzero(np.asarray(found["gtIgnore"]) == 0)
            images_truth[image_index, class_index] = wanted
            if not found["dtIds"]:
                continue
            places.append((image_index, class_index))
            num_rows.append(len(found["dtIds"]))
            detection_id.append(np.asarray(found["dtIds"], np.int64))
            matches.append(found["dtMatches"].astype(np.int64))
            score.append(np.asarray(found["dtScores"], np.float64))
            ignores.append(found["dtIgnore"].astype(np.bool_))
            ious.append(_matched_ious(evaluator, found))
    image_index_of, class_index_of = np.asarray(places, np.int64).reshape(-1, 2).T
    return _MatchRows(
        detection_id=np.concatenate(detection_id),
        image_index=np.repeat(image_index_of, num_rows),
        class_index=np.repeat(class_index_of, num_rows),
        score=np.concatenate(score),
        matches=np.concatenate(matches, axis=1).T,
        ignores=np.concatenate(ignores, axis=1).T,
        iou=np.concatenate(ious),
        images_truth=images_truth,
    )


def _matched_ious(evaluator: Any, found: Mapping[str, Any]) -> NDArray[np.float64]:
    """IoU of each detection of an image and class with its match at IoU 0.50."""
    matched = found["dtMatches"][AT_50].astype(np.int64)
    ious = np.zeros(len(matched))
    rows = np.flatnonzero(matched)
    if len(rows):
        key = found["image_id"], found["category_id"]
        columns = {note["id"]: j for j, note in enumerate(evaluator._gts[key])}
        # rows of `ious` are the detections by falling score, as in dtIds
        table = evaluator.ious[key]
        ious[rows] = [table[row, columns[int(matched[row])]] for row in rows]
    return ious


def _best_f1(rows: _MatchRows) -> tuple[float, float]:
    """Score threshold with the best F1 over all classes, the highest of equals, and that F1."""
    kept = ~rows.ignored
    scores, right = rows.score[kept], rows.truth_id[kept] > 0
    if not right.any():
        return 0.5, 0.0
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    # A threshold takes all detections of a score or none: look at the last of each score only.
    last = np.append(scores[1:] != scores[:-1], True)
    true_positives = np.cumsum(right)[last]
    num_kept = (np.flatnonzero(last) + 1).astype(np.float64)
    f1 = 2 * true_positives / (num_kept + rows.num_truth.sum())
    best = int(np.argmax(f1))
    return float(scores[last][best]), float(f1[best])


def _count_at(
    evaluator: Any, truth: InstanceTruth, rows: _MatchRows, threshold: float
) -> tuple[Confusion, dict[int, dict[str, float]]]:
    """Confusion matrix and per-image counts of the detections that score at least `threshold`."""
    class_index = {class_id: k for k, class_id in enumerate(evaluator.params.catIds)}
    names = {category.id: category.name for category in truth.categories}
    num_classes = len(class_index)
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    kept = (rows.score >= threshold) & ~rows.ignored
    right = kept & (rows.truth_id > 0)
    found = set(rows.truth_id[right].tolist())
    np.add.at(counts, (rows.class_index[right], rows.class_index[right]), 1)

    per_image = {image.id: [0, 0, 0] for image in truth.images}
    for detection_id in rows.detection_id[right]:
        per_image[evaluator.cocoDt.anns[detection_id]["image_id"]][0] += 1
    wrong: dict[int, list[dict[str, Any]]] = {}
    wrong_rows = np.flatnonzero(kept & ~right)
    for row in wrong_rows[np.argsort(-rows.score[wrong_rows], kind="stable")]:
        detection = evaluator.cocoDt.anns[rows.detection_id[row]]
        wrong.setdefault(detection["image_id"], []).append(detection)
    missed: dict[int, list[dict[str, Any]]] = {}
    for annotation in evaluator.cocoGt.anns.values():
        if not annotation.get("iscrowd") and annotation["id"] not in found:
            missed.setdefault(annotation["image_id"], []).append(annotation)

    for image_id, tally in per_image.items():
        extra, lost = wrong.get(image_id, []), missed.get(image_id, [])
        tally[1:] = [len(extra), len(lost)]
        pairs = _confused_pairs(extra, lost, evaluator.params.iouType)
        for i, j in pairs.items():
            row, column = class_index[lost[j]["category_id"]], class_index[extra[i]["category_id"]]
            counts[row, column] += 1
        taken = set(pairs.values())
        for i, detection in enumerate(extra):
            if i not in pairs:
                counts[num_classes, class_index[detection["category_id"]]] += 1
        for j, annotation in enumerate(lost):
            if j not in taken:
                counts[class_index[annotation["category_id"]], num_classes] += 1
    labels = (*(names[class_id] for class_id in class_index), BACKGROUND)
    confusion = Confusion(
        rows=labels,
        columns=labels,
        counts=tuple(tuple(int(value) for value in line) for line in counts),
        unit=f"instances at IoU 0.50 and score >= {threshold:.3g}",
    )
    return confusion, {image_id: _image_values(*tally) for image_id, tally in per_image.items()}


def _confused_pairs(
    extra: Sequence[Mapping[str, Any]], lost: Sequence[Mapping[str, Any]], iou_type: IouType
) -> dict[int, int]:
    """Detections (best first) that lie on an unfound instance of another class: extra -> lost."""
    if not extra or not lost:
        return {}
    region = "bbox" if iou_type == "bbox" else "segmentation"
    ious = mask_codec.iou(
        [detection[region] for detection in extra],
        [annotation[region] for annotation in lost],
        [0] * len(lost),
    )
    pairs: dict[int, int] = {}
    for i in range(len(extra)):
        j = int(np.argmax(ious[i]))
        if ious[i, j] >= 0.5:
            pairs[i] = j
            ious[:, j] = 0.0
    return pairs


def _image_values(true_positives: int, false_positives: int, misses: int) -> dict[str, float]:
    total = 2 * true_positives + false_positives + misses
    return {
        "TP": float(true_positives),
        "FP": float(false_positives),
        "FN": float(misses),
        # An image without objects where none was found is right.
        "F1": 2 * true_positives / total if total else 1.0,
    }


def _coco_metrics(evaluator: Any, unit: str) -> tuple[Metric, ...]:
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
    return tuple(
        Metric(name, float(value), definition)
        for (name, definition), value in zip(definitions.items(), evaluator.stats, strict=True)
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


def _calibration(rows: _MatchRows) -> tuple[tuple[Metric, ...], tuple[Curve, ...]]:
    """Score against precision at IoU 0.50 of all classes; nothing of scores that are no shares."""
    scores, right = rows.score[~rows.ignored], rows.truth_id[~rows.ignored] > 0
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return (), ()
    widths = reliability(scores, right)
    masses = reliability(scores, right, binning="mass")
    return (widths.error(), masses.error()), (widths.curve("all classes"),)


def _ratio(part: int, whole: int) -> float:
    """0 where there is nothing to divide by."""
    return part / whole if whole else 0.0


def _mean_valid(values: NDArray[np.float64]) -> float | None:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None


def _per_class(
    evaluator: Any, truth: InstanceTruth, rows: _MatchRows, confusion: Confusion
) -> tuple[ClassRow, ...]:
    names = {category.id: category.name for category in truth.categories}
    precision = evaluator.eval["precision"][:, :, :, ALL_AREAS, AT_100]
    recall = evaluator.eval["recall"][:, :, ALL_AREAS, AT_100]
    counts = np.asarray(confusion.counts)
    num_predicted = np.bincount(rows.class_index, minlength=len(names))
    class_rows = []
    for k, class_id in enumerate(evaluator.params.catIds):
        values: dict[str, float | None] = {
            "AP": _mean_valid(precision[:, :, k]),
            "AP50": _mean_valid(precision[AT_50, :, k]),
            "AR100": _mean_valid(recall[:, k]),
        }
        if rows.num_truth[k]:
            hits, found, instances = counts[k, k], counts[:, k].sum(), counts[k].sum()
            values["precision"] = _ratio(int(hits), int(found))
            values["recall"] = _ratio(int(hits), int(instances))
            values["F1"] = _ratio(int(2 * hits), int(found + instances))
            counted = (rows.class_index == k) & ~rows.ignored
            lrp = optimal_lrp(rows.score[counted], rows.iou[counted], int(rows.num_truth[k]))
            values["oLRP"], values["oLRP threshold"] = lrp.error, lrp.threshold
        class_rows.append(
            ClassRow(
                class_name=names[class_id],
                num_truth=int(rows.num_truth[k]),
                num_predicted=int(num_predicted[k]),
                values={name: value for name, value in values.items() if value is not None},
            )
        )
    return tuple(class_rows)


def _curves(evaluator: Any, truth: InstanceTruth) -> tuple[Curve, ...]:
    """Precision over recall at IoU 0.50: the mean over classes that have truth, then each."""
    names = {category.id: category.name for category in truth.categories}
    precision = evaluator.eval["precision"][AT_50, :, :, ALL_AREAS, AT_100]
    lines = {
        names[class_id]: precision[:, k]
        for k, class_id in enumerate(evaluator.params.catIds)
        if (precision[:, k] > -1).all()
    }
    if lines:
        lines = {"mean": np.mean(list(lines.values()), axis=0), **lines}
    recall = tuple(float(value) for value in evaluator.params.recThrs)
    return tuple(
        Curve(
            group="precision-recall @ IoU 0.50",
            name=name,
            x_label="recall",
            y_label="precision",
            x=recall,
            y=tuple(float(value) for value in line),
        )
        for name, line in lines.items()
    )


def _num_crowded(truth: InstanceTruth) -> int:
    """Images with more instances of a class than are looked at."""
    instances: dict[tuple[int, int], int] = {}
    for annotation in truth.annotations:
        if not annotation.get("iscrowd"):
            key = (annotation["image_id"], annotation["category_id"])
            instances[key] = instances.get(key, 0) + 1
    return len({image for (image, _), count in instances.items() if count > MAX_DETECTIONS})
