"""Putting parts in the place of others, so that nobody ever sees rows twice or misses them.

Who reads by `Store` goes by the log and sees every change at once. This module is about those who
list folders and open what they find, with pandas, DuckDB, polars or pyarrow.

On a local disk a whole partition changes at once: its new content is built beside it by hard links
and the two folders are exchanged by one system call. Names of parts are never used again, so a
reader that listed the folder before and opens a file after fails with "no such file"; it reads the
old rows or the new ones, never both.

An object store can change one object at a time only. There a file that is no Parquet is put into
the partition first and taken away last: between the two, readers fail.
"""

import ctypes
import errno
import functools
import hashlib
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeGuard

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.backend import TMP, Backend, LocalBackend, fsync_folder, make_folder
from pixelmill.tasks.store.log import AddedPart, ReplaceRecord

__all__ = ["apply_replacement", "can_exchange_folders", "prepare_folders", "put_part"]

_CHANGING = b"Pixelmill is replacing the files of this folder: read it again in a moment.\n"
_TOKEN_WAIT_S = 10.0
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def put_part(backend: Backend, key: str, data: bytes, unless: str) -> None:
    """Put a part, unless there is an object `unless`: the mark that its record is finished.

    A process may sleep between looking for the mark and putting, while others finish the record and
    then replace the part; on waking it would put it back. On a local disk it cannot: the folder is
    opened before the look, and if it has been exchanged since, the part goes to the old one, which
    nobody reads. An object store has no such way: there `compact` leaves young parts alone.
    """
    if not isinstance(backend, LocalBackend):
        if not backend.exists(unless):
            backend.put(key, data)
        return
    temporary = f"{TMP}/{uuid.uuid4().hex}"
    backend.put(temporary, data)
    target = Path(backend.root, key)
    while True:
        with suppress(FileNotFoundError):  # it is empty, and another process has just removed it
            make_folder(target.parent)
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if backend.exists(unless):
                    # Not `backend.delete`, which would take the folder away under the others
                    Path(backend.root, temporary).unlink()
                else:
                    os.replace(Path(backend.root, temporary), target.name, dst_dir_fd=folder)
                    os.fsync(folder)
            finally:
                os.close(folder)
            return


def apply_replacement(backend: Backend, record: ReplaceRecord) -> None:
    """Do what the record says, then put its mark.

    Any number of processes may do it at once, and it may be done again.
    """
    removed, added = _by_folder(record.remove), _by_folder(part.key for part in record.add)
    staged = {part.key: part for part in record.add}
    folders = sorted(removed.keys() | added.keys(), key=lambda folder: folder.startswith("images/"))
    if not record.add:  # Rows of images say that the rest is there: they go first, and come last.
        folders.reverse()
    for folder in folders:
        if not _has_exchanged(backend, record, folder, removed[folder], added[folder]):
            parts = [staged[key] for key in added[folder]]
            _replace_one_by_one(backend, record, folder, removed[folder], parts)
    backend.put(layout.replaced_key(record.seq), b"")
    # Of another who did the same at the same time and died in it, before there was the mark
    backend.delete([layout.changing_key(folder, record.nonce) for folder in folders])


def _by_folder(keys: Iterable[str]) -> defaultdict[str, list[str]]:
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        folders[key.rpartition("/")[0]].append(key)
    return folders


# One object at a time


def _replace_one_by_one(
    backend: Backend,
    record: ReplaceRecord,
    folder: str,
    removed: Sequence[str],
    added: Sequence[AddedPart],
) -> None:
    changing, mark = layout.changing_key(folder, record.nonce), layout.replaced_key(record.seq)
    put_part(backend, changing, _CHANGING, unless=mark)
    for part in added:
        data = backend.get(part.staged)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise RuntimeError(
                f"{backend.root}/{part.staged} is not what log record {record.seq} says: it was "
                "changed or damaged"
            )
        put_part(backend, part.key, data, unless=mark)
    backend.delete(removed)
    backend.delete([changing])


# A folder at once


def can_exchange_folders(backend: Backend) -> TypeGuard[LocalBackend]:
    """Try out whether two folders can change places by one call: on Linux, on most file systems."""
    if not isinstance(backend, LocalBackend):
        return False
    trial = Path(backend.root, layout.CHANGES, f"trial-{uuid.uuid4().hex}")
    folders = trial / "one", trial / "other"
    try:
        for folder in folders:
            make_folder(folder)
        _exchange(*folders)
    except OSError as err:
        if err.errno in _CANNOT:
            return False
        raise
    finally:
        for folder in (*folders, trial):
            with suppress(OSError):
                folder.rmdir()
    return True


def prepare_folders(
    backend: Backend,
    nonce: str,
    kept: Sequence[str],
    removed: Sequence[str],
    added: Sequence[AddedPart],
) -> tuple[str, ...] | None:
    """Build the new content of each partition that changes, by hard links.

    Args:
        backend: of the store.
        nonce: of the change.
        kept: keys of the parts that these partitions hold and keep.
        removed: keys of the parts that go.
        added: what comes.

    Returns:
        The partitions' folders, in the order in which `apply_replacement` knows them. Those from
        which only missing files go need no change. None: folders can't be exchanged here.

    Raises:
        FileNotFoundError: one of the parts is not there (any more).
    """
    if not can_exchange_folders(backend):
        return None
    root = Path(backend.root)
    of_kept = _by_folder(kept)
    of_added = _by_folder(part.key for part in added)
    staged = {part.key: part.staged for part in added}
    present = [key for key in removed if backend.exists(key)]
    folders = tuple(sorted(of_added.keys() | _by_folder(present).keys()))
    for index, folder in enumerate(folders):
        token = root / _tokens(nonce) / f"{index:06d}-new"
        make_folder(token)
        for link in token.iterdir():  # of a try before another process published
            link.unlink()
        for key in of_kept[folder]:
            os.link(root / key, token / Path(key).name)
        for key in of_added[folder]:
            os.link(root / staged[key], token / Path(key).name)
        fsync_folder(token)
    if folders:
        fsync_folder(root / _tokens(nonce))
    return folders


def _tokens(nonce: str) -> str:
    return f"{layout.change_of(nonce)}/folders"


def _has_exchanged(
    backend: Backend,
    record: ReplaceRecord,
    folder: str,
    removed: Sequence[str],
    added: Sequence[str],
) -> bool:
    """Exchange a partition's folder with its new content, if that was prepared and can be done.

    Exactly once, though many may try and any may sleep in between: the new content's folder is a
    token. To use it one has to make it one's own, by renaming it; who finds that another has taken
    it since cannot exchange it, because the name is gone. After the exchange the token is the old
    folder, which its content tells.
    """
    if record.folders is None or not isinstance(backend, LocalBackend):
        return False
    if folder not in record.folders:
        return True
    tokens, target = Path(backend.root, _tokens(record.nonce)), Path(backend.root, folder)
    index = record.folders.index(folder)
    deadline = time.monotonic() + _TOKEN_WAIT_S
    while time.monotonic() < deadline:
        token = next(tokens.glob(f"{index:06d}-*"), None)
        if token is None:  # it is just being renamed, or was cleared away after the mark was put
            if backend.exists(layout.replaced_key(record.seq)):
                return True
            time.sleep(0.001)
            continue
        mine = tokens / f"{index:06d}-{uuid.uuid4().hex}"
        try:
            token.rename(mine)
            names = {path.name for path in mine.iterdir()}
            is_old = any(Path(key).name in names for key in removed) or not all(
                Path(key).name in names for key in added
            )
            if not is_old:
                make_folder(target)
                _exchange(mine, target)
        except FileNotFoundError:  # another took the token, or removed the empty folder `target`
            continue
        except OSError as err:
            if err.errno in _CANNOT:  # the change was prepared on a machine that can
                return False
            raise
        fsync_folder(tokens)
        _remove_if_empty(target)
        return True
    raise RuntimeError(
        f"{tokens} does not hold what log record {record.seq} needs; was it deleted by hand?"
    )


def _remove_if_empty(folder: Path) -> None:
    """A partition without parts, and its model's folder if that was the last; else sync it."""
    for level in (folder, folder.parent):
        try:
            level.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # it has content
            break
    for level in (folder.parent, folder.parent.parent):
        with suppress(FileNotFoundError):
            fsync_folder(level)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders change places, at once.

    Raises:
        OSError: the system or the file system cannot, or one of them is not there.
    """
    renameat2 = _renameat2()
    if renameat2 is None:
        raise OSError(errno.ENOSYS, "this system has no renameat2")
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


@functools.cache
def _renameat2() -> "ctypes._NamedFuncPointer | None":
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = (
            ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
        )  # fmt: skip
    return function
