"""Is run B better than run A, for which classes, and on which images?

    found = compare_by_truth(
        store, config, "detector-1a2b3c4d", "detector-5e6f7a8b",
        base=Path("."), collection="photos", slices=("size", "aspect", "date"),
    )
    for kind in found:
        for one in kind.differences:
            print(one.slice_name, one.number, one.difference, one.interval, one.adjusted_p)

The two models are compared on the very same images (paired bootstrap), all of the truth together
and slice by slice. `kind.differences` are for a table of their own, sorted by how sure they are;
`kind.notes` go beside it. What is looked at is what `evaluate` looks at, from the same records, so
after an evaluation this costs the draws alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pixelmill.configs.schema import EvaluationConfig
from pixelmill.tasks.evaluate import compare_models
from pixelmill.tasks.evaluation.context import Comparison, choose_models
from pixelmill.tasks.evaluation.truths import load_truths
from pixelmill.tasks.metrics.bootstrap import (
    FALSE_DISCOVERY_NOTE,
    HOLM_NOTE,
    MIN_IMAGES,
    Difference,
    compare_runs,
)
from pixelmill.tasks.metrics.results import Kind
from pixelmill.tasks.store import Store

__all__ = ["SLICES", "ImageSlices", "TruthComparison", "compare_by_truth", "slice_images"]

# What images can be sliced by besides the columns of `images` and `catalog`.
SLICES: Mapping[str, str] = {
    "size": "pixels of the image, in thirds",
    "aspect": "width over height: portrait below 0.95, landscape above 1.05, else square",
    "date": "the logical date of the batch that the image was scored in",
    "folder": "the first folder of its path",
}
_ALL = "all"
_MOST_VALUES = 12
_NUM_BINS = 4


@dataclass(frozen=True, slots=True)
class ImageSlices:
    """Named sets of images.

    Attributes:
        masks: "column=value" -> (I,) bool; of few images, none.
        notes: what was left out, and why.
    """

    masks: dict[str, NDArray[np.bool_]]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TruthComparison:
    """Run B against run A in one kind of truth.

    Attributes:
        model_a, model_b: keys.
        num_images: of the truth; images that a model has not scored count as empty predictions.
        differences: of every number, class and slice; the surest first (adjusted p value, then
            size), "all" being the slice of all images.
        notes: what to tell beside them, about many comparisons above all.
    """

    kind: Kind
    model_a: str
    model_b: str
    num_images: int
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]


def compare_by_truth(
    store: Store,
    config: EvaluationConfig,
    model_a: str,
    model_b: str,
    *,
    base: Path,
    collection: str,
    slices: Sequence[str] = (),
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[TruthComparison, ...]:
    """Paired bootstrap of two models against the truth that the config names.

    Args:
        store: with published predictions of both.
        config: where truth is.
        model_a: key or name of run A.
        model_b: of run B.
        base: folder that relative paths in `config` start from.
        collection: whose images are compared.
        slices: names of `SLICES` or columns of `images` or `catalog` (`path`, `size_bytes`,
            `status`, `width` ...); none: all images only.
        num_resamples: draws of each slice.
        seed: the same seed gives the same numbers.

    Returns:
        One entry for each kind of truth that both models are compared with.

    Raises:
        KeyError: no such model, or no such slice.
        ValueError: a name means several models, both are the same one, they have no kind of truth
            in common, or as `evaluate`.
        FileNotFoundError: a truth file is not there.
    """
    keys = [_key_of(store, name) for name in (model_a, model_b)]
    if keys[0] == keys[1]:
        raise ValueError(f"{model_a!r} and {model_b!r} are the same model: {keys[0]}")
    truth = load_truths(config, base, store, collection)
    found, skipped = compare_models(store, config, truth, collection=collection, models=keys)
    kinds: dict[Kind, dict[str, Comparison]] = {}
    for one in found:
        # panoptic quality belongs to a pair of models: another pair is no run of the same
        if one.evaluation.kind != "panoptic":
            kinds.setdefault(one.evaluation.kind, {})[one.evaluation.model_key] = one
    common = {kind: sides for kind, sides in kinds.items() if len(sides) == 2}
    if not common:
        reasons = "; ".join(f"{key} {why}" for key, why in skipped.items())
        raise ValueError(
            f"{keys[0]} and {keys[1]} share no kind of truth" + f": {reasons}" * bool(reasons)
        )
    return tuple(
        _compare(store, collection, sides[keys[0]], sides[keys[1]], slices, num_resamples, seed)
        for sides in common.values()
    )


def _key_of(store: Store, name: str) -> str:
    keys = list(choose_models(store, [name]))
    if len(keys) > 1:
        raise ValueError(f"{name!r} means several models: {', '.join(keys)}; name one by its key")
    return keys[0]


def _compare(
    store: Store,
    collection: str,
    a: Comparison,
    b: Comparison,
    slices: Sequence[str],
    num_resamples: int,
    seed: int,
) -> TruthComparison:
    kind = a.evaluation.kind
    if a.names != b.names:
        raise ValueError(f"{kind}: both models must be compared on the same images of the truth")
    image_ids = [a.image_ids.get(name) or b.image_ids.get(name) for name in a.names]
    chosen = slice_images(store, collection, [a.paths[name] for name in a.names], image_ids, slices)
    masks = {_ALL: np.ones(len(a.names), np.bool_), **chosen.masks}
    differences = compare_runs(a.statistics, b.statistics, num_resamples, slices=masks, seed=seed)
    notes = [*chosen.notes, f"paired BCa bootstrap over images, {num_resamples:,} draws"]
    if len(a.names) < MIN_IMAGES:
        notes.append(f"no differences: they need {MIN_IMAGES} images or more")
    else:
        notes += [HOLM_NOTE, FALSE_DISCOVERY_NOTE]
    return TruthComparison(
        kind=kind,
        model_a=a.evaluation.model_key,
        model_b=b.evaluation.model_key,
        num_images=len(a.names),
        differences=tuple(
            sorted(differences, key=lambda one: (one.adjusted_p, one.p_value, -abs(one.difference)))
        ),
        notes=tuple(notes),
    )


def slice_images(
    store: Store,
    collection: str,
    paths: Sequence[str],
    image_ids: Sequence[str | None],
    columns: Sequence[str],
) -> ImageSlices:
    """Sort images into slices by what the store knows of them.

    Args:
        store: that they are catalogued in.
        collection: theirs.
        paths: of each image.
        image_ids: of each image, None where no model has scored it: such an image is in no slice
            but those by path.
        columns: names of `SLICES` or columns of `images` or `catalog`. Numbers are cut at their
            quartiles; of texts the twelve most frequent are slices.

    Raises:
        KeyError: no such column.
    """
    if not columns:
        return ImageSlices({}, ())
    frame = _describe(store, collection, paths, image_ids)
    unknown = [name for name in columns if name not in SLICES and name not in frame]
    if unknown:
        raise KeyError(
            f"images cannot be sliced by {', '.join(unknown)}; by: "
            f"{', '.join([*SLICES, *(str(name) for name in frame if name not in SLICES)])}"
        )
    masks: dict[str, NDArray[np.bool_]] = {}
    notes: list[str] = []
    for name in columns:
        groups = _groups(frame, name)
        for value, count in groups.value_counts(sort=False).items():
            if count >= MIN_IMAGES:
                masks[f"{name}={value}"] = (groups == value).fillna(False).to_numpy(np.bool_)
            else:
                notes.append(f"{name}={value} left out: {count} images, fewer than {MIN_IMAGES}")
        if num_other := int(groups.isna().sum()):
            notes.append(f"{num_other} images are in no slice by {name}")
    return ImageSlices(masks, tuple(notes))


def _describe(
    store: Store, collection: str, paths: Sequence[str], image_ids: Sequence[str | None]
) -> pd.DataFrame:
    """A row per image: columns of `images`, and of `catalog` what `images` does not have."""
    wanted = pd.DataFrame({"path": list(paths), "image_id": list(image_ids)})
    scored = store.table("images").to_pandas().drop(columns=["model", "path", "collection"])
    scored = scored.drop_duplicates("image_id")
    catalog = (
        store.catalog(collection).drop(columns=["image_id"]).drop_duplicates("path", keep="last")
    )
    known = {"path", *scored.columns}
    catalog = catalog[["path", *(name for name in catalog if name not in known)]]
    frame = wanted.merge(scored, on="image_id", how="left").merge(catalog, on="path", how="left")
    return frame.drop(columns=["image_id"])


def _groups(frame: pd.DataFrame, name: str) -> "pd.Series[str]":
    """The slice of each image, missing where it has none."""
    if name == "size":
        return _thirds(frame["width"] * frame["height"])
    if name == "aspect":
        ratio = frame["width"] / frame["height"]
        labels = ["portrait", "square", "landscape"]
        return pd.cut(ratio, [0, 0.95, 1.05, np.inf], labels=labels).astype("string")
    if name == "folder":
        return frame["path"].str.extract(r"^([^/]+)/", expand=False).fillna(".").astype("string")
    values = frame[name]
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > _MOST_VALUES:
        return pd.qcut(values, _NUM_BINS, duplicates="drop").astype("string")
    texts = values.astype("string")
    return texts.where(texts.isin(texts.value_counts().index[:_MOST_VALUES]))


def _thirds(pixels: "pd.Series[float]") -> "pd.Series[str]":
    """Sizes in three groups, with their borders in megapixels; fewer where many are of one size."""
    groups = pd.qcut(pixels, 3, duplicates="drop")
    names = {
        group: f"{group.left / 1e6:.2f} to {group.right / 1e6:.2f} MP"
        for group in groups.cat.categories
    }
    return groups.map(names).astype("string")
