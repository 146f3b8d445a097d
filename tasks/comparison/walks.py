"""Through the images that two models have scored, chunk by chunk: one walk for each kind."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.comparison.boxes import BoxTally
from pixelmill.tasks.comparison.changes import MOST_REASONS, box_changes
from pixelmill.tasks.comparison.labels import LabelTally
from pixelmill.tasks.comparison.matching import BoxColumns, match_boxes, pair_mask_iou
from pixelmill.tasks.comparison.regions import VOID, RegionTally, agreement, joint_pixels
from pixelmill.tasks.comparison.results import ImageChange, Kind
from pixelmill.tasks.comparison.sentences import CaptionTally
from pixelmill.tasks.comparison.sides import ModelRows
from pixelmill.tasks.comparison.tallies import NONE
from pixelmill.tasks.metrics.ptb import tokenize_captions
from pixelmill.tasks.store import Store
from pixelmill.tasks.store.masks import read_planes

__all__ = ["Pair", "Walk", "walk_of"]

_FILE = ("path", "source_uri")
_PLACE = (
    "height", "width", "mask_store", "semantic_array", "semantic_row", "instances_array",
    "instances_row",
)  # fmt: skip
_SLOT = ("mask_layer", "mask_value")
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_BEST = [("rank", "=", 0)]

Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two models, their rows of the images compared, and their common classes."""

    rows_a: ModelRows
    rows_b: ModelRows
    spec_a: ModelSpec
    spec_b: ModelSpec
    classes: tuple[str, ...] = field(init=False)
    number: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        names = tuple(dict.fromkeys((*self.spec_a.classes, *self.spec_b.classes)))
        object.__setattr__(self, "classes", names)
        object.__setattr__(self, "number", {name: k for k, name in enumerate(names)})

    def each(
        self,
        table: str,
        image_ids: Sequence[str],
        columns: Sequence[str],
        filters: Sequence[tuple[str, str, Any]] = (),
    ) -> tuple[pa.Table, pa.Table]:
        """The rows of the images in A and in B, see `ModelRows.each`."""
        a, b = (
            rows.each(table, image_ids, columns, filters) for rows in (self.rows_a, self.rows_b)
        )
        return a, b

    def files(self, image_ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Paths and source URIs."""
        rows = self.rows_a.each("images", image_ids, _FILE)
        return rows["path"].to_pylist(), rows["source_uri"].to_pylist()

    def labels(self, names: pa.ChunkedArray) -> NDArray[np.int64]:
        """(N,) numbers of class names, K for nulls."""
        coded = names.combine_chunks().dictionary_encode()
        known = [self.number[name] for name in coded.dictionary.to_pylist()]
        numbers = np.array([*known, len(self.classes)], np.int64)
        return numbers[pc.fill_null(coded.indices, len(known)).to_numpy()]


class BoxWalk:
    """Detections, and the masks of those that have them."""

    def __init__(self, pair: Pair, with_masks: bool) -> None:
        self.tally = BoxTally(pair.classes)
        both = {pair.spec_a.task, pair.spec_b.task} == {"instance_segmentation"}
        self._with_masks = with_masks and both
        self.notes: tuple[str, ...] = (
            ("masks were not compared, as asked",) if both and not with_masks else ()
        )

    def compare(self, pair: Pair, image_ids: Sequence[str]) -> list[ImageChange]:
        """Take some images."""
        (a, slots_a), (b, slots_b) = (
            _read_boxes(pair, rows, image_ids, self._with_masks)
            for rows in (pair.rows_a, pair.rows_b)
        )
        matched = match_boxes(a, b, len(image_ids))
        mask_iou = None
        if slots_a is not None and slots_b is not None:
            owner = a.image[matched.index_a]
            slots = slots_a[matched.index_a], slots_b[matched.index_b]
            mask_iou = _mask_iou(pair, image_ids, owner, *slots)
        self.tally.add(a, b, matched, mask_iou)
        files = pair.files(image_ids)
        return box_changes(image_ids, *files, a, b, matched, pair.classes, mask_iou)


def _read_boxes(
    pair: Pair, rows: ModelRows, image_ids: Sequence[str], with_masks: bool
) -> tuple[BoxColumns, NDArray[np.int64] | None]:
    """Boxes by image and rank, and (N, 2) layer and value of their masks, -1 without."""
    columns = ("rank", "class_name", "score", *_CORNERS, *(_SLOT if with_masks else ()))
    table = rows.read("detections", image_ids, columns)
    image = pc.index_in(table["image_id"], value_set=pa.array(image_ids))  # pyright: ignore[reportAttributeAccessIssue]
    known = pc.is_valid(image)  # pyright: ignore[reportAttributeAccessIssue]
    table, image = table.filter(known), image.filter(known).to_numpy().astype(np.int64)
    # parts are sorted by image and rank, but there may be several
    order = np.lexsort((table["rank"].to_numpy(), image))

    def stack(names: Sequence[str], dtype: type) -> NDArray[Any]:
        return np.column_stack([pc.fill_null(table[n], -1).to_numpy() for n in names])[
            order
        ].astype(dtype)

    boxes = BoxColumns(
        image[order],
        stack(_CORNERS, np.float64),
        table["score"].to_numpy()[order].astype(np.float64),
        pair.labels(table["class_name"])[order],
    )
    return boxes, stack(_SLOT, np.int64) if with_masks else None


def _mask_iou(
    pair: Pair,
    image_ids: Sequence[str],
    owner: NDArray[np.int64],
    slots_a: NDArray[np.int64],
    slots_b: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(M,) IoU of the masks of matched boxes, NaN where one has none.

    Args:
        pair: of models.
        image_ids: of images 0, 1, ...
        owner: (M,) image of each match, rising.
        slots_a: (M, 2) layer and value of the mask in A.
        slots_b: the same in B.
    """
    places_a, places_b = (rows.to_pylist() for rows in pair.each("images", image_ids, _PLACE))
    starts = np.searchsorted(owner, np.arange(len(image_ids) + 1)).tolist()
    found = np.full(len(owner), np.nan)
    for image in _by_store(places_a):
        rows = slice(starts[image], starts[image + 1])
        if rows.start == rows.stop:
            continue
        planes_a = _planes(pair.rows_a.store, places_a[image], "instances")
        planes_b = _planes(pair.rows_b.store, places_b[image], "instances")
        if planes_a is not None and planes_b is not None:
            found[rows] = pair_mask_iou(
                planes_a, planes_b, slots_a[rows].tolist(), slots_b[rows].tolist()
            )
    return found


def _by_store(places: Sequence[Row]) -> list[int]:
    """Numbers of the images by place of their masks: stores are read from front to back."""
    return sorted(range(len(places)), key=lambda k: (places[k]["mask_store"] or "", k))


def _planes(store: Store, image: Row, kind: str) -> NDArray[Any] | None:
    """An image's mask planes; None without."""
    if image[f"{kind}_array"] is None:
        return None
    array = store.mask_array(image["mask_store"], image[f"{kind}_array"])
    return read_planes(array, image[f"{kind}_row"], image["height"], image["width"])


class RegionWalk:
    """Label maps."""

    notes: tuple[str, ...] = ()

    def __init__(self, pair: Pair) -> None:
        self.tally = RegionTally(pair.classes)
        self._index_a, self._index_b = (
            np.array([*(pair.number[name] for name in spec.classes), len(pair.classes)], np.int64)
            for spec in (pair.spec_a, pair.spec_b)
        )

    def compare(self, pair: Pair, image_ids: Sequence[str]) -> Iterator[ImageChange]:
        """Take some images; those without label maps are left out."""
        columns = (*_FILE, *_PLACE)
        images_a, images_b = (r.to_pylist() for r in pair.each("images", image_ids, columns))
        for k in _by_store(images_a):
            a = _planes(pair.rows_a.store, images_a[k], "semantic")
            b = _planes(pair.rows_b.store, images_b[k], "semantic")
            if a is None or b is None:
                continue
            joint = joint_pixels(a, b, self._index_a, self._index_b, len(pair.classes))
            self.tally.add(joint)
            yield _region_change(image_ids[k], images_a[k], joint, pair.classes)


def _region_change(
    image_id: str, image: Row, joint: NDArray[np.int64], classes: Sequence[str]
) -> ImageChange:
    names = (*classes, VOID)
    apart = joint.copy()
    np.fill_diagonal(apart, 0)
    total = max(1, int(joint.sum()))
    order = np.argsort(-apart.ravel(), kind="stable")[:MOST_REASONS]
    reasons = []
    for place in order:
        i, j = divmod(int(place), len(names))
        if apart[i, j] >= 0.01 * total:
            reasons.append(f"{names[i]} became {names[j]} on {apart[i, j] / total:.0%}")
    alike = agreement(joint)
    return ImageChange(
        image_id, image["path"], image["source_uri"], 1 - alike, tuple(reasons),
        {"pixel agreement": alike},
    )  # fmt: skip


class CaptionWalk:
    """Best captions."""

    notes: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.tally = CaptionTally()

    def compare(self, pair: Pair, image_ids: Sequence[str]) -> Iterator[ImageChange]:
        """Take some images."""
        texts = [
            pc.fill_null(rows["text"], "").to_pylist()
            for rows in pair.each("captions", image_ids, ["text"], _BEST)
        ]
        tokens = [tokenize_captions(each) for each in texts]
        columns = zip(image_ids, *pair.files(image_ids), *texts, *tokens, strict=True)
        for image_id, path, uri, text_a, text_b, tokens_a, tokens_b in columns:
            alike = self.tally.add(tokens_a, tokens_b)
            reasons = (f"{text_a!r} became {text_b!r}",) if alike < 1 else ()
            yield ImageChange(image_id, path, uri, 1 - alike, reasons, {"token F1": alike})


class LabelWalk:
    """Best classes."""

    notes: tuple[str, ...] = ()

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.tally = LabelTally(classes)

    def compare(self, pair: Pair, image_ids: Sequence[str]) -> Iterator[ImageChange]:
        """Take some images."""
        sides = pair.each("labels", image_ids, ["class_name", "score"], _BEST)
        a, b = (pair.labels(rows["class_name"]) for rows in sides)
        score_a, score_b = (
            pc.fill_null(rows["score"], 0).to_numpy().astype(np.float64) for rows in sides
        )
        self.tally.add(a, b, score_a, score_b)
        # a flip between two sure answers is a greater change than one between two guesses
        change = np.where(a != b, score_a + score_b, np.abs(score_b - score_a)) / 2
        names = (*pair.classes, NONE)
        numbers = (each.tolist() for each in (a, b, score_a, score_b, np.minimum(1, change)))
        columns = zip(image_ids, *pair.files(image_ids), *numbers, strict=True)
        for image_id, path, uri, label_a, label_b, in_a, in_b, worth in columns:
            reasons = () if label_a == label_b else (f"{names[label_a]} became {names[label_b]}",)
            values = {"score in A": in_a, "score in B": in_b}
            yield ImageChange(image_id, path, uri, worth, reasons, values)


Walk = BoxWalk | RegionWalk | CaptionWalk | LabelWalk


def walk_of(kind: Kind, pair: Pair, with_masks: bool) -> Walk:
    """The walk of a kind; `with_masks`: instance masks are compared too."""
    if kind == "boxes":
        return BoxWalk(pair, with_masks)
    if kind == "semantic":
        return RegionWalk(pair)
    return CaptionWalk() if kind == "captions" else LabelWalk(pair.classes)
