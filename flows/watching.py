"""Running when a collection grows: its listing is looked at again and again."""

import logging
import time
from collections.abc import Callable

from pixelmill.configs.schema import IngestConfig
from pixelmill.tasks.ingest import find_rows
from pixelmill.tasks.sources import IMAGES_SCHEMA, list_images

__all__ = ["watch"]

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 60.0
_LONGEST_WAIT_S = 3600.0


def watch(
    source: str,
    config: IngestConfig,
    run: Callable[[int], bool],
    *,
    every_s: float,
    should_stop: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Run when there are files that are new, or changed, and have settled since.

    To the first look all files are new: the run knows what is scored. After a run that failed its
    files are new again, a minute later, then two, and so on up to an hour.

    Args:
        source: a folder or URL.
        config: which files are images, and when they have settled (`settle_s`).
        run: called with the number of new files; whether it went well.
        every_s: seconds between two looks.
        should_stop: asked between them.
        sleep: waits.
    """
    done, num_failures = IMAGES_SCHEMA.empty_table(), 0
    while not should_stop():
        wait_s = every_s
        try:
            found = list_images(source, config).images
        except OSError as err:  # a share that is away comes back
            logger.warning("could not list %s: %s", source, err)
            found = done
        num_new = find_rows(found, done).null_count
        if num_new and run(num_new):
            done, num_failures = found, 0
        elif num_new:
            wait_s = max(every_s, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**num_failures))
            num_failures += 1
        _wait(wait_s, should_stop, sleep)


def _wait(seconds: float, should_stop: Callable[[], bool], sleep: Callable[[float], None]) -> None:
    """In short steps, so that a stop is seen soon."""
    while seconds > 0 and not should_stop():
        sleep(min(seconds, 1.0))
        seconds -= 1.0
