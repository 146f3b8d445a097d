"""docs/store-format.md is true: its code runs, its columns are those of the schemas."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pixelmill.tasks.store.current import Promotion
from pixelmill.tasks.store.log import AddedPart, PartSum, PublishMark, PublishRecord, ReplaceRecord
from pixelmill.tasks.store.receipts import Receipt, StagedFile
from pixelmill.tasks.store.runs import ModelCounts, RunEnd, RunRecord
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


@pytest.mark.parametrize(
    ("document", "model"),
    {
        "runs/&lt;run_id&gt;.json": RunRecord,
        "receipts/&lt;run_id&gt;/&lt;shard_id&gt;.json": Receipt,
        "… each of its `files`": StagedFile,
        "log/&lt;seq&gt;.json, of a publication": PublishRecord,
        "log/&lt;seq&gt;.done": PublishMark,
        "… each of its `parts`, by key": PartSum,
        "log/&lt;seq&gt;.json, of a change of parts": ReplaceRecord,
        "… each part that it `add`s": AddedPart,
        "current/&lt;seq&gt;.json": Promotion,
        "ends/&lt;run_id&gt;.json": RunEnd,
        "… its `ledger`, by model": ModelCounts,
    }.items(),
)
def test_every_field_of_a_document_is_named(document: str, model: type[BaseModel]):
    fields = [
        name if field.is_required() else f"[{name}]" for name, field in model.model_fields.items()
    ]
    assert f"| {document} | {', '.join(fields)} |\n" in PAGE
