"""The benchmarks' own arithmetic; the benchmarks themselves are run by `make bench`."""

import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from pixelbench.__main__ import write_pages
from pixelbench.agreement import compare
from pixelbench.contenders import CONTENDERS
from pixelbench.costs import RunCost, draw_memory
from pixelbench.machine import cpu_seconds, describe_machine
from pixelbench.rounds import Measured, Round, Table, count_clean, summarise
from pixelbench.tables import costs_page, markdown_table, throughput_page
from pixelbench.user_code import Result
from pixelbench.workloads import _identity_graph, number_files

BOXES = np.array([[0, 0, 10, 10], [20, 20, 40, 60]], np.float32)
SCORES = np.array([0.9, 0.4], np.float32)
LABELS = np.array([3, 5])


def found(boxes=BOXES, scores=SCORES, labels=LABELS, masks=None) -> dict[str, Result]:
    return {"a.jpg": Result(boxes_xyxy=boxes, scores=scores, labels=labels, masks=masks)}


def test_the_same_boxes_agree_in_any_order():
    assert compare(found(), found(BOXES[::-1], SCORES[::-1], LABELS[::-1])).share == 1.0


@pytest.mark.parametrize(
    "other",
    [
        found(BOXES + np.array([0, 0, 0, 30], np.float32)),
        found(labels=LABELS + 1),
        found(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64)),
    ],
)
def test_other_boxes_do_not_agree(other):
    agreement = compare(found(), other)
    assert agreement.share == 0.0
    assert not agreement.is_equal


def test_boxes_at_the_threshold_are_not_asked_for():
    faint = np.array([0.9, 0.06], np.float32)
    assert compare(found(scores=faint), found(BOXES[:1], faint[:1], LABELS[:1])).share == 1.0


def test_masks_have_to_agree_too():
    masks = np.zeros((2, 64, 64), bool)
    masks[0, :10, :10] = masks[1, 20:60, 20:40] = True
    moved = np.roll(masks, 5, axis=2)
    assert compare(found(masks=masks), found(masks=masks)).share == 1.0
    assert compare(found(masks=masks), found(masks=moved)).share == 0.0


def test_label_maps_sentences_and_probabilities_agree_by_share():
    labels = np.zeros((4, 5), np.uint8)
    other = labels.copy()
    other[0, 0] = 1
    semantic = [{"a": Result(semantic=each)} for each in (labels, other)]
    assert compare(*semantic).share == pytest.approx(19 / 20)
    first = {name: Result(caption="a car") for name in "ab"}
    second = {"a": Result(caption="a car"), "b": Result(caption="a boat")}
    assert compare(first, second).share == 0.5
    probs = [{"a": Result(probs=np.array(each, np.float32))} for each in ([0.5, 0.5], [0.51, 0.1])]
    assert compare(*probs).share == 0.5


def test_results_of_other_images_are_refused():
    with pytest.raises(ValueError, match="not the same ones"):
        compare(found(), {})


def test_numbered_files_differ_in_bytes_and_not_in_pixels(tmp_path):
    source = tmp_path / "source.jpg"
    Image.effect_noise((32, 24), 50).convert("RGB").save(source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.jpg").touch()
    paths = number_files([source], tmp_path / "out", 3)
    assert sorted((tmp_path / "out").iterdir()) == sorted(paths)
    assert len({path.read_bytes() for path in paths}) == 3
    pixels = [np.asarray(Image.open(path)) for path in (source, *paths)]
    assert all((each == pixels[0]).all() for each in pixels)


def test_identity_is_the_first_pixel():
    session = pytest.importorskip("onnxruntime").InferenceSession(
        _identity_graph().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = np.random.default_rng(0).integers(0, 255, (2, 8, 9, 3), dtype=np.uint8)
    (logits,) = session.run(None, {"images": images})
    np.testing.assert_allclose(logits, images[:, 0, 0] / 255, rtol=1e-6)


def test_cpu_seconds_are_those_of_the_process():
    before = cpu_seconds([psutil.Process()])
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert 0.1 < cpu_seconds([psutil.Process()]) - before < 5


def test_rounds_are_summed_up_by_medians():
    walls = (2.0, 4.0, 8.0)
    rounds = [
        Round(wall_s, 3.0, 0.1, {"cpu_s/decode": wall_s, "fixed_s": 0.2, "bound_s": bound_s})
        for wall_s, bound_s in zip(walls, (1.0, 3.0, 7.0), strict=True)
    ]
    measured = summarise("pixelmill_1", rounds, 16, None)
    assert (measured.images_per_s, measured.span) == (4.0, (2.0, 8.0))
    assert measured.cpu_s_per_image == 3.0 / 16
    assert measured.stages == {"cpu_s/decode": 0.25}
    assert (measured.round_s, measured.fixed_s) == (4.0, 0.2)
    assert measured.of_bound == 0.75  # and not the bound's median by the wall's


def test_rounds_that_others_disturb_are_told_apart(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    rounds = [Round(1.0, 1.0, foreign, {}) for foreign in (0.0, 0.05, 0.4, 0.9)]
    assert count_clean("pixelmill_2", rounds) == 2
    assert count_clean("pixelmill_1", rounds) == 3


def test_a_table_has_ratios_for_rivals_and_shares_of_the_bound():
    def measured(rate: float, **more) -> Measured:
        return Measured("x", 1, rate, (rate, rate), 0.1, 0.0, 5, **more)

    rows = {
        "stages_1": measured(100.0, stages={"cpu_s/decode": 0.01}),
        "pixelmill_1": measured(98.0, round_s=5.0, fixed_s=0.25),
        "best_1": measured(99.0, of_bound=0.91),
        "naive_1": measured(24.5),
    }
    settings = {"": "torch fp32", "fastest": "openvino bf16"}
    page = throughput_page([Table("detector", 16, settings, rows, {"ray_2": "is not installed"})])
    assert "| x | 1 | 98.00 | 98.00 - 98.00 | 100.00 | 0.98 |  |  |" in page
    assert (
        "| x | 1 | 99.00 | 99.00 - 99.00 | 100.00 | 0.91 |  |  |" in page
    )  # of its own processes'
    assert "| 0.24 | 4.00x / 4.04x |" in page or "| 0.25 | 4.00x / 4.04x |" in page
    assert "Skipped: ray_2, is not installed." in page
    assert "decode 10.00" in page
    assert "commit in a round: 0.25 of 5.0 s (x)." in page


def test_a_rival_is_beside_pixelmill_in_all_its_settings():
    def measured(rate: float) -> Measured:
        return Measured("x", 1, rate, (rate, rate), 0.1, 0.0, 5)

    rows = {"pixelmill_1": 98.0, "best_1": 147.0, "int8_1": 196.0, "naive_1": 24.5}
    settings = {"": "torch fp32", "fastest": "openvino fp32", "int8": "openvino int8"}
    page = throughput_page(
        [Table("t", 16, settings, {name: measured(rate) for name, rate in rows.items()}, {})]
    )
    assert "| 4.00x / 6.00x / 8.00x |" in page
    assert "Pixelmill: torch fp32; fastest settings: openvino fp32; int8 settings:" in page


def test_rivals_play_a_part_of_many_images_and_all_of_few():
    paths = [Path(f"{index}.jpg") for index in range(64)]
    assert [len(part) for part in CONTENDERS["naive_1"].parts(paths)] == [4]
    assert [len(part) for part in CONTENDERS["stages_2"].parts(paths)] == [16, 16]
    assert [len(part) for part in CONTENDERS["naive_1"].parts(paths[:4])] == [4]


def test_what_is_measured_anew_leaves_the_rest_of_a_page(tmp_path, capsys):
    for part, page in (("identity", "one"), ("ssdlite", "two"), ("ssdlite", "three")):
        write_pages(tmp_path, "throughput", "cpu", {part: ({"rate": float("nan")}, page)}, 1.0)
    lines = (tmp_path / "throughput.md").read_text().splitlines()
    assert [line for line in lines if line in ("one", "two", "three")] == ["three", "one"]
    assert "--workloads ssdlite` in 1 s" in (tmp_path / "throughput.md").read_text()
    assert "three" in capsys.readouterr().out


def test_growth_of_memory_leaves_the_start_out():
    memory = [100] * 10 + [500] * 80 + [510] * 10
    cost = RunCost(1000, 4, {"score": 2.0}, 10_000, 12, memory)
    assert cost.growth_MB == pytest.approx(10)
    assert cost.ms_per_image == {"score": 2.0}
    assert "1,000 images" in draw_memory(cost)
    assert "+10 of 510" in costs_page([cost])


def test_markdown_tables_align_numbers_to_the_right():
    assert markdown_table(("a", "b"), [("x", "1")]) == "| a | b |\n|---|---:|\n| x | 1 |"


def test_the_machine_is_named_with_its_versions():
    described = describe_machine()
    assert described["processor"]
    assert {"torch", "numpy", "python"} <= described.keys()
