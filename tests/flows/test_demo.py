"""The demo as its user runs it, and the README's code over what it leaves."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_the_demo_does_all_its_tasks_and_the_readme_reads_its_store(launch, tmp_path, monkeypatch):
    demo = launch("pixelmill.flows.cli", "demo", "--images", 6, "--out", tmp_path / "demo")
    assert demo.wait() == 0, demo.stderr()
    folder = tmp_path / "demo/store/reports/demo"
    found = json.loads((folder / "metrics.json").read_text())
    assert [model["kind"] for model in found["models"]] == [
        "boxes",
        "masks",
        "semantic",
        "captions",
        "panoptic",
    ]
    assert (folder / "report.html").stat().st_size > 10_000

    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert len(names["boxes"]) == len(names["store"].boxes()) > 0
    assert names["labels"].ndim == 2
