"""Which images people should look at: failed, changed, near a threshold, judged differently."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.comparison.compare import compare_models
from pixelmill.tasks.comparison.results import ImageChange
from pixelmill.tasks.comparison.sides import KIND_OF_TASK, Side
from pixelmill.tasks.result_files import encode_rows, replace_whole
from pixelmill.tasks.store import Store

__all__ = ["Review", "ReviewItem", "build_queue", "save_queue"]

Cause = Literal["failed", "changed", "disagreement", "near threshold"]
_CAUSES: tuple[Cause, ...] = get_args(Cause)
_QUEUE = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("image_id", pa.string()),
        pa.field("source_uri", pa.string()),
        pa.field("priority", pa.float64()),
        *(pa.field(cause, pa.float64()) for cause in _CAUSES),
        pa.field("reasons", pa.list_(pa.string())),
    ]
)

# What is known of an image without looking at it is worth less than that it could not be scored
_CHANGED_WORTH = 0.5
# Two models never agree to the last pixel
_LEAST_CHANGE = 0.05


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """An image of the queue.

    Attributes:
        priority: in [0, 1]; the chance that looking pays, if causes were independent.
        causes: cause -> how much it speaks for looking, in [0, 1].
        reasons: in words.
    """

    path: str
    image_id: str | None
    source_uri: str
    priority: float
    causes: Mapping[Cause, float]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Review:
    """A queue, the image to be looked at first at its head.

    Attributes:
        num_found: images that there was any cause for; the queue holds the first of them.
    """

    collection: str
    items: tuple[ReviewItem, ...]
    num_found: int


@dataclass(slots=True)
class _Entry:
    path: str
    image_id: str | None
    source_uri: str
    causes: dict[Cause, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def add(self, cause: Cause, worth: float, reasons: Iterable[str]) -> None:
        self.causes[cause] = max(worth, self.causes.get(cause, 0.0))
        self.reasons += [reason for reason in reasons if reason not in self.reasons]


def build_queue(
    store: Store,
    *,
    collection: str,
    models: Sequence[str] = (),
    threshold: float = 0.5,
    margin: float = 0.1,
    limit: int = 500,
) -> Review:
    """Rank a collection's images by how much there is to be learnt from looking at them.

    Args:
        store: published predictions.
        collection: whose images.
        models: keys of the models that count; none: all. Every two of one kind are compared.
        threshold: score at which boxes are taken for real.
        margin: scores nearer to it than this are near; of labels, the lead of the best.
        limit: images in the queue at most.

    Raises:
        ValueError: the collection has no images, or a model is not in the store.
    """
    published = store.models()
    unknown = [key for key in models if key not in published]
    if unknown:
        raise ValueError(f"no model {unknown[0]!r} in {store.root}: {', '.join(published)}")
    chosen = {key: published[key] for key in (models or published)}
    catalog = store.table("catalog", filters=[("collection", "=", collection)])
    entries: dict[str, _Entry] = {}
    places = _places(catalog)
    for path, (worth, reason, uri, image_id) in _failures(store, collection, places).items():
        _entry(entries, path, image_id, uri).add("failed", worth, [reason])
    for path, image_id, uri in _changed(catalog):
        _entry(entries, path, image_id, uri).add(
            "changed", _CHANGED_WORTH, ["the file has other content than before"]
        )
    by_id = {image_id: (path, uri) for path, (image_id, uri) in places.items()}
    for image_id, worth, reason in _uncertain(store, chosen, threshold, margin):
        if image_id in by_id:
            path, uri = by_id[image_id]
            _entry(entries, path, image_id, uri).add("near threshold", worth, [reason])
    for title, change in _disagreements(store, chosen, collection):
        path, uri = by_id.get(change.image_id, (change.path, change.source_uri))
        reasons = [f"{title}: {reason}" for reason in change.reasons[:2]]
        _entry(entries, path, change.image_id, uri).add("disagreement", change.change, reasons)
    if not places and not entries:
        known = ", ".join(sorted(set(store.catalog()["collection"]))) or "none"
        raise ValueError(f"store {store.root} has no collection {collection!r}; it has: {known}")
    items = sorted(map(_item, entries.values()), key=lambda item: (-item.priority, item.path))
    return Review(collection, tuple(items[:limit]), len(items))


def _entry(entries: dict[str, _Entry], path: str, image_id: str | None, uri: str) -> _Entry:
    return entries.setdefault(path, _Entry(path, image_id, uri))


def _item(entry: _Entry) -> ReviewItem:
    miss = float(np.prod([1 - min(worth, 1.0) for worth in entry.causes.values()]))
    return ReviewItem(
        entry.path,
        entry.image_id,
        entry.source_uri,
        round(1 - miss, 6),
        dict(sorted(entry.causes.items(), key=lambda cause: -cause[1])),
        tuple(entry.reasons),
    )


def _places(catalog: pa.Table) -> dict[str, tuple[str, str]]:
    """Path -> (image_id, source_uri), as they lie there now."""
    columns = (catalog[name].to_pylist() for name in ("path", "image_id", "source_uri"))
    return {path: (image_id, uri) for path, image_id, uri in zip(*columns, strict=True)}


def _changed(catalog: pa.Table) -> Iterator[tuple[str, str, str]]:
    """(path, newest image_id, source_uri) of files that had other content before."""
    seen: dict[str, set[str]] = {}
    columns = [catalog[name].to_pylist() for name in ("path", "image_id", "source_uri")]
    for path, image_id, _ in zip(*columns, strict=True):
        seen.setdefault(path, set()).add(image_id)
    newest = _places(catalog)
    yield from ((path, *newest[path]) for path, ids in seen.items() if len(ids) > 1)


def _failures(
    store: Store, collection: str, places: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[float, str, str, str | None]]:
    """Path -> how sure it is that it stays failed, why, source_uri, image_id; scored ones not."""
    rows = store.table("failures", filters=[("collection", "=", collection)]).sort_by("failed_at")
    scored: set[str] = set()
    for key in store.models():
        ids = store.table("images", model=key, columns=["image_id"])["image_id"].to_pylist()
        scored.update(ids)
    found: dict[str, tuple[float, str, str, str | None]] = {}
    for row in rows.to_pylist():
        image_id = row["image_id"] or places.get(row["path"], (None, ""))[0]
        if row["model_key"] is None and image_id in scored:
            continue
        worth = 0.7 if row["retryable"] else 1.0
        reason = f"failed: {row['stage']}, {row['reason']}"
        found[row["path"]] = (worth, reason, row["source_uri"], image_id)
    return found


def _uncertain(
    store: Store, models: Mapping[str, ModelSpec], threshold: float, margin: float
) -> Iterator[tuple[str, float, str]]:
    """(image_id, worth, reason) of images with boxes at the threshold, or with no clear label."""
    for key, spec in models.items():
        if KIND_OF_TASK[spec.task] == "boxes":
            near = [("score", ">=", threshold - margin), ("score", "<=", threshold + margin)]
            rows = store.table(
                "detections", model=key, columns=["image_id", "class_name", "score"], filters=near
            )
            counts = rows.group_by("image_id", use_threads=False).aggregate(
                [("score", "count"), ("class_name", "first")]
            )
            for row in counts.to_pylist():
                number = row["score_count"]
                # each such box is wrong half the time; many of them make one mistake likely
                worth = 0.6 * (1 - 0.5**number)
                yield row["image_id"], worth, f"{spec.name}: {number} boxes near {threshold:g}"
        elif spec.task == "classification":
            rows = store.table(
                "labels", model=key, columns=["image_id", "class_name", "score"],
                filters=[("rank", "<=", 1)],
            ).sort_by([("image_id", "ascending"), ("score", "descending")])  # fmt: skip
            best: dict[str, list[tuple[str, float]]] = {}
            for row in rows.to_pylist():
                best.setdefault(row["image_id"], []).append((row["class_name"], row["score"]))
            for image_id, labels in best.items():
                if len(labels) == 2 and labels[0][1] - labels[1][1] <= margin:
                    lead = labels[0][1] - labels[1][1]
                    worth = 0.6 * (1 - lead / margin) if margin else 0.6
                    yield image_id, worth, f"{spec.name}: {labels[0][0]} or {labels[1][0]}"


def _disagreements(
    store: Store, models: Mapping[str, ModelSpec], collection: str
) -> Iterator[tuple[str, ImageChange]]:
    """What every two models of one kind say differently of an image."""
    for first, second in combinations(models.values(), 2):
        if KIND_OF_TASK[first.task] != KIND_OF_TASK[second.task]:
            continue
        a, b = (Side(spec.key, store, {spec.key: spec}) for spec in (first, second))
        changes: list[ImageChange] = []

        def keep(
            model_a: str,
            model_b: str,
            found: Sequence[ImageChange],
            to: list[ImageChange] = changes,
        ) -> None:
            to.extend(one for one in found if one.change >= _LEAST_CHANGE)

        compare_models(a, b, first, second, collection=collection, with_masks=False, sink=keep)
        title = f"{first.key} and {second.key}"
        yield from ((title, change) for change in changes)


def save_queue(review: Review, folder: Path) -> tuple[Path, ...]:
    """Write queue.json and queue.parquet, a row per image in order.

    Args:
        review: what to save.
        folder: made if it is not there; earlier files of these names are replaced.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document: dict[str, object] = {
        "collection": review.collection,
        "num_found": review.num_found,
        "images": [asdict(item) for item in review.items],
    }
    paths = folder / "queue.json", folder / "queue.parquet"
    rows = [
        (
            *(item.path, item.image_id, item.source_uri, item.priority),
            *map(item.causes.get, _CAUSES),
            item.reasons,
        )
        for item in review.items
    ]
    replace_whole(paths[0], json.dumps(document, ensure_ascii=False, indent=1).encode())
    replace_whole(paths[1], encode_rows(_QUEUE, rows))
    return paths
