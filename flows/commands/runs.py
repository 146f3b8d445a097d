"""runs list, runs show, runs compare."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pixelmill.flows.commands.options import AsJson, Collection, StoreRoot
from pixelmill.flows.commands.running import ExitCode, console
from pixelmill.tasks.display import printable, redact

if TYPE_CHECKING:
    from pixelmill.tasks.history import RunDetail

__all__ = ["runs_compare", "runs_list", "runs_show"]

RunId = Annotated[str, Parameter(help="A run's id, its beginning, or `last`.")]


def runs_list(
    store: StoreRoot = "pixelmill-store",
    /,
    *,
    collection: Collection = None,
    last: Annotated[int, Parameter(help="So many, the newest.")] = 20,
    json: AsJson = False,
) -> ExitCode:
    """List a store's runs, the newest first.

    Example: pixelmill runs list results
    """
    from dataclasses import asdict

    from pixelmill.tasks.history import list_runs
    from pixelmill.tasks.store import Store

    found = list_runs(Store(store), collection=collection, last=last)
    if json:
        _print_json([asdict(line) for line in found])
        return ExitCode.COMPLETE
    rows = [
        (
            line.run_id,
            line.date,
            line.collection,
            line.state,
            f"{line.num_planned:,}",
            f"{line.num_scored:,}",
            f"{line.num_failed:,}",
            "" if line.seconds is None else f"{line.seconds:,.0f} s",
            ", ".join(line.models),
        )
        for line in found
    ]
    head = ("run", "date", "collection", "state", "planned", "scored", "failed", "took", "models")
    _print_table(head, rows)
    return ExitCode.COMPLETE


def runs_show(
    run: RunId = "last", store: StoreRoot = "pixelmill-store", /, *, json: AsJson = False
) -> ExitCode:
    """Show a run: what was planned, what became of it, how fast, at what cost.

    Example: pixelmill runs show last results
    """
    from pixelmill.flows.printing import print_ledger
    from pixelmill.tasks.history import read_run
    from pixelmill.tasks.store import Store

    detail = read_run(Store(store), run)
    if json:
        _print_json(_document(detail))
        return ExitCode.COMPLETE
    for name, text in _facts(detail).items():
        print(printable(redact(f"{name:10} {text}")))
    if detail.end is not None:
        print_ledger(console(), detail.end)
    return ExitCode.COMPLETE


def runs_compare(
    first: RunId, second: RunId, store: StoreRoot = "pixelmill-store", /, *, json: AsJson = False
) -> ExitCode:
    """Show two runs side by side, and what differs in their settings and code.

    Example: pixelmill runs compare 20240530 last results

    Their predictions are compared by `pixelmill compare`.
    """
    from pixelmill.tasks.history import read_run, run_differences
    from pixelmill.tasks.store import Store

    opened = Store(store)
    a, b = read_run(opened, first), read_run(opened, second)
    changed = list(run_differences(a, b))
    if json:
        keys = ("setting", "a", "b")
        settings = [dict(zip(keys, each, strict=True)) for each in changed]
        _print_json({"a": _document(a), "b": _document(b), "differences": settings})
        return ExitCode.COMPLETE
    facts_a, facts_b = _facts(a), _facts(b)
    rows = [(name, facts_a[name], facts_b[name]) for name in facts_a if name != "software"]
    _print_table(("", "A", "B"), rows)
    if changed:
        print()
        _print_table(("differs", "A", "B"), changed)
    return ExitCode.COMPLETE


def _facts(detail: "RunDetail") -> dict[str, str]:
    line, record, stats = detail.line, detail.record, detail.stats
    seconds = "" if line.seconds is None else f" in {line.seconds:,.0f} s"
    return {
        "run": line.run_id,
        "date": line.date,
        "state": line.state + (f": {line.reason}" if line.reason else ""),
        "images": f"{record.source} as {line.collection}",
        "models": ", ".join(line.models),
        "planned": f"{line.num_planned:,} of {line.num_listed:,} listed",
        "scored": f"{line.num_scored:,}, {line.num_failed:,} failed{seconds}",
        "shards": f"{detail.num_committed:,} of {record.num_shards:,} committed",
        "speed": f"{float(stats.get('images_per_s', 0)):.1f}/s a worker; {detail.bottleneck}",
        "workers": f"{detail.worker_s:,.0f} s in all on {stats.get('device', 'no device')}",
        "cost": "no compute.cost_per_hour" if detail.cost is None else f"{detail.cost:.4g}",
        "software": ", ".join(f"{name} {each}" for name, each in record.software.items())
        or "not recorded",
    }


def _document(detail: "RunDetail") -> dict[str, object]:
    from dataclasses import asdict

    return {
        "run": asdict(detail.line),
        "record": detail.record.model_dump(mode="json"),
        "end": detail.end.model_dump(mode="json") if detail.end else None,
        "num_committed": detail.num_committed,
        "stats": detail.stats,
        "bottleneck": detail.bottleneck,
        "worker_s": detail.worker_s,
        "cost": detail.cost,
    }


def _print_json(document: object) -> None:
    from json import dumps

    print(dumps(document, indent=2, ensure_ascii=False))


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """One line a row, however long: such lists are searched and piped."""
    clean = [head, *([printable(redact(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in clean) for column in range(len(head))]
    for row in clean:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
