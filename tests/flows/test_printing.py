import io
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from pixelmill.flows.backfill import BackfillReport
from pixelmill.flows.printing import print_backfill, print_evaluation, print_plan, print_run
from pixelmill.flows.score import RunReport, Scoring
from pixelmill.flows.submit import FailedShard
from pixelmill.tasks.canary import Canary
from pixelmill.tasks.metrics.results import Evaluation, Metric, ModelEvaluation
from pixelmill.tasks.parts import PartStatus
from pixelmill.tasks.plan import Plan
from pixelmill.tasks.store import ModelCounts, RunEnd, ShardRef


def printed(show, *arguments) -> list[list[str]]:
    """Words of each line that is not empty, as on a narrow terminal without colours."""
    console = Console(file=io.StringIO(), width=80)
    show(console, *arguments)
    assert isinstance(console.file, io.StringIO)
    return [line.split() for line in console.file.getvalue().splitlines() if line.strip()]


def text(lines: list[list[str]]) -> str:
    return " ".join(word for line in lines for word in line)


def plan(**changes) -> Plan:
    fields = {
        "record": None,
        "rows": pa.table({"shard": [0, 0, 1]}),
        "num_listed": 1234,
        "num_problems": 0,
        "num_new": 5,
        "num_duplicates": 0,
        "num_quarantined": 0,
        "num_retried": 0,
        "num_stubborn": 0,
        "num_missing": {"detector-1": 3, "segmenter-2": 2},
        "num_reused": {"detector-1": 1231, "segmenter-2": 1232},
        "num_skipped": {},
        "num_bytes": 2_500_000,
        "num_shards": 2,
        "adopted": (),
        "seconds_estimated": 600.0,
    }
    return Plan(**(fields | changes))


SHARD = ShardRef("20240531T000000-abcdef", 4, 256)

EVALUATION = Evaluation(
    collection="set",
    created_at="",
    models=(
        ModelEvaluation(
            "detector-1", "detection", "boxes", (Metric("AP50", 0.51249, "AP at IoU 0.5"),), ()
        ),
        ModelEvaluation("captioner-3", "captioning", "captions", (Metric("odd", 1, ""),), ()),
    ),
    skipped={"segmenter-2": "the truth has no label maps"},
)


def run(**changes) -> RunReport:
    fields = {
        "store": "/data/store",
        "collection": "set",
        "run_id": "r",
        "num_listed": 1240,
        "num_planned": 1200,
        "num_quarantined": 0,
        "num_problems": 0,
        "scoring": Scoring(
            num_images=1200,
            num_scored={"segmenter-2": 1199, "detector-1": 1200},
            images_per_s=12.34,
            seconds=97.2,
        ),
    }
    return RunReport(**(fields | changes))


def test_a_folder_without_images_is_told_as_such():
    said = text(printed(print_run, run(num_listed=0, num_planned=0, scoring=Scoring())))
    assert said.startswith("No images in set: no file there has one of the endings of ingest")
    assert "are in." not in said
    said = text(printed(print_run, run(num_planned=0, scoring=Scoring())))
    assert said.startswith("Nothing to score: all 1,240 images of set are in.")


def test_a_plan_says_what_is_listed_scored_and_reused():
    lines = printed(print_plan, plan(), "set")
    assert text(lines[:4]) == (
        "1,234 images listed in set 5 new or changed 3 to score (2.5 MB) in 2 shards about 10 min"
    )
    assert ["detector-1", "3", "1,231"] in lines
    assert ["segmenter-2", "2", "1,232"] in lines


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("num_retried", "7 of them retried after a failure"),
        ("num_stubborn", "7 of them have failed in three runs or more"),
        ("num_duplicates", "7 copies of others, scored once"),
        ("num_quarantined", "7 skipped: they failed for good"),
        ("num_problems", "7 entries could not be listed"),
    ],
)
def test_a_plan_mentions_what_is_out_of_the_ordinary_and_nothing_else(field, said):
    assert said in text(printed(print_plan, plan(**{field: 7}), "set"))
    assert said[2:] not in text(printed(print_plan, plan(), "set"))


def test_an_unknown_duration_is_not_guessed():
    assert "unknown time" in text(printed(print_plan, plan(seconds_estimated=None), "set"))


@pytest.mark.parametrize(
    ("num_bytes", "said"), [(999, "(999 bytes)"), (1_000, "(1.0 kB)"), (2e15, "(2000.0 TB)")]
)
def test_bytes_have_a_unit_that_fits(num_bytes, said):
    assert said in text(printed(print_plan, plan(num_bytes=num_bytes), "set"))


@pytest.mark.parametrize(("seconds", "said"), [(99, "99 s"), (5_400, "90 min"), (9e4, "25.0 h")])
def test_durations_have_a_unit_that_fits(seconds, said):
    assert f"about {said}" in text(printed(print_plan, plan(seconds_estimated=seconds), "set"))


def test_a_run_says_how_many_images_each_model_scored_and_how_fast():
    lines = printed(print_run, run(report=Path("/data/report.html")))
    assert ["detector-1", "1,200"] in lines
    assert ["segmenter-2", "1,199"] in lines
    assert "1,200 images of set in 97 s, 12.3 images/s" in text(lines)
    assert lines[-2:] == [["store", "/data/store"], ["report", "/data/report.html"]]


def test_a_run_with_nothing_to_do_says_so():
    lines = printed(print_run, run(num_planned=0, scoring=Scoring()))
    assert "Nothing to score: all 1,240 images of set are in." in text(lines)


def test_failures_are_told():
    scoring = Scoring(num_failed=3, failed_shards=(FailedShard(SHARD, "OSError: disk"),))
    said = text(printed(print_run, run(scoring=scoring, num_quarantined=2)))
    assert "3 failures recorded" in said
    assert f"shard {SHARD.id} failed: OSError: disk" in said
    assert "2 images skipped: they failed for good before" in said


def test_shards_of_other_runs_are_told():
    plan_of_others = plan(adopted=(SHARD,), rows=pa.table({"shard": []}), num_shards=0)
    assert "256 in shards that other runs have begun" in text(
        printed(print_plan, plan_of_others, "set")
    )
    scored = run(scoring=Scoring(num_images=256, num_shared=7))
    assert "7 of the shards were done by other runs" in text(printed(print_run, scored))


def test_the_ledger_of_each_model_is_one_line_that_adds_up():
    counts = ModelCounts(
        listed=1240,
        scored=1200,
        scored_empty=20,
        failed={"decode/corrupt": 5},
        retryable=0,
        skipped={"predicted": 10, "other_run": 3},
        missing={"not in its shard's results": 2},
    )
    end = RunEnd(
        run_id="20240531T000000-abcdef",
        ended_at="2024-05-31T06:00:00+00:00",
        state="incomplete",
        ledger={"detector-1": counts},
    )
    assert (
        "detector-1: 1,240 listed = 1,200 scored, 20 scored with nothing found, "
        "5 failed (decode/corrupt), 10 scored before, 3 in another run, "
        "2 MISSING (not in its shard's results)"
    ) in text(printed(print_run, run(end=end)))


def test_an_evaluation_explains_its_names_and_what_it_left_out():
    lines = printed(print_evaluation, EVALUATION)
    assert ["detector-1", "boxes", "AP50", "0.512"] in lines
    assert ["captioner-3", "captions", "odd", "1.000"] in lines
    assert ["AP50", "=", "mAP", "at", "IoU", "0.5"] in lines
    assert "segmenter-2 not evaluated: the truth has no label maps" in text(lines)


def test_an_interval_is_shown_beside_its_number():
    metrics = (Metric("AP", 0.95649, "", (0.9411, 0.9684)), Metric("odd", 1.0, ""))
    model = ModelEvaluation("detector-1", "detection", "boxes", metrics, metrics)
    lines = printed(print_evaluation, Evaluation("set", "", (model,)))
    assert ["detector-1", "boxes", "AP", "0.956", "[0.941,", "0.968]"] in lines
    assert ["detector-1", "boxes", "odd", "1.000"] in lines


def test_a_backfill_lists_its_parts():
    was = (
        PartStatus("2024-05-01", "failed", 10, 0, 1),
        PartStatus("2024-05-02", "partial", 1_010, 9, 0),
    )
    now = (was[0], PartStatus("2024-05-02", "done", 1_010, 0, 0))
    canary = Canary("old-1", "new-2", 20, {"matched_rate": 0.91234}, ())
    lines = printed(print_backfill, BackfillReport(was, now, canary=canary))
    assert ["2024-05-01", "failed", "failed", "10", "0", "1"] in lines
    assert ["2024-05-02", "partial", "done", "1,010", "0", "0", "9"] in lines
    assert "canary of 20 images, new-2 beside old-1" in text(lines)
    assert "matched_rate 0.9123" in text(lines)


def test_names_of_others_are_neither_markup_nor_secrets_nor_commands():
    reason = "no truth at [/red][bold]x\x1b[2J\u202e https://ann:hunter2hunter2@host/x?sig=hunter2"
    evaluation = Evaluation(collection="set", created_at="", models=(), skipped={"m-1": reason})
    shown = text(printed(print_evaluation, evaluation))
    assert shown == (
        r"m-1 not evaluated: no truth at [/red][bold]x\x1b[2J\u202e https://***@host/x?sig=***"
    )
