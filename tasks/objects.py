"""Requests to object stores, made again until they succeed or there is no point in it.

obstore retries most of what fails on its way. Measured with version 0.12 against a proxy that
drops, cuts and stalls answers, it does not retry: a conditional put or a bulk delete without an
answer, and a listing or an answer to a bulk delete that ends early. `patiently` does.
"""

import functools
import logging
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
    UnknownConfigurationKeyError,
)
from obstore.store import MemoryStore, from_url

from pixelmill.tasks.display import printable, redact
from pixelmill.tasks.transient import PERMANENT, RefusedError

if TYPE_CHECKING:
    from obstore import ObjectMeta

__all__ = ["OBJECT_SCHEMES", "list_objects", "open_objects", "patience_s", "patiently"]

OBJECT_SCHEMES = ("s3", "gs", "az")

T = TypeVar("T")
_from_url: Any = from_url  # its overloads want to know the provider

logger = logging.getLogger(__name__)

# Of one request, by obstore. A server that has said nothing for a minute will say nothing; a large
# file over a slow line may take long, as long as bytes come.
CONNECT_TIMEOUT = timedelta(seconds=10)
READ_TIMEOUT = timedelta(seconds=60)
REQUEST_TIMEOUT = timedelta(minutes=15)
REQUEST_RETRIES = 4
REQUEST_BACKOFF = timedelta(milliseconds=100)
LONGEST_REQUEST_BACKOFF = timedelta(seconds=5)
REQUEST_RETRY_TIMEOUT = timedelta(minutes=2)

# Of one operation, by us
BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 20.0
# Single failures are no news
TELL_AFTER_S = 5.0
_PATIENCE_S = 300.0
PATIENCE_VARIABLE = "PIXELMILL_STORAGE_PATIENCE_S"

_LIST_CHUNK = 1000
# Directory buckets of S3 Express list in no order
_UNSORTED_SUFFIX = "--x-s3"

_NEVER = (InvalidPathError, NotSupportedError, UnknownConfigurationKeyError)
# Where cloud machines ask for credentials; elsewhere nobody is there
_METADATA_HOSTS = ("169.254.169.254", "metadata.google.internal")
_STATUS = re.compile(r"status code: (\d{3})")
# Answers of 4xx that ask for another try. S3 says of a slow sender: 400 RequestTimeout.
_PASSING_STATUS = frozenset({408, 409, 425, 429})
_PASSING_CODE = re.compile(r"<Code>(RequestTimeout|SlowDown|\w*Throttl\w*|RequestLimitExceeded)<")


def patience_s() -> float:
    """Seconds of failure after which an operation is given up.

    `PIXELMILL_STORAGE_PATIENCE_S`, or five minutes: longer than most outages of a store's part,
    shorter than what a nightly run has to spare.

    Raises:
        ValueError: the variable is not a number of seconds.
    """
    text = os.environ.get(PATIENCE_VARIABLE)
    if text is None:
        return _PATIENCE_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{PATIENCE_VARIABLE} must be seconds >= 0, got {text!r}")
    return seconds


def open_objects(root: str) -> Any:
    """The client of a bucket, container or prefix, shared by the process.

    Args:
        root: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` (the account is
            AZURE_STORAGE_ACCOUNT_NAME), or `memory://name`.

    Raises:
        RefusedError: the environment lacks what the store needs, such as an account or a region.
        RuntimeError: this process was forked from one that uses obstore.
    """
    endpoint = None
    if root.startswith("s3:"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    objects, pid = _client(root, endpoint)
    if pid != os.getpid():
        # It would wait for ever for threads that the fork did not copy (obstore #441).
        raise RuntimeError(
            f"{root}: this process was forked from one that uses obstore, whose calls would hang "
            "here; start processes by 'spawn' or 'forkserver'"
        )
    return objects


@functools.cache
def _client(root: str, endpoint: str | None) -> tuple[Any, int]:
    if root.startswith("memory:"):
        return MemoryStore(), os.getpid()
    client_options: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": READ_TIMEOUT,
        "timeout": REQUEST_TIMEOUT,
    }
    config: dict[str, Any] = {}
    if endpoint is not None:
        config["endpoint"] = endpoint
        client_options["allow_http"] = endpoint.startswith("http://")
    try:
        objects = _from_url(
            root,
            config=config,
            client_options=client_options,
            retry_config={
                "max_retries": REQUEST_RETRIES,
                "retry_timeout": REQUEST_RETRY_TIMEOUT,
                "backoff": {
                    "init_backoff": REQUEST_BACKOFF,
                    "max_backoff": LONGEST_REQUEST_BACKOFF,
                    "base": 2,
                },
            },
        )
    except (BaseError, ValueError) as err:
        raise RefusedError(
            f"{root}: cannot be opened: {_brief(err)}; see the provider's environment variables, "
            "such as AWS_REGION or AZURE_STORAGE_ACCOUNT_NAME"
        ) from err
    return objects, os.getpid()


# --- Trying again ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Outage:
    """Since when, and until when, nothing but failures came from a place."""

    first: float
    last: float
    is_told: bool = False


_outages: dict[str, _Outage] = {}


def patiently(place: str, what: str, call: Callable[[], T]) -> T:
    """Do something with a store, again and again while that may help.

    Waits between tries are random up to a bound that doubles ("full jitter"), so that many workers
    do not come back at once. A store that has failed everything for that long is not waited for
    again by each next call: those give up after one try until something succeeds.

    Args:
        place: root of the store, whose failures count together.
        what: for the message, such as the object's name.
        call: may run several times.

    Raises:
        FileNotFoundError: there is no such object or bucket.
        PermissionError: the store wants other credentials.
        RefusedError: it will not do this however often it is asked.
        ConnectionError: it failed for longer than `patience_s`.
        AlreadyExistsError, PreconditionError: obstore's, for the caller to understand.

    Source: Marc Brooker, Exponential Backoff And Jitter (AWS Architecture Blog, 2015)
        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    started = time.monotonic()
    num_tries = 0
    while True:
        try:
            result = call()
        except (AlreadyExistsError, PreconditionError):
            _outages.pop(place, None)
            raise
        except Exception as err:
            num_tries += 1
            _raise_permanent(err, place, what)
            now, patience = time.monotonic(), patience_s()
            outage = _outages.get(place)
            if outage is None or now - outage.last > patience:  # else nobody has asked since
                outage = _outages[place] = _Outage(started, now)
            outage.last = now
            if now - outage.first > TELL_AFTER_S and not outage.is_told:
                outage.is_told = True
                logger.warning(
                    "%s fails, and is tried again for up to %.0f s: %s",
                    _name(place, what),
                    patience,
                    _brief(err),
                )
            bound = min(LONGEST_BACKOFF_S, BACKOFF_S * 2.0 ** (num_tries - 1))
            delay = random.uniform(0, bound)
            if now + delay - min(started, outage.first) > patience:
                outage.first = -math.inf  # however short of it: nobody waits for this one again
                raise ConnectionError(
                    f"{_name(place, what)}: no success in {num_tries} tries and "
                    f"{now - started:.0f} s: {_brief(err)}"
                ) from err
            time.sleep(delay)
        else:
            _outages.pop(place, None)
            return result


def _raise_permanent(err: Exception, place: str, what: str) -> None:
    """Raise what no other try would change, as the error that a disk would give."""
    if isinstance(err, FileNotFoundError):
        raise FileNotFoundError(f"{_name(place, what)} is not there: {_brief(err)}") from err
    status = _status(err)
    if (
        isinstance(err, PermissionDeniedError | UnauthenticatedError)
        or status in (401, 403)
        or any(host in str(err) for host in _METADATA_HOSTS)
    ):
        raise PermissionError(
            f"{_name(place, what)}: {_brief(err)}; check the credentials in the environment, and "
            "what they allow"
        ) from err
    if status is not None:
        is_passing = status in _PASSING_STATUS or _PASSING_CODE.search(str(err))
        if status == 501 or (400 <= status < 500 and not is_passing):
            if status == 404:
                raise FileNotFoundError(f"{_name(place, what)}: {_brief(err)}") from err
            raise RefusedError(f"{_name(place, what)}: {_brief(err)}") from err
    elif isinstance(err, _NEVER):
        raise RefusedError(f"{_name(place, what)}: {_brief(err)}") from err
    elif isinstance(err, PERMANENT) or not (
        isinstance(err, BaseError | OSError) or _is_of_network(err)
    ):
        raise err


def _status(err: Exception) -> int | None:
    """HTTP status of an answer: of aiohttp's error, or in obstore's text."""
    status = getattr(err, "status", None)
    if isinstance(status, int):
        return status
    found = _STATUS.search(str(err)) if isinstance(err, BaseError) else None
    return int(found[1]) if found else None


def _is_of_network(err: Exception) -> bool:
    """Errors of the libraries below fsspec, some of which are no OSError."""
    return type(err).__module__.partition(".")[0] in ("aiohttp", "asyncio", "botocore", "requests")


def _name(place: str, what: str) -> str:
    return printable(redact(f"{place}/{what}" if what else place))


def _brief(err: BaseException) -> str:
    """The message without obstore's dump of its own state, on one line and without secrets."""
    text = str(err).partition("\n\nDebug source:")[0]
    return printable(redact(" ".join(text.split()) or type(err).__name__))


# --- Listing --------------------------------------------------------------------------------------


def list_objects(root: str, prefix: str) -> "Iterator[ObjectMeta]":
    """All objects below a prefix, sorted by key, a page at a time.

    A page that fails is asked for again, from the last key that came.

    Args:
        root: as of `open_objects`.
        prefix: whole parts of a path, or empty.

    Yields:
        obstore's metadata: path, size, e_tag, last_modified.

    Raises:
        RefusedError: one of the keys is not a path that can be read again.
    """
    objects = open_objects(root)
    if root.partition("://")[2].partition("/")[0].endswith(_UNSORTED_SUFFIX):
        stream = functools.partial(obstore.list, objects, prefix or None)
        yield from sorted(
            patiently(root, prefix, lambda: [one for page in stream() for one in page]),
            key=lambda one: one["path"],
        )
        return
    pages = _Pages(objects, prefix)
    while page := patiently(root, prefix, pages.next):
        yield from page


class _Pages:
    """A listing that goes on behind the last page that came whole."""

    def __init__(self, objects: Any, prefix: str) -> None:
        self._objects, self._prefix = objects, prefix
        self._stream: Iterator[Sequence[Any]] | None = None
        self._last: str | None = None

    def next(self) -> Sequence[Any]:
        if self._stream is None:
            self._stream = iter(
                obstore.list(
                    self._objects,
                    self._prefix or None,
                    offset=self._last,
                    chunk_size=_LIST_CHUNK,
                )
            )
        try:
            page = next(self._stream, ())
        except BaseException:
            self._stream = None
            raise
        if page:
            self._last = page[-1]["path"]
        return page
