import io

import pyarrow.parquet as pq
import pytest

from pixelmill.tasks.report.changes import change_view
from pixelmill.tasks.report.history import (
    Number,
    Snapshot,
    changes_between,
    decode_history,
    encode_history,
    extend_history,
    history_table,
)

TITLES = {"boxes": "Boxes"}


def snapshot(day, ap, *, key="finder-1", low=None, high=None, failed=0.0):
    return Snapshot(
        run_id=f"2026010{day}T000000-aaaaaa",
        date=f"2026-01-0{day}",
        created_at=f"2026-01-0{day}T00:00:00+00:00",
        numbers=(
            Number("finder", key, "boxes", "AP", ap, low, high),
            Number("finder", key, "images", "failed", failed),
        ),
    )


def test_history_survives_its_file():
    history = (snapshot(1, 0.5, low=0.4, high=0.6), snapshot(2, 0.7))
    assert decode_history(encode_history("harbour", history)) == history
    table = pq.read_table(io.BytesIO(history_table(history)))
    assert table.num_rows == 4
    assert table["value"].to_pylist() == [0.5, 0.0, 0.7, 0.0]


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 9}', "no json", '{"format": 1}'])
def test_other_files_are_refused(text):
    with pytest.raises(ValueError, match=r"numbers of a report|format|Expecting"):
        decode_history(text)


def test_report_made_again_takes_the_place_of_the_first():
    history = extend_history((snapshot(1, 0.5), snapshot(2, 0.6)), snapshot(2, 0.7))
    assert [each.numbers[0].value for each in history] == [0.5, 0.7]


def test_report_of_an_earlier_run_keeps_the_order_of_runs():
    history = extend_history((snapshot(1, 0.5), snapshot(3, 0.6)), snapshot(2, 0.7))
    assert [each.date[-1] for each in history] == ["1", "2", "3"]


@pytest.mark.parametrize(("value", "outside"), [(0.55, False), (0.61, True), (0.39, True)])
def test_change_says_whether_it_leaves_the_earlier_interval(value, outside):
    (change, _) = changes_between(snapshot(1, 0.5, low=0.4, high=0.6), snapshot(2, value))
    assert change.outside is outside
    assert change.difference == pytest.approx(value - 0.5)


def test_new_version_of_a_model_follows_the_old_one():
    (change, _) = changes_between(snapshot(1, 0.5), snapshot(2, 0.5, key="finder-2"))
    assert change.version == "finder-1 → finder-2"


def test_view_shows_what_changed_and_counts_the_rest():
    history = (snapshot(1, 0.5), snapshot(2, 0.6), snapshot(3, 0.55))
    view = change_view(history, history[-1].run_id, TITLES)
    assert view.run_id == history[1].run_id
    assert [(row.what, row.before, row.now) for row in view.rows] == [
        ("Boxes: AP", "0.600", "0.550")
    ]
    assert view.rows[0].difference_text == "−0.050"  # noqa: RUF001 - a minus
    assert view.num_same == 1
    assert "3 runs" in view.rows[0].line


def test_first_run_has_nothing_to_compare_with():
    view = change_view((snapshot(1, 0.5),), snapshot(1, 0.5).run_id, TITLES)
    assert view.run_id is None
    assert view.rows == ()
