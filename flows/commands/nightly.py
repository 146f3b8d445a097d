"""nightly."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from pixelmill.configs.load import find_config, load_config
from pixelmill.configs.schema import RunConfig
from pixelmill.flows.commands.options import (
    WHERE,
    Collection,
    Folder,
    Limits,
    UsageError,
    Workers,
    with_compute,
)
from pixelmill.flows.commands.running import ExitCode, console, exit_code, run_flow, tell
from pixelmill.flows.commands.scoring import score_params, writable_params
from pixelmill.flows.limits import parse_duration
from pixelmill.flows.schedules import DEFAULT_CRON, Schedule, cron_to_calendar, format_schedule

if TYPE_CHECKING:
    from pixelmill.flows.nightly import NightlyParams

__all__ = ["nightly"]

WHEN = Group("When: now, or")

_WORKERS, _LIMITS = Workers(), Limits()


def nightly(
    config: Annotated[str, Parameter(help="A YAML file, or a preset's name.")],
    folder: Folder = None,
    /,
    *,
    out: Annotated[
        str | None,
        Parameter(
            name=("--out", "-o"), help="The store: folder or URL; else nightly.store.", group=WHERE
        ),
    ] = None,
    collection: Collection = None,
    workers: Workers = _WORKERS,
    limits: Limits = _LIMITS,
    cron: Annotated[
        str,
        Parameter(help="When, for --serve and --print: minute hour day month weekday.", group=WHEN),
    ] = DEFAULT_CRON,
    show: Annotated[
        Schedule | None,
        Parameter(
            name="--print",
            help="Print a systemd service, its timer, or a line for crontab that run this.",
            group=WHEN,
        ),
    ] = None,
    serve: Annotated[
        bool,
        Parameter(
            help="Stay, and run as the Prefect server says (PREFECT_API_URL).",
            negative=(),
            group=WHEN,
        ),
    ] = False,
    watch: Annotated[
        bool,
        Parameter(help="Stay, and run when new files have landed.", negative=(), group=WHEN),
    ] = False,
    every: Annotated[
        str, Parameter(help="--watch looks so often, such as 30s or 5m.", group=WHEN)
    ] = "60s",
    settle: Annotated[
        str, Parameter(help="--watch leaves files that were changed more lately.", group=WHEN)
    ] = "60s",
) -> ExitCode:
    """Score what is new, publish, evaluate, judge, report and notify.

    Example: pixelmill nightly mine.yaml --until 06:00
    Example: pixelmill nightly mine.yaml --print service
    Example: pixelmill nightly mine.yaml --serve --cron "0 2 * * *"

    Run it every night: it does what is new. What it needs beside the
    models stands under `nightly:` in the configuration: store, collection,
    who is notified.
    """
    if serve + watch + (show is not None) > 1:
        raise UsageError("--serve, --watch and --print exclude each other")
    _check_times(cron, every, settle)
    chosen = with_compute(load_config(config), workers, limits)
    if watch:
        ingest = chosen.ingest.model_copy(update={"settle_s": parse_duration(settle)})
        chosen = chosen.model_copy(update={"ingest": ingest})
    store = _absolute(out or chosen.nightly.store)
    if store is None:
        raise UsageError("name the store: --out, or nightly.store in the configuration")
    if show is not None:
        path = str(find_config(config).resolve())
        arguments = ["nightly", path, *_as_arguments(folder, store, collection, workers, limits)]
        print(
            format_schedule(show, arguments, name=chosen.name, folder=Path.cwd(), cron=cron), end=""
        )
        return ExitCode.COMPLETE
    params = _params(chosen, folder, store, collection, limits, is_run=not serve)
    if serve:
        return _serve(params, f"nightly-{chosen.name}", cron)
    return _watch(params, chosen, parse_duration(every)) if watch else _run(params)


def _params(
    config: RunConfig,
    folder: str | None,
    store: str,
    collection: str | None,
    limits: Limits,
    *,
    is_run: bool,
) -> "NightlyParams":
    check = writable_params if is_run else score_params
    score = check(
        source=_absolute(folder),
        store=store,
        config=config,
        collection=collection or config.nightly.collection,
        until=limits.until,
        budget=limits.budget,
    )
    from pixelmill.flows.nightly import NightlyParams

    return NightlyParams(score=score)


def _run(params: "NightlyParams") -> ExitCode:
    from pixelmill.flows.nightly import nightly_flow
    from pixelmill.flows.printing import print_run

    state, night = run_flow(nightly_flow, params)
    if night is not None:
        if night.run is not None and not state.is_cancelled():
            print_run(console(), night.run)
        if night.health is not None:
            for finding in night.health.findings:
                if finding.level != "note":
                    tell(f"{finding.level}: {finding.text}")
        for failure in night.untold:
            tell(f"could not notify {failure.target}: {failure.reason}")
    return exit_code(state)


def _watch(params: "NightlyParams", config: RunConfig, every_s: float) -> ExitCode:
    from pixelmill.flows.stopping import StopFlag
    from pixelmill.flows.watching import watch

    source = params.score.source or config.images
    assert source is not None
    codes = [ExitCode.COMPLETE]
    stop = StopFlag()

    def run(num_new: int) -> bool:
        tell(f"{num_new:,} new files in {source}")
        codes[0] = _run(params)
        return codes[0] not in (ExitCode.FAILED, ExitCode.OUT_OF_TIME)

    def should_stop() -> bool:
        return stop() or codes[0] in (ExitCode.INTERRUPTED, ExitCode.TERMINATED)

    with stop.listening():
        watch(source, config.ingest, run, every_s=every_s, should_stop=should_stop)
    return ExitCode.TERMINATED if stop.reason == "SIGTERM" else ExitCode.INTERRUPTED


def _serve(params: "NightlyParams", name: str, cron: str) -> ExitCode:
    if not os.environ.get("PREFECT_API_URL"):
        raise UsageError(
            "--serve needs a Prefect server, whose scheduler starts the runs: `prefect server "
            "start`, then PREFECT_API_URL=http://127.0.0.1:4200/api; without one, --print service "
            "or --print cron have this machine start them"
        )
    from pixelmill.flows.nightly import serve_nights

    # what was left out stays so: a model's own defaults depend on it
    serve_nights(name, {"params": params.model_dump(mode="json", exclude_unset=True)}, cron)
    return ExitCode.COMPLETE


def _check_times(cron: str, every: str, settle: str) -> None:
    try:
        cron_to_calendar(cron)
        parse_duration(every)
        parse_duration(settle)
    except ValueError as err:
        raise UsageError(str(err)) from err


def _absolute(place: str | None) -> str | None:
    """A folder by its whole path, as a schedule runs elsewhere; a URL as it is."""
    if place is None or "://" in place:
        return place
    return str(Path(place).expanduser().resolve())


def _as_arguments(
    folder: str | None, store: str, collection: str | None, workers: Workers, limits: Limits
) -> list[str]:
    """What was asked for on this command line, for the next one."""
    arguments = [] if folder is None else [str(_absolute(folder))]
    options = {"out": store, "collection": collection, **vars(workers), **vars(limits)}
    for name, value in options.items():
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    return arguments
