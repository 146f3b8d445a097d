"""Scoring an image again as it was scored, to show that the result is the same, or why not."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from pixelmill.tasks.engine.score import configure_process, score_shard
from pixelmill.tasks.lineage import Lineage
from pixelmill.tasks.software import describe_software
from pixelmill.tasks.sources import read_bytes
from pixelmill.tasks.store import PLAN, Store, publish

__all__ = ["BOX_PX", "PIXELS", "SCORE", "Rescore", "Verdict", "rescore"]

Verdict = Literal["identical", "within tolerance", "different", "impossible"]

# Sums are formed in another order in a batch of another size, on another processor or by another
# library: of scores and log probabilities, of box edges in pixels, and of label maps and masks as
# the share of the pixels.
SCORE = 1e-3
BOX_PX = 0.5
PIXELS = 1e-3

_EDGES = ["x_min", "y_min", "x_max", "y_max"]


@dataclass(frozen=True, slots=True)
class Rescore:
    """How a second scoring compares with what the store has.

    Attributes:
        differences: in words; of a result within the tolerance too.
        changes: what is not as it was: (name, then, now) of software.
    """

    verdict: Verdict
    differences: tuple[str, ...] = ()
    changes: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Difference:
    text: str
    is_small: bool


def rescore(store: Store, lineage: Lineage) -> Rescore:
    """Score an image with the recorded model and configuration, beside the store.

    Args:
        store: that has the prediction; nothing of it is changed.
        lineage: of the prediction.
    """
    changes = _changes(lineage)
    obstacle = _obstacle(lineage)
    if obstacle is not None:
        return Rescore("impossible", (obstacle,), changes)
    with tempfile.TemporaryDirectory(prefix="pixelmill-rescore-") as folder:
        again = Store(folder, create=True)
        told = _score(again, lineage)
        if told is not None:
            return Rescore("different", (told,), changes)
        found = list(_compare(store, again, lineage))
    verdict: Verdict = "identical"
    if found:
        verdict = "within tolerance" if all(each.is_small for each in found) else "different"
    return Rescore(verdict, tuple(each.text for each in found), changes)


def _changes(lineage: Lineage) -> tuple[tuple[str, str, str], ...]:
    then, now = lineage.run.software, describe_software()
    return tuple(
        (name, then.get(name, "not recorded"), now.get(name, "not installed"))
        for name in sorted(then.keys() | now.keys() if then else now.keys())
        if then.get(name) != now.get(name)
    )


def _obstacle(lineage: Lineage) -> str | None:
    """Why there is nothing to score again."""
    row, spec = lineage.row, lineage.spec
    try:
        content = read_bytes(row["source_uri"])
    except OSError as err:
        return f"its file cannot be read: {err}"
    digest = hashlib.sha256(content).hexdigest()[:32]
    if digest != row["image_id"]:
        return f"the file {row['source_uri']} has changed: it is the image {digest} now"
    files = [("weights", spec.weights_path, spec.weights_sha256)]
    if spec.quantized_path and spec.quantized_sha256:
        files.append(("int8 graphs", spec.quantized_path, spec.quantized_sha256))
    for what, path, sha256 in files:
        try:
            found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError as err:
            return f"the {what} cannot be read: {err}"
        if found != sha256:
            return f"the {what} {path} have changed: {found[:12]}, not {sha256[:12]}"
    return None


def _score(again: Store, lineage: Lineage) -> str | None:
    """Score the image in a run of its own; what went wrong, if anything."""
    row = lineage.row
    run = lineage.run.model_copy(
        update={"models": (lineage.spec,), "num_images": 1, "num_shards": 1, "session": ""}
    )
    plan = {name: row.get(name) for name in PLAN.names} | {"shard": 0, "model_mask": 1}
    again.create_run(run, pa.Table.from_pylist([plan], PLAN))
    configure_process()
    score_shard(again.root, run.run_id, 0)
    publish(again)
    failures = again.failures()
    if len(failures):
        failure = failures.iloc[-1]
        return f"it fails now: {failure['stage']}/{failure['reason']}: {failure['message']}"
    return None


def _compare(store: Store, again: Store, lineage: Lineage) -> Iterator[_Difference]:
    image_id, model = lineage.row["image_id"], lineage.row["model"]
    compared: dict[str, Callable[[pd.DataFrame, pd.DataFrame], Iterator[_Difference]]] = {
        "detections": _compare_boxes,
        "captions": _compare_captions,
        "labels": _compare_labels,
    }
    for table, compare in compared.items():
        then, now = (
            each.table(table, model=model, filters=[("image_id", "=", image_id)])
            .to_pandas()
            .sort_values("rank")
            .reset_index(drop=True)
            for each in (store, again)
        )
        if not then.equals(now):
            yield from compare(then, now)
    if lineage.row["semantic_array"] is not None:
        maps = [each.semantic_mask(image_id, model) for each in (store, again)]
        yield from _compare_pixels("label map", *maps)
    if lineage.row["instances_array"] is not None:
        masks = [each.instances(image_id, model).masks for each in (store, again)]
        if masks[0].shape == masks[1].shape:
            yield from _compare_pixels("instance masks", *masks)


def _compare_boxes(then: pd.DataFrame, now: pd.DataFrame) -> Iterator[_Difference]:
    if then["class_id"].tolist() != now["class_id"].tolist():
        yield _Difference(f"{len(now)} boxes, not {len(then)}, or of other classes", False)
        return
    yield from _compare_numbers("box edges, pixels", then, now, _EDGES, BOX_PX)
    yield from _compare_numbers("scores", then, now, ["score"], SCORE)


def _compare_captions(then: pd.DataFrame, now: pd.DataFrame) -> Iterator[_Difference]:
    if then["text"].tolist() != now["text"].tolist():
        yield _Difference(f"the captions are {now['text'].tolist()}", False)
        return
    yield from _compare_numbers("log probabilities", then, now, ["logprob"], SCORE)


def _compare_labels(then: pd.DataFrame, now: pd.DataFrame) -> Iterator[_Difference]:
    if then["class_id"].tolist() != now["class_id"].tolist():
        yield _Difference(f"the labels are {now['class_name'].tolist()}", False)
        return
    yield from _compare_numbers("scores", then, now, ["score"], SCORE)


def _compare_numbers(
    what: str, then: pd.DataFrame, now: pd.DataFrame, columns: list[str], tolerance: float
) -> Iterator[_Difference]:
    away = np.abs(then[columns].to_numpy(np.float64) - now[columns].to_numpy(np.float64))
    largest = float(away.max()) if away.size else 0.0
    if largest > 0:
        text = f"{what}: at most {largest:.2g} away ({tolerance:g} is tolerated)"
        yield _Difference(text, largest <= tolerance)


def _compare_pixels(what: str, then: Any, now: Any) -> Iterator[_Difference]:
    share = float((then != now).mean()) if then.size else 0.0
    if share > 0:
        text = f"{what}: {share:.2%} of the pixels differ ({PIXELS:.1%} is tolerated)"
        yield _Difference(text, share <= PIXELS)
