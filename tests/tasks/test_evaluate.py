import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pycocotools import mask as mask_codec

from pixelmill.configs.schema import EvaluationConfig, PreprocessConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.evaluate import evaluate
from pixelmill.tasks.evaluation.save import save_evaluation
from pixelmill.tasks.metrics.detection import encode_mask, score_detections
from pixelmill.tasks.predictions import Caption, Detections, ImagePrediction, Label, MaskCrop
from pixelmill.tasks.store import (
    PLAN,
    CatalogRow,
    FailureRow,
    ImageRow,
    RunRecord,
    ShardWriter,
    Store,
    publish,
)
from pixelmill.tasks.truth import load_coco_instances

HEIGHT, WIDTH = 40, 60
PATHS = ("a.jpg", "b.jpg", "sub/c.jpg")
# Truth boxes (xywh, class) of each image; c.jpg has none.
TRUTH = {
    "a.jpg": [([5, 5, 20, 10], "cat"), ([30, 20, 10, 10], "dog")],
    "b.jpg": [([0, 0, 12, 12], "cat")],
    "sub/c.jpg": [],
}


def image_id_of(path, version=0):
    return hashlib.sha256(f"{path}{version}".encode()).hexdigest()[:32]


def make_spec(name, task, classes=("cat", "dog")):
    return ModelSpec(
        name=name,
        task=task,
        architecture="fake",
        arguments={},
        weights_path="fake.safetensors",
        weights_sha256="0" * 64,
        classes=classes,
        preprocess=PreprocessConfig(canvases=((64, 64),)),
        precision="fp32",
    )


def box_mask(box_xywh):
    x, y, w, h = box_xywh
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


def perfect_detections(path, classes, *, masks):
    rows = TRUTH[path]
    return Detections(
        boxes_xyxy=np.array(
            [(x, y, x + w, y + h) for (x, y, w, h), _ in rows], dtype=np.float32
        ).reshape(-1, 4),
        scores=np.linspace(0.9, 0.8, len(rows), dtype=np.float32),
        labels=np.array([classes.index(name) for _, name in rows], dtype=np.int32),
        masks=tuple(MaskCrop(y, x, np.ones((h, w), dtype=bool)) for (x, y, w, h), _ in rows)
        if masks
        else None,
    )


def semantic_of(path):
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for box_xywh, name in TRUTH[path]:
        labels[box_mask(box_xywh)] = 1 + ("cat", "dog").index(name)
    return labels


@pytest.fixture
def score(tmp_path):
    """Make a store from {spec: {path: prediction}}; paths in `failed` are failures."""

    def run(predictions, *, failed=(), collection="photos", run_id="20260101T000000-aaaaaa"):
        store = Store(tmp_path / "out", create=True)
        record = RunRecord(
            run_id=run_id,
            date="2026-01-01",
            collection=collection,
            source="photos",
            created_at="2026-01-01T00:00:00Z",
            config={},
            models=tuple(spec for spec, _ in predictions),
            num_images=len(PATHS),
            num_shards=1,
        )
        store.create_run(record, pa.Table.from_pylist([], schema=PLAN))
        writer = ShardWriter(store, record, 0)
        paths = sorted({path for _, results in predictions for path in results} | set(failed))
        for path in paths:
            place = {
                "collection": collection,
                "path": path,
                "source_uri": f"file:///photos/{path}",
                "size_bytes": 10,
                "modified": "1",
            }
            writer.add_catalog(
                CatalogRow(**place, image_id=image_id_of(path), width=WIDTH, height=HEIGHT)
            )
            if path in failed:
                failure = {
                    "stage": "decode",
                    "reason": "corrupt",
                    "message": "",
                    "retryable": False,
                }
                writer.add_failure(FailureRow(**place, **failure, image_id=image_id_of(path)))
            for spec, results in predictions:
                if path in results:
                    row = ImageRow(**place, image_id=image_id_of(path), width=WIDTH, height=HEIGHT)
                    writer.add_image(row, spec.key, results[path])
        writer.commit()
        publish(store)
        return store

    return run


@pytest.fixture
def base(tmp_path):
    """A folder with truth of all four kinds."""
    folder = tmp_path / "truth"
    folder.mkdir()
    names = ["cat", "dog"]
    images = [
        {"id": i, "file_name": path, "width": WIDTH, "height": HEIGHT}
        for i, path in enumerate(PATHS)
    ]
    annotations = [
        {
            "id": 10 * image["id"] + k,
            "image_id": image["id"],
            "category_id": 3 + names.index(name),
            "bbox": box_xywh,
            "area": box_xywh[2] * box_xywh[3],
            "iscrowd": 0,
            "segmentation": {
                "size": [HEIGHT, WIDTH],
                "counts": encode_mask(box_mask(box_xywh))["counts"].decode(),
            },
        }
        for image in images
        for k, (box_xywh, name) in enumerate(TRUTH[image["file_name"]])
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(document))
    captions = [
        {"id": i, "image_id": image["id"], "caption": text}
        for image in images
        for i, text in enumerate(
            [f"A photo of {image['file_name'][0]} on a table.", "Something else."]
        )
    ]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    for path in PATHS:
        file = (folder / "semantic" / path).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(semantic_of(path)).save(file)
    (folder / "classes.json").write_text(json.dumps(["ground", "cat", "dog"]))
    rows = ["file_name,label", "a.jpg,indoor", "b.jpg,outdoor", "sub/c.jpg,indoor"]
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


INSTANCES = EvaluationConfig(instances="instances.json")
DETECTOR = make_spec("detector", "detection")
SEGMENTER = make_spec("segmenter", "instance_segmentation")


def detector_results(paths=PATHS, *, masks=False, classes=("cat", "dog")):
    return {
        path: ImagePrediction(detections=perfect_detections(path, classes, masks=masks))
        for path in paths
    }


def values(evaluation):
    return {metric.name: metric.value for metric in evaluation.metrics}


def only(evaluation):
    assert len(evaluation.models) == 1
    return evaluation.models[0]


def test_perfect_boxes_have_ap_one(score, base):
    store = score([(DETECTOR, detector_results())])
    found = only(evaluate(store, INSTANCES, base=base, collection="photos"))
    assert (found.kind, found.task, found.model_key) == ("boxes", "detection", DETECTOR.key)
    assert values(found)["AP"] == pytest.approx(1.0)
    assert found.num_images == 3
    assert [row.path for row in found.per_image] == list(PATHS)
    assert found.per_image[0].image_id == image_id_of("a.jpg")
    assert found.missing == found.failed == ()
    assert [metric.name for metric in found.headline] == ["AP", "AP50", "AP75", "AR100"]


def test_instances_are_compared_by_boxes_and_by_masks(score, base):
    store = score([(SEGMENTER, detector_results(masks=True))])
    evaluation = evaluate(store, INSTANCES, base=base, collection="photos")
    assert [model.kind for model in evaluation.models] == ["boxes", "masks"]
    assert [values(model)["AP"] for model in evaluation.models] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(("iou_type", "kinds"), [("bbox", ["boxes"]), ("segm", ["masks"])])
def test_iou_type_chooses(score, base, iou_type, kinds):
    store = score([(SEGMENTER, detector_results(masks=True))])
    config = EvaluationConfig(instances="instances.json", iou_type=iou_type)
    evaluation = evaluate(store, config, base=base, collection="photos")
    assert [model.kind for model in evaluation.models] == kinds


def test_numbers_are_those_of_pycocotools_on_the_same_rows(score, base):
    wrong = Detections(
        boxes_xyxy=np.array([[5.3, 4.9, 25.2, 16], [28, 20, 40, 30], [1, 1, 9, 9]], np.float32),
        scores=np.array([0.7, 0.6, 0.2], np.float32),
        labels=np.array([0, 1, 1], np.int32),
    )
    results = detector_results(["b.jpg", "sub/c.jpg"])
    store = score([(DETECTOR, {**results, "a.jpg": ImagePrediction(detections=wrong)})])
    found = only(evaluate(store, INSTANCES, base=base, collection="photos"))
    truth = load_coco_instances(base / "instances.json")
    numbers = {image_id_of(image.file_name): image.id for image in truth.images}
    rows = store.boxes(DETECTOR.key).to_dict("records")
    expected = score_detections(
        truth,
        [
            {
                "image_id": numbers[row["image_id"]],
                "category_id": {"cat": 3, "dog": 4}[row["class_name"]],
                "score": row["score"],
                "bbox": [
                    row["x_min"],
                    row["y_min"],
                    row["x_max"] - row["x_min"],
                    row["y_max"] - row["y_min"],
                ],
            }
            for row in rows
        ],
    )
    assert found.metrics == expected.metrics


def test_images_that_failed_or_were_never_scored_count_as_empty_and_are_listed(score, base):
    store = score([(DETECTOR, detector_results(["a.jpg"]))], failed=["b.jpg"])
    found = only(evaluate(store, INSTANCES, base=base, collection="photos"))
    assert found.failed == ("b.jpg",)
    assert found.missing == ("sub/c.jpg",)
    # one of two cats was found
    assert values(found)["AP50"] == pytest.approx((51 / 101 + 1) / 2)
    assert found.notes[0] == (
        "1 truth images were never scored and 1 truth images could not be scored: "
        "they count as empty predictions"
    )


def test_classes_are_matched_by_name_and_renamed(score, base):
    spec = make_spec("foreign", "detection", classes=("hound", "zebra", "feline"))
    results = detector_results(classes=("dog", "zebra", "cat"))
    store = score([(spec, results)])
    config = EvaluationConfig(
        instances="instances.json", class_names={"feline": "cat", "hound": "dog"}
    )
    found = only(evaluate(store, config, base=base, collection="photos"))
    assert values(found)["AP"] == pytest.approx(1.0)
    assert any("0 detections ignored: zebra" in note for note in found.notes)


def test_detections_of_classes_that_the_truth_does_not_have_are_ignored_and_counted(score, base):
    spec = make_spec("more", "detection", classes=("cat", "zebra"))
    detections = Detections(
        boxes_xyxy=np.array([[0, 0, 12, 12], [0, 0, 12, 12]], np.float32),
        scores=np.array([0.9, 0.8], np.float32),
        labels=np.array([0, 1], np.int32),
    )
    store = score([(spec, {"b.jpg": ImagePrediction(detections=detections)})])
    found = only(evaluate(store, INSTANCES, base=base, collection="photos"))
    assert any("1 detections ignored: zebra" in note for note in found.notes)
    assert any("never found: dog" in note for note in found.notes)
    assert found.per_image[1].values["FP"] == 0.0


def test_a_model_without_a_common_class_is_skipped_with_the_remedy(score, base):
    spec = make_spec("other", "detection", classes=("x", "y"))
    store = score([(spec, detector_results())])
    evaluation = evaluate(store, INSTANCES, base=base, collection="photos")
    assert evaluation.models == ()
    assert "evaluation.class_names" in evaluation.skipped[spec.key]


def test_semantic_maps_are_matched_by_stem_and_class_name(score, base):
    # the model numbers its classes otherwise than the truth
    spec = make_spec("maps", "semantic_segmentation", classes=("dog", "ground", "cat"))
    order = np.array([1, 2, 0], dtype=np.uint8)
    results = {path: ImagePrediction(semantic=order[semantic_of(path)]) for path in PATHS}
    store = score([(spec, results)])
    config = EvaluationConfig(semantic="semantic")
    found = only(evaluate(store, config, base=base, collection="photos"))
    assert values(found)["mIoU"] == 1.0
    assert found.confusion is not None
    assert found.confusion.rows == ("ground", "cat", "dog")
    assert [row.values["mIoU"] for row in found.per_image] == [1.0, 1.0, 1.0]


def test_an_unscored_image_has_all_its_pixels_wrong(score, base):
    spec = make_spec("maps", "semantic_segmentation", classes=("ground", "cat", "dog"))
    store = score([(spec, {"sub/c.jpg": ImagePrediction(semantic=semantic_of("sub/c.jpg"))})])
    config = EvaluationConfig(semantic="semantic")
    found = only(evaluate(store, config, base=base, collection="photos"))
    assert values(found)["pixel accuracy"] == pytest.approx(1 / 3)
    assert found.missing == ("a", "b")
    assert found.confusion is not None
    assert sum(row[-1] for row in found.confusion.counts) == 2 * HEIGHT * WIDTH


def test_void_and_unlisted_truth_pixels_are_not_scored(score, base):
    labels = semantic_of("a.jpg")
    labels[:10] = 255
    labels[10:12] = 77
    Image.fromarray(labels).save(base / "semantic" / "a.png")
    spec = make_spec("maps", "semantic_segmentation", classes=("ground", "cat", "dog"))
    results = {path: ImagePrediction(semantic=semantic_of(path)) for path in PATHS}
    store = score([(spec, results)])
    found = only(
        evaluate(store, EvaluationConfig(semantic="semantic"), base=base, collection="photos")
    )
    assert values(found)["mIoU"] == 1.0
    assert found.confusion is not None
    assert sum(map(sum, found.confusion.counts)) == (3 * HEIGHT - 12) * WIDTH
    assert any(note.startswith(f"{2 * WIDTH} pixels have a label value") for note in found.notes)


def test_label_maps_of_another_size_are_refused(score, base):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(base / "semantic" / "a.png")
    spec = make_spec("maps", "semantic_segmentation", classes=("ground", "cat", "dog"))
    store = score([(spec, {path: ImagePrediction(semantic=semantic_of(path)) for path in PATHS})])
    config = EvaluationConfig(semantic="semantic")
    with pytest.raises(ValueError, match="truth must have the image's size"):
        evaluate(store, config, base=base, collection="photos")


def test_captions_are_scored_by_the_best_of_each_image(score, base):
    spec = make_spec("captioner", "captioning", classes=())
    results = {
        path: ImagePrediction(
            captions=(
                Caption(f"a photo of {path[0]} on a table", -1.0, 8),
                Caption("nonsense", -9.0, 2),
            )
        )
        for path in PATHS
    }
    store = score([(spec, results)])
    config = EvaluationConfig(captions="captions.json")
    found = only(evaluate(store, config, base=base, collection="photos"))
    assert values(found)["BLEU-4"] == pytest.approx(1.0)
    assert values(found)["CIDEr-D baseline"] == pytest.approx(0.0)
    assert len(found.per_image) == 3


def test_labels_are_ranked(score, base):
    spec = make_spec("classifier", "classification", classes=("indoor", "outdoor", "space"))
    guesses = {"a.jpg": (0, 1), "b.jpg": (2, 1), "sub/c.jpg": (2, 0)}
    results = {
        path: ImagePrediction(labels=tuple(Label(k, 0.9 - k / 10) for k in ranked))
        for path, ranked in guesses.items()
    }
    store = score([(spec, results)])
    config = EvaluationConfig(labels="labels.csv")
    found = only(evaluate(store, config, base=base, collection="photos"))
    assert values(found)["top-1"] == pytest.approx(1 / 3)
    assert values(found)["top-5"] == 1.0


@pytest.mark.parametrize("draws", [200, 0])
def test_headline_numbers_have_intervals_unless_switched_off(score, base, draws):
    names = [f"{k}.jpg" for k in range(12)]
    rows = ["file_name,label", *(f"{name},indoor" for name in names)]
    (base / "labels.csv").write_text("\n".join([*rows[:-1], "11.jpg,outdoor"]))
    spec = make_spec("labeller", "classification", ("indoor", "outdoor"))
    guess = ImagePrediction(labels=(Label(0, 0.9), Label(1, 0.1)))
    store = score([(spec, dict.fromkeys(names, guess))])
    config = EvaluationConfig(labels="labels.csv", bootstrap=draws)
    found = only(evaluate(store, config, base=base, collection="photos"))
    top_1, top_5, _ = found.headline
    if draws:
        assert top_1.interval is not None
        assert top_1.interval[0] < 11 / 12 < top_1.interval[1] <= 1.0
        assert top_5.interval == (1.0, 1.0)
        assert "BCa bootstrap over 12 images, 200 draws" in found.notes[-1]
    else:
        assert top_1.interval is None


def test_few_images_have_no_intervals_and_it_says_why(score, base):
    store = score([(DETECTOR, detector_results())])
    found = only(evaluate(store, INSTANCES, base=base, collection="photos"))
    assert {metric.interval for metric in found.metrics} == {None}
    assert "no intervals: they need 10 images or more" in found.notes


def test_images_of_other_collections_are_not_evaluated(score, base):
    store = score([(DETECTOR, detector_results())])
    other = {
        "d.jpg": ImagePrediction(
            detections=perfect_detections("a.jpg", ["cat", "dog"], masks=False)
        )
    }
    score([(DETECTOR, other)], collection="others", run_id="20260102T000000-bbbbbb")
    found = only(evaluate(store, INSTANCES, base=base, collection="photos"))
    assert [row.path for row in found.per_image] == list(PATHS)
    missed = only(evaluate(store, INSTANCES, base=base, collection="others"))
    assert missed.missing == PATHS


def test_a_subset_is_compared_alone_whatever_the_kind_of_truth(score, base):
    semantic = make_spec("maps", "semantic_segmentation", ("ground", "cat", "dog"))
    maps = {path: ImagePrediction(semantic=semantic_of(path)) for path in PATHS}
    store = score([(DETECTOR, detector_results(["b.jpg", "sub/c.jpg"])), (semantic, maps)])
    (base / "held_out.txt").write_text("b.jpg\nsub/c\n")
    config = EvaluationConfig(
        instances="instances.json", semantic="semantic", subset="held_out.txt"
    )
    evaluation = evaluate(store, config, base=base, collection="photos")
    assert [(model.kind, model.num_images) for model in evaluation.models] == [
        ("boxes", 2),
        ("semantic", 2),
    ]
    assert values(evaluation.models[0])["AP"] == pytest.approx(1.0)
    assert evaluation.models[0].missing == ()
    assert evaluation.truth["subset"] == str(base / "held_out.txt")


def test_a_subset_must_have_truth(score, base):
    store = score([(DETECTOR, detector_results())])
    (base / "held_out.txt").write_text("b.jpg\nelsewhere.jpg\n")
    config = EvaluationConfig(instances="instances.json", subset="held_out.txt")
    with pytest.raises(ValueError, match=r"1 images without truth, first 'elsewhere'"):
        evaluate(store, config, base=base, collection="photos")


def test_models_can_be_named_and_others_are_skipped_with_the_reason(score, base):
    captioner = make_spec("captioner", "captioning", classes=())
    text = {path: ImagePrediction(captions=(Caption("x", -1.0, 2),)) for path in PATHS}
    store = score([(DETECTOR, detector_results()), (captioner, text)])
    evaluation = evaluate(store, INSTANCES, base=base, collection="photos")
    assert [model.model_key for model in evaluation.models] == [DETECTOR.key]
    assert evaluation.skipped == {captioner.key: "no truth for captioning"}
    for name in ("detector", DETECTOR.key):
        named = evaluate(store, INSTANCES, base=base, collection="photos", models=[name])
        assert named.skipped == {}
        assert only(named).model_key == DETECTOR.key


def test_errors_name_the_remedy(score, base):
    store = score([(DETECTOR, detector_results())])
    with pytest.raises(ValueError, match="names no truth"):
        evaluate(store, EvaluationConfig(), base=base, collection="photos")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        evaluate(store, EvaluationConfig(labels="nowhere.json"), base=base, collection="photos")
    with pytest.raises(ValueError, match="no collection 'x'; it has: photos"):
        evaluate(store, INSTANCES, base=base, collection="x")
    with pytest.raises(KeyError, match="no model 'x'"):
        evaluate(store, INSTANCES, base=base, collection="photos", models=["x"])


def test_saved_files_hold_every_number(score, base, tmp_path):
    store = score([(SEGMENTER, detector_results(masks=True))])
    evaluation = evaluate(store, INSTANCES, base=base, collection="photos")
    save_evaluation(evaluation, tmp_path / "report")
    document = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert document["models"][0]["headline"][0]["name"] == "AP"
    metrics = pd.read_parquet(tmp_path / "report" / "metrics.parquet")
    assert list(metrics.columns) == [
        *("model", "kind", "class", "metric", "value"),
        *("low", "high"),
    ]
    ap = metrics.query("kind == 'masks' and metric == 'AP'").set_index("class")["value"]
    assert ap["cat"] == pytest.approx(1.0)
    per_image = pd.read_parquet(tmp_path / "report" / "per_image.parquet")
    assert set(per_image["metric"]) == {"TP", "FP", "FN", "F1"}
    assert not any(path.name.endswith(".new") for path in (tmp_path / "report").iterdir())


def test_several_label_values_and_model_classes_may_be_one_class(score, base):
    (base / "classes.json").write_text(json.dumps(["ground", "animal", "animal"]))
    spec = make_spec("maps", "semantic_segmentation", classes=("ground", "cat", "dog"))
    store = score([(spec, {path: ImagePrediction(semantic=semantic_of(path)) for path in PATHS})])
    config = EvaluationConfig(semantic="semantic", class_names={"cat": "animal", "dog": "animal"})
    found = only(evaluate(store, config, base=base, collection="photos"))
    assert [row.class_name for row in found.per_class] == ["ground", "animal"]
    assert values(found)["mIoU"] == 1.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_numbers_of_real_masks_survive_the_store_to_the_last_digit(tmp_path, data):
    truth = load_coco_instances(data / "pennfudan" / "instances.json")
    sizes = {image.id: image for image in truth.images}
    noisy = json.loads((data / "pennfudan" / "noisy_segm_dets.json").read_text())
    (spec,) = (make_spec("noisy", "instance_segmentation", classes=(truth.categories[0].name,)),)
    store = Store(tmp_path / "out", create=True)
    record = RunRecord(
        run_id="20260101T000000-aaaaaa",
        date="2026-01-01",
        collection="pennfudan",
        source="images",
        created_at="2026-01-01T00:00:00Z",
        config={},
        models=(spec,),
        num_images=len(sizes),
        num_shards=1,
    )
    store.create_run(record, pa.Table.from_pylist([], schema=PLAN))
    writer = ShardWriter(store, record, 0)
    for image in truth.images:
        rows = [row for row in noisy if row["image_id"] == image.id]
        rows.sort(key=lambda row: -row["score"])
        masks = [mask_codec.decode(row["segmentation"]).astype(bool) for row in rows]
        place = {
            "collection": "pennfudan",
            "path": image.file_name,
            "source_uri": image.file_name,
            "size_bytes": 1,
            "modified": "1",
            "image_id": image_id_of(image.file_name),
            "width": image.width,
            "height": image.height,
        }
        detections = Detections(
            boxes_xyxy=np.tile(
                np.array([0, 0, image.width, image.height], np.float32), (len(rows), 1)
            ),
            scores=np.array([row["score"] for row in rows], np.float32),
            labels=np.zeros(len(rows), np.int32),
            masks=tuple(MaskCrop(0, 0, mask) for mask in masks),
        )
        writer.add_catalog(CatalogRow(**place))
        writer.add_image(ImageRow(**place), spec.key, ImagePrediction(detections=detections))
    writer.commit()
    publish(store)
    config = EvaluationConfig(instances="instances.json", iou_type="segm")
    found = only(evaluate(store, config, base=data / "pennfudan", collection="pennfudan"))
    expected = json.loads((data / "expected_noisy.json").read_text())["values"]["pennfudan/segm"]
    assert [metric.value for metric in found.metrics[:12]] == expected["noisy"]
