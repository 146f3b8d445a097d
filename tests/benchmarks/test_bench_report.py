"""A report and a page over very many images.

`pytest -m benchmark -s tests/benchmarks/test_bench_report.py` prints lines of JSON: the report of
100,000 images with an evaluation of all (time, peak memory, size, time to interactive in headless
Chromium), and `browse` over 1,000,000 images and 7,000,000 boxes (time of each question). Stores
are made directly of published parts; the pictures are 200 rendered scenes.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from big_store import COLLECTION, detector, write_big_store

from pixelmill.tasks.scenes import write_scenes

pytestmark = pytest.mark.benchmark

PACKAGES = ("pyarrow", "pandas", "jinja2", "duckdb")
BUILD = """
import json, re, sys, time
import numpy as np
from pathlib import Path
from pixelmill.tasks.metrics.results import *
from pixelmill.tasks.report import build_report
from pixelmill.tasks.store import Store

root, out, key, collection = sys.argv[1:]
store = Store(root)
catalog = store.catalog(collection)[["path", "image_id"]]
rng = np.random.default_rng(0)
numbers = rng.integers(0, 8, (len(catalog), 3))
per_image = tuple(
    ImageRow(path, image_id, {"TP": float(tp), "FP": float(fp), "FN": float(fn),
                              "F1": 2 * tp / max(2 * tp + fp + fn, 1)})
    for (path, image_id), (tp, fp, fn) in zip(catalog.itertuples(index=False), numbers, strict=True)
)
classes = [f"class {n:02d}" for n in range(80)]
x = tuple(np.linspace(0, 1, 101).tolist())
y = tuple(np.linspace(1, 0, 101).tolist())
kinds = ("class", "localisation", "class and localisation", "duplicate", "background", "missed")
result = ModelEvaluation(
    model_key=key, task="detection", kind="boxes",
    headline=tuple(Metric(n, 0.5, "so", (0.49, 0.51)) for n in ("AP", "AP50", "AP75", "AR100")),
    metrics=tuple(Metric(f"AP{n}", 0.5, "so", (0.49, 0.51)) for n in range(20)),
    per_class=tuple(ClassRow(n, 9, 9, {"AP": 0.5, "AP50": 0.6, "AR100": 0.7}) for n in classes),
    curves=tuple(Curve("precision-recall", n, "recall", "precision", x, y) for n in classes),
    confusion=Confusion(tuple(classes), tuple(classes),
                        tuple(map(tuple, rng.integers(0, 99, (80, 80)).tolist())), "instances"),
    per_image=per_image, num_images=len(per_image),
    errors=ErrorBreakdown(0.5, tuple(ErrorShare(k, 9, 0.01, "so") for k in kinds), 0.1, 0.2, "-"),
    mistakes=tuple(Mistake(catalog["path"][n * 7], None, kinds[n % 6], "class 01", 0.8, 0,
                           (10, 10, 90, 60)) for n in range(150)),
    sweeps=tuple(ThresholdSweep(n, x[::-1], y, x, y, 0.5) for n in classes),
)
evaluation = Evaluation(collection, "2026-01-01T00:00:00+00:00", (result,))
start = time.perf_counter()
path = build_report(store, evaluation, Path(out), collection=collection, run_id=None)
print(json.dumps({
    "build_s": round(time.perf_counter() - start, 2),
    "peak_MB": int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024,
    "file_MB": round(path.stat().st_size / 1e6, 2),
}))
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 200, seed=1)
    return sorted((folder / "images").glob("*.jpg"))


def interactive_s(path: Path) -> float:
    """Seconds from the start of loading until the page's script has run and a frame was shown."""
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"]
        )
        times = []
        for _ in range(3):
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(path.as_uri(), wait_until="domcontentloaded")
            page.wait_for_selector("#shown:not(:empty)", state="attached")
            page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
            times.append(page.evaluate("performance.now()") / 1e3)
            page.close()
        browser.close()
    return round(sorted(times)[1], 3)


def test_report_of_a_hundred_thousand_images(tmp_path, scenes, machine):
    store = write_big_store(tmp_path / "store", 100_000, 7, scenes)
    out = tmp_path / "report.html"
    command = [sys.executable, "-P", "-c", BUILD, store.root, str(out), detector().key, COLLECTION]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout) | {"interactive_s": interactive_s(out)}
    print(json.dumps({"benchmark": "report_1e5"} | measured | machine(*PACKAGES)))
    assert measured["file_MB"] < 25


def test_questions_to_a_million_images(tmp_path, scenes, machine):
    from pixelmill.tasks.browse import Filter, Index

    store = write_big_store(tmp_path / "store", 1_000_000, 7, scenes)
    start = time.perf_counter()
    index = Index(store)
    measured = {"open": time.perf_counter() - start}
    questions = {
        "all by path": Filter(),
        "class and score": Filter(class_name="class 07", low=0.8, order="score"),
        "part of a path": Filter(text="img_000123"),
        "ten boxes of any class": Filter(low=0.1, min_boxes=7),
    }
    totals = {}
    for name, wanted in questions.items():
        start = time.perf_counter()
        totals[name] = index.page(wanted, 0, 60).total
        measured[name] = time.perf_counter() - start
    start = time.perf_counter()
    page = index.page(Filter(), 900_000, 60)
    measured["page 15,000"] = time.perf_counter() - start
    start = time.perf_counter()
    rows = index.rows(page.rows[0]["image_id"])
    measured["one image"] = time.perf_counter() - start
    index.close()
    memory = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert memory is not None
    seconds = {name: round(value, 3) for name, value in measured.items()}
    found = {"seconds": seconds, "found": totals, "peak_MB": int(memory[1]) // 1024}
    print(json.dumps({"benchmark": "browse_1e6"} | found | machine(*PACKAGES)))
    assert totals["all by path"] == 1_000_000
    assert len(rows["detections"]) == 7
