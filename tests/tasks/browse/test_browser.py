"""The page in a browser: filters, keys, layers, and what axe says of it."""

import threading
import time

import pytest

pytest.importorskip("duckdb")

from pixelmill.tasks.browse import Index, make_app
from pixelmill.tasks.browse.server import listen, make_server

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(store):
    index = Index(store)
    with listen("127.0.0.1", 0) as bound:
        server = make_server(make_app(index, "token"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/token/"
        server.should_exit = True
        thread.join(timeout=20)
    index.close()


@pytest.fixture
def page(tab, address):
    tab.goto(address)
    tab.wait_for_selector(".cell img")
    return tab


def test_search_narrows_the_images(page, paths):
    assert page.inner_text("#count") == f"{len(paths)} images"
    page.keyboard.press("/")
    page.keyboard.type("pier/2")
    expect(page.locator("#count")).to_have_text("1 image")
    page.fill("[name=text]", "")
    page.select_option("[name=state]", "failed")
    page.wait_for_selector(".cell .why")
    assert page.inner_text(".cell .why") == "read: missing_file"
    page.select_option("[name=state]", "any")
    page.fill("[name=class_name]", "car")
    page.fill("[name=low]", "0.95")
    expect(page.locator("#count")).to_have_text("0 images")


def test_image_shows_what_each_model_says_with_layers(page, kit, specs):
    page.locator(".cell").nth(1).click()
    page.wait_for_selector("#viewer[open]")
    assert page.locator(".panel").count() == len(specs)
    for number in range(len(specs)):
        expect(page.locator(".panel .picture").nth(number)).to_have_js_property("naturalWidth", 64)
    assert page.locator(".panel .boxes").is_visible()
    assert kit.EVIL in page.inner_text("#panels")  # the caption, as text
    page.keyboard.press("b")
    assert not page.locator(".panel .boxes").is_visible()
    assert page.locator(".panel .masks").is_visible()
    page.get_by_role("button", name="teller").click()
    assert page.locator(".panel:visible").count() == len(specs) - 1
    before = page.inner_text("#viewer-title")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-title")).not_to_have_text(before)
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer:not([open])", state="attached")


def test_keys_walk_through_the_images(page):
    page.locator(".cell").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.index") == "1"
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer[open]")


def test_link_leads_to_an_image(page, tab, address):
    link = page.locator(".cell").nth(2).get_attribute("href")
    tab.goto("about:blank")
    tab.goto(address + link)
    tab.wait_for_selector("#viewer[open] .panel")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_serious_findings(page, axe_findings, scheme):
    page.emulate_media(color_scheme=scheme)
    assert axe_findings(page) == []
    page.locator(".cell").first.click()
    page.wait_for_selector("#viewer[open] .panel")
    assert axe_findings(page) == []
