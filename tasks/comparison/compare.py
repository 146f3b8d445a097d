"""Compare two sides, model by model, without truth and where there is truth with it."""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.comparison.boxes import (
    FLIPPED,
    MOVED,
    SAME,
    BoxTally,
    ImageBoxes,
    Matched,
    match_boxes,
    pair_mask_iou,
)
from pixelmill.tasks.comparison.labels import LabelTally
from pixelmill.tasks.comparison.regions import RegionTally, agreement, joint_pixels
from pixelmill.tasks.comparison.results import Comparison, ImageChange, Kind, ModelComparison
from pixelmill.tasks.comparison.sentences import CaptionTally
from pixelmill.tasks.comparison.sides import (
    KIND_OF_TASK,
    Side,
    chunks,
    pair_models,
    read_rows,
    scored_ids,
)
from pixelmill.tasks.metrics.ptb import tokenize_captions
from pixelmill.tasks.slices import TruthComparison
from pixelmill.tasks.stage import stage
from pixelmill.tasks.store import Store
from pixelmill.tasks.store.masks import read_planes

__all__ = ["ImageSink", "TruthReader", "compare_models", "compare_sides", "compare_task"]

# (model A, model B, changes of some images): called with every image, chunk by chunk
ImageSink = Callable[[str, str, Sequence[ImageChange]], None]
# keys of model A and model B -> their numbers with truth
TruthReader = Callable[[str, str], tuple[TruthComparison, ...]]

_KEPT_IMAGES = 200
_MOST_REASONS = 4
_PLACE = ("mask_store", "semantic_array", "semantic_row", "instances_array", "instances_row")
_BOX = ("rank", "class_name", "score", "x_min", "y_min", "x_max", "y_max")

Row = dict[str, Any]


def compare_sides(
    a: Side,
    b: Side,
    *,
    collection: str | None = None,
    sample: int | None = None,
    with_masks: bool = True,
    sink: ImageSink | None = None,
    read_truth: TruthReader | None = None,
) -> Comparison:
    """Compare every model of A with its counterpart in B, on the images that both have scored.

    Args:
        a: one side.
        b: the other; numbers are B's less A's.
        collection: only its images; None: all.
        sample: at most so many images, the same on every call; None: all.
        with_masks: read instance masks too, which takes most of the time; label maps are read
            anyway.
        sink: is given every image's change; the result holds the largest only.
        read_truth: compares two models by truth, such as `compare_by_truth`; None: there is none.

    Raises:
        ValueError: no model of A has a counterpart in B, or they share no image.
    """
    pairs, skipped = pair_models(a, b)
    if not pairs:
        raise ValueError(
            f"no model of {a.name} ({', '.join(a.models) or 'none'}) can be compared with one of "
            f"{b.name} ({', '.join(b.models) or 'none'}): give two of one task, by --model where "
            "there are several"
        )
    compared = tuple(
        compare_models(
            a, b, first, second, collection=collection, sample=sample, with_masks=with_masks,
            sink=sink,
        )
        for first, second in pairs
    )  # fmt: skip
    if not any(pair.num_images for pair in compared):
        raise ValueError(
            f"{a.name} and {b.name} share no image, so there is nothing to pair; "
            "`pixelmill health` compares nights of different images"
        )
    if read_truth is not None:
        compared = tuple(
            replace(pair, truth=read_truth(pair.model_a, pair.model_b)) for pair in compared
        )
    return Comparison(
        a=a.name,
        b=b.name,
        root_a=a.store.root,
        root_b=b.store.root,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        pairs=compared,
        skipped=skipped,
    )


def compare_models(
    a: Side,
    b: Side,
    spec_a: ModelSpec,
    spec_b: ModelSpec,
    *,
    collection: str | None = None,
    sample: int | None = None,
    with_masks: bool = True,
    sink: ImageSink | None = None,
) -> ModelComparison:
    """Compare one model of A with one of B; arguments as of `compare_sides`."""
    ids_a, ids_b = scored_ids(a, spec_a.key, collection), scored_ids(b, spec_b.key, collection)
    common = np.intersect1d(ids_a, ids_b, assume_unique=True)
    compared = common[:sample]  # ids are digests: the first are a random sample
    kind = KIND_OF_TASK[spec_a.task]
    pair = _Pair(a.store, b.store, spec_a, spec_b)
    walk = _walk_of(kind, pair, with_masks)
    largest: list[tuple[float, str, ImageChange]] = []
    for image_ids in chunks(compared):
        changes = list(walk.compare(pair, image_ids))
        if sink is not None:
            sink(spec_a.key, spec_b.key, changes)
        for change in changes:
            if change.change > 0:
                heapq.heappush(largest, (change.change, change.image_id, change))
                if len(largest) > _KEPT_IMAGES:
                    heapq.heappop(largest)
    tally = walk.tally
    notes = []
    if len(compared) < len(common):
        notes.append(f"a sample of {len(compared):,} of {len(common):,} common images")
    return ModelComparison(
        kind=kind,
        model_a=spec_a.key,
        model_b=spec_b.key,
        num_images=len(compared),
        only_a=len(ids_a) - len(common),
        only_b=len(ids_b) - len(common),
        recipe=_recipe(spec_a, spec_b),
        headline=tally.headline() if len(compared) else (),
        findings=tally.findings(),
        per_class=tally.per_class(),
        images=tuple(one for _, _, one in sorted(largest, key=lambda item: (-item[0], item[1]))),
        flips=None if isinstance(tally, CaptionTally) else tally.confusion(),
        scores=tally.score_shift() if isinstance(tally, BoxTally | LabelTally) else None,
        notes=(*notes, *walk.notes),
    )


def _recipe(a: ModelSpec, b: ModelSpec) -> tuple[tuple[str, str, str], ...]:
    """Settings in which two descriptions differ, as dotted names."""
    hidden = {"weights_path", "decode_path", "quantized_path", "engine_note", "batch_size", "trust"}
    flat_a, flat_b = (
        dict(_flatten(spec.model_dump(mode="json", exclude=hidden))) for spec in (a, b)
    )
    return tuple(
        (name, flat_a.get(name, ""), flat_b.get(name, ""))
        for name in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(name) != flat_b.get(name)
    )


def _flatten(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _flatten(below, f"{name}.{key}" if name else str(key))
    else:
        text = str(value)
        yield name, text if len(text) <= 200 else f"{text[:197]}..."


@dataclass(frozen=True)
class _Pair:
    """Two models and their common classes."""

    store_a: Store
    store_b: Store
    spec_a: ModelSpec
    spec_b: ModelSpec
    classes: tuple[str, ...] = field(init=False)
    number: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(dict.fromkeys((*self.spec_a.classes, *self.spec_b.classes)))
        object.__setattr__(self, "classes", names)
        object.__setattr__(self, "number", {name: k for k, name in enumerate(names)})

    @property
    def sides(self) -> tuple[tuple[Store, str], tuple[Store, str]]:
        return (self.store_a, self.spec_a.key), (self.store_b, self.spec_b.key)

    def images(
        self, image_ids: Sequence[str], columns: Sequence[str]
    ) -> tuple[dict[str, Row], ...]:
        """Rows of images of A and of B, by id."""
        wanted = set(image_ids)
        found = []
        for store, key in self.sides:
            table = read_rows(store, "images", key, image_ids, columns)
            found.append({r["image_id"]: r for r in table.to_pylist() if r["image_id"] in wanted})
        return tuple(found)

    def best(
        self, table: str, image_ids: Sequence[str], columns: Sequence[str]
    ) -> tuple[dict[str, Row], ...]:
        """The rows of rank 0 of A and of B, by id."""
        found = []
        for store, key in self.sides:
            rows = read_rows(store, table, key, image_ids, ["rank", *columns])
            rows = rows.filter(pc.equal(rows["rank"], 0))  # pyright: ignore[reportAttributeAccessIssue]
            found.append({row["image_id"]: row for row in rows.to_pylist()})
        return tuple(found)


class _BoxWalk:
    """Detections, and the masks of those that have them."""

    def __init__(self, pair: _Pair, with_masks: bool) -> None:
        self.tally = BoxTally(pair.classes)
        both = {pair.spec_a.task, pair.spec_b.task} == {"instance_segmentation"}
        self._with_masks = with_masks and both
        self.notes: tuple[str, ...] = (
            ("masks were not compared, as asked",) if both and not with_masks else ()
        )

    def compare(self, pair: _Pair, image_ids: Sequence[str]) -> Iterator[ImageChange]:
        columns = ("path", "source_uri", "height", "width", *_PLACE)
        images_a, images_b = pair.images(image_ids, columns)
        slots = ("mask_layer", "mask_value") if self._with_masks else ()
        rows_a, rows_b = (
            _by_image(read_rows(store, "detections", key, image_ids, (*_BOX, *slots)), pair.number)
            for store, key in pair.sides
        )
        # by place of the masks, so that their stores are read from front to back
        order = sorted(image_ids, key=lambda i: (images_a[i]["mask_store"] or "", i))
        for image_id in order:
            a, b = rows_a.get(image_id, _NO_BOXES), rows_b.get(image_id, _NO_BOXES)
            matched = match_boxes(a.boxes, b.boxes)
            mask_iou = None
            if self._with_masks and len(matched.iou):
                mask_iou = _mask_iou(pair, images_a[image_id], images_b[image_id], a, b, matched)
            self.tally.add(a.boxes, b.boxes, matched, mask_iou)
            yield _box_change(images_a[image_id], a.boxes, b.boxes, matched, pair.classes, mask_iou)


@dataclass(frozen=True, slots=True)
class _ImageRows:
    """A model's boxes on an image, and (layer, value) of their masks."""

    boxes: ImageBoxes
    slots: tuple[tuple[int, int], ...] = ()


_NO_BOXES = _ImageRows(ImageBoxes(np.empty((0, 4)), np.empty(0), np.empty(0, np.int64)))


def _by_image(table: pa.Table, number: Mapping[str, int]) -> dict[str, _ImageRows]:
    """Boxes by image id; parts are sorted by (image_id, rank), but there may be several."""
    table = table.sort_by([("image_id", "ascending"), ("rank", "ascending")])
    ids = table["image_id"].combine_chunks().dictionary_encode()
    owner = ids.indices.to_numpy()
    starts = np.searchsorted(owner, np.arange(len(ids.dictionary) + 1))
    corners = np.column_stack([table[name].to_numpy() for name in _BOX[3:]]).astype(np.float64)
    scores = table["score"].to_numpy().astype(np.float64)
    names = table["class_name"].combine_chunks().dictionary_encode()
    index = np.array([number[name] for name in names.dictionary.to_pylist()], np.int64)
    labels = index[names.indices.to_numpy()] if len(index) else np.empty(0, np.int64)
    slots: list[tuple[int, int]] = []
    if "mask_layer" in table.column_names:
        layers, values = (
            pc.fill_null(table[name], -1).to_pylist() for name in ("mask_layer", "mask_value")
        )
        slots = list(zip(layers, values, strict=True))
    return {
        image_id: _ImageRows(
            ImageBoxes(corners[begin:end], scores[begin:end], labels[begin:end]),
            tuple(slots[begin:end]),
        )
        for image_id, begin, end in zip(
            ids.dictionary.to_pylist(), starts[:-1], starts[1:], strict=True
        )
    }


def _planes(store: Store, image: Row, kind: str) -> NDArray[Any] | None:
    """An image's mask planes; None without."""
    if image[f"{kind}_array"] is None:
        return None
    array = store.mask_array(image["mask_store"], image[f"{kind}_array"])
    return read_planes(array, image[f"{kind}_row"], image["height"], image["width"])


def _mask_iou(
    pair: _Pair, image_a: Row, image_b: Row, a: _ImageRows, b: _ImageRows, matched: Matched
) -> NDArray[np.float64]:
    planes_a = _planes(pair.store_a, image_a, "instances")
    planes_b = _planes(pair.store_b, image_b, "instances")
    if planes_a is None or planes_b is None:
        return np.full(len(matched.iou), np.nan)
    return pair_mask_iou(
        planes_a,
        planes_b,
        [a.slots[k] for k in matched.index_a],
        [b.slots[k] for k in matched.index_b],
    )


def _box_change(
    image: Row,
    a: ImageBoxes,
    b: ImageBoxes,
    matched: Matched,
    classes: Sequence[str],
    mask_iou: NDArray[np.float64] | None,
) -> ImageChange:
    """How far the boxes are apart, each weighed by its score.

    Of a pair counts what is common: IoU times the lower score. One more than all scores stands
    below the line, so that a single faint box is no great change.
    """
    kept = matched.kind != FLIPPED
    pair_score = np.minimum(a.scores[matched.index_a], b.scores[matched.index_b])
    overlap = (
        matched.iou if mask_iou is None else np.where(np.isnan(mask_iou), matched.iou, mask_iou)
    )
    total = float(a.scores.sum() + b.scores.sum())
    common = 2 * float((overlap * pair_score)[kept].sum())
    parts: list[tuple[float, str]] = []
    for what, rows, boxes in (("lost", matched.lost, a), ("gained", matched.gained, b)):
        for label in np.unique(boxes.labels[rows]):
            chosen = rows[boxes.labels[rows] == label]
            worth = float(boxes.scores[chosen].sum())
            parts.append((worth, f"{len(chosen)} {classes[label]} {what}"))
    for k in np.flatnonzero(matched.kind != SAME):
        before = classes[int(a.labels[matched.index_a[k]])]
        if matched.kind[k] == MOVED:
            parts.append((float(pair_score[k]), f"{before} moved"))
        else:
            after = classes[int(b.labels[matched.index_b[k]])]
            parts.append((2 * float(pair_score[k]), f"{before} became {after}"))
    apart = float((2 * (1 - overlap) * pair_score)[matched.kind == SAME].sum())
    if apart > 0.1:
        parts.append((apart, "outlines differ" if mask_iou is not None else "boxes differ"))
    parts.sort(key=lambda part: (-part[0], part[1]))
    return ImageChange(
        image["image_id"],
        image["path"],
        image["source_uri"],
        max(0.0, total - common) / (1 + total),
        tuple(dict.fromkeys(text for _, text in parts[:_MOST_REASONS])),
        {
            "same": float((matched.kind == SAME).sum()),
            "flipped": float((matched.kind == FLIPPED).sum()),
            "moved": float((matched.kind == MOVED).sum()),
            "lost": float(len(matched.lost)),
            "gained": float(len(matched.gained)),
        },
    )


class _RegionWalk:
    """Label maps."""

    notes: tuple[str, ...] = ()

    def __init__(self, pair: _Pair) -> None:
        self.tally = RegionTally(pair.classes)
        self._index_a, self._index_b = (
            np.array([*(pair.number[name] for name in spec.classes), len(pair.classes)], np.int64)
            for spec in (pair.spec_a, pair.spec_b)
        )

    def compare(self, pair: _Pair, image_ids: Sequence[str]) -> Iterator[ImageChange]:
        images_a, images_b = pair.images(
            image_ids, ("path", "source_uri", "height", "width", *_PLACE)
        )
        for image_id in sorted(image_ids, key=lambda i: (images_a[i]["mask_store"] or "", i)):
            image = images_a[image_id]
            a = _planes(pair.store_a, image, "semantic")
            b = _planes(pair.store_b, images_b[image_id], "semantic")
            if a is None or b is None:
                continue
            joint = joint_pixels(a, b, self._index_a, self._index_b, len(pair.classes))
            self.tally.add(joint)
            yield _region_change(image, joint, pair.classes)


def _region_change(image: Row, joint: NDArray[np.int64], classes: Sequence[str]) -> ImageChange:
    names = (*classes, "void")
    apart = joint.copy()
    np.fill_diagonal(apart, 0)
    total = max(1, int(joint.sum()))
    order = np.argsort(-apart.ravel(), kind="stable")[:_MOST_REASONS]
    reasons = []
    for place in order:
        i, j = divmod(int(place), len(names))
        if apart[i, j] >= 0.01 * total:
            reasons.append(f"{names[i]} became {names[j]} on {apart[i, j] / total:.0%}")
    alike = agreement(joint)
    return ImageChange(
        image["image_id"], image["path"], image["source_uri"], 1 - alike, tuple(reasons),
        {"pixel agreement": alike},
    )  # fmt: skip


class _CaptionWalk:
    """Best captions."""

    notes: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.tally = CaptionTally()

    def compare(self, pair: _Pair, image_ids: Sequence[str]) -> Iterator[ImageChange]:
        images, _ = pair.images(image_ids, ("path", "source_uri"))
        best_a, best_b = pair.best("captions", image_ids, ["text"])
        texts = [
            [rows[i]["text"] if i in rows else "" for i in image_ids] for rows in (best_a, best_b)
        ]
        tokens = [tokenize_captions(each) for each in texts]
        for k, image_id in enumerate(image_ids):
            alike = self.tally.add(tokens[0][k], tokens[1][k])
            reasons = (f"{texts[0][k]!r} became {texts[1][k]!r}",) if alike < 1 else ()
            image = images[image_id]
            yield ImageChange(
                image_id, image["path"], image["source_uri"], 1 - alike, reasons,
                {"token F1": alike},
            )  # fmt: skip


class _LabelWalk:
    """Best classes."""

    notes: tuple[str, ...] = ()

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.tally = LabelTally(classes)

    def compare(self, pair: _Pair, image_ids: Sequence[str]) -> Iterator[ImageChange]:
        images, _ = pair.images(image_ids, ("path", "source_uri"))
        sides = pair.best("labels", image_ids, ["class_name", "score"])
        names = (*pair.classes, "none")
        for image_id in image_ids:
            labels, scores = [], []
            for rows in sides:
                row = rows.get(image_id)
                labels.append(len(pair.classes) if row is None else pair.number[row["class_name"]])
                scores.append(0.0 if row is None else float(row["score"]))
            self.tally.add(labels[0], labels[1], scores[0], scores[1])
            flipped = labels[0] != labels[1]
            # a flip between two sure answers is a greater change than one between two guesses
            change = (
                max(scores) / 2 + min(scores) / 2 if flipped else abs(scores[1] - scores[0]) / 2
            )
            reasons = (f"{names[labels[0]]} became {names[labels[1]]}",) if flipped else ()
            image = images[image_id]
            yield ImageChange(
                image_id, image["path"], image["source_uri"], min(1.0, change), reasons,
                {"score in A": scores[0], "score in B": scores[1]},
            )  # fmt: skip


_Walk = _BoxWalk | _RegionWalk | _CaptionWalk | _LabelWalk


def _walk_of(kind: Kind, pair: _Pair, with_masks: bool) -> _Walk:
    if kind == "boxes":
        return _BoxWalk(pair, with_masks)
    if kind == "semantic":
        return _RegionWalk(pair)
    return _CaptionWalk() if kind == "captions" else _LabelWalk(pair.classes)


compare_task = stage("compare")(compare_sides)
