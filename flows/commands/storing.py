"""Commands on a store: audit, publish, compact, prune, promote, rollback."""

import re
from datetime import UTC, datetime, timedelta
from datetime import date as Date
from json import dumps
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from pixelmill.configs.schema import TaskName
from pixelmill.flows.commands.options import AsJson, StoreRoot, UsageError
from pixelmill.flows.commands.running import ExitCode, console

if TYPE_CHECKING:
    from pixelmill.tasks.store import Store

__all__ = ["audit", "compact", "promote", "prune", "publish", "rollback"]


def publish(store: StoreRoot = "pixelmill-store", /) -> ExitCode:
    """Show readers what a killed run had finished.

    Example: pixelmill publish results

    `score` does it too; this is for when nothing is to be scored.
    """
    from pixelmill.tasks.store import Store
    from pixelmill.tasks.store import publish as publish_store

    summary = publish_store(Store(store))
    print(f"{summary.num_shards} shards published: {summary.num_images} rows of images")
    if summary.num_damaged:
        print(f"{summary.num_damaged} damaged and left out: `pixelmill audit {store} --repair`")
        return ExitCode.FAILED
    return ExitCode.COMPLETE


def audit(
    store: StoreRoot = "pixelmill-store",
    /,
    *,
    repair: Annotated[
        bool, Parameter(help="Mend what can be mended, and look again.", negative=())
    ] = False,
    fast: Annotated[
        bool,
        Parameter(
            help="Sizes, footers and keys only; else checksums, all columns and all masks.",
            negative="--full",
        ),
    ] = False,
    grace: Annotated[
        str, Parameter(help="Leftovers younger than this may be somebody's work: 90m, 24h.")
    ] = "24h",
    json: AsJson = False,
) -> ExitCode:
    """Look for everything that is lost, changed, doubled or left over.

    Example: pixelmill audit results --repair

    Log, receipts, catalog, tables, masks and the ledgers of runs that
    ended are reconciled. Exits with 1 if something is damaged; leftovers
    of killed processes are told, and are no damage.

    --repair rebuilds what can be rebuilt exactly, takes out what cannot,
    so that the next `score` does it again, and deletes leftovers. Nothing
    is guessed: what is moved aside lies in _commit/quarantine.
    """
    from pixelmill.flows.limits import parse_duration
    from pixelmill.flows.printing import print_audit
    from pixelmill.tasks.store import Store
    from pixelmill.tasks.store.audit import audit_store
    from pixelmill.tasks.store.repair import repair_store

    try:
        grace_s = parse_duration(grace)
    except ValueError as err:
        raise UsageError(f"--grace: {err}") from err
    opened = Store(store)
    if repair:
        done = repair_store(opened, full=not fast, grace_s=grace_s)
        found = done.after
    else:
        done, found = None, audit_store(opened, full=not fast, grace_s=grace_s)
    if json:
        print(dumps(found.to_json() if done is None else done.to_json(), indent=2))
    else:
        print_audit(console(), found, done)
    return ExitCode.COMPLETE if found.is_sound else ExitCode.FAILED


def compact(
    store: StoreRoot = "pixelmill-store",
    /,
    *,
    model: Annotated[str | None, Parameter(help="Key; only this model's predictions.")] = None,
    target_mb: Annotated[int, Parameter(help="Size of a merged part.")] = 256,
) -> ExitCode:
    """Merge small Parquet parts of the tables into big ones.

    Example: pixelmill compact results

    The rows stay the same. It may run while others score, publish and
    read, and be killed; whatever publishes next finishes what it began.
    """
    if target_mb < 1:
        raise UsageError(f"--target-mb must be at least 1, got {target_mb}")
    from pixelmill.tasks.report.formats import format_bytes
    from pixelmill.tasks.store import Store
    from pixelmill.tasks.store.compact import compact as compact_store

    done = compact_store(Store(store), model=model, target_bytes=target_mb << 20)
    print(
        f"{done.num_parts_before} parts ({format_bytes(done.bytes_before)}) are "
        f"{done.num_parts_after} parts ({format_bytes(done.bytes_after)}) now"
    )
    if done.num_young:
        print(f"{done.num_young} parts were left alone: published within the last hour")
    return ExitCode.COMPLETE


def prune(
    store: StoreRoot = "pixelmill-store",
    /,
    *,
    model: Annotated[
        str | None, Parameter(help="Key, or the name that several versions have in common.")
    ] = None,
    older_than: Annotated[
        str | None, Parameter(help="Only what has an older logical date: YYYY-MM-DD, or 90d.")
    ] = None,
    keep_promoted: Annotated[
        bool, Parameter(help="Leave promoted models out.", negative=())
    ] = False,
    force: Annotated[bool, Parameter(help="Promoted models too.", negative=())] = False,
    garbage: Annotated[
        bool,
        Parameter(
            help="Delete what nothing names: leftovers of killed workers, masks of what was "
            "pruned, parts that were merged.",
            negative=(),
        ),
    ] = False,
    grace: Annotated[
        str,
        Parameter(
            help="Age from which that is garbage. Shorter than a shard takes, such as 1s, "
            "only when nothing else uses the store."
        ),
    ] = "24h",
    dry_run: Annotated[bool, Parameter(help="Only tell.", negative=())] = False,
) -> ExitCode:
    """Remove predictions of retired models, and garbage.

    Example: pixelmill prune results --model detector-1a2b3c4d
    Example: pixelmill prune results --garbage

    Rows go at once. Masks are deleted by --garbage, a day later: until then
    a reader that has found their rows can read them.
    """
    if model is None and older_than is None and not garbage:
        raise UsageError("say what to remove: --model, --older-than or --garbage")
    if keep_promoted and force:
        raise UsageError("--keep-promoted and --force exclude each other")
    before = None if older_than is None else _parse_date(older_than)
    from pixelmill.flows.limits import parse_duration
    from pixelmill.tasks.report.formats import format_bytes
    from pixelmill.tasks.store import Store
    from pixelmill.tasks.store.garbage import collect_garbage
    from pixelmill.tasks.store.prune import prune as prune_store

    grace_s, opened = parse_duration(grace), Store(store)
    if model is not None or before is not None:
        promoted: Literal["keep", "remove", "refuse"] = "refuse"
        if keep_promoted or force:
            promoted = "keep" if keep_promoted else "remove"
        found = prune_store(opened, model=model, before=before, promoted=promoted, dry_run=dry_run)
        for one in found:
            print(
                f"{one.model_key}: {one.num_images} images of {len(one.dates)} dates, "
                f"{one.num_parts} parts, {one.num_mask_stores} stores of masks"
            )
        print(_told(len(found), "models", dry_run))
    if garbage:
        kinds = collect_garbage(opened, grace_s=grace_s, dry_run=dry_run)
        for kind in kinds:
            print(f"{kind.kind}: {kind.num_objects} files, {format_bytes(kind.size_bytes)}")
        print(_told(sum(kind.num_objects for kind in kinds), "files", dry_run))
    return ExitCode.COMPLETE


def promote(
    store: StoreRoot = "pixelmill-store",
    model: Annotated[str | None, Parameter(help="Key; without it, tell what is current.")] = None,
    /,
) -> ExitCode:
    """Make a model the current one of its task.

    Example: pixelmill promote results detector-1a2b3c4d

    Readers of `current:<task>` then get its predictions, and of an image
    that it has not scored those of the model that was current before.
    """
    from pixelmill.tasks.store import Store

    opened = Store(store)
    if model is not None:
        step = opened.promote(model)
        _print_current(opened, step.task)
        return ExitCode.COMPLETE
    history = opened.promotions()
    for step in history:
        print(f"{step.created_at}  {step.op:8}  {step.task}  {step.model_key}")
    tasks: set[TaskName] = {step.task for step in history}
    for task in sorted(tasks):
        _print_current(opened, task)
    if not history:
        print("no model was ever promoted")
    return ExitCode.COMPLETE


def rollback(store: StoreRoot, task: TaskName, /) -> ExitCode:
    """Undo the last promotion for a task.

    Example: pixelmill rollback results detection
    """
    from pixelmill.tasks.store import Store

    opened = Store(store)
    try:
        opened.rollback(task)
    except RuntimeError as err:
        raise UsageError(str(err)) from err
    _print_current(opened, task)
    return ExitCode.COMPLETE


def _print_current(store: "Store", task: TaskName) -> None:
    print(f"current:{task} is {', before that '.join(store.current(task)) or 'no model'}")


def _told(number: int, what: str, dry_run: bool) -> str:
    return f"{number} {what} {'would be' if dry_run else 'were'} removed"


def _parse_date(text: str) -> str:
    """YYYY-MM-DD of a date, or of a number of days before today in UTC."""
    days = re.fullmatch(r"(\d{1,6})d", text)
    if days is not None:
        return (datetime.now(UTC).date() - timedelta(days=int(days[1]))).isoformat()
    try:
        return Date.fromisoformat(text).isoformat()
    except ValueError:
        raise UsageError(f"--older-than must be YYYY-MM-DD or like 90d, got {text!r}") from None
