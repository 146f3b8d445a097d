"""One model on one collection: which image the truth means, and what the model said of it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import zarr
from numpy.typing import NDArray

from pixelmill.configs.schema import EvaluationConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.box_files import Size
from pixelmill.tasks.evaluation.records import EvaluationRecords
from pixelmill.tasks.metrics.bootstrap import MIN_IMAGES, Number, Statistics, intervals
from pixelmill.tasks.metrics.results import ImageRow, Kind, Metric, ModelEvaluation
from pixelmill.tasks.store import Store
from pixelmill.tasks.store.masks import read_planes
from pixelmill.tasks.truth import match_images

__all__ = [
    "CollectionImages",
    "Comparison",
    "Context",
    "Scored",
    "choose_models",
    "class_notes",
    "images_of",
    "no_common_class",
    "read_collection",
    "read_sizes",
    "with_intervals",
]

_HEADLINES: Mapping[Kind, tuple[str, ...]] = {
    "boxes": ("AP", "AP50", "AP75", "AR100"),
    "masks": ("AP", "AP50", "AP75", "AR100"),
    "panoptic": ("PQ", "SQ", "RQ", "PQ things", "PQ stuff"),
    "semantic": ("mIoU", "Dice", "pixel accuracy", "boundary F"),
    "captions": ("CIDEr-D", "CIDEr-D baseline", "BLEU-4", "ROUGE-L"),
    "labels": ("top-1", "top-5", "macro F1"),
}
_LONGEST_LIST = 10
# Of what is read by image: more of them are read whole, which is faster.
_MOST_WANTED = 20_000


@dataclass(frozen=True, slots=True)
class CollectionImages:
    """The images of a collection as they lie there now.

    Attributes:
        image_ids: path -> image_id; of a file that changed, the newest.
        failures: rows of the failures table.
    """

    image_ids: dict[str, str]
    failures: pd.DataFrame

    def paths(self) -> set[str]:
        """All paths, those included whose bytes could not be read."""
        return {*self.image_ids, *self.failures["path"]}


@dataclass(frozen=True, slots=True)
class Scored:
    """Truth names joined to the images that one model has scored.

    Attributes:
        names: of all truth images, sorted.
        paths: name -> path in the collection, or the name itself where there is none.
        image_ids: name -> image_id, where the model has scored the image.
        missing: names of images that the model never saw; failed: of those that it could not
            score. Both count as empty predictions.
    """

    names: tuple[str, ...]
    paths: dict[str, str]
    image_ids: dict[str, str]
    missing: tuple[str, ...]
    failed: tuple[str, ...]

    def ids(self, names: Sequence[str]) -> list[str | None]:
        """The image_id of each name, None where the model has not scored it."""
        return [self.image_ids.get(name) for name in names]

    def image_rows(self, values: Mapping[str, dict[str, float]]) -> tuple[ImageRow, ...]:
        """Per-image numbers by truth name, in the order of the paths."""
        rows = (
            ImageRow(self.paths[name], self.image_ids.get(name), values[name])
            for name in self.names
            if name in values
        )
        return tuple(sorted(rows, key=lambda row: row.path))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model against one kind of truth, and what any set of its images would give.

    Attributes:
        evaluation: without intervals.
        names: of the truth's images, in the order of `statistics`.
        paths: name -> path in the collection, or the name itself.
        image_ids: name -> image_id, where the model has scored the image.
        statistics: what each image adds to the numbers.
    """

    evaluation: ModelEvaluation
    names: tuple[str, ...]
    paths: dict[str, str]
    image_ids: dict[str, str]
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class Context:
    """One model on one collection."""

    store: Store
    spec: ModelSpec
    scored: pd.DataFrame
    images: CollectionImages
    config: EvaluationConfig

    def class_names(self) -> tuple[str, ...]:
        """The model's classes by the names that the truth uses."""
        renamed = self.config.class_names
        return tuple(renamed.get(name, name) for name in self.spec.classes)

    def records(self, kind: Kind, parameters: Any, schema: pa.Schema) -> EvaluationRecords:
        """What earlier evaluations of this model kept."""
        return EvaluationRecords(self.store, self.spec.key, kind, parameters, schema)

    def compare(
        self,
        scored: Scored,
        kind: Kind,
        names: Sequence[str],
        metrics: Sequence[Metric],
        statistics: Statistics,
        notes: Sequence[str],
        **details: Any,
    ) -> Comparison:
        """Put a comparison together.

        Args:
            scored: the truth's images.
            kind: of truth.
            names: of the truth's images, in the order of `statistics`.
            metrics: all numbers.
            statistics: what intervals are drawn from.
            notes: what a reader must know besides the gaps.
            **details: further fields of `ModelEvaluation`.
        """
        by_name = {metric.name: metric for metric in metrics}
        gaps = []
        if scored.missing:
            gaps.append(f"{len(scored.missing)} truth images were never scored")
        if scored.failed:
            gaps.append(f"{len(scored.failed)} truth images could not be scored")
        if gaps:
            gaps = [f"{' and '.join(gaps)}: they count as empty predictions"]
        evaluation = ModelEvaluation(
            model_key=self.spec.key,
            task=self.spec.task,
            kind=kind,
            headline=tuple(by_name[name] for name in _HEADLINES[kind] if name in by_name),
            metrics=tuple(metrics),
            num_images=len(scored.names),
            missing=scored.missing,
            failed=scored.failed,
            notes=(*gaps, *notes),
            **details,
        )
        return Comparison(evaluation, tuple(names), scored.paths, scored.image_ids, statistics)

    def join(self, names: Sequence[str], *, ignore_suffix: bool = False) -> Scored:
        """Find the truth's images among those that the model has scored."""
        matches = match_images(names, self.images.paths(), ignore_suffix=ignore_suffix)
        has_row = set(self.scored["image_id"])
        failures = self.images.failures
        of_model = failures["model_key"].isna() | (failures["model_key"] == self.spec.key)
        failed_paths = set(failures.loc[of_model, "path"])
        image_ids = {
            name: image_id
            for name, path in matches.paths.items()
            if (image_id := self.images.image_ids.get(path, "")) in has_row
        }
        unscored = [name for name in sorted(set(names)) if name not in image_ids]
        failed = [name for name in unscored if matches.paths.get(name) in failed_paths]
        return Scored(
            names=tuple(sorted(set(names))),
            paths={name: matches.paths.get(name, name) for name in names},
            image_ids=image_ids,
            missing=tuple(name for name in unscored if name not in set(failed)),
            failed=tuple(failed),
        )

    def table(self, name: str, columns: Sequence[str], image_ids: Collection[str]) -> pd.DataFrame:
        """The model's rows of some images; only the dates that these were scored at are read."""
        rows = self.scored[self.scored["image_id"].isin(set(image_ids))]
        first, last = ("", "") if rows.empty else (rows["date"].min(), rows["date"].max())
        filters: list[tuple[str, str, Any]] = [("date", ">=", first), ("date", "<=", last)]
        if len(rows) <= _MOST_WANTED:
            filters.append(("image_id", "in", rows["image_id"].tolist()))
        frame = self.store.table(
            name, model=self.spec.key, columns=["image_id", *columns], filters=filters
        ).to_pandas()
        return frame if len(rows) <= _MOST_WANTED else frame[frame["image_id"].isin(set(image_ids))]

    def commits(self, image_ids: Sequence[str | None]) -> list[str | None]:
        """The shard that the model's predictions of each image were committed with."""
        shards = dict(zip(self.scored["image_id"], self.scored["shard_id"], strict=True))
        return [None if one is None else shards[one] for one in image_ids]

    def masks(
        self, kind: Literal["semantic", "instances"], image_ids: Collection[str]
    ) -> Iterator[tuple[str, NDArray[Any]]]:
        """Mask planes of some images by image_id, in the order in which they are stored."""
        array, index = f"{kind}_array", f"{kind}_row"
        rows = self.scored[self.scored["image_id"].isin(set(image_ids))]
        rows = rows.dropna(subset=[array]).sort_values(["mask_store", array, index])
        for mask_store, group in rows.groupby("mask_store", sort=False):
            root = zarr.open_group(
                self.store.backend.zarr_store(str(mask_store)), mode="r", zarr_format=3
            )
            for row in group.to_dict("records"):
                planes = root[row[array]]
                assert isinstance(planes, zarr.Array)
                yield (
                    row["image_id"],
                    read_planes(planes, int(row[index]), row["height"], row["width"]),
                )


def class_notes(
    model_classes: Sequence[str], truth_classes: Sequence[str], *, what: str
) -> list[str]:
    """Which classes only one side has."""
    notes = []
    extra = [name for name in model_classes if name not in set(truth_classes)]
    lacking = [name for name in truth_classes if name not in set(model_classes)]
    if extra:
        notes.append(f"classes that the truth does not have, {what}: {_short(extra)}")
    if lacking:
        notes.append(f"truth classes that the model does not have, never found: {_short(lacking)}")
    return notes


def _short(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LONGEST_LIST])
    return (
        shown if len(names) <= _LONGEST_LIST else f"{shown} and {len(names) - _LONGEST_LIST} more"
    )


def no_common_class(model_classes: Sequence[str], truth_classes: Sequence[str]) -> str | None:
    """Why the two cannot be compared, if that is so."""
    if set(model_classes) & set(truth_classes):
        return None
    return (
        f"none of its classes ({_short(model_classes)}) is one of the truth's "
        f"({_short(truth_classes)}); map them by evaluation.class_names"
    )


def with_intervals(found: Comparison, num_resamples: int) -> ModelEvaluation:
    """The evaluation with the intervals of its numbers, and what to say of these."""
    evaluation = found.evaluation
    if not num_resamples:
        return evaluation
    num_images = found.statistics.num_images
    if num_images < MIN_IMAGES:
        note = f"no intervals: they need {MIN_IMAGES} images or more"
        return replace(evaluation, notes=(*evaluation.notes, note))
    ends = intervals(found.statistics, num_resamples)

    def widen(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
        return tuple(replace(one, interval=ends.get(Number(one.name))) for one in metrics)

    note = (
        f"[low, high] is a 95 % interval: BCa bootstrap over {num_images:,} images, "
        f"{num_resamples:,} draws"
    )
    return replace(
        evaluation,
        headline=widen(evaluation.headline),
        metrics=widen(evaluation.metrics),
        notes=(*evaluation.notes, note),
    )


def read_collection(store: Store, name: str) -> CollectionImages:
    """The images of a collection, each as it is now.

    Raises:
        ValueError: there is no such collection.
    """
    catalog = store.table("catalog", columns=["path", "image_id", "collection"])
    rows = catalog.to_pandas()
    if not (rows["collection"] == name).any():
        known = ", ".join(sorted(rows["collection"].unique())) or "none"
        raise ValueError(f"store {store.root} has no collection {name!r}; it has: {known}")
    rows = rows[rows["collection"] == name].drop_duplicates("path", keep="last")
    failures = store.table(
        "failures", columns=["path", "model_key"], filters=[("collection", "=", name)]
    )
    return CollectionImages(
        image_ids=dict(zip(rows["path"], rows["image_id"], strict=True)),
        failures=failures.to_pandas(),
    )


def read_sizes(store: Store, name: str) -> dict[str, Size | None]:
    """(height, width) of a collection's images by path; None of those that nobody could read."""
    columns = ["path", "width", "height", "collection"]
    catalog = store.table("catalog", columns=columns).to_pandas()
    rows = catalog[catalog["collection"] == name].drop_duplicates("path", keep="last")
    failed = store.table("failures", columns=["path"], filters=[("collection", "=", name)])
    sizes: dict[str, Size | None] = dict.fromkeys(failed["path"].to_pylist())
    for path, width, height in zip(rows["path"], rows["width"], rows["height"], strict=True):
        sizes[path] = None if pd.isna(width) or pd.isna(height) else (int(height), int(width))
    return sizes


def choose_models(store: Store, names: Sequence[str] | None) -> dict[str, ModelSpec]:
    """The published models of these keys or names, or all.

    Raises:
        KeyError: there is none of a name.
    """
    published = store.models()
    if names is None:
        return published
    chosen: dict[str, ModelSpec] = {}
    for name in names:
        found = {key: spec for key, spec in published.items() if name in (key, spec.name)}
        if not found:
            raise KeyError(
                f"no model {name!r} in {store.root}; it has: {', '.join(published) or 'none'}"
            )
        chosen |= found
    return chosen


def images_of(store: Store, model_key: str, images: CollectionImages) -> pd.DataFrame:
    """The model's rows of the images table, of this collection's images only."""
    columns = ["image_id", "width", "height", "mask_store", "shard_id", "date"]
    columns += [f"{kind}_{part}" for kind in ("semantic", "instances") for part in ("array", "row")]
    rows = store.table("images", model=model_key, columns=columns).to_pandas()
    return rows[rows["image_id"].isin(set(images.image_ids.values()))]
