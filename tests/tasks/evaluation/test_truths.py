"""Truth in the formats that people have gives the numbers of the same truth as COCO JSON."""

import pytest

from pixelmill.tasks.box_files import Size
from pixelmill.tasks.evaluation.truths import load_instances

HEIGHT, WIDTH = 80, 96
CLASSES = ("cat", "dog", "bird")
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def write_voc(folder, path, boxes, classes, crowds):
    objects = []
    for (x, y, w, h), k, crowd in zip(boxes.tolist(), classes, crowds, strict=True):
        corners = zip(CORNERS, (x + 1, y + 1, x + w, y + h), strict=True)
        box = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
        objects.append(
            f"<object><name>{CLASSES[k]}</name><difficult>{int(crowd)}</difficult>"
            f"<bndbox>{box}</bndbox></object>"
        )
    place = folder / path.replace(".jpg", ".xml")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"<annotation>{''.join(objects)}</annotation>")


def write_yolo(folder, path, boxes, classes, crowds):
    lines = [
        f"{k} {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}\n"
        for (x, y, w, h), k in zip(boxes.tolist(), classes, strict=True)
    ]
    place = folder / path.replace(".jpg", ".txt")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(lines))


def write(world, kind, folder):
    for path, truth in world.truth.items():
        {"voc": write_voc, "yolo": write_yolo}[kind](folder, path, *truth)
    (folder.parent / "classes.txt").write_text("\n".join(CLASSES))


def boxes_of(evaluation):
    """Numbers of all classes and of each."""
    (found,) = (one for one in evaluation.models if one.model_key.startswith("segmenter"))
    per_class = {one.class_name: dict(one.values) for one in found.per_class}
    return {one.name: one.value for one in found.metrics}, per_class


def num_anew(evaluation):
    (found,) = (one for one in evaluation.models if one.model_key.startswith("segmenter"))
    (note,) = (note for note in found.notes if "images as they were" in note)
    return int(note.rpartition(" anew")[0].split()[-1])


@pytest.fixture(params=["voc", "yolo"])
def world(request, nights):
    """Five images with truth, four of them scored; and its truth's folder and kind."""
    world = nights(3)
    world.add([f"deep/{i}.jpg" for i in range(2)] + [f"{i}.jpg" for i in range(2, 4)])
    world.draw_truth("never-scored.jpg")
    if request.param == "yolo":  # it knows no crowds
        for boxes, classes, crowds in world.truth.values():
            assert len(boxes) == len(classes)
            crowds[:] = False
    world.save_truth()
    write(world, request.param, world.base / request.param)
    return world, request.param


def evaluate(world, instances):
    return world.evaluate(instances=instances, semantic=None, iou_type="bbox")


def test_the_numbers_are_those_of_the_same_truth_as_coco_json(world):
    world, kind = world
    found, expected = (evaluate(world, each) for each in (kind, "instances.json"))
    assert boxes_of(found)[0] == pytest.approx(boxes_of(expected)[0])
    assert boxes_of(expected)[0]["AP50"] > 0.3
    for name, values in boxes_of(expected)[1].items():
        assert boxes_of(found)[1][name] == pytest.approx(values), name
    label = f"never-scored.{'xml' if kind == 'voc' else 'txt'}"
    assert found.models[0].missing == (label,)


def test_only_images_of_changed_files_are_matched_anew(world):
    world, kind = world
    assert num_anew(evaluate(world, kind)) == 5
    assert num_anew(evaluate(world, kind)) == 0
    world.draw_truth("deep/1.jpg")
    write(world, kind, world.base / kind)
    again = evaluate(world, kind)
    assert num_anew(again) == 1
    world.save_truth()
    if not any(crowds.any() for _, _, crowds in world.truth.values()):
        expected = evaluate(world, "instances.json")
        assert boxes_of(again)[0] == pytest.approx(boxes_of(expected)[0])


@pytest.mark.parametrize(("sizes", "expected"), [({"b.jpg": None}, (1, 1)), ({}, (1, 1))])
def test_where_no_size_is_known_shares_stay_shares(tmp_path, sizes, expected: Size):
    (tmp_path / "b.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat")
    truth = load_instances(tmp_path, sizes)
    assert [(image.height, image.width) for image in truth.images] == [expected]


def test_an_image_of_unknown_size_is_taken_for_as_large_as_most(tmp_path):
    (tmp_path / "b.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat")
    sizes = {"a.jpg": (30, 40), "c.jpg": (10, 10), "d.jpg": (30, 40), "b.jpg": None}
    truth = load_instances(tmp_path, sizes)
    (image,) = truth.images
    assert (image.file_name, image.height, image.width) == ("b.jpg", 30, 40)
    assert truth.annotations[0]["bbox"] == [10, 7.5, 20, 15]
