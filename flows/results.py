"""Metrics and reports of a collection: in the store, wherever that is."""

import re
from collections.abc import Iterable
from pathlib import Path

from pixelmill.tasks.store import Store

__all__ = ["keep_results", "results_folder"]


def results_folder(store: Store, collection: str) -> Path:
    """Where metrics and report of a collection are written.

    In a local store that is where they stay. Those of an object store are made beside the caller,
    in a folder of that store, to be opened with a browser; `keep_results` puts them into the store.
    """
    if "://" in store.root:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", store.root)
        return Path.cwd() / "pixelmill-reports" / name / collection
    return Path(store.root) / "reports" / collection


def keep_results(store: Store, collection: str, paths: Iterable[Path]) -> None:
    """Put what was written beside the caller into the store, under `reports/<collection>/`.

    Args:
        store: nothing is done for a local one.
        collection: whose results these are.
        paths: files that were just written.
    """
    if "://" in store.root:
        for path in paths:
            store.backend.put(f"reports/{collection}/{path.name}", path.read_bytes())
