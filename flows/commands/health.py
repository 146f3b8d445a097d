"""health."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pixelmill.configs.schema import HealthConfig
from pixelmill.flows.commands.options import AsJson, Collection, StoreRoot, UsageError
from pixelmill.flows.commands.running import ExitCode, console

__all__ = ["health"]


def health(
    store: StoreRoot = "pixelmill-store",
    /,
    *,
    collection: Collection = None,
    date: Annotated[str | None, Parameter(help="The night, YYYY-MM-DD; else the newest.")] = None,
    nights: Annotated[
        int | None, Parameter(help="Compare with so many nights before; else health.nights.")
    ] = None,
    strict: Annotated[
        bool, Parameter(help="Warnings exit with 5 too, not alarms only.", negative=())
    ] = False,
    to: Annotated[Path | None, Parameter(help="Folder of the files; else in the store.")] = None,
    json: AsJson = False,
) -> ExitCode:
    """Tell whether a night is like the nights before it; truth is not needed.

    Example: pixelmill health results || mail -s "look at last night" me@example.org

    Failures, images with nothing found, classes, scores, places and sizes
    of boxes, captions, and the images' own size and brightness. Exits
    with 5 on an alarm, else 0; thresholds are in `health:` of the run's
    configuration.
    """
    if nights is not None and nights < 1:
        raise UsageError(f"--nights must be at least 1, got {nights}")
    from json import dumps

    from pixelmill.flows.evaluation import find_last_run
    from pixelmill.flows.printing import print_health
    from pixelmill.flows.results import keep_results, results_folder
    from pixelmill.tasks.health.judge import check_health
    from pixelmill.tasks.report.health import build_health_page
    from pixelmill.tasks.store import Store

    opened = Store(store)
    run = find_last_run(opened, collection)
    config = HealthConfig.model_validate(run.config.get("health", {}))
    if nights is not None:
        config = config.model_copy(update={"nights": nights})
    found = check_health(opened, config, collection=run.collection, date=date)
    folder = to or results_folder(opened, run.collection)
    folder.mkdir(parents=True, exist_ok=True)
    document = dumps(found.to_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    path = folder / "health.json"
    path.write_text(document, encoding="utf-8")
    page = build_health_page(found, config, folder / "health.html")
    if to is None:
        keep_results(opened, run.collection, (path, page))
    if json:
        print(document)
    else:
        print_health(console(), found)
        console().print(f"report  {page}", highlight=False, markup=False, soft_wrap=True)
    told = ("alarm", "warning") if strict else ("alarm",)
    return ExitCode.UNHEALTHY if found.level in told else ExitCode.COMPLETE
