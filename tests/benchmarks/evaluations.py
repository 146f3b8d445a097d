"""What `test_bench_evaluate` measures, importable by the processes that it starts."""

import contextlib
import io
import multiprocessing
import resource
import time
from typing import Any, cast

import numpy as np

from pixelmill.tasks.evaluation.match_table import (
    MATCH_SCHEMA,
    matches_from_table,
    matches_to_table,
)
from pixelmill.tasks.evaluation.records import EvaluationRecords, digest, image_keys
from pixelmill.tasks.metrics.bootstrap import intervals
from pixelmill.tasks.metrics.detection import (
    Category,
    InstanceTruth,
    TruthImage,
    score_detections,
    score_matches,
)
from pixelmill.tasks.metrics.matching import DetectionColumns, InstanceColumns, match_images
from pixelmill.tasks.store import Store

CLASSES = 80
NAMES = [f"class {k}" for k in range(CLASSES)]


def draw_set(num_images, num_truth, num_found, seed=0):
    """Truth and detections as columns: a quarter lies near an instance, the rest anywhere."""
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, CLASSES + 1)
    frequency /= frequency.sum()

    def anywhere(count):
        sides = np.exp(rng.normal(4, 0.9, (count, 2))).clip(4, 400)
        return np.hstack([rng.random((count, 2)) * (np.array([640, 480]) - sides).clip(1), sides])

    truth_image = np.sort(rng.integers(0, num_images, num_truth))
    truth_class = rng.choice(CLASSES, num_truth, p=frequency)
    truth_boxes = anywhere(num_truth).round(2)
    image = np.sort(rng.integers(0, num_images, num_found))
    class_index, boxes = rng.choice(CLASSES, num_found, p=frequency), anywhere(num_found)
    score = rng.beta(1, 4, num_found)
    starts = np.searchsorted(truth_image, np.arange(num_images + 1))
    lengths = starts[image + 1] - starts[image]
    near = np.flatnonzero((rng.random(num_found) < 0.25) & (lengths > 0))
    row = starts[image[near]] + (rng.random(len(near)) * lengths[near]).astype(int)
    boxes[near] = truth_boxes[row] * (1 + rng.normal(0, 0.06, (len(near), 4)))
    right = rng.random(len(near)) < 0.9
    class_index[near[right]] = truth_class[row[right]]
    score[near] = rng.beta(3, 2, len(near))
    truth = InstanceColumns(
        truth_image,
        truth_class,
        truth_boxes,
        truth_boxes[:, 2] * truth_boxes[:, 3],
        rng.random(num_truth) < 0.012,
    )
    found = DetectionColumns(
        image,
        class_index,
        np.arange(num_found) - np.searchsorted(image, image),
        score.round(3),
        boxes.clip(0.01).round(2),
    )
    return truth, found


def as_dicts(truth, found, num_images):
    """The same as COCO's JSON has it."""
    notes = [
        {
            "id": i + 1,
            "image_id": image,
            "category_id": k,
            "bbox": box,
            "area": area,
            "iscrowd": crowd,
        }
        for i, (image, k, box, area, crowd) in enumerate(
            zip(
                truth.image.tolist(),
                truth.class_index.tolist(),
                truth.boxes_xywh.tolist(),
                truth.area.tolist(),
                truth.crowd.astype(int).tolist(),
                strict=True,
            )
        )
    ]
    results = [
        {"image_id": image, "category_id": k, "bbox": box, "score": score}
        for image, k, box, score in zip(
            found.image.tolist(),
            found.class_index.tolist(),
            found.boxes_xywh.tolist(),
            found.score.tolist(),
            strict=True,
        )
    ]
    document = {
        "images": [{"id": i, "width": 640, "height": 480} for i in range(num_images)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES)],
        "annotations": notes,
    }
    return document, results


def run_reference(module, size):
    """pycocotools' API, which faster-coco-eval has too."""
    document, results = as_dicts(*draw_set(*size), size[0])
    if module == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluator
    else:
        from faster_coco_eval import COCO  # pyright: ignore[reportMissingImports]
        from faster_coco_eval import COCOeval_faster as Evaluator  # pyright: ignore[reportMissingImports]
    before, start = peak_mb(), Clock()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = cast("Any", COCO())
        truth.dataset = document
        truth.createIndex()
        run = Evaluator(truth, truth.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [float(value) for value in run.stats[:12]], before, start.read()


def run_ours(size):
    document, results = as_dicts(*draw_set(*size), size[0])
    truth = InstanceTruth(
        tuple(TruthImage(i, f"{i}.jpg", 640, 480) for i in range(size[0])),
        tuple(Category(k, name) for k, name in enumerate(NAMES)),
        tuple(document["annotations"]),
        has_masks=False,
    )
    before, start = peak_mb(), Clock()
    scores = score_detections(truth, results)
    seconds = start.read()
    return [metric.value for metric in scores.metrics[:12]], before, seconds


def run_columns(size):
    """From the store's columns, as `evaluate` has them: no dicts."""
    truth, found = draw_set(*size)
    before, start = peak_mb(), Clock()
    scores = score_matches(match_images(truth, found, size[0]), NAMES)
    seconds = start.read()
    return [metric.value for metric in scores.metrics[:12]], before, seconds


class Clock:
    """Seconds since it was made: by the wall, and of this process's CPU."""

    def __init__(self):
        self._start = time.perf_counter(), time.process_time()

    def read(self):
        wall, cpu = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        return {"seconds": round(wall, 2), "cpu_s": round(cpu, 2)}


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(function, *arguments):
    """Numbers, seconds and peak memory of a fresh process."""
    return call(_measure, function, arguments)


def call(function, *arguments):
    """The function's result, from a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply_async(function, arguments).get(timeout=540)


def _measure(function, arguments):
    values, before, seconds = function(*arguments)
    return {
        "values": values,
        **seconds,
        "peak_mb": round(peak_mb()),
        "peak_mb_before": round(before),
    }


def kept_nights(root, num_images, per_night):
    """Records of all images, made night by night; returns their keys."""
    schema = MATCH_SCHEMA
    records = EvaluationRecords(Store(root, create=True), "bench", "boxes", {}, schema)
    ids = [f"{i:032x}" for i in range(num_images)]
    keys = image_keys(ids, ["0"] * num_images, [digest(b"")] * num_images)

    def compute(todo):
        for first in range(0, len(todo), per_night):
            part = todo[first : first + per_night]
            truth, found = draw_set(len(part), 3 * len(part), 10 * len(part), seed=int(part[0]))
            yield matches_to_table(match_images(truth, found, len(part)))

    return records, keys, compute


def run_night(root, num_images, num_new):
    """What is kept, and one night more."""
    records, keys, compute = kept_nights(root, num_images, 20_000)
    steps = {}

    def timed(name, start):
        steps[name] = {**start.read(), "peak_mb": round(peak_mb())}

    start = Clock()
    rows, notes = records.rows(keys, compute)
    timed("records found, the night matched and kept", start)
    assert f"{num_new:,} anew" in notes[0], notes
    start = Clock()
    matches = matches_from_table(rows)
    timed("records unpacked", start)
    start = Clock()
    scores = score_matches(matches, NAMES)
    timed("all numbers accumulated, errors and sweeps too", start)
    start = Clock()
    intervals(scores.statistics, 1000)
    timed("intervals", start)
    values = [metric.value for metric in scores.metrics]
    steps["images"], steps["detections"] = num_images, len(matches.score)
    return values, steps


def run_first(root, num_images):
    records, keys, compute = kept_nights(root, num_images, 20_000)
    start = Clock()
    records.rows(keys, compute)
    return {**start.read(), "peak_mb": round(peak_mb())}
