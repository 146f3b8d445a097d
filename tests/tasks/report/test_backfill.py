import json

import pytest

from pixelmill.tasks.report.backfill import backfill_key, read_backfill
from pixelmill.tasks.store import Store


def keep(store: Store, by: str, parts: dict[str, str]) -> None:
    document = {
        "by": by,
        "looked_at": "2024-05-31T00:00:00+00:00",
        "models": ["m-1"],
        "parts": [
            {"part": name, "status": status, "num_images": 10}
            | {"num_missing": 4 if status == "partial" else 0, "num_failed": 0}
            for name, status in parts.items()
        ],
    }
    store.backend.put(backfill_key("set"), json.dumps(document).encode())


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", create=True)


def test_days_are_cells_of_their_months(store):
    keep(store, "day", {"2024-05-31": "done", "2024-06-01": "partial", "undated": "missing"})
    view = read_backfill(store, "set")
    assert view is not None
    assert [(row.label, [cell.column for cell in row.cells]) for row in view.rows] == [
        ("2024-05", [30]),
        ("2024-06", [0]),
        ("undated", [0]),
    ]
    assert view.rows[1].cells[0].title == "2024-06-01: partial, 10 images, 4 missing"
    assert (view.columns, view.num_images, view.num_missing) == (31, 30, 4)
    assert [(name, number) for name, _, number in view.counts] == [
        ("done", 1),
        ("partial", 1),
        ("missing", 1),
    ]


def test_folders_stand_side_by_side_and_months_in_their_years(store):
    keep(store, "folder", {f"cam-{i:02d}": "done" for i in range(30)})
    view = read_backfill(store, "set")
    assert view is not None
    assert [(row.label, len(row.cells)) for row in view.rows] == [("cam-00", 24), ("cam-24", 6)]
    keep(store, "month", {"2024-05": "done", "2023-12": "failed"})
    view = read_backfill(store, "set")
    assert view is not None
    assert [(row.label, row.cells[0].column) for row in view.rows] == [("2023", 11), ("2024", 4)]


def test_without_a_backfill_there_is_nothing_to_draw(store):
    assert read_backfill(store, "set") is None
