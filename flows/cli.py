"""The command line. Heavy imports wait until a command needs them: help must be instant."""

import signal
import sys
from importlib.metadata import version as package_version
from typing import NoReturn

from cyclopts import App, CycloptsError

from pixelmill.configs.load import ConfigError
from pixelmill.flows.commands import (
    backfilling,
    browsing,
    comparing,
    configs,
    evaluating,
    explaining,
    exporting,
    health,
    models,
    nightly,
    profiling,
    review,
    runs,
    scoring,
    storing,
    training,
)
from pixelmill.flows.commands.options import UsageError
from pixelmill.flows.commands.running import ExitCode, tell
from pixelmill.tasks.transient import explain_refusal

__all__ = ["app", "main"]

HELP = """Score folders of images with vision models.

Masks, boxes, captions and labels go into a store, with an HTML report.
Run the same command again after anything (a crash, Ctrl-C, new images):
it does what is missing and nothing else.

    pixelmill demo                   everything once, on rendered scenes
    pixelmill score photos           COCO and ImageNet models of torchvision
    pixelmill score photos --config mine.yaml
    pixelmill plan photos            what that would do

Exit codes: 0 complete; 1 failed, run again to resume; 2 wrong usage or
configuration; 3 complete, but new images were quarantined; 4 out of time
(--until, --budget), run again to go on; 5 complete, but unlike the nights
before; 130 stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

VERSION = package_version("pixelmill")

app = App(name="pixelmill", help=HELP, help_format="plaintext", version=VERSION)
for command in (
    scoring.score,
    scoring.plan,
    profiling.profile,
    backfilling.backfill,
    nightly.nightly,
    evaluating.evaluate,
    evaluating.report,
    browsing.gallery,
    browsing.browse,
    comparing.compare,
    health.health,
    exporting.export,
    explaining.explain,
    storing.audit,
    storing.publish,
    storing.compact,
    storing.prune,
    storing.promote,
    storing.rollback,
    scoring.demo,
    training.train,
):
    app.command(command)

review_app = App(name="review", help_format="plaintext")
review_app.default(review.review)
review_app.command(review.review_import, name="import")
app.command(review_app)

config_app = App(name="config", help="Look at configurations.", help_format="plaintext")
config_app.command(configs.config_list, name="list")
config_app.command(configs.config_show, name="show")
config_app.command(configs.config_check, name="check")
app.command(config_app)

runs_app = App(name="runs", help="List, show and compare runs.", help_format="plaintext")
runs_app.command(runs.runs_list, name="list")
runs_app.command(runs.runs_show, name="show")
runs_app.command(runs.runs_compare, name="compare")
app.command(runs_app)

models_app = App(
    name="models", help="List, show, fetch, check and quantize models.", help_format="plaintext"
)
models_app.command(models.models_list, name="list")
models_app.command(models.models_show, name="show")
models_app.command(models.models_fetch, name="fetch")
models_app.command(models.models_check, name="check")
models_app.command(models.models_quantize, name="quantize")
models_app.command(models.models_table, name="table")
app.command(models_app)


@app.command
def version() -> ExitCode:
    """Print the version."""
    print(VERSION)
    return ExitCode.COMPLETE


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command, and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code: int = app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        code = ExitCode.USAGE  # cyclopts has said what is wrong
    except (UsageError, ConfigError) as err:
        code = _complain(str(err))
    except (ValueError, OSError, KeyError, ImportError) as err:
        if refusal := explain_refusal(err):  # a full disk, say: no fault of the command
            tell(refusal)
            code = ExitCode.FAILED
        else:
            code = _complain(err.args[0] if isinstance(err, KeyError) else str(err))
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    sys.exit(int(code or 0))


def _complain(message: str) -> ExitCode:
    tell(message)
    return ExitCode.USAGE


def _terminate(number: int, frame: object) -> NoReturn:
    # An orderly exit: the embedded server is stopped by atexit, which a plain SIGTERM skips.
    sys.exit(int(ExitCode.TERMINATED))


if __name__ == "__main__":
    main()
