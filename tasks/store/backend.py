"""Where the store's objects lie, and the one primitive it builds on: create-if-absent.

Local disk uses POSIX calls (a temporary file, fsync, then link or rename, then fsync of the
folder); object stores use obstore. fsspec's local `mode="create"` left a truncated file under the
final name in 6 of 6 kills, so it is not used for commits.
"""

import io
import os
import stat
import uuid
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from zarr.storage import LocalStore, StorePath
from zarr.storage import ObjectStore as ZarrObjectStore

from pixelmill.tasks.display import refuse_credentials
from pixelmill.tasks.objects import OBJECT_SCHEMES, list_objects, open_objects, patiently
from pixelmill.tasks.transient import RefusedError

__all__ = [
    "Backend",
    "Entry",
    "LocalBackend",
    "ObjectBackend",
    "fsync_folder",
    "gone_away",
    "make_folder",
    "open_backend",
    "probe_create_if_absent",
]

TMP = "_commit/tmp"
_SCHEMES = (*OBJECT_SCHEMES, "memory")
# 409 (a conditional request raced with another) asks for a new try; S3 settles within a few.
_CONFLICT_TRIES = 8
# What S3 takes in one bulk delete
_DELETE_BATCH = 1000
# Objects written at once: they wait for the disk or network
_WRITERS = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of a listing.

    Attributes:
        modified_s: Unix time of its last change, by the clock of where it lies.
    """

    key: str
    size_bytes: int
    modified_s: float = field(default=0.0, compare=False)


class Backend(Hashable, Protocol):
    """Objects under one root; keys are relative, '/' between the parts.

    Backends are values: they hold nothing but the root, and compare, hash and pickle by it.
    """

    @property
    def root(self) -> str:
        """Absolute path or URL."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write a new object, whole or not at all.

        Returns:
            True if the object now holds `data`, written by this call or by an earlier try of it
            whose answer was lost; False if it was there with other content. So the content must
            name its writer where more than one may try.
        """
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object, whole or not at all."""
        ...

    def put_new(self, objects: Mapping[str, bytes]) -> None:
        """Write objects whose names are nobody else's, and are read by nobody yet.

        All of them are durable when it returns. Who is killed before leaves some, and torn ones: so
        what makes them count is written afterwards.
        """
        ...

    def get(self, key: str) -> bytes:
        """The object's content.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def open(self, key: str) -> IO[bytes]:
        """A seekable file, for reading parts of an object.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects below the folder `prefix`, at any depth, sorted by key."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        ...

    def zarr_store(self, prefix: str) -> StorePath:
        """A read-only Zarr store of the objects below `prefix`."""
        ...


@dataclass(frozen=True)
class LocalBackend:
    """A folder on a POSIX file system.

    Attributes:
        root: absolute path; of a folder that is there when it is written to.
    """

    root: str

    @property
    def _root(self) -> Path:
        return Path(self.root)

    def _path(self, key: str) -> Path:
        """Where an object lies. Keys come from receipts and tables too, which may be forged."""
        if "\0" in key or key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"{self.root}: the key {key!r} leads out of the store")
        return self._root / key

    def create(self, key: str, data: bytes) -> bool:
        """Link a complete temporary file to the final name: the link fails if the name is taken.

        NFS may report one's own link as existing when its answer was lost; comparing settles it.
        """
        for _ in range(_CONFLICT_TRIES):
            try:
                self._write(key, data, os.link)
            except FileExistsError:
                with suppress(FileNotFoundError):  # a claim that was released just now
                    return self.get(key) == data
            else:
                return True
        raise RuntimeError(
            f"{self.root}/{key}: it came and went {_CONFLICT_TRIES} times while it was created"
        )

    def put(self, key: str, data: bytes) -> None:
        """Rename a complete temporary file to the final name."""
        self._write(key, data, os.replace)

    def _write(self, key: str, data: bytes, publish: Any) -> None:
        temporary = self._root / TMP / uuid.uuid4().hex
        target = self._path(key)
        if not self._root.is_dir():  # made anew, it would take what belongs into the lost one
            raise gone_away(self.root)
        make_folder(temporary.parent)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                make_folder(target.parent)
                publish(temporary, target)
            except FileNotFoundError:  # another process pruned a folder that had become empty
                make_folder(target.parent)
                publish(temporary, target)
            fsync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def put_new(self, objects: Mapping[str, bytes]) -> None:
        """Write the files in place, several at once, then sync each folder once."""
        if not self._root.is_dir():
            raise gone_away(self.root)
        files = {self._path(key): data for key, data in objects.items()}
        folders = _make_folders({path.parent for path in files})
        with ThreadPoolExecutor(_WRITERS) as pool:
            list(pool.map(_write_durably, files, files.values()))
            list(pool.map(fsync_folder, folders))

    def get(self, key: str) -> bytes:
        """The file's content."""
        return self._path(key).read_bytes()

    def open(self, key: str) -> IO[bytes]:
        """The file, open for reading."""
        return self._path(key).open("rb")

    def exists(self, key: str) -> bool:
        """Whether the file is there."""
        return self._path(key).is_file()

    def list(self, prefix: str) -> Iterator[Entry]:
        """Walk the folder; no more is held than the entries of the folders on the way."""
        prefix = prefix.rstrip("/")
        yield from _walk(str(self._path(prefix)), f"{prefix}/" if prefix else "")

    def delete(self, keys: Iterable[str]) -> None:
        """Remove files, and the folders that become empty."""
        folders: set[Path] = set()
        for key in keys:
            path = self._path(key)
            path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders:
            with suppress(OSError):  # not empty, or gone
                while folder not in (self._root, self._root / TMP):  # where others write just now
                    folder.rmdir()
                    folder = folder.parent

    def zarr_store(self, prefix: str) -> StorePath:
        """The folder as a Zarr store."""
        return StorePath(LocalStore(self._path(prefix), read_only=True))


@dataclass(frozen=True)
class ObjectBackend:
    """A bucket or container, or this process's memory.

    Credentials and endpoint come from the provider's usual environment variables
    (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME
    and so on).

    Attributes:
        root: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` or `memory://name`.
    """

    root: str

    @property
    def _objects(self) -> Any:
        return open_objects(self.root)

    def create(self, key: str, data: bytes) -> bool:
        """Put with If-None-Match or its like."""
        for _ in range(_CONFLICT_TRIES):
            try:
                patiently(
                    self.root,
                    key,
                    lambda: obstore.put(
                        self._objects, key, data, mode="create", use_multipart=False
                    ),
                )
            except (AlreadyExistsError, PreconditionError):
                # 412 says that it exists, 409 that someone was writing: obstore raises this for
                # both. After a request that was made again the other one may have been ours.
                with suppress(FileNotFoundError):
                    return self.get(key) == data
            else:
                return True
        raise RuntimeError(
            f"{self.root}/{key}: {_CONFLICT_TRIES} conflicting conditional writes, none succeeded"
        )

    def put(self, key: str, data: bytes) -> None:
        """Put; a multipart upload shows nothing until it is complete."""
        patiently(self.root, key, lambda: obstore.put(self._objects, key, data))

    def put_new(self, objects: Mapping[str, bytes]) -> None:
        """Put each, several at once."""
        with ThreadPoolExecutor(_WRITERS) as pool:
            list(pool.map(self.put, objects, objects.values()))

    def get(self, key: str) -> bytes:
        """The object's bytes."""
        return patiently(self.root, key, lambda: obstore.get(self._objects, key).bytes().to_bytes())

    def open(self, key: str) -> IO[bytes]:
        """The object, read by ranges."""
        return cast("IO[bytes]", io.BufferedReader(_RangeReader(self, key), 1 << 20))

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        try:
            self._size(key)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[Entry]:
        """List, a page at a time; strongly consistent on S3, GCS and Azure."""
        for found in list_objects(self.root, prefix):
            modified_s = found["last_modified"].timestamp()
            yield Entry(str(found["path"]), int(found["size"]), modified_s)

    def delete(self, keys: Iterable[str]) -> None:
        """Bulk delete."""
        for batch in _batches(sorted(keys)):
            try:
                self._delete(batch)
            except FileNotFoundError:  # of one: where there is no bulk delete, the others stay
                for key in batch:
                    with suppress(FileNotFoundError):
                        self._delete([key])

    def _delete(self, keys: Sequence[str]) -> None:
        patiently(self.root, keys[0], lambda: obstore.delete(self._objects, keys))

    def zarr_store(self, prefix: str) -> StorePath:
        """The objects below the prefix as a Zarr store."""
        return StorePath(ZarrObjectStore(self._objects, read_only=True), prefix)

    def _size(self, key: str) -> int:
        return patiently(self.root, key, lambda: int(obstore.head(self._objects, key)["size"]))

    def _range(self, key: str, start: int, end: int) -> bytes:
        return patiently(
            self.root,
            key,
            lambda: obstore.get_range(self._objects, key, start=start, end=end).to_bytes(),
        )


def _batches(keys: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), _DELETE_BATCH):
        yield list(keys[start : start + _DELETE_BATCH])


class _RangeReader(io.RawIOBase):
    """A seekable view of an object, one range request per read."""

    def __init__(self, backend: ObjectBackend, key: str) -> None:
        self._backend, self._key, self._position = backend, key, 0
        self._size = backend._size(key)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        data = self._backend._range(self._key, self._position, end)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_backend(root: str | Path) -> Backend:
    """The backend of a root.

    Args:
        root: a folder, `file://...`, or a URL that `ObjectBackend` takes.

    Raises:
        ValueError: a URL of another scheme, or one with credentials in it.
    """
    text = str(root)
    refuse_credentials(text)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "file":
        return LocalBackend(str(Path(rest or text).absolute()))
    if scheme in _SCHEMES:
        return ObjectBackend(text.rstrip("/"))
    known = ", ".join(f"{name}://" for name in ("file", *_SCHEMES))
    raise ValueError(f"expected a folder or one of {known}, got {text!r}")


def probe_create_if_absent(backend: Backend) -> None:
    """Try out that of two creates of one name the second one fails.

    Raises:
        RuntimeError: it does not, so two workers could both believe that they committed.
    """
    key = f"{TMP}/probe-{uuid.uuid4().hex}"
    try:
        try:
            if isinstance(backend, LocalBackend):
                make_folder(Path(backend.root))
            first, second = backend.create(key, b"first"), backend.create(key, b"second")
            kept = backend.get(key)
        except PermissionError as err:
            raise RuntimeError(f"{backend.root}: cannot write there: {err}") from err
        except (OSError, NotImplementedError) as err:
            raise RuntimeError(
                f"{backend.root}: cannot create a file if absent ({err}); put the store on a file "
                "system with hard links (not FAT, not some network mounts) or on S3, GCS or Azure"
            ) from err
        if not (first and not second and kept == b"first"):
            raise RuntimeError(
                f"{backend.root}: a second create of the same name was not refused, so this store "
                "cannot tell which of two workers committed; use one that honours conditional "
                "writes (If-None-Match)"
            )
    finally:
        with suppress(OSError, RuntimeError):
            backend.delete([key])


def gone_away(root: str) -> RefusedError:
    """The error of a store that was there when it was opened."""
    return RefusedError(
        f"the store at {root} has gone away: bring it back, by mounting its disk perhaps, and run "
        "the same command again; what was committed is in it"
    )


def _walk(folder: str, prefix: str) -> Iterator[Entry]:
    """Files below a folder in the order of their keys, in which a folder's name ends with '/'."""
    try:
        with os.scandir(folder) as entries:  # names only: an entry takes 900 bytes
            names = sorted(
                f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
                for entry in entries
            )
    except (FileNotFoundError, NotADirectoryError):  # deleted since
        return
    for name in names:
        path = f"{folder}/{name}"
        if name.endswith("/"):
            yield from _walk(path[:-1], prefix + name)
            continue
        with suppress(FileNotFoundError):
            status = os.stat(path)  # noqa: PTH116 (a Path for each of a million files)
            if stat.S_ISREG(status.st_mode):
                yield Entry(prefix + name, status.st_size, status.st_mtime)


def make_folder(folder: Path) -> None:
    """Make a folder that survives a power loss: its parents are synced too."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        if folder.is_file():
            raise
        make_folder(folder)  # it was there, empty, and another process removed it
    fsync_folder(folder.parent)


def _make_folders(folders: Iterable[Path]) -> set[Path]:
    """Make folders, and those above them.

    Returns:
        What has to be synced for them and for new files in them to survive a power loss.
    """
    changed = set(folders)
    for folder in folders:
        while not folder.is_dir():
            folder = folder.parent
            changed.add(folder)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return changed


def _write_durably(path: Path, data: bytes) -> None:
    """Write a file under a name that nobody else uses."""
    try:
        file = path.open("wb")
    except FileNotFoundError:  # another process pruned a folder that was empty
        make_folder(path.parent)
        file = path.open("wb")
    with file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
