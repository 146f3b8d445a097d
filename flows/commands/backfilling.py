"""backfill."""

import json as json_text
from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter

from pixelmill.flows.commands.options import (
    WHAT,
    WHERE,
    Collection,
    Folder,
    Limits,
    Models,
    Out,
    UsageError,
    Workers,
    choose_config,
    with_compute,
)
from pixelmill.flows.commands.running import ExitCode, console, exit_code, run_flow
from pixelmill.flows.commands.scoring import writable_params

__all__ = ["backfill"]

_MODELS, _WORKERS, _LIMITS = Models(), Workers(), Limits()


def backfill(
    folder: Folder = None,
    /,
    *,
    by: Annotated[
        Literal["day", "month", "folder"],
        Parameter(help="Parts; days and months are read from the paths.", group=WHAT),
    ] = "day",
    pattern: Annotated[
        str | None,
        Parameter(
            help="Where the date is in a path, such as 'cam*/%Y/%m/%d'; else what looks like one.",
            group=WHAT,
        ),
    ] = None,
    first: Annotated[
        str | None, Parameter(name="--from", help="First part, such as 2024-05-01.", group=WHAT)
    ] = None,
    last: Annotated[
        str | None, Parameter(name="--to", help="Last part, included.", group=WHAT)
    ] = None,
    reprocess: Annotated[
        Literal["missing", "failed", "all"],
        Parameter(
            help="failed: also what failed for good; all: score everything again and keep what "
            "stands, to try a machine.",
            group=WHAT,
        ),
    ] = "missing",
    reverse: Annotated[bool, Parameter(help="Newest part first.", negative=(), group=WHAT)] = False,
    dry_run: Annotated[
        bool, Parameter(help="Only tell the state of each part.", negative=(), group=WHAT)
    ] = False,
    models: Models = _MODELS,
    out: Out = "pixelmill-store",
    collection: Collection = None,
    workers: Workers = _WORKERS,
    max_active: Annotated[
        int, Parameter(help="Parts at once: more keep many workers busy.", group=WHERE)
    ] = 1,
    json: Annotated[
        bool, Parameter(help="Print the parts as JSON.", negative=(), group=WHERE)
    ] = False,
    limits: Limits = _LIMITS,
) -> ExitCode:
    """Score a long archive by day, month or folder.

    Example: pixelmill backfill archive --by month --from 2024-01 --dry-run

    How far it is follows from the store alone; stop it any time, run it
    again and it goes on. While `pixelmill nightly` is at work on the
    store, it starts nothing. With gates in the configuration
    (backfill.canary) a sample goes first, and is held against the model
    that was current.
    """
    if max_active < 1:
        raise UsageError(f"--max-active must be at least 1, got {max_active}")
    chosen = with_compute(choose_config(folder, models), workers, limits)
    where = pattern or chosen.backfill.pattern
    if where is not None and by != "folder":
        from pixelmill.tasks.partition import compile_pattern

        compile_pattern(where, by)
    params = writable_params(
        source=folder,
        store=out,
        config=chosen,
        collection=collection,
        reprocess=reprocess,
        until=limits.until,
        budget=limits.budget,
    )
    from pixelmill.flows.backfill import BackfillParams, backfill_flow
    from pixelmill.flows.printing import print_backfill

    asked = BackfillParams(
        score=params,
        by=by,
        pattern=pattern,
        first=first,
        last=last,
        max_active=max_active,
        reverse=reverse,
        dry_run=dry_run,
    )
    state, report = run_flow(backfill_flow, asked)
    if report is not None and json:
        print(json_text.dumps([asdict(part) for part in report.now], indent=2))
    elif report is not None:
        print_backfill(console(), report)
    return exit_code(state)
