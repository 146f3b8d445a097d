"""Where the store's objects lie, and the one primitive it builds on: create-if-absent.

Local disk uses POSIX calls (a temporary file, fsync, then link or rename, then fsync of the
folder); object stores use obstore. fsspec's local `mode="create"` left a truncated file under the
final name in 6 of 6 kills, so it is not used for commits.
"""

import functools
import io
import os
import uuid
from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import MemoryStore, from_url
from zarr.storage import LocalStore, StorePath
from zarr.storage import ObjectStore as ZarrObjectStore

__all__ = [
    "Backend",
    "Entry",
    "LocalBackend",
    "ObjectBackend",
    "open_backend",
    "probe_create_if_absent",
]

TMP = "_commit/tmp"
_OBJECT_SCHEMES = ("s3", "gs", "az", "memory")
# 409 (a conditional request raced with another) asks for a new try; S3 settles within a few.
_CONFLICT_TRIES = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of a listing."""

    key: str
    size_bytes: int


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
        root: absolute path; the folder is made when first written to.
    """

    root: str

    @property
    def _root(self) -> Path:
        return Path(self.root)

    def create(self, key: str, data: bytes) -> bool:
        """Link a complete temporary file to the final name: the link fails if the name is taken.

        NFS may report one's own link as existing when its answer was lost; comparing settles it.
        """
        try:
            self._write(key, data, os.link)
        except FileExistsError:
            return self.get(key) == data
        return True

    def put(self, key: str, data: bytes) -> None:
        """Rename a complete temporary file to the final name."""
        self._write(key, data, os.replace)

    def _write(self, key: str, data: bytes, publish: Any) -> None:
        temporary = self._root / TMP / uuid.uuid4().hex
        target = self._root / key
        _make_folder(temporary.parent)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                _make_folder(target.parent)
                publish(temporary, target)
            except FileNotFoundError:  # another process pruned a folder that had become empty
                _make_folder(target.parent)
                publish(temporary, target)
            _fsync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def get(self, key: str) -> bytes:
        """The file's content."""
        return (self._root / key).read_bytes()

    def open(self, key: str) -> IO[bytes]:
        """The file, open for reading."""
        return (self._root / key).open("rb")

    def exists(self, key: str) -> bool:
        """Whether the file is there."""
        return (self._root / key).is_file()

    def list(self, prefix: str) -> Iterator[Entry]:
        """Walk the folder."""
        found: list[Entry] = []
        for folder, _, names in os.walk(self._root / prefix):
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):  # deleted since
                    size = path.stat().st_size
                    found.append(Entry(path.relative_to(self._root).as_posix(), size))
        return iter(sorted(found, key=lambda entry: entry.key))

    def delete(self, keys: Iterable[str]) -> None:
        """Remove files, and the folders that become empty."""
        folders: set[Path] = set()
        for key in keys:
            path = self._root / key
            path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders:
            with suppress(OSError):  # not empty, or gone
                while folder != self._root:
                    folder.rmdir()
                    folder = folder.parent

    def zarr_store(self, prefix: str) -> StorePath:
        """The folder as a Zarr store."""
        return StorePath(LocalStore(self._root / prefix, read_only=True))


@dataclass(frozen=True)
class ObjectBackend:
    """A bucket or container, or this process's memory.

    Credentials and endpoint come from the provider's usual environment variables
    (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME
    and so on).

    Attributes:
        root: `s3://bucket/prefix`, `gs://...`, `az://account/container/prefix` or `memory://name`.
    """

    root: str

    @property
    def _objects(self) -> Any:
        objects, pid = _object_store(self.root)
        if pid != os.getpid():
            # It would wait for ever for threads that the fork did not copy (obstore #441).
            raise RuntimeError(
                f"{self.root}: this process was forked from one that uses obstore, whose calls "
                "would hang here; start processes by 'spawn' or 'forkserver'"
            )
        return objects

    def create(self, key: str, data: bytes) -> bool:
        """Put with If-None-Match or its like."""
        for _ in range(_CONFLICT_TRIES):
            try:
                obstore.put(self._objects, key, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                # 412 says that it exists, 409 that someone was writing: obstore raises this for
                # both. After a retried request the other one may have been ours.
                with suppress(FileNotFoundError):
                    return self.get(key) == data
            else:
                return True
        raise RuntimeError(
            f"{self.root}/{key}: {_CONFLICT_TRIES} conflicting conditional writes, none succeeded"
        )

    def put(self, key: str, data: bytes) -> None:
        """Put; a multipart upload shows nothing until it is complete."""
        obstore.put(self._objects, key, data)

    def get(self, key: str) -> bytes:
        """The object's bytes."""
        return obstore.get(self._objects, key).bytes().to_bytes()

    def open(self, key: str) -> IO[bytes]:
        """The object, read by ranges."""
        return cast("IO[bytes]", io.BufferedReader(_RangeReader(self._objects, key), 1 << 20))

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        try:
            obstore.head(self._objects, key)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[Entry]:
        """List; strongly consistent on S3, GCS and Azure."""
        found = [
            Entry(str(meta["path"]), int(meta["size"]))
            for chunk in obstore.list(self._objects, prefix, chunk_size=1000)
            for meta in chunk
        ]
        return iter(sorted(found, key=lambda entry: entry.key))

    def delete(self, keys: Iterable[str]) -> None:
        """Bulk delete."""
        with suppress(FileNotFoundError):
            obstore.delete(self._objects, sorted(keys))

    def zarr_store(self, prefix: str) -> StorePath:
        """The objects below the prefix as a Zarr store."""
        return StorePath(ZarrObjectStore(self._objects, read_only=True), prefix)


class _RangeReader(io.RawIOBase):
    """A seekable view of an object, one range request per read."""

    def __init__(self, objects: Any, key: str) -> None:
        self._objects, self._key, self._position = objects, key, 0
        self._size = int(obstore.head(objects, key)["size"])

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
        data = obstore.get_range(self._objects, self._key, start=self._position, end=end)
        buffer[: len(data)] = data.to_bytes()
        self._position += len(data)
        return len(data)


def open_backend(root: str | Path) -> Backend:
    """The backend of a root.

    Args:
        root: a folder, `file://...`, or a URL that `ObjectBackend` takes.

    Raises:
        ValueError: a URL of another scheme.
    """
    text = str(root)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "file":
        return LocalBackend(str(Path(rest or text).absolute()))
    if scheme in _OBJECT_SCHEMES:
        return ObjectBackend(text.rstrip("/"))
    known = ", ".join(f"{name}://" for name in ("file", *_OBJECT_SCHEMES))
    raise ValueError(f"expected a folder or one of {known}, got {text!r}")


def probe_create_if_absent(backend: Backend) -> None:
    """Try out that of two creates of one name the second one fails.

    Raises:
        RuntimeError: it does not, so two workers could both believe that they committed.
    """
    key = f"{TMP}/probe-{uuid.uuid4().hex}"
    try:
        try:
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


def _make_folder(folder: Path) -> None:
    """Make a folder that survives a power loss: its parents are synced too."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def _object_store(root: str) -> tuple[Any, int]:
    """The client of a root, shared by a process as its memory is, and the process' id."""
    if root.startswith("memory:"):
        return MemoryStore(), os.getpid()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if root.startswith("s3:") and endpoint:
        return from_url(
            root,
            config={"endpoint": endpoint},
            client_options={"allow_http": endpoint.startswith("http://")},
        ), os.getpid()
    return from_url(root), os.getpid()
