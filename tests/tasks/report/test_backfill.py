import json

import pytest

from pixelmill.tasks.report.backfill import backfill_key, read_backfill
from pixelmill.tasks.store import Store

NUM_MISSING = {"partial": 4, "missing": 10}


def keep(store: Store, by: str, states: dict[str, str], **more) -> None:
    document = {
        "by": by,
        "looked_at": "2024-05-31T00:00:00+00:00",
        "models": ["m-1"],
        "parts": [
            {"part": name, "status": status, "num_images": 10}
            | {"num_missing": NUM_MISSING.get(status, 0), "num_failed": 0}
            for name, status in states.items()
        ],
        **more,
    }
    store.backend.put(backfill_key("set"), json.dumps(document).encode())


def laid(view) -> dict[str, list[tuple[str, list[int]]]]:
    """Columns of the cells by block and row."""
    return {
        block.title: [(row.label, [cell.column for cell in row.cells]) for row in block.rows]
        for block in view.blocks
    }


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", create=True)


def test_days_are_cells_of_their_months(store):
    days = {"2024-05-31": "done", "2024-06-01": "partial", "2025-01-02": "done"}
    keep(store, "day", days | {"undated": "missing"})
    view = read_backfill(store, "set")
    assert view is not None
    assert laid(view) == {
        "2024": [("May", [30]), ("Jun", [0])],
        "2025": [("Jan", [1])],
        "": [("undated", [0])],
    }
    year = view.blocks[0]
    assert year.rows[1].cells[0].title == "2024-06-01: partial, 10 images, 4 missing"
    assert (year.width, year.height) == (34 + 31 * 14, 18 + 2 * 14)
    assert year.ticks == (0, 7, 14, 21, 28)
    assert (view.num_images, view.num_missing) == (40, 14)
    assert [(name, number) for name, _, number in view.counts] == [
        ("done", 2),
        ("partial", 1),
        ("missing", 1),
    ]


def test_folders_stand_side_by_side_and_months_in_their_years(store):
    keep(store, "folder", {f"cam-{i:02d}": "done" for i in range(30)})
    view = read_backfill(store, "set")
    assert view is not None
    assert laid(view) == {"": [("cam-00", list(range(24))), ("cam-24", list(range(6)))]}
    assert view.blocks[0].ticks == ()
    keep(store, "month", {"2024-05": "done", "2023-12": "failed"})
    view = read_backfill(store, "set")
    assert view is not None
    assert laid(view) == {"": [("2023", [11]), ("2024", [4])]}
    assert view.blocks[0].ticks == tuple(range(12))


def test_a_cell_is_divided_as_its_images_are_and_shows_the_least_of_them(store):
    parts = [
        {"part": "2024-12-31", "status": "partial", "num_images": 10_000}
        | {"num_missing": 1, "num_failed": 1},
        {"part": "2025-01-01", "status": "partial", "num_images": 10}
        | {"num_missing": 5, "num_failed": 0},
        {"part": "2025-01-02", "status": "missing", "num_images": 10}
        | {"num_missing": 10, "num_failed": 0},
    ]
    keep(store, "day", {}, parts=parts)
    view = read_backfill(store, "set")
    assert view is not None
    ((first,), (second, third)) = (block.rows[0].cells for block in view.blocks)
    assert [(bar.css, bar.top, bar.height) for bar in first.bars] == [
        ("state-missing", 0, 3),
        ("state-failed", 3, 3),
        ("state-scored", 6, 6),
    ]
    assert [bar.height for bar in second.bars] == [6, 6]
    assert [(bar.css, bar.height) for bar in third.bars] == [("state-missing", 12)]


def test_the_canaries_have_their_gates_first_and_say_which_hold(store):
    canary = {
        "old": "m-1",
        "new": "m-2",
        "num_images": 200,
        "measures": {"flips": 0.01, "matched": 0.5, "nothing": None},
        "broken": ["matched is 0.5, below 0.9"],
        "gates": {"matched": [0.9, None], "flips": [None, 0.05], "absent": [1.0, None]},
    }
    keep(store, "day", {}, canaries=[canary | {"gates": canary["gates"] | {"nothing": [0, 1]}}])
    view = read_backfill(store, "set")
    assert view is not None
    (found,) = view.canaries
    assert (found.old, found.new, found.num_images) == ("m-1", "m-2", 200)
    assert [(row.name, row.value, row.holds) for row in found.rows] == [
        ("matched", 0.5, False),
        ("flips", 0.01, True),
        ("absent", None, False),
        ("nothing", None, False),
    ]
    keep(store, "day", {}, canaries=[canary | {"gates": {}}])
    view = read_backfill(store, "set")
    assert view is not None
    assert {row.holds for row in view.canaries[0].rows} == {None}


def test_without_a_backfill_there_is_nothing_to_draw(store):
    assert read_backfill(store, "set") is None
