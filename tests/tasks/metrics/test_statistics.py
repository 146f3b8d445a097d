import json
from dataclasses import replace

import numpy as np
import pytest

from pixelmill.tasks.metrics.bootstrap import Number, draw_images, intervals
from pixelmill.tasks.metrics.captions import score_captions
from pixelmill.tasks.metrics.classification import score_labels
from pixelmill.tasks.metrics.detection import (
    Category,
    InstanceTruth,
    TruthImage,
    score_detections,
)
from pixelmill.tasks.metrics.segmentation import (
    class_tallies,
    confusion_counts,
    mean_iou,
    score_confusion,
)
from pixelmill.tasks.metrics.statistics import MatchStatistics, PixelStatistics
from pixelmill.tasks.truth import load_coco_instances

SIZE = 100


def overall(resampled):
    return {number.metric: v for number, v in resampled.items() if number.class_name is None}


def random_scene(seed, num_images=6):
    """Truth and detections of two classes with crowds and empty images."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image_id in range(1, num_images + 1):
        for _ in range(rng.integers(0, 5)):
            box = [*rng.integers(0, 60, 2), *rng.integers(5, 40, 2)]
            box_xywh = [float(side) for side in box]
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, 3)),
                    "bbox": box_xywh,
                    "area": box_xywh[2] * box_xywh[3],
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
            for _ in range(rng.integers(0, 3)):
                detections.append(
                    {
                        "image_id": image_id,
                        "category_id": annotations[-1]["category_id"],
                        "bbox": [side + float(rng.integers(0, 6)) for side in box_xywh],
                        # no ties: copies of equal scores would be ranked in turn, not in blocks
                        "score": float(rng.integers(1, 9)) / 10 + len(detections) / 10_000,
                    }
                )
    truth = InstanceTruth(
        images=tuple(TruthImage(i, f"{i}.jpg", SIZE, SIZE) for i in range(1, num_images + 1)),
        categories=(Category(1, "cat"), Category(2, "dog")),
        annotations=tuple(annotations),
        has_masks=False,
    )
    return truth, detections


def repeat(truth, detections, counts):
    """The same as a set in which image i is there `counts[i]` times."""
    images, annotations, found = [], [], []
    for image, count in zip(truth.images, counts, strict=True):
        for copy in range(count):
            new = 1000 * image.id + copy
            images.append(replace(image, id=new, file_name=f"{new}.jpg"))
            annotations += [
                {**a, "image_id": new} for a in truth.annotations if a["image_id"] == image.id
            ]
            found += [{**d, "image_id": new} for d in detections if d["image_id"] == image.id]
    return replace(truth, images=tuple(images), annotations=tuple(annotations)), found


@pytest.mark.parametrize("seed", range(12))
def test_ap_of_drawn_images_is_pycocotools_of_the_repeated_images(seed):
    truth, detections = random_scene(seed)
    statistics = score_detections(truth, detections).statistics
    counts = draw_images(len(truth.images), 3, np.random.default_rng(seed))
    found = statistics.resample(counts)
    for row, drawn in enumerate(counts):
        expected = score_detections(*repeat(truth, detections, drawn))
        values = {metric.name: metric.value for metric in expected.metrics}
        for name in ("AP", "AP50", "AP75", "AR100"):
            ours = found[Number(name)][row]
            assert ours == pytest.approx(values.get(name, np.nan), abs=1e-12, nan_ok=True)
        for line in expected.per_class:
            for name in ("AP", "AP50", "AR100"):
                ours = found[Number(name, line.class_name)][row]
                theirs = line.values.get(name, np.nan)
                assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)


def test_ap_of_all_images_is_pycocotools_on_its_own_example(data):
    folder = data / "cocoapi_fake100"
    truth = load_coco_instances(folder / "instances_val2014_100.json")
    detections = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    scores = score_detections(truth, detections)
    once = np.ones((1, scores.statistics.num_images), np.int32)
    found = overall(scores.statistics.resample(once))
    values = {metric.name: metric.value for metric in scores.metrics}
    for name, value in found.items():
        assert value[0] == pytest.approx(values[name], abs=1e-12)
    low, high = intervals(scores.statistics, 100)[Number("AP")]
    assert low < values["AP"] < high


def test_match_columns_must_fit():
    column = np.zeros(3, np.int64)
    flags = np.zeros((2, 10), bool)
    with pytest.raises(ValueError, match="columns must be of one length"):
        MatchStatistics(("a",), column, column, np.zeros(3), flags, flags, np.ones((4, 1), int))


def test_pixel_numbers_of_drawn_images_are_those_of_the_repeated_images():
    rng = np.random.default_rng(0)
    names = ("a", "b", "never")
    pairs = [rng.integers(0, 3, size=(2, 8, 8)) % [[[2]], [[3]]] for _ in range(5)]
    confusions = [confusion_counts(truth, predicted, 3) for truth, predicted in pairs]
    images_iou = np.array([mean_iou(each) for each in confusions])
    statistics = PixelStatistics(
        names, np.stack([class_tallies(each) for each in confusions]), images_iou
    )
    counts = draw_images(5, 4, rng)
    found = statistics.resample(counts)
    for row, drawn in enumerate(counts):
        total = np.sum([n * each for n, each in zip(drawn, confusions, strict=True)], axis=0)
        scores = score_confusion(total, names)
        for metric in scores.metrics:
            if Number(metric.name) in found:
                assert found[Number(metric.name)][row] == pytest.approx(metric.value, abs=1e-12)
        for line in scores.per_class:
            ours = found[Number("IoU", line.class_name)][row]
            assert ours == pytest.approx(line.values.get("IoU", np.nan), nan_ok=True)
        mean = np.average(images_iou, weights=drawn)
        assert found[Number("mIoU per image")][row] == pytest.approx(mean)


def test_label_numbers_of_drawn_images_are_those_of_the_repeated_images():
    rng = np.random.default_rng(1)
    classes = ("a", "b", "c")
    truth = [classes[k] for k in rng.integers(0, 3, 12)]
    ranked = [list(rng.permutation([*classes, "unknown"])[: rng.integers(0, 4)]) for _ in truth]
    statistics = score_labels(truth, ranked, classes).statistics
    counts = draw_images(12, 5, rng)
    found = statistics.resample(counts)
    for row, drawn in enumerate(counts):
        index = np.repeat(np.arange(12), drawn)
        scores = score_labels([truth[i] for i in index], [ranked[i] for i in index], classes)
        for metric in scores.metrics:
            assert found[Number(metric.name)][row] == pytest.approx(metric.value, abs=1e-12)
        for line in scores.per_class:
            ours = found[Number("F1", line.class_name)][row]
            assert ours == pytest.approx(line.values.get("F1", np.nan), nan_ok=True)


def test_caption_numbers_of_all_images_are_those_of_the_corpus():
    references = [["a cat on a mat .", "the cat sat there"], ["a dog runs fast"], ["a red bus"]]
    candidates = ["a cat on the mat", "a dog runs very fast", ""]
    scores = score_captions(candidates, references)
    counts = np.array([[1, 1, 1], [0, 2, 1]], np.int32)
    found = scores.statistics.resample(counts)
    for metric in scores.metrics:
        assert found[Number(metric.name)][0] == pytest.approx(metric.value, abs=1e-12)
    # BLEU depends on what is drawn alone, so drawing is repeating
    again = score_captions([candidates[1]] * 2 + [""], [references[1]] * 2 + [references[2]])
    for metric in again.metrics:
        if metric.name.startswith("BLEU"):
            assert found[Number(metric.name)][1] == pytest.approx(metric.value, abs=1e-12)
