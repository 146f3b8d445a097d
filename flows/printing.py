"""Plans, runs and evaluations as tables for the terminal."""

from rich.console import Console

from pixelmill.flows.backfill import BackfillReport
from pixelmill.flows.score import RunReport
from pixelmill.flows.tables import make_table
from pixelmill.tasks.comparison.results import Comparison
from pixelmill.tasks.display import printable, redact
from pixelmill.tasks.handoff.review import Review
from pixelmill.tasks.health.judge import Health
from pixelmill.tasks.metrics.results import Evaluation
from pixelmill.tasks.plan import Plan
from pixelmill.tasks.report.formats import format_interval
from pixelmill.tasks.slices import TruthComparison
from pixelmill.tasks.store import RunEnd, SkipReason
from pixelmill.tasks.store.audit import Audit
from pixelmill.tasks.store.repair import Repair

__all__ = [
    "print_audit",
    "print_backfill",
    "print_comparison",
    "print_differences",
    "print_evaluation",
    "print_health",
    "print_ledger",
    "print_plan",
    "print_review",
    "print_run",
]

# What newcomers may not know of a metric's name; all definitions are in the report.
LEGEND = {
    "AP": "mAP over IoU 0.5 to 0.95",
    "AP50": "mAP at IoU 0.5",
    "AP75": "mAP at IoU 0.75",
    "AR100": "recall of the 100 best boxes an image",
    "mIoU": "mean IoU of the classes",
    "Dice": "mean Dice of the classes",
    "CIDEr-D": "agreement with people's captions",
    "CIDEr-D baseline": "the same of one fixed caption",
    "BLEU-4": "shared runs of four words",
    "ROUGE-L": "longest shared sequence of words",
    "top-1": "right label first",
    "top-5": "right label in the first five",
    "macro F1": "mean F1 of the classes",
}

_MAX_FINDINGS = 50
_MAX_CHANGES = 10
_MAX_DIFFERENCES = 20

SKIPPED: dict[SkipReason, str] = {
    "predicted": "scored before",
    "duplicate": "copies",
    "quarantined": "failed for good before",
    "other_run": "in another run",
    "deadline": "left for want of time",
    "stopped": "left by the stop",
}


def print_plan(console: Console, plan: Plan, collection: str) -> None:
    """What would be scored, reused, retried and skipped."""
    facts = [
        f"{plan.num_listed:,} images listed in {collection}",
        f"{plan.num_new:,} new or changed",
        f"{plan.num_planned:,} to score ({_bytes(plan.num_bytes)}) in {plan.num_shards:,} shards",
    ]
    facts += [
        f"{number:,} {what}"
        for number, what in (
            (plan.num_retried, "of them retried after a failure"),
            (plan.num_stubborn, "of them have failed in three runs or more"),
            (plan.num_adopted, "in shards that other runs have begun"),
            (plan.num_duplicates, "copies of others, scored once"),
            (plan.num_quarantined, "skipped: they failed for good and have not changed"),
            (plan.num_problems, "entries could not be listed"),
        )
        if number
    ]
    if plan.num_planned:
        facts.append(f"about {_duration(plan.seconds_estimated)}")
    for fact in facts:
        console.print(fact, highlight=False)
    rows = [
        (key, f"{plan.num_missing[key]:,}", f"{plan.num_reused[key]:,}") for key in plan.num_missing
    ]
    console.print(make_table(("model", "to score", "reused"), rows))


def print_run(console: Console, run: RunReport) -> None:
    """What was scored, how good it is, and where it lies."""
    scoring = run.scoring
    if run.num_listed == 0:
        _say(
            console,
            f"No images in {run.collection}: no file there has one of the endings of "
            "ingest.suffixes (`pixelmill config show` tells them)",
            style="yellow",
        )
    elif run.num_planned == 0:
        console.print(
            f"Nothing to score: all {run.num_listed:,} images of {run.collection} are in."
        )
    else:
        rows = [(key, f"{number:,}") for key, number in sorted(scoring.num_scored.items())]
        console.print(make_table(("model", "images scored"), rows))
        console.print(
            f"{scoring.num_images:,} images of {run.collection} in {_duration(scoring.seconds)}, "
            f"{scoring.images_per_s:.1f} images/s",
            highlight=False,
        )
    if scoring.num_shared:
        console.print(f"{scoring.num_shared:,} of the shards were done by other runs")
    if scoring.num_failed:
        console.print(
            f"[yellow]{scoring.num_failed:,} failures recorded: see the report or "
            "Store.failures()[/yellow]"
        )
    for shard in scoring.failed_shards[:3]:
        _say(console, f"shard {shard.shard.id} failed: {shard.error}", style="red")
    if run.end is not None:
        print_ledger(console, run.end)
    if run.num_quarantined:
        console.print(f"{run.num_quarantined:,} images skipped: they failed for good before")
    if run.evaluation is not None:
        print_evaluation(console, run.evaluation)
    _say(console, f"store   {run.store}")
    if run.report is not None:
        _say(console, f"report  {run.report}")


def print_ledger(console: Console, end: RunEnd) -> None:
    """What became of each listed input, by model: the counts add up."""
    for key, counts in end.ledger.items():
        states = {"scored": counts.scored, "scored with nothing found": counts.scored_empty}
        states |= {f"failed ({cause})": number for cause, number in counts.failed.items()}
        states |= {SKIPPED[reason]: number for reason, number in counts.skipped.items()}
        states |= {f"MISSING ({cause})": number for cause, number in counts.missing.items()}
        told = ", ".join(f"{number:,} {state}" for state, number in states.items() if number)
        console.print(f"{key}: {counts.listed:,} listed = {told}", highlight=False, markup=False)


def print_audit(console: Console, audit: Audit, repair: Repair | None = None) -> None:
    """What an audit found, and what was done about it."""
    rows = ", ".join(f"{number:,} {name}" for name, number in audit.num_rows.items())
    _say(
        console,
        f"{audit.root}: {audit.num_receipts:,} receipts, {audit.num_parts:,} parts ({rows}), "
        f"{audit.num_mask_stores:,} mask stores; {_duration(audit.seconds)}",
    )
    if repair is not None:
        _say(
            console,
            f"repaired: {repair.num_rebuilt} parts rebuilt, {repair.num_removed:,} images taken "
            f"out to be scored again, {repair.num_moved} objects moved to _commit/quarantine, "
            f"{repair.num_deleted:,} leftovers deleted",
        )
    for severity in ("damage", "garbage", "note"):
        found = audit.of(severity)
        for finding in found[:_MAX_FINDINGS]:  # no table: keys are longer than a terminal is wide
            _say(console, f"{severity}  {finding.kind}  {finding.key}")
            _say(console, f"    {finding.what}" + (finding.remedy and f"; {finding.remedy}"))
        if len(found) > _MAX_FINDINGS:
            _say(console, f"and {len(found) - _MAX_FINDINGS:,} more: --json has them all")
    if audit.is_sound:
        _say(console, "sound")
    else:
        _say(console, f"{len(audit.of('damage')):,} findings of damage", "red")


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """The headline numbers of each model."""
    shown = [(model, metric) for model in evaluation.models for metric in model.headline]
    if shown:
        # no empty column where no number has an interval
        with_intervals = any(metric.interval for _, metric in shown)
        rows = [
            (model.model_key, model.kind, metric.name, f"{metric.value:.3f}")
            + ((format_interval(metric.interval),) if with_intervals else ())
            for model, metric in shown
        ]
        head = ("model", "compared", "metric", "value", "95 % interval")
        console.print(make_table(head[: len(rows[0])], rows, num_text=3))
        names = dict.fromkeys(metric.name for _, metric in shown)
        legend = "; ".join(f"{name} = {LEGEND[name]}" for name in names if name in LEGEND)
        console.print(legend, highlight=False, style="dim")
    for key, reason in evaluation.skipped.items():
        _say(console, f"{key} not evaluated: {reason}")


def print_comparison(console: Console, comparison: Comparison) -> None:
    """What changed most, then the numbers, then the images to look at."""
    for pair in comparison.pairs:
        counts = f"{pair.num_images:,} images; {pair.only_a:,} only in A, {pair.only_b:,} only in B"
        _say(console, f"A {pair.model_a}  B {pair.model_b}  {pair.kind}: {counts}", "bold")
        for finding in pair.findings[:_MAX_CHANGES]:
            _say(console, f"  {finding.text}")
        if not pair.findings:
            _say(console, "  nothing changed")
        rows = [(metric.name, f"{metric.value:.3f}") for metric in pair.headline]
        console.print(make_table(("measure", "value"), rows))
        if pair.images:
            _say(console, "images that changed most")
        for image in pair.images[:_MAX_CHANGES]:
            _say(console, f"  {image.change:.2f}  {image.path}  {', '.join(image.reasons)}")
        for truth in pair.truth:
            print_differences(console, truth)
        for note in pair.notes:
            _say(console, note, "dim")
    for key, reason in comparison.skipped.items():
        _say(console, f"{key} not compared: {reason}")


def print_differences(console: Console, truth: TruthComparison) -> None:
    """Numbers of two models by truth, the surest differences first."""
    rows = [
        (
            f"{one.number.metric} {one.number.class_name or ''}".strip(),
            one.slice_name,
            f"{one.value_a:.3f}",
            f"{one.value_b:.3f}",
            f"{one.difference:+.3f} {format_interval(one.interval)}",
            f"{one.adjusted_p:.3f}",
        )
        for one in truth.differences[:_MAX_DIFFERENCES]
    ]
    head = (f"{truth.kind} by truth", "images", "A", "B", "B - A, 95 %", "p, adjusted")
    console.print(make_table(head, rows, num_text=2))
    for note in truth.notes:
        _say(console, note, "dim")


def print_health(console: Console, health: Health) -> None:
    """The findings, the first to be looked at first, and the nights they rest on."""
    styles = {"alarm": "red", "warning": "yellow", "note": "dim"}
    for finding in health.findings:
        _say(console, f"{finding.level}  {finding.text}", styles[finding.level])
    for model in health.models:
        _say(console, f"{model.model_key}, night by night", "bold")
        rows = [
            (
                night.date,
                f"{night.num_images:,}",
                f"{night.num_failed:,}",
                *(
                    f"{night.means[name]:.2f}" if name in night.means else ""
                    for name in model.means
                ),
            )
            for night in (*model.baseline, model.night)
        ]
        console.print(make_table(("night", "images", "failed", *model.means), rows))
    verdict = health.level if health.level in ("alarm", "warning") else "as the nights before"
    _say(console, f"{health.collection} {health.date}: {verdict}")


def print_review(console: Console, review: Review) -> None:
    """The head of the queue."""
    _say(console, f"{review.num_found:,} images of {review.collection} to look at", "bold")
    for item in review.items[:_MAX_CHANGES]:
        _say(console, f"  {item.priority:.2f}  {item.path}  {'; '.join(item.reasons[:3])}")


def print_backfill(console: Console, report: BackfillReport) -> None:
    """Each part as it was and is, and how the canary came out."""
    rows = []
    for was, now in zip(report.parts, report.now, strict=True):
        counts = (f"{now.num_images:,}", f"{now.num_missing:,}", f"{now.num_failed:,}")
        done = f"{was.num_missing - now.num_missing:,}" if was != now else ""
        rows.append((was.part, was.status, now.status, *counts, done))
    head = ("part", "was", "is", "images", "missing", "failed", "settled now")
    console.print(make_table(head, rows, num_text=3))
    if report.canary is not None:
        canary = report.canary
        told = ", ".join(f"{name} {value:.4g}" for name, value in canary.measures.items())
        _say(console, f"canary of {canary.num_images:,} images, {canary.new} beside {canary.old}")
        _say(console, f"    {told}")
    if report.note:
        _say(console, f"no canary: {report.note}")


def _say(console: Console, text: str, style: str | None = None) -> None:
    """A line with names of others in it: they are no markup, no secret and no terminal command."""
    shown = printable(redact(text))
    console.print(shown, style=style, markup=False, highlight=False, soft_wrap=True)


def _bytes(number: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000  # type: ignore[assignment]  # a quotient from here on
    return f"{number:.1f} TB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time: no earlier run of these models here"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
