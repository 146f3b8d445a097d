"""docs/store-format.md is true: its code runs, its columns are those of the schemas."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from pixelmill.tasks.store.schemas import TABLES

PAGE = (Path(__file__).parents[3] / "docs" / "store-format.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_code_runs(published, monkeypatch, capsys):
    """Block after block, as a reader would type them, beside a store called `out`."""
    monkeypatch.chdir(Path(published.root).parent)
    names: dict[str, Any] = {}
    assert len(BLOCKS) == 8
    for block in BLOCKS:
        if "napari" in block and importlib.util.find_spec("napari") is None:
            continue
        exec(block, names)
    assert len(names["per_file"]) > 0
    assert names["best"]["score"].to_list() == [pytest.approx(0.9)] * len(names["best"])
    assert names["maps"].labels.dims == ("image", "y", "x")
    assert names["maps"].labels.dtype == "uint8"
    assert (names["share_of_void"] > 0.5).all()
    assert "mean_score" in capsys.readouterr().out


def test_masks_read_without_us_are_the_masks(published, fakes, monkeypatch):
    monkeypatch.chdir(Path(published.root).parent)
    names: dict[str, Any] = {}
    for block in BLOCKS[:5]:
        if "duckdb" not in block:
            exec(block, names)
    row = names["row"]
    truth = fakes.full_masks(fakes.detections_of(row.image_id), row.height, row.width)
    assert all(
        (mask == expected).all() for mask, expected in zip(names["masks"], truth, strict=True)
    )
    assert names["classes"] == list(fakes.CLASSES)


@pytest.mark.parametrize("name", TABLES)
def test_every_column_is_described(name):
    section = PAGE.split(f"### {name}\n")[1].split("\n### ")[0].split("\n## ")[0]
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \| (yes|no) \| (.+) \|$", section, re.MULTILINE)
    assert rows == [
        (f.name, str(f.type), "yes" if f.nullable else "no", f.metadata[b"unit"].decode())
        for f in TABLES[name].schema
    ]
