"""A model of instances and one of label maps together: panoptic quality."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pixelmill.tasks.evaluation.context import Comparison, Context
from pixelmill.tasks.evaluation.records import digest, image_keys
from pixelmill.tasks.evaluation.semantic import map_digest
from pixelmill.tasks.metrics.detection import InstanceTruth, TruthImage, decode_mask
from pixelmill.tasks.metrics.panoptic import panoptic_counts, score_panoptic
from pixelmill.tasks.metrics.statistics import PanopticStatistics
from pixelmill.tasks.truth import SemanticTruth, read_label_map, without_suffix

__all__ = ["compare_panoptic"]

LEAST_SCORE, LEAST_FREE, LEAST_STUFF = 0.5, 0.5, 64 * 64
_IMAGES_AT_ONCE = 256
_SCHEMA = pa.schema([pa.field("counts", pa.list_(pa.field("element", pa.float64(), False)), False)])
_POLICIES = {
    "matching": "a segment is found at IoU above 0.5 with one of its class",
    "void": "pixels without a segment in the truth leave the union; leftovers that lie more than "
    "half on them, or on a crowd of their class, are not counted",
    "prediction": f"instances of score {LEAST_SCORE} or more, best first, each on the pixels that "
    f"are left if these are {LEAST_FREE:.0%} of it or more; the rest is the label map's classes "
    f"that are no things, of {LEAST_STUFF} pixels or more (Kirillov et al., Panoptic feature "
    "pyramid networks, CVPR 2019)",
    "truth": "instances, the smaller on top, on label maps; pixels of a thing's class that are no "
    "instance's are void",
    "absent classes": "in neither truth nor prediction: left out of every mean",
}


def compare_panoptic(
    things: Context, stuff: Context, instances: InstanceTruth, semantic: SemanticTruth
) -> Comparison | None:
    """Panoptic quality of two models' predictions of the images that have both kinds of truth.

    Args:
        things: a model of instances.
        stuff: a model of label maps.
        instances: truth with masks.
        semantic: truth; classes of the same name as instances' are those.

    Returns:
        None where no image has both kinds of truth, or no class is common.
    """
    categories = tuple(category.name for category in instances.categories)
    truth_names = semantic.classes or dict(enumerate(stuff.class_names()))
    void = stuff.config.void
    others = [name for value, name in truth_names.items() if value != void]
    names = (*categories, *dict.fromkeys(name for name in others if name not in categories))
    images = [
        image
        for image in sorted(instances.images, key=lambda image: image.file_name)
        if without_suffix(image.file_name) in semantic.maps
    ]
    if not images or not set(things.class_names()) & set(categories):
        return None
    files = [image.file_name for image in images]
    scored, other = things.join(files), stuff.join(files)
    pairs = list(zip(scored.ids(files), other.ids(files), strict=True))
    painter = _Painter(things, stuff, instances, semantic, images, pairs, names, len(categories))
    parameters = {
        "classes": names,
        "things": categories,
        "truth": sorted(truth_names.items()),
        "of things": things.class_names(),
        "of stuff": [stuff.spec.key, *stuff.class_names()],
        "void": void,
    }
    rows, notes = things.records("panoptic", parameters, _SCHEMA).rows(
        painter.keys(), painter.count
    )
    counts = rows["counts"].combine_chunks().flatten().to_numpy().reshape(-1, len(names), 4)
    total = np.sum(counts, axis=0)
    if not total[:, 1:].any():
        return None
    scores = score_panoptic(total, names, categories)
    is_thing = np.arange(len(names)) < len(categories)
    return things.compare(
        scored,
        "panoptic",
        files,
        scores.metrics,
        PanopticStatistics(names, counts, is_thing),
        (f"instances of {things.spec.key}, label maps of {stuff.spec.key}", *notes),
        per_class=scores.per_class,
        policies=_POLICIES,
        partner_key=stuff.spec.key,
    )


@dataclass(frozen=True, slots=True)
class _Painter:
    """Images with both kinds of truth, and what counting their segments takes.

    Attributes:
        pairs: image_id of the model of instances and of the one of label maps, or None.
        names: of all classes, things first; num_things of them.
    """

    things: Context
    stuff: Context
    instances: InstanceTruth
    semantic: SemanticTruth
    images: Sequence[TruthImage]
    pairs: Sequence[tuple[str | None, str | None]]
    names: Sequence[str]
    num_things: int

    def keys(self) -> list[bytes]:
        """Of each image's record."""
        notes = self._annotations()
        digests = [
            digest(
                map_digest(self.semantic, without_suffix(image.file_name))
                + repr(notes.get(image.id, ())).encode()
            )
            for image in self.images
        ]
        first, second = ([pair[side] for pair in self.pairs] for side in (0, 1))
        inner = image_keys(second, self.stuff.commits(second), digests)
        return image_keys(first, self.things.commits(first), inner)

    def _annotations(self) -> dict[int, list[Mapping[str, Any]]]:
        found: dict[int, list[Mapping[str, Any]]] = {}
        for note in self.instances.annotations:
            found.setdefault(note["image_id"], []).append(note)
        return found

    def count(self, todo: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Records of these images, by and by."""
        notes = self._annotations()
        for start in range(0, len(todo), _IMAGES_AT_ONCE):
            part: list[int] = todo[start : start + _IMAGES_AT_ONCE].tolist()
            first = {one for i in part if (one := self.pairs[i][0]) is not None}
            second = {one for i in part if (one := self.pairs[i][1]) is not None}
            planes = dict(self.things.masks("instances", first))
            maps = dict(self.stuff.masks("semantic", second))
            columns = ["rank", "class_id", "score", "mask_layer", "mask_value"]
            boxes = self.things.table("detections", columns, first).sort_values("rank")
            by_image = {str(one): group for one, group in boxes.groupby("image_id", sort=False)}
            counts = []
            for i in part:
                truth, truth_classes, crowds = self._truth(self.images[i], notes)
                own, other = self.pairs[i]
                guess, guess_classes = self._guess(
                    truth.shape,
                    planes.get(own or ""),
                    by_image.get(own or ""),
                    maps.get(other or ""),
                )
                counts.append(
                    panoptic_counts(
                        truth, guess, truth_classes, guess_classes, len(self.names), crowds=crowds
                    ).ravel()
                )
            yield pa.Table.from_pylist([{"counts": one} for one in counts], schema=_SCHEMA)

    def _stuff_of(self, names: Mapping[int, str]) -> dict[int, int]:
        """Label value -> class index, of classes that are no things."""
        index = {name: k for k, name in enumerate(self.names) if k >= self.num_things}
        return {value: index[name] for value, name in names.items() if name in index}

    def _truth(
        self, image: TruthImage, notes: Mapping[int, list[Mapping[str, Any]]]
    ) -> tuple[NDArray[np.int64], dict[int, int], set[int]]:
        label_map = read_label_map(self.semantic.maps[without_suffix(image.file_name)])
        if label_map.shape != (image.height, image.width):
            raise ValueError(
                f"{image.file_name}: its label map is {label_map.shape} and the image "
                f"{(image.height, image.width)} (height, width) in the instances' file"
            )
        segments, classes = np.zeros(label_map.shape, np.int64), dict[int, int]()
        names = self.semantic.classes or dict(enumerate(self.stuff.class_names()))
        for value, k in self._stuff_of(names).items():
            if value != self.stuff.config.void and (found := label_map == value).any():
                segments[found] = k + 1
                classes[k + 1] = k
        index = {category.id: k for k, category in enumerate(self.instances.categories)}
        crowds: set[int] = set()
        own = notes.get(image.id, ())
        # crowds lie below, and of the others the smaller on top
        for note in sorted(own, key=lambda one: (not one["iscrowd"], -one["area"])):
            segment = len(self.names) + 1 + len(classes)
            found = decode_mask(note["segmentation"])
            segments[found] = segment
            classes[segment] = index[note["category_id"]]
            if note["iscrowd"]:
                crowds.add(segment)
        return segments, classes, crowds

    def _guess(
        self,
        shape: tuple[int, int],
        planes: NDArray[Any] | None,
        boxes: pd.DataFrame | None,
        label_map: NDArray[Any] | None,
    ) -> tuple[NDArray[np.int64], dict[int, int]]:
        segments, classes = np.zeros(shape, np.int64), dict[int, int]()
        things = {name: k for k, name in enumerate(self.names) if k < self.num_things}
        of_model = [things.get(name, -1) for name in self.things.class_names()]
        if planes is not None and boxes is not None:
            kept = boxes[boxes["score"] >= LEAST_SCORE]
            numbers = kept[["rank", "class_id", "mask_layer", "mask_value"]].astype(int)
            for rank, class_id, layer, value in numbers.to_numpy().tolist():
                found = planes[layer] == value
                free = found & (segments == 0)
                if of_model[class_id] < 0 or not free.any():
                    continue
                if np.count_nonzero(free) >= LEAST_FREE * np.count_nonzero(found):
                    segment = len(self.names) + 1 + rank
                    segments[free] = segment
                    classes[segment] = of_model[class_id]
        if label_map is not None:
            for value, k in self._stuff_of(dict(enumerate(self.stuff.class_names()))).items():
                free = (label_map == value) & (segments == 0)
                if np.count_nonzero(free) >= LEAST_STUFF:
                    segments[free] = k + 1
                    classes[k + 1] = k
        return segments, classes
