import shutil
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def data():
    """Real data beside the repository; tests that need it are skipped without."""
    if not DATA.is_dir():
        pytest.skip("no ../shared/data")
    return DATA


@pytest.fixture(scope="session")
def chromium():
    """A headless browser; tests that need it are skipped without."""
    sync_api = pytest.importorskip("playwright.sync_api")
    place = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if place is None:
        pytest.skip("no chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=place, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    """A page of the browser whose errors fail the test."""
    context = chromium.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.complaints = complaints
    yield page
    context.close()
    assert complaints == []


@pytest.fixture
def axe_findings():
    """Function from a page to the serious findings of axe, which `make axe` fetches."""
    script = Path(__file__).resolve().parents[2] / "build" / "axe" / "node_modules"
    script = script / "axe-core" / "axe.min.js"
    if not script.exists():
        pytest.skip("no axe: make axe")

    def look(page):
        page.evaluate(script.read_text())
        found = page.evaluate("() => axe.run({resultTypes: ['violations']})")
        return [
            (each["id"], each["impact"], node["html"][:200])
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"][:3]
        ]

    return look
