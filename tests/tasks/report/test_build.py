import base64
import hashlib
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from pixelmill.tasks.metrics.results import Mistake
from pixelmill.tasks.report import build_report, report_files
from pixelmill.tasks.report.history import (
    Number,
    Snapshot,
    encode_history,
    extend_history,
    read_history,
)


@pytest.fixture(scope="module")
def path(store, evaluation, kit, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "sub" / "report.html"
    return build_report(store, evaluation, out, collection=kit.COLLECTION, run_id=None)


@pytest.fixture(scope="module")
def page(path, kit):
    return kit.Page(path.read_text("utf-8"))


def test_page_is_well_formed(page):
    assert page.open == []
    assert page.source.lstrip().startswith("<!doctype html>")
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attrs in page.elements:
        for name in ("src", "href", "action", "poster", "data", "srcset", "xlink:href"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_policy_of_the_page_allows_just_its_own_script_and_style(page):
    policy = next(a["content"] for a in page.find("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy
    for tag in ("script", "style"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.source, re.S)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not any(
        name == "style" or name.startswith("on") for _, attrs in page.elements for name in attrs
    )


def test_hostile_names_stay_text(page, kit):
    assert len(page.find("script")) == 1
    assert page.source.count(kit.EVIL) == 0
    for where in ("a quay ", "no such file ", "averaged ", "a note ", "no truth "):
        assert f"{where}{kit.EVIL}" in page.text, where
    assert kit.EVIL in {attrs.get("data-path", "")[5:-4] for attrs in page.find("article")}


def test_names_that_turn_or_control_the_text_are_spelt_out(specs, evaluation, kit, tmp_path):
    turned = "photo\u202egpj.\x1b[31m\u2066\x07"
    classed = kit.make_spec("turner", "classification", (turned, "night"))
    store = kit.write_store(tmp_path, (*specs[:3], classed), (f"{turned}.png",))
    out = tmp_path / "report.html"
    build_report(store, evaluation, out, collection=kit.COLLECTION, run_id=None)
    page = kit.Page(out.read_text("utf-8"))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.source)
    assert page.text.count(r"photo\u202egpj.\x1b[31m\u2066\x07") >= 4


def test_same_input_gives_the_same_bytes(path, store, evaluation, kit, tmp_path):
    again = build_report(
        store, evaluation, tmp_path / "again.html", collection=kit.COLLECTION, run_id=kit.RUN_ID
    )
    assert again.read_bytes() == path.read_bytes()


def test_sections_have_titles_and_links(page):
    targets = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    links = [a["href"][1:] for a in page.find("a") if not a["href"].startswith("#image=")]
    assert targets.issuperset(links)
    sections = page.find("section")
    assert {"overview", "gallery", "failures", "run", "model-0", "model-3"} <= {
        attrs["id"] for attrs in sections
    }
    assert all(attrs["aria-labelledby"] in targets for attrs in sections)


def test_pictures_and_plots_say_in_words_what_they_show(page):
    assert all(attrs.get("alt") is not None for attrs in page.find("img"))
    assert all(attrs.get("aria-label") for attrs in page.find("svg", "plot"))
    assert all(attrs.get("alt") for attrs in page.find("img", "picture"))


def test_numbers_and_definitions_are_there(page, specs):
    for text in ("harbour", "20260101T000000-aaaaaa", "2026-01-01", "0.500", "AP50", "0.875"):
        assert text in page.text
    for spec in specs:
        assert spec.key in page.text
    assert "1 were never scored" in page.text
    assert "missing_file" in page.text
    assert "decode" in page.text


def test_truth_that_moved_away_is_told(page):
    assert "/nowhere/instances.json is no longer there" in page.text


def test_tables_hold_what_they_are_sorted_by(page):
    assert len(page.find("table", "sortable")) >= 4
    values = [attrs["data-value"] for attrs in page.find("td", "num") if "data-value" in attrs]
    assert "0.875" in values
    assert "" in values  # undefined


def test_gallery_shows_each_image_with_its_layers(page, paths):
    tiles = page.find("article", "tile")
    assert {attrs["data-path"] for attrs in tiles} == {*paths, "gone.jpg"}
    assert len(page.find("img", "picture")) == len(paths)
    assert len(page.find("div", "placeholder")) == 1
    assert len(page.find("img", "regions")) == len(paths)
    # three boxes each but one image without; those of low score wait for the slider
    assert len(page.find("path", "shape")) == 3 * (len(paths) - 1)
    assert len(page.find("path", "off")) == len(paths) - 1
    assert all(attrs["id"] == f"image={attrs['id'][6:]}" for attrs in tiles)


def test_same_class_has_the_same_colour_everywhere(page):
    boxes = {a["class"].split()[1] for a in page.find("g", "shape") if a["data-class"] == "0"}
    assert boxes == {"k0"}
    assert page.find("g", "series")[1]["class"].split()[1] in {"k0", "k1"}


@pytest.mark.parametrize("count", [0, 1, 4])
def test_gallery_is_bounded(store, evaluation, kit, tmp_path, count):
    out = build_report(
        store, evaluation, tmp_path, collection=kit.COLLECTION, run_id=None, max_gallery=count
    )
    page = kit.Page(out.read_text("utf-8"))
    assert len(page.find("article")) == count
    assert out == tmp_path / "report.html"


def test_negative_gallery_is_refused(store, kit, tmp_path):
    with pytest.raises(ValueError, match="max_gallery"):
        build_report(store, None, tmp_path, collection=kit.COLLECTION, run_id=None, max_gallery=-1)


def test_without_evaluation_predictions_are_still_told(store, kit, tmp_path):
    out = build_report(store, None, tmp_path, collection=kit.COLLECTION, run_id=None)
    page = kit.Page(out.read_text("utf-8"))
    assert "Boxes by class" in page.text
    assert "Class Count" in page.text
    assert "Captions by length" in page.text
    assert "Labels by score" in page.text
    assert "images with truth" not in page.text


def test_evaluation_without_models_is_told(store, evaluation, kit, tmp_path):
    empty = replace(evaluation, models=(), truth={})
    out = build_report(store, empty, tmp_path, collection=kit.COLLECTION, run_id=None)
    assert "Not evaluated: no truth" in kit.Page(out.read_text("utf-8")).text


def test_store_without_anything_gives_a_page_that_says_so(bare_store, kit, tmp_path):
    out = build_report(bare_store, None, tmp_path, collection="nothing", run_id=None)
    page = kit.Page(out.read_text("utf-8"))
    assert page.open == []
    assert "never scored" in page.text
    assert "No image to show" in page.text


def test_run_without_images_gives_a_page(tmp_path, specs, kit):
    store = kit.write_store(tmp_path, specs, ())
    out = build_report(store, None, tmp_path, collection=kit.COLLECTION, run_id=kit.RUN_ID)
    page = kit.Page(out.read_text("utf-8"))
    assert [attrs["data-path"] for attrs in page.find("article")] == ["gone.jpg"]


def test_evaluation_of_another_store_is_refused(bare_store, evaluation, tmp_path):
    with pytest.raises(KeyError, match="finder"):
        build_report(bare_store, evaluation, tmp_path, collection="harbour", run_id=None)


@pytest.mark.slow
def test_browser_runs_the_script_and_opens_a_deep_link(path, page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium")
    anchor = page.find("article", "tile")[0]["id"]
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    done = subprocess.run(
        [
            browser,
            *flags,
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            f"file://{path}#{anchor}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert re.search(r'<html[^>]* class="js"', done.stdout)
    assert "9 images shown" in done.stdout
    assert re.search(r'<dialog id="viewer"[^>]* open', done.stdout)
    assert 'aria-sort="none"' in done.stdout


def test_run_says_what_bounds_it(page):
    assert "forward-bound: 75% of a worker's time" in page.text
    assert "ms per image" in page.text


def test_numbers_stand_beside_the_page_and_tell_the_next_one_what_changed(
    tmp_path, specs, evaluation, kit, paths
):
    store = kit.write_store(tmp_path, specs, paths)
    out = tmp_path / "store" / "reports" / kit.COLLECTION / "report.html"
    first = build_report(store, evaluation, out, collection=kit.COLLECTION, run_id=None)
    assert all(path.exists() for path in report_files(first))
    assert "first report of the collection" in kit.Page(first.read_text("utf-8")).text

    earlier = Snapshot(
        "20250101T000000-000000",
        "2025-01-01",
        "",
        (Number("finder", "finder-old", "boxes", "AP", 0.3, 0.2, 0.4),),
    )
    history = extend_history(read_history(store, kit.COLLECTION), earlier)
    out.with_suffix(".json").write_text(encode_history(kit.COLLECTION, history))
    pages = [
        build_report(store, evaluation, out, collection=kit.COLLECTION, run_id=None).read_bytes()
        for _ in range(2)
    ]
    assert pages[0] == pages[1]  # made again, it is still compared with the run before
    text = kit.Page(pages[0].decode()).text
    assert "Since the run before 20250101T000000-000000" in text
    assert "0.300 0.500 +0.200 outside" in text
    assert "finder-old → finder-" in text


def test_numbers_that_cannot_be_read_do_not_stop_the_report(tmp_path, specs, kit):
    store = kit.write_store(tmp_path, specs, ())
    store.backend.put(f"reports/{kit.COLLECTION}/report.json", b"{")
    out = build_report(store, None, tmp_path / "r.html", collection=kit.COLLECTION, run_id=None)
    assert "Earlier numbers are not known" in kit.Page(out.read_text("utf-8")).text


def test_mistakes_are_drawn_and_filtered_by(store, evaluation, kit, paths, tmp_path):
    mistakes = (
        Mistake(paths[0], None, "background", "car", 0.9, 0, (8, 4, 20, 14)),
        Mistake(paths[1], None, "missed", kit.EVIL, None, None, (30, 10, 42, 20)),
    )
    boxes = replace(evaluation.models[0], mistakes=mistakes)
    masks = replace(boxes, kind="masks")
    found = replace(evaluation, models=(boxes, masks))
    out = build_report(store, found, tmp_path, collection=kit.COLLECTION, run_id=None)
    page = kit.Page(out.read_text("utf-8"))
    reasons = {attrs["data-path"]: attrs["data-reasons"] for attrs in page.find("article")}
    assert "background" in reasons[paths[0]].split()
    assert "missed" in reasons[paths[1]].split()
    assert len(page.find("svg", "mistakes")) == 2
    assert len([a for a in page.find("g", "shape") if "missed" in a["class"]]) == 1
    assert "False positive (1)" in page.text
    assert f"{kit.EVIL} missed" in page.text


def test_engine_and_gate_are_told(tmp_path, specs, kit):
    store = kit.write_store(tmp_path, specs, ())
    out = build_report(store, None, tmp_path, collection=kit.COLLECTION, run_id=None)
    text = kit.Page(out.read_text("utf-8")).text
    assert "openvino bf16 boxes within 0.4 px 1" in text
