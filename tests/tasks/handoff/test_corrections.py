import json

import numpy as np
import pytest

from pixelmill.tasks.handoff.corrections import merge_corrections, read_corrections
from pixelmill.tasks.handoff.formats import export_scenes
from pixelmill.tasks.handoff.scenes import Scene, Thing
from pixelmill.tasks.metrics.detection import decode_mask, encode_mask
from pixelmill.tasks.truth import load_coco_instances

WIDTH, HEIGHT = 40, 30


def mask():
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[5:15, 10:30] = True
    return encode_mask(pixels)


def scenes(with_mask=False):
    thing = Thing(0, "car", 0.5, (10.0, 5.0, 30.0, 15.0), mask() if with_mask else None)
    return [
        Scene("ab" * 16, "a/one.png", "/photos/a/one.png", WIDTH, HEIGHT, (thing,)),
        Scene("cd" * 16, "a/two.png", "/photos/a/two.png", WIDTH, HEIGHT, (thing, thing)),
    ]


@pytest.fixture
def annotated(predicted, tmp_path):
    """What a tool would give back if somebody accepted all pre-labels."""

    def annotate(tool, *, with_mask=False, change=lambda document: None):
        task = "instance_segmentation" if with_mask else "detection"
        out = tmp_path / f"export-{tool}"
        export_scenes(scenes(with_mask), predicted.make_spec(task=task), tool, out)
        if tool != "label-studio":
            return out / {"cvat": "annotations.xml", "coco": "instances.json"}[tool]
        tasks = json.loads((out / "tasks.json").read_text())
        for task in tasks:
            (prediction,) = task.pop("predictions")
            task["annotations"] = [
                {"result": prediction["result"], "was_cancelled": False,
                 "completed_by": {"email": "a@example.org"}, "updated_at": "2026-01-02"}
            ]  # fmt: skip
        change(tasks)
        path = out / "done.json"
        path.write_text(json.dumps(tasks))
        return path

    return annotate


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("tool", ["label-studio", "cvat", "coco"])
def test_what_was_accepted_becomes_truth(annotated, tmp_path, tool, with_mask):
    source = annotated(tool, with_mask=with_mask)
    found_tool, corrections = read_corrections(source)
    assert found_tool == tool
    truth = tmp_path / "truth.json"
    merged = merge_corrections(truth, tool, corrections, source=source)
    assert (merged.num_new, merged.num_changed, merged.num_same) == (2, 0, 0)
    read = load_coco_instances(truth)
    assert [image.file_name for image in read.images] == ["a/one.png", "a/two.png"]
    assert len(read.annotations) == 3
    assert read.has_masks == with_mask
    for annotation in read.annotations:
        assert annotation["bbox"] == pytest.approx([10, 5, 20, 10], abs=0.01)
        if with_mask:
            assert (decode_mask(annotation["segmentation"]) == decode_mask(mask())).all()


@pytest.mark.parametrize("tool", ["label-studio", "cvat", "coco"])
def test_twice_is_as_good_as_once(annotated, tmp_path, tool):
    source, truth = annotated(tool), tmp_path / "truth.json"
    for expected in ((2, 0, 0), (0, 0, 2)):
        before = truth.read_bytes() if truth.exists() else None
        name, corrections = read_corrections(source)
        done = merge_corrections(truth, name, corrections, source=source)
        assert (done.num_new, done.num_changed, done.num_same) == expected
        assert before in (None, truth.read_bytes())


def test_only_what_was_looked_at_changes_and_says_where_it_is_from(annotated, tmp_path):
    truth = tmp_path / "truth.json"
    old = {"id": 5, "image_id": 9, "category_id": 3, "bbox": [1, 1, 2, 2], "area": 4, "note": "x"}
    document = {
        "info": {"year": 2020},
        "images": [
            {"id": 9, "file_name": "b.png", "width": 8, "height": 8},
            {"id": 4, "file_name": "a/one.png", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": [old, {**old, "id": 6, "image_id": 4}],
    }
    truth.write_text(json.dumps(document))

    def skip_one(tasks):
        tasks[1]["annotations"][0]["was_cancelled"] = True

    source = annotated("label-studio", change=skip_one)
    tool, corrections = read_corrections(source)
    done = merge_corrections(truth, tool, corrections, source=source)
    assert (done.num_new, done.num_changed) == (0, 1)
    after = json.loads(truth.read_text())
    assert after["info"] == {"year": 2020}
    assert after["annotations"][0] == old
    assert after["categories"] == [{"id": 3, "name": "dog"}, {"id": 4, "name": "car"}]
    assert after["annotations"][1]["category_id"] == 4
    provenance = after["images"][1]["correction"]
    assert (provenance["tool"], provenance["by"]) == ("label-studio", "a@example.org")
    assert len(provenance["file_sha256"]) == 64
    assert "correction" not in after["images"][0]


def test_an_image_with_nothing_in_it_is_truth_too(annotated, tmp_path):
    source = annotated("cvat")
    empty = f'<image id="9" name="c.png" width="{WIDTH}" height="{HEIGHT}"/></annotations>'
    source.write_text(source.read_text().replace("</annotations>", empty))
    tool, corrections = read_corrections(source)
    truth = tmp_path / "truth.json"
    merge_corrections(truth, tool, corrections, source=source)
    assert len(load_coco_instances(truth).images) == 3
    assert len(load_coco_instances(truth).annotations) == 3


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.png", "a\x00b"])
def test_names_that_lead_elsewhere_are_refused(annotated, name):
    def rename(tasks):
        tasks[0]["data"]["path"] = name

    with pytest.raises(ValueError, match=r"absolute|leads out|NUL"):
        read_corrections(annotated("label-studio", change=rename))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "neither XML nor JSON"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>", "DOCTYPE"),
        ("<pascal/>", "expected CVAT's <annotations>"),
        ("<annotations", "not XML"),
        (
            '<annotations><image name="a" width="9" height="9">'
            '<box label="b" xtl="5" ytl="1" xbr="4" ybr="2"/></image></annotations>',
            "has no inside",
        ),
        (
            '<annotations><image name="a" width="9" height="9"><mask label="b" rle="1, 2" '
            'left="0" top="0" width="2" height="2"/></image></annotations>',
            "must add up to",
        ),
        (
            '<annotations><image name="a" width="0" height="9"/></annotations>',
            "1 to 65535",
        ),
        ('[{"data": {"path": "a"}, "annotations": [{"result": []}]}]', "has no size"),
        ('[{"annotations": [{"result": []}]}]', "no 'data'"),
        (
            '[{"data": {"path": "a"}, "annotations": [{"result": [{"type": "rectanglelabels", '
            '"original_width": 9, "original_height": 9, "value": {"x": 0, "y": 0, "width": 50, '
            '"height": 50, "rotation": 30, "rectanglelabels": ["b"]}}]}]}]',
            "turned box",
        ),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path, text, told):
    path = tmp_path / "given"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        read_corrections(path)


def test_another_size_than_the_truths_is_refused_and_nothing_is_written(annotated, tmp_path):
    truth = tmp_path / "truth.json"
    image = {"id": 4, "file_name": "a/one.png", "width": 7, "height": HEIGHT}
    category = {"id": 1, "name": "car"}
    truth.write_text(json.dumps({"images": [image], "categories": [category], "annotations": []}))
    before = truth.read_bytes()
    source = annotated("coco")
    tool, corrections = read_corrections(source)
    with pytest.raises(ValueError, match="correct the one that is wrong"):
        merge_corrections(truth, tool, corrections, source=source)
    assert truth.read_bytes() == before
