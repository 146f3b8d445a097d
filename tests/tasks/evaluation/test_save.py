import json

import pandas as pd
import yaml

from pixelmill.tasks.evaluation import save
from pixelmill.tasks.evaluation.save import save_evaluation


def test_json_parquet_and_thresholds_say_the_same(nights, tmp_path):
    world = nights(5)
    world.add([f"{i}.jpg" for i in range(8)])
    found = world.evaluate()
    files = save_evaluation(found, tmp_path)
    tables = [f"{name}.parquet" for name in ("metrics", "per_image", "mistakes", "sweeps")]
    assert [file.name for file in files] == ["metrics.json", *tables, "thresholds.yaml"]
    document = json.loads((tmp_path / "metrics.json").read_text())
    masks = next(one for one in document["models"] if one["kind"] == "masks")
    metrics = pd.read_parquet(tmp_path / "metrics.parquet").query("kind == 'masks'")
    of_all = metrics[metrics["class"].isna()].set_index("metric")["value"]
    assert {one["name"]: one["value"] for one in masks["metrics"]}.items() <= dict(of_all).items()
    shares = {one["kind"]: one["delta_ap"] for one in masks["errors"]["shares"]}
    assert shares == {kind: of_all[f"dAP {kind}"] for kind in shares}
    mistakes = pd.read_parquet(tmp_path / "mistakes.parquet").query("kind == 'masks'")
    assert mistakes["error"].tolist() == [one["kind"] for one in masks["mistakes"]]
    assert [box.tolist() for box in mistakes["box_xyxy"]] == [
        one["box_xyxy"] for one in masks["mistakes"]
    ]
    sweeps = pd.read_parquet(tmp_path / "sweeps.parquet").query("kind == 'masks'")
    assert len(sweeps) == sum(len(one["thresholds"]) for one in masks["sweeps"])
    thresholds = yaml.safe_load((tmp_path / "thresholds.yaml").read_text())
    assert thresholds == {"segmenter": masks["thresholds"]}
    assert thresholds["segmenter"]


def test_mistakes_are_told_with_the_boxes_that_are_stored(nights):
    world = nights(6)
    world.add([f"{i}.jpg" for i in range(8)])
    for i in range(3):  # not scored: all their instances are missed
        world.draw_truth(f"unscored-{i}.jpg")
    world.save_truth()
    boxes = next(one for one in world.evaluate().models if one.kind == "boxes")
    stored = world.store.boxes(boxes.model_key).set_index(["image_id", "rank"])
    kinds = {one.kind for one in boxes.mistakes}
    assert {"background", "missed"} <= kinds
    for one in boxes.mistakes:
        if one.kind == "missed":
            truth = world.truth[one.path][0]
            x, y, right, bottom = one.box_xyxy
            assert [x, y, right - x, bottom - y] in truth.tolist()
            continue
        row = stored.loc[(one.image_id, one.rank)]
        assert one.box_xyxy == tuple(row[["x_min", "y_min", "x_max", "y_max"]])
        assert (one.class_name, one.score) == (row["class_name"], row["score"])
        assert (one.truth_class == one.class_name) == (one.kind in ("localisation", "duplicate"))


def test_the_numbers_of_very_many_images_are_in_parquet_alone(nights, tmp_path, monkeypatch):
    monkeypatch.setattr(save, "_MOST_JSON_IMAGES", 2)
    world = nights(7)
    world.add([f"{i}.jpg" for i in range(3)])
    save_evaluation(world.evaluate(), tmp_path)
    document = json.loads((tmp_path / "metrics.json").read_text())
    assert all(one["per_image"] == [] for one in document["models"])
    assert "numbers of each image are in per_image.parquet" in document["models"][0]["notes"]
    assert pd.read_parquet(tmp_path / "per_image.parquet")["path"].nunique() == 3
