"""What one model did in one night, as counts and histograms read from the store."""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.telemetry import BRIGHTNESS, BRIGHTNESS_BINS
from pixelmill.tasks.health.drift import Histogram
from pixelmill.tasks.metrics.ptb import tokenize_captions
from pixelmill.tasks.store import RunRecord, Store
from pixelmill.tasks.store.masks import read_planes

__all__ = ["Night", "NightRuns", "Quantity", "dates_of", "read_night", "read_runs"]

# Histograms of more images than this are of a sample; ids are digests, so the first are random
_MOST_IMAGES = 50_000
_MASK_SAMPLE = 64
_SCORE_BINS, _PLACE_BINS = 50, 20
_MOST_COUNT = 20


@dataclass(frozen=True, slots=True, order=True)
class Quantity:
    """What a histogram is of; `class_name` None: over all classes."""

    name: str
    class_name: str | None = None


@dataclass(frozen=True, slots=True)
class Night:
    """One model's work on one logical date.

    Attributes:
        num_images: scored.
        num_empty: of the images that `histograms` are of, those with nothing found.
        num_sampled: images that `histograms` are of.
        failures: paths by "stage/reason".
        num_missing: images that runs lost track of; always a fault.
        counts: boxes, captions or labels by class, of the sampled images.
        means: mean score, boxes per image and the like, for a curve over the nights.
    """

    date: str
    model_key: str
    num_images: int
    num_sampled: int
    num_empty: int
    failures: Mapping[str, int]
    num_missing: int
    run_ids: tuple[str, ...]
    histograms: Mapping[Quantity, Histogram] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        """Paths that could not be scored."""
        return sum(self.failures.values())

    @property
    def failed_share(self) -> float:
        """Of all images tried."""
        return self.num_failed / max(1, self.num_failed + self.num_images)


@dataclass(frozen=True, slots=True)
class NightRuns:
    """What all models of a collection have in common on one logical date.

    Attributes:
        records: of the runs.
        brightness: of the images that they decoded; None: no worker noted it.
    """

    date: str
    records: tuple[RunRecord, ...]
    brightness: Histogram | None


def read_runs(store: Store, date: str, records: Iterable[RunRecord]) -> NightRuns:
    """The runs of a date among a collection's, and what their receipts say of the images."""
    of_date = tuple(record for record in records if record.date == date)
    return NightRuns(date, of_date, _brightness(store, of_date))


def dates_of(store: Store, model_keys: Iterable[str]) -> dict[str, list[str]]:
    """Dates on which each model has published images, oldest first, from names alone."""
    return {
        key: sorted({part.partitions["date"] for part in store.parts("images", model=key)})
        for key in model_keys
    }


def read_night(store: Store, spec: ModelSpec, collection: str, runs: NightRuns) -> Night:
    """Count and bin one model's predictions of one date.

    Args:
        store: read part by part; of large nights a sample.
        spec: of the model.
        collection: only its images.
        runs: the collection's runs of the date.
    """
    date = runs.date
    where = [("date", "=", date), ("collection", "=", collection)]
    cut = _sample_cut(store, spec.key, date)
    within = [("image_id", "<", cut)] if cut else []
    columns = [
        "image_id", "width", "height", "n_detections", "n_captions", "mask_store",
        "semantic_array", "semantic_row",
    ]  # fmt: skip
    images = store.table("images", model=spec.key, columns=columns, filters=[*where, *within])
    num_images = images.num_rows
    if cut:
        counted = store.table("images", model=spec.key, columns=["collection"], filters=where)
        num_images = counted.num_rows
    ids = images["image_id"]
    histograms = _image_histograms(images)
    found = _Found()
    if images.num_rows:
        on_date = [("date", "=", date), *within]
        if spec.task in ("detection", "instance_segmentation"):
            found = _boxes(store, spec, images, on_date)
        elif spec.task == "captioning":
            found = _captions(store, spec, ids, on_date)
        elif spec.task == "classification":
            found = _labels(store, spec, ids, on_date)
        else:
            found = _regions(store, spec, images)
    histograms |= found.histograms
    if runs.brightness is not None:
        histograms[Quantity("brightness")] = runs.brightness
    return Night(
        date=date,
        model_key=spec.key,
        num_images=num_images,
        num_sampled=images.num_rows,
        num_empty=found.num_empty,
        failures=_failures(store, spec.key, where),
        num_missing=_num_missing(store, spec.key, runs.records),
        run_ids=tuple(run.run_id for run in runs.records),
        histograms=histograms,
        counts=found.counts,
        means=found.means,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What a task's own tables say."""

    histograms: Mapping[Quantity, Histogram] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)
    num_empty: int = 0


def _sample_cut(store: Store, model_key: str, date: str) -> str | None:
    """The id below which about as many images lie as are looked at; None: all of them are."""
    total = 0
    for part in store.parts("images", model=model_key, date=date):
        with store.backend.open(part.path) as file:
            total += pq.read_metadata(file).num_rows
    if total <= _MOST_IMAGES:
        return None
    return f"{int(_MOST_IMAGES / total * 16**8):08x}"


def _failures(
    store: Store, model_key: str, where: Sequence[tuple[str, str, str]]
) -> dict[str, int]:
    table = store.table("failures", columns=["path", "model_key", "stage", "reason"], filters=where)
    newest: dict[str, str] = {}
    for row in table.to_pylist():
        if row["model_key"] in (None, model_key):
            newest[row["path"]] = f"{row['stage']}/{row['reason']}"
    return dict(Counter(newest.values()).most_common())


def _num_missing(store: Store, model_key: str, runs: Sequence[RunRecord]) -> int:
    ends = [store.run_end(run.run_id) for run in runs]
    ledgers = [end.ledger[model_key] for end in ends if end and model_key in end.ledger]
    return sum(sum(counts.missing.values()) for counts in ledgers)


def _brightness(store: Store, runs: Sequence[RunRecord]) -> Histogram | None:
    """Mean brightness of the images decoded, which workers note with each shard."""
    counts = np.zeros(BRIGHTNESS_BINS)
    for run in runs:
        for receipt in store.receipts(run.run_id):
            for name, value in receipt.stats.items():
                if name.startswith(BRIGHTNESS) and not isinstance(value, str):
                    counts[min(int(name.removeprefix(BRIGHTNESS)), BRIGHTNESS_BINS - 1)] += value
    total = int(counts.sum())
    return _binned(counts, np.linspace(0, 1, BRIGHTNESS_BINS + 1), total) if total else None


def _binned(counts: NDArray[np.float64], edges: NDArray[np.float64], num_images: int) -> Histogram:
    labels = _bin_labels(tuple(edges.tolist()))
    return Histogram(labels, tuple(counts.tolist()), is_ordered=True, num_images=num_images)


@functools.cache
def _bin_labels(edges: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f"{a:.3g} to {b:.3g}" for a, b in pairwise(edges))


def _of_values(
    values: NDArray[np.float64], edges: NDArray[np.float64], num_images: int
) -> Histogram:
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return _binned(counts.astype(np.float64), edges, num_images)


def _of_counts(values: NDArray[np.int64], num_images: int) -> Histogram:
    """Small whole numbers, each a bin of its own."""
    counts = np.bincount(np.minimum(values, _MOST_COUNT), minlength=_MOST_COUNT + 1)
    labels = (*(str(k) for k in range(_MOST_COUNT)), f"{_MOST_COUNT} to more")
    return Histogram(labels, tuple(counts.astype(float).tolist()), True, num_images)


def _of_classes(counts: Mapping[str, float], num_images: int) -> Histogram:
    return Histogram(tuple(counts), tuple(counts.values()), False, num_images)


def _image_histograms(images: pa.Table) -> dict[Quantity, Histogram]:
    """Size and shape of the images."""
    number = images.num_rows
    if not number:
        return {}
    width, height = (images[name].to_numpy().astype(np.float64) for name in ("width", "height"))
    sides = np.sqrt(width * height)
    side_edges = np.array([0, 128, 256, 384, 512, 640, 800, 1024, 1536, 2048, 3072, 4096, 1e5])
    shape_edges = np.array(
        [0, 0.4, 0.55, 0.65, 0.72, 0.8, 0.95, 1.05, 1.25, 1.4, 1.55, 1.9, 2.5, 99]
    )
    return {
        Quantity("image size"): _of_values(sides, side_edges, number),
        Quantity("image shape"): _of_values(width / height, shape_edges, number),
    }


def _boxes(
    store: Store, spec: ModelSpec, images: pa.Table, where: Sequence[tuple[str, str, str]]
) -> _Found:
    columns = ["image_id", "class_name", "score", "x_min", "y_min", "x_max", "y_max"]
    table = store.table("detections", model=spec.key, columns=columns, filters=where)
    position = pc.index_in(table["image_id"], value_set=images["image_id"].combine_chunks())  # pyright: ignore[reportAttributeAccessIssue]
    kept = pc.is_valid(position)  # pyright: ignore[reportAttributeAccessIssue]
    table, owner = table.filter(kept), position.filter(kept).to_numpy()
    number = images.num_rows
    per_image = np.bincount(owner, minlength=number)
    scores = table["score"].to_numpy().astype(np.float64)
    names = table["class_name"].combine_chunks().dictionary_encode()
    known, index = names.dictionary.to_pylist(), names.indices.to_numpy()
    width, height = (images[name].to_numpy()[owner] for name in ("width", "height"))
    x0, y0, x1, y1 = (table[name].to_numpy().astype(np.float64) for name in columns[3:])
    places = {
        "place across": (x0 + x1) / 2 / width,
        "place down": (y0 + y1) / 2 / height,
        "size": np.sqrt(np.clip((x1 - x0) * (y1 - y0) / (width * height), 0, 1)),
    }
    score_edges, place_edges = (
        np.linspace(0, 1, _SCORE_BINS + 1),
        np.linspace(0, 1, _PLACE_BINS + 1),
    )
    tally = dict.fromkeys(spec.classes, 0.0)
    tally |= dict(zip(known, np.bincount(index, minlength=len(known)).tolist(), strict=True))
    found = {
        Quantity("boxes per image"): _of_counts(per_image, number),
        Quantity("scores"): _of_values(scores, score_edges, number),
        Quantity("classes"): _of_classes(tally, number),
    }
    found |= {Quantity(name): _of_values(v, place_edges, number) for name, v in places.items()}
    by_class = np.argsort(index, kind="stable")
    ends = np.searchsorted(index[by_class], np.arange(len(known) + 1))
    pairs = np.unique(index.astype(np.int64) * number + owner)
    num_images = np.bincount(pairs // number, minlength=len(known)).tolist()
    for k, name in enumerate(known):
        rows, have = by_class[ends[k] : ends[k + 1]], num_images[k]
        found[Quantity("scores", name)] = _of_values(scores[rows], place_edges, have)
        for what, values in places.items():
            found[Quantity(what, name)] = _of_values(values[rows], place_edges, have)
    return _Found(
        found,
        tally,
        {
            "boxes per image": float(per_image.mean()),
            "mean score": float(scores.mean()) if len(scores) else 0.0,
            "nothing found": float((per_image == 0).mean()),
        },
        int((per_image == 0).sum()),
    )


def _best(
    store: Store,
    table: str,
    spec: ModelSpec,
    ids: pa.ChunkedArray,
    where: Sequence[tuple[str, str, str]],
    columns: Sequence[str],
) -> pa.Table:
    """The rows of rank 0 of these images."""
    rows = store.table(
        table, model=spec.key, columns=["image_id", *columns], filters=[*where, ("rank", "=", 0)]
    )
    return rows.filter(pc.is_in(rows["image_id"], value_set=ids.combine_chunks()))  # pyright: ignore[reportAttributeAccessIssue]


def _captions(
    store: Store, spec: ModelSpec, ids: pa.ChunkedArray, where: Sequence[tuple[str, str, str]]
) -> _Found:
    table = _best(store, "captions", spec, ids, where, ["text"])
    texts = tokenize_captions(table["text"].to_pylist())
    number = len(ids)
    words = Counter(word for text in texts for word in set(text.split()))
    lengths = np.array([len(text.split()) for text in texts], np.int64)
    empty = number - int((lengths > 0).sum())
    most = Counter(texts).most_common(1)
    return _Found(
        {
            Quantity("caption length"): _of_counts(lengths, number),
            Quantity("words"): _of_classes(dict(words.most_common(200)), number),
        },
        {word: float(count) for word, count in words.items()},
        {
            "caption length": float(lengths.mean()) if len(lengths) else 0.0,
            "most frequent caption": most[0][1] / number if most else 0.0,
            "nothing found": empty / number,
        },
        empty,
    )


def _labels(
    store: Store, spec: ModelSpec, ids: pa.ChunkedArray, where: Sequence[tuple[str, str, str]]
) -> _Found:
    table = _best(store, "labels", spec, ids, where, ["class_name", "score"])
    number, scores = len(ids), table["score"].to_numpy().astype(np.float64)
    tally = dict.fromkeys(spec.classes, 0.0)
    tally |= {name: float(n) for name, n in Counter(table["class_name"].to_pylist()).items()}
    empty = number - table.num_rows
    return _Found(
        {
            Quantity("classes"): _of_classes(tally, number),
            Quantity("scores"): _of_values(scores, np.linspace(0, 1, _SCORE_BINS + 1), number),
        },
        tally,
        {
            "mean score": float(scores.mean()) if len(scores) else 0.0,
            "nothing found": empty / number,
        },
        empty,
    )


def _regions(store: Store, spec: ModelSpec, images: pa.Table) -> _Found:
    """Shares of the pixels, from a few label maps: reading all of a night would take minutes."""
    total = np.zeros(len(spec.classes))
    sample = images.sort_by("image_id").slice(0, _MASK_SAMPLE)
    number = 0
    for labels in _label_maps(store, sample):
        counts = np.bincount(labels.ravel(), minlength=len(spec.classes))[: len(spec.classes)]
        total += counts / labels.size
        number += 1
    tally = dict(zip(spec.classes, total.tolist(), strict=True))
    return _Found({Quantity("classes"): _of_classes(tally, number)} if number else {}, tally)


def _label_maps(store: Store, images: pa.Table) -> Iterator[NDArray[np.uint8]]:
    for row in images.to_pylist():
        if row["semantic_array"] is not None:
            array = store.mask_array(row["mask_store"], row["semantic_array"])
            yield read_planes(array, row["semantic_row"], row["height"], row["width"])
