"""The page in a browser: its filters, keys, links, and what axe says of it."""

from dataclasses import replace

import pytest

from pixelmill.tasks.metrics.results import (
    ErrorBreakdown,
    ErrorShare,
    Mistake,
    ThresholdSweep,
)
from pixelmill.tasks.report import build_report

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(store, evaluation, kit, paths, tmp_path_factory):
    kinds = ("class", "localisation", "class and localisation", "duplicate", "background", "missed")
    result = replace(
        evaluation.models[0],
        mistakes=(
            Mistake(paths[0], None, "background", "car", 0.9, 0, (8, 4, 20, 14)),
            Mistake(paths[1], None, "missed", "boat", None, None, (30, 10, 42, 20)),
            Mistake(paths[1], None, "class", "car", 0.2, 1, (30, 10, 42, 20), "boat", None, 0.9),
        ),
        errors=ErrorBreakdown(
            0.5, tuple(ErrorShare(kind, 3, 0.01, "so") for kind in kinds), 0.1, 0.2, "a paper"
        ),
        sweeps=(ThresholdSweep("car", (0.9, 0.5), (1.0, 0.5), (0.5, 1.0), (0.7, 0.6), 0.9),),
        policies={"crowds": "are ignored"},
    )
    out = tmp_path_factory.mktemp("browser") / "report.html"
    found = replace(evaluation, models=(result,))
    build_report(store, found, out, collection=kit.COLLECTION, run_id=None)
    return out.as_uri()


@pytest.fixture
def page(tab, address):
    tab.goto(address)
    expect(tab.locator("#shown")).to_contain_text("images shown")
    return tab


def shown(page):
    page.evaluate("new Promise(requestAnimationFrame)")
    page.evaluate("new Promise(requestAnimationFrame)")
    return page.locator(".tile:not(.gone)").count()


def test_filters_narrow_the_gallery_and_say_so(page, paths):
    everything = len(paths) + 1
    assert shown(page) == everything
    page.select_option("[name=reason]", "missed")
    assert shown(page) == 1
    assert page.inner_text("#shown") == f"1 of {everything} images shown"
    page.select_option("[name=reason]", "failed")
    assert shown(page) == 1
    page.select_option("[name=reason]", "")
    page.select_option("[name=class]", label="car")
    assert shown(page) == len(paths) - 1
    page.locator("[name=score]").fill("0.95")
    assert shown(page) == 0
    page.select_option("[name=class]", "")
    page.fill("[name=text]", "PIER/2")
    assert shown(page) == 1


def test_layers_are_switched_off_and_on(page):
    boxes = page.locator("svg.boxes").first
    assert boxes.is_visible()
    page.get_by_label("Boxes", exact=True).first.uncheck(force=True)
    expect(boxes).to_be_hidden()
    page.get_by_label("Boxes", exact=True).first.check(force=True)
    expect(boxes).to_be_visible()
    assert page.locator("svg.mistakes g.missed").is_visible()
    assert not page.locator("svg.mistakes g.class").is_visible()  # below the score


def test_tables_are_sorted_by_click(page):
    table = page.locator("table.sortable", has=page.locator("caption", has_text="by class")).first
    first = table.locator("tbody th").first
    assert first.inner_text() == "car"
    head = table.locator("thead th", has_text="Truth")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert first.inner_text() != "car"


def test_viewer_opens_by_link_and_goes_on_by_keys(page, address):
    tiles = page.locator(".tile:not(.gone)")
    anchors = [tiles.nth(number).get_attribute("id") for number in range(2)]
    page.goto(f"{address}#{anchors[0]}")
    page.wait_for_selector("#viewer[open]")
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(f"{address}#{anchors[1]}")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")
    assert "#" not in page.url


def test_values_are_read_off_plots_by_pointer_and_keys(page):
    plot = page.locator("svg.plot[data-frame]").first
    plot.scroll_into_view_if_needed()
    plot.focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("[role=status].sr").startswith("mean: recall 0, precision 1")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("[role=status].sr") == "car: recall 0.5, precision 0.9"
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.53, box["y"] + box["height"] * 0.17)
    assert "recall 0.5, precision 0.9" in page.inner_text(".tip")


def test_nothing_is_asked_of_a_network(tab, address):
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(address)
    tab.wait_for_load_state("networkidle")
    assert all(url.startswith(("file:", "data:")) for url in asked)


@pytest.mark.parametrize("width", [1200, 390])
def test_page_is_no_wider_than_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_serious_findings(page, axe_findings, scheme):
    page.emulate_media(color_scheme=scheme)
    assert axe_findings(page) == []
    page.locator("a.stage").first.click()
    page.wait_for_selector("#viewer[open]")
    assert axe_findings(page) == []
