"""An evaluation and a run as markdown tables, for terminals, tickets and Prefect artifacts."""

from collections.abc import Iterable, Sequence

from pixelmill.tasks.metrics.results import Evaluation, ModelEvaluation
from pixelmill.tasks.report.formats import format_interval, format_value
from pixelmill.tasks.report.summary import RunSummary

__all__ = ["summary_markdown"]

_MAX_CLASSES = 20


def _cell(text: object) -> str:
    """One line that cannot end the table or start markup."""
    plain = " ".join(str(text).split())
    for character in "\\|`*_[]<>":
        plain = plain.replace(character, f"\\{character}" if character not in "<>" else character)
    return plain.replace("<", "&lt;").replace(">", "&gt;")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], text_columns: int = 1) -> str:
    lines = [
        "| " + " | ".join(map(_cell, head)) + " |",
        "|" + "|".join(" --- " if i < text_columns else " ---: " for i in range(len(head))) + "|",
    ]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _run_part(run: RunSummary) -> list[str]:
    facts = [f"{run.num_images:,} images"]
    if run.run_id is not None:
        facts.append(f"run `{run.run_id}` of {run.date}")
        facts.append(f"{run.num_committed:,} of {run.num_shards:,} shards done")
    if run.images_per_second is not None:
        facts.append(f"{run.images_per_second:.1f} images/s per worker")
    parts = [", ".join(facts) + "."]
    if run.ledgers:
        parts.append(
            _table(
                ("Model", "Scored", "Scored, empty", "Failed", "Missing"),
                (
                    (
                        ledger.model_key,
                        f"{ledger.num_scored:,}",
                        f"{ledger.num_empty:,}",
                        f"{ledger.num_failed:,}",
                        f"{ledger.num_missing:,}",
                    )
                    for ledger in run.ledgers
                ),
            )
        )
    if run.failures:
        parts += [
            "### Failures",
            _table(
                ("Stage", "Reason", "Example", "Images", "Still open"),
                (
                    (
                        group.stage,
                        group.reason,
                        next(iter(group.example_paths), ""),
                        f"{group.num_images:,}",
                        f"{group.num_open:,}",
                    )
                    for group in run.failures
                ),
                text_columns=3,
            ),
        ]
    return parts


def _model_part(model: ModelEvaluation) -> list[str]:
    parts = [
        f"### {_cell(model.model_key)}: {model.kind}",
        _table(
            ("Metric", "Definition", "Value"),
            (
                (
                    metric.name,
                    metric.definition,
                    f"{format_value(metric.value)} {format_interval(metric.interval)}".rstrip(),
                )
                for metric in model.headline
            ),
            text_columns=2,
        ),
    ]
    if model.per_class:
        names = list(dict.fromkeys(name for row in model.per_class for name in row.values))
        shown = sorted(model.per_class, key=lambda row: (-row.num_truth, row.class_name))
        parts.append(
            _table(
                ("Class", "Truth", "Predicted", *names),
                (
                    (
                        row.class_name,
                        f"{row.num_truth:,}",
                        f"{row.num_predicted:,}",
                        *(format_value(row.values.get(name, float("nan"))) for name in names),
                    )
                    for row in shown[:_MAX_CLASSES]
                ),
            )
        )
        if len(shown) > _MAX_CLASSES:
            parts.append(f"{len(shown) - _MAX_CLASSES} rarer classes are in the report.")
    counted = [f"{model.num_images:,} images with truth"]
    if model.missing:
        counted.append(f"{len(model.missing):,} of them never scored")
    if model.failed:
        counted.append(f"{len(model.failed):,} failed")
    parts.append(", ".join(counted) + ".")
    return parts


def summary_markdown(evaluation: Evaluation | None, run: RunSummary | None) -> str:
    """Headline numbers, counts by state and failures.

    Args:
        evaluation: None where there was no truth.
        run: None where only the evaluation is told.
    """
    collection = run.collection if run else evaluation.collection if evaluation else ""
    parts = [f"# {_cell(collection) or 'Pixelmill'}"]
    if run is not None:
        parts += _run_part(run)
    if evaluation is not None:
        parts.append("## Evaluation")
        for model in evaluation.models:
            parts += _model_part(model)
        if evaluation.skipped:
            parts.append(_table(("Model", "Not evaluated because"), evaluation.skipped.items(), 2))
    return "\n\n".join(parts) + "\n"
