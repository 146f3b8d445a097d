"""Boxes and masks against truth: match what is new, keep it, and add all up."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pixelmill.tasks.evaluation.context import (
    Comparison,
    Context,
    Scored,
    class_notes,
    no_common_class,
)
from pixelmill.tasks.evaluation.match_table import (
    MATCH_SCHEMA,
    matches_from_table,
    matches_to_table,
)
from pixelmill.tasks.evaluation.records import digest, image_keys
from pixelmill.tasks.metrics.detection import (
    PER_IMAGE,
    InstanceTruth,
    IouType,
    TruthImage,
    encode_plane,
    score_matches,
    truth_columns,
)
from pixelmill.tasks.metrics.matching import (
    DetectionColumns,
    InstanceColumns,
    MatchRecords,
    match_images,
)
from pixelmill.tasks.metrics.results import Kind, Mistake, ThresholdSweep
from pixelmill.tasks.metrics.tide import KINDS, MISSED, Errors

__all__ = ["compare_instances"]

_SCHEMA = MATCH_SCHEMA.append(pa.field("num_unknown", pa.int32(), False))
# Kept together when they are done; of masks, those of so many images are in memory.
_IMAGES_AT_ONCE = 4096
_MOST_MISTAKES = 30
_THRESHOLD_DIGITS = 4
_CORNERS = ["x_min", "y_min", "x_max", "y_max"]
_COLUMNS = ["rank", "class_id", "score", *_CORNERS]


def compare_instances(
    context: Context, truth: InstanceTruth, iou_type: IouType
) -> Comparison | str:
    """Average precision, errors and thresholds of a model's boxes or masks.

    Args:
        context: the model.
        truth: boxes, and masks for "segm".
        iou_type: what overlap is measured on.

    Returns:
        Why there is nothing to compare, where that is so.

    Raises:
        ValueError: a stored box or score is not finite, or a mask has not the truth's size.
    """
    if iou_type == "segm" and not truth.has_masks:
        return "masks not evaluated: not every annotation of the truth has a segmentation"
    categories = sorted(truth.categories, key=lambda category: category.id)
    names = tuple(category.name for category in categories)
    model_names = context.class_names()
    if reason := no_common_class(model_names, names):
        return reason
    images = sorted(truth.images, key=lambda image: image.id)
    files = [image.file_name for image in images]
    scored = context.join(files)
    columns = truth_columns(
        truth,
        {image.id: i for i, image in enumerate(images)},
        {category.id: k for k, category in enumerate(categories)},
        iou_type,
    )
    index_of = {name: k for k, name in enumerate(names)}
    found = _Matcher(
        context=context,
        images=images,
        image_ids=scored.ids(files),
        truth=columns,
        # class of the model -> of the truth, -1 for none
        class_index=np.array([index_of.get(name, -1) for name in model_names], np.int64),
        iou_type=iou_type,
    )
    kind: Kind = "boxes" if iou_type == "bbox" else "masks"
    parameters = {"classes": names, "model_classes": model_names}
    rows, notes = context.records(kind, parameters, _SCHEMA).rows(found.keys(), found.match)
    records = matches_from_table(rows)
    num_unknown = int(np.sum(rows["num_unknown"].to_numpy()))
    scores = score_matches(records, names, iou_type=iou_type)
    return context.compare(
        scored,
        kind,
        files,
        scores.metrics,
        scores.statistics,
        (
            *scores.notes,
            *class_notes(model_names, names, what=f"{num_unknown} detections ignored"),
            *notes,
        ),
        per_class=scores.per_class,
        curves=scores.curves,
        confusion=scores.confusion,
        per_image=scored.image_rows(
            {
                file: dict(zip(PER_IMAGE, values, strict=True))
                for file, values in zip(files, scores.per_image.tolist(), strict=True)
            }
        ),
        policies=scores.policies,
        errors=scores.errors,
        mistakes=_mistakes(context, scored, files, names, columns, records, scores.kinds),
        sweeps=scores.sweeps,
        thresholds=_thresholds(
            scores.sweeps, dict(zip(context.spec.classes, model_names, strict=True))
        ),
    )


def _thresholds(sweeps: Sequence[ThresholdSweep], renamed: Mapping[str, str]) -> dict[str, float]:
    """Class of the model -> recommended threshold; rounded down, so that it keeps its own score."""
    found = {one.class_name: one.recommended for one in sweeps if one.recommended is not None}
    scale = 10**_THRESHOLD_DIGITS
    return {
        name: math.floor(found[truth_name] * scale) / scale
        for name, truth_name in renamed.items()
        if truth_name in found
    }


@dataclass(frozen=True, slots=True)
class _Matcher:
    """Truth images, and what matching them takes.

    Attributes:
        image_ids: of each image, None where the model has not scored it.
        class_index: (C,) class of the model -> of the truth, -1 for none.
    """

    context: Context
    images: Sequence[TruthImage]
    image_ids: Sequence[str | None]
    truth: InstanceColumns
    class_index: NDArray[np.int64]
    iou_type: IouType

    def keys(self) -> list[bytes]:
        """Of each image's record."""
        truth = self.truth
        starts = np.searchsorted(truth.image, np.arange(len(self.images) + 1)).tolist()
        numbers = np.column_stack([truth.class_index, truth.boxes_xywh, truth.area, truth.crowd])
        data = memoryview(np.ascontiguousarray(numbers, np.float64).tobytes())
        width = 8 * numbers.shape[1]
        digests = []
        for i in range(len(self.images)):
            content = bytes(data[starts[i] * width : starts[i + 1] * width])
            if truth.masks is not None:
                content += b"".join(
                    _counts(mask) for mask in truth.masks[starts[i] : starts[i + 1]]
                )
            digests.append(digest(content))
        return image_keys(self.image_ids, self.context.commits(self.image_ids), digests)

    def match(self, todo: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Records of these images, by and by."""
        wanted = pd.DataFrame({"image": todo, "image_id": [self.image_ids[i] for i in todo]})
        wanted = wanted.dropna(subset=["image_id"])
        extra = ["mask_layer", "mask_value"] if self.iou_type == "segm" else []
        rows = self.context.table("detections", [*_COLUMNS, *extra], set(wanted["image_id"]))
        # one file may be several images of the truth
        rows = wanted.merge(rows, on="image_id").sort_values(["image", "rank"])
        image = rows["image"].to_numpy()
        _check(rows, self.images)
        for start in range(0, len(todo), _IMAGES_AT_ONCE):
            part = todo[start : start + _IMAGES_AT_ONCE]
            first, last = np.searchsorted(image, [part[0], part[-1] + 1])
            yield self._match(part, rows.iloc[first:last])

    def _match(self, part: NDArray[np.int64], rows: pd.DataFrame) -> pa.Table:
        image = np.searchsorted(part, rows["image"].to_numpy())
        class_index = self.class_index[rows["class_id"].to_numpy()]
        known = class_index >= 0
        num_unknown = np.bincount(image[~known], minlength=len(part))
        rows, image = rows[known], image[known]
        corners = rows[_CORNERS].to_numpy(np.float64)
        detections = DetectionColumns(
            image=image,
            class_index=class_index[known],
            position=rows["rank"].to_numpy(np.int64),
            score=rows["score"].to_numpy(np.float64),
            boxes_xywh=np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]),
            masks=self._masks(rows) if self.iou_type == "segm" else None,
        )
        records = match_images(_cut(self.truth, part), detections, len(part), self.iou_type)
        counts = pa.array(num_unknown, pa.int32())
        return matches_to_table(records).append_column(_SCHEMA.field("num_unknown"), counts)

    def _masks(self, rows: pd.DataFrame) -> list[Mapping[str, Any]]:
        """Masks as RLE, row by row."""
        sizes = {
            image_id: (self.images[i].height, self.images[i].width)
            for i, image_id in zip(rows["image"], rows["image_id"], strict=True)
        }
        found: dict[tuple[str, int, int], Mapping[str, Any]] = {}
        by_image = {str(one): group for one, group in rows.groupby("image_id", sort=False)}
        for image_id, planes in self.context.masks("instances", by_image):
            if planes.shape[1:] != sizes[image_id]:
                raise ValueError(
                    f"image {image_id} is {planes.shape[1:]} and its truth {sizes[image_id]} "
                    "(height, width): masks must have the image's size"
                )
            own = by_image[image_id][["mask_layer", "mask_value"]].drop_duplicates().astype(int)
            for layer in own["mask_layer"].unique().tolist():
                values = own.loc[own["mask_layer"] == layer, "mask_value"].tolist()
                encoded = encode_plane(planes[layer], values)
                found |= {(image_id, layer, value): rle for value, rle in encoded.items()}
        places = zip(
            rows["image_id"], rows["mask_layer"].astype(int), rows["mask_value"].astype(int),
            strict=True,
        )  # fmt: skip
        return [found[place] for place in places]


def _counts(mask: Mapping[str, Any]) -> bytes:
    """What tells one mask from another of the same image."""
    counts = mask["counts"]
    return (counts if isinstance(counts, bytes) else str(counts).encode()) + b"|"


def _check(rows: pd.DataFrame, images: Sequence[TruthImage]) -> None:
    """Refuse what would be scored silently wrong: NaN scores give AP 1.0 elsewhere."""
    numbers = rows[["score", *_CORNERS]].to_numpy(np.float64)
    bad = ~np.isfinite(numbers).all(axis=1)
    bad |= (numbers[:, 3] < numbers[:, 1]) | (numbers[:, 4] < numbers[:, 2])
    if bad.any():
        row = rows[bad].iloc[0]
        raise ValueError(
            f"{int(bad.sum())} stored detections cannot be scored; scores and boxes must be "
            f"finite and x_max >= x_min, y_max >= y_min; first: "
            f"{images[row['image']].file_name}, rank {row['rank']}, score {row['score']}, "
            f"box {[float(row[name]) for name in _CORNERS]}; `pixelmill audit` looks for damage"
        )


def _cut(truth: InstanceColumns, images: NDArray[np.int64]) -> InstanceColumns:
    """The instances of some images, which become 0, 1, ..."""
    starts, ends = (np.searchsorted(truth.image, images, side) for side in ("left", "right"))
    lengths = ends - starts
    rows = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    return InstanceColumns(
        image=np.repeat(np.arange(len(images)), lengths),
        class_index=truth.class_index[rows],
        boxes_xywh=truth.boxes_xywh[rows],
        area=truth.area[rows],
        crowd=truth.crowd[rows],
        masks=None if truth.masks is None else [truth.masks[row] for row in rows.tolist()],
    )


def _mistakes(
    context: Context,
    scored: Scored,
    files: Sequence[str],
    names: Sequence[str],
    truth: InstanceColumns,
    records: MatchRecords,
    errors: Errors,
) -> tuple[Mistake, ...]:
    """The worst of each kind: wrong detections of the highest score, the largest misses."""
    chosen: list[int] = []
    for kind in range(len(KINDS)):
        rows = np.flatnonzero(errors.kind == kind)
        order = np.argsort(-records.score[rows], kind="stable")[:_MOST_MISTAKES]
        chosen += rows[order].tolist()
    images: list[int] = records.image[chosen].tolist()
    wanted = {scored.image_ids[files[image]] for image in images}
    boxes = context.table("detections", ["rank", *_CORNERS], wanted).set_index(["image_id", "rank"])
    corners = {
        key: (float(left), float(top), float(right), float(bottom))
        for key, left, top, right, bottom in boxes.itertuples(name=None)
    }

    def truth_box(row: int) -> tuple[float, float, float, float]:
        x, y, w, h = truth.boxes_xywh[row].tolist()
        return x, y, x + w, y + h

    def wrong(row: int) -> Mistake:
        file, rank = files[int(records.image[row])], int(records.position[row])
        image_id, target = scored.image_ids[file], int(errors.target[row])
        class_index = int(records.class_index[row])
        truth_class = int(records.truth_class[target]) if target >= 0 else -1
        overlaps = records.same_iou if truth_class == class_index else records.other_iou
        return Mistake(
            path=scored.paths[file],
            image_id=image_id,
            kind=KINDS[int(errors.kind[row])],
            class_name=names[class_index],
            score=float(records.score[row]),
            rank=rank,
            box_xyxy=corners[image_id, rank],
            truth_class=names[truth_class] if target >= 0 else None,
            truth_box_xyxy=truth_box(target) if target >= 0 else None,
            iou=float(overlaps[row]) if target >= 0 else None,
        )

    missed = np.flatnonzero(errors.missed)
    largest = missed[np.argsort(-truth.area[missed], kind="stable")[:_MOST_MISTAKES]]
    return (
        *(wrong(row) for row in chosen),
        *(
            Mistake(
                path=scored.paths[files[int(truth.image[row])]],
                image_id=scored.image_ids.get(files[int(truth.image[row])]),
                kind=KINDS[MISSED],
                class_name=names[int(truth.class_index[row])],
                score=None,
                rank=None,
                box_xyxy=truth_box(row),
            )
            for row in largest.tolist()
        ),
    )
