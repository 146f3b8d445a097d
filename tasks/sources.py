"""Where images lie: listing a folder or bucket, and reading files from it.

Local folders are read by the operating system's own calls; s3://, gs:// and az:// by obstore, with
credentials and endpoint from the providers' usual environment variables; any other URL by the
fsspec implementation of its scheme. What fails on the network is tried again.

Links in a local source are followed wherever they lead: a photo library is often put together from
links, and who may put files into the source decides what is scored. Names in truth files and
lists, which come from others, are held inside their folder: see `pixelmill.tasks.names`.
"""

import fnmatch
import functools
import hashlib
import os
import re
import stat
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import obstore
import pyarrow as pa

from pixelmill.configs.schema import IngestConfig
from pixelmill.tasks.display import printable, redact, refuse_credentials
from pixelmill.tasks.objects import OBJECT_SCHEMES, list_objects, open_objects, patiently

__all__ = [
    "IMAGES_SCHEMA",
    "PROBLEMS_SCHEMA",
    "SourceListing",
    "collection_name",
    "compile_glob",
    "list_images",
    "read_bytes",
    "read_head",
]

IMAGES_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("modified", pa.string(), nullable=False),
    ]
)
PROBLEMS_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)

# The names that file systems have for a version of an object, the surest first.
_VERSION_KEYS = (
    "e_tag", "ETag", "etag", "md5Hash", "mtime", "last_modified", "LastModified", "updated",
    "created",
)  # fmt: skip

_CHUNK_ROWS = 65_536

_ImageRow = tuple[str, str, int, str]
_ProblemRow = tuple[str, str, str]
_Accepts = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class SourceListing:
    """What a source holds.

    Attributes:
        images: `IMAGES_SCHEMA`, sorted by path. `path` is relative to the source with '/' between
            the parts; `modified` is the mtime in nanoseconds or the etag; `source_uri` is what
            `read_bytes` takes.
        problems: `PROBLEMS_SCHEMA`, sorted by path: what could not be listed. Reasons:
            unreadable_folder, unreadable_file, unreadable_name, broken_link, not_a_file.
    """

    images: pa.Table
    problems: pa.Table


def list_images(source: str, config: IngestConfig) -> SourceListing:
    """List a folder or bucket to any depth.

    Names that begin with '.' are left out, files and folders alike. Links to folders are followed
    and each folder is visited once: loops end, and a folder that links lead to is listed under its
    own place if that is below the source, else under the first link in the order of the paths.

    Args:
        source: a folder, `file://...`, or another URL.
        config: suffixes and globs. A glob with a '/' is compared with the relative path, one
            without with the file's name; `*` ends at a '/', `**/` is any number of folders.

    Raises:
        FileNotFoundError: there is no such folder or bucket.
        NotADirectoryError: the source is a file.
        PermissionError, ConnectionError: the store does not let itself be listed.
        ValueError: the URL has credentials in it.
    """
    refuse_credentials(source)
    accepts = _path_filter(config)
    folder = _local_path(source)
    rows = (
        _list_local(folder, accepts, config.settle_s)
        if folder is not None
        else _list_url(source, accepts)
    )
    images: list[pa.Table] = []
    problems: list[pa.Table] = []
    while chunk := list(islice(rows, _CHUNK_ROWS)):  # as Python objects, all would need a gigabyte
        images.append(_table([row for row in chunk if len(row) == 4], IMAGES_SCHEMA))
        problems.append(_table([row for row in chunk if len(row) == 3], PROBLEMS_SCHEMA))
    return SourceListing(
        pa.concat_tables([IMAGES_SCHEMA.empty_table(), *images]).sort_by("path"),
        pa.concat_tables([PROBLEMS_SCHEMA.empty_table(), *problems]).sort_by("path"),
    )


def read_bytes(source_uri: str) -> bytes:
    """A whole file.

    Raises:
        FileNotFoundError: it is gone.
        OSError: it cannot be read: no permission, an archived object, a broken connection.
    """
    local = _local_path(source_uri)
    if local is not None:
        return Path(local).read_bytes()
    if _is_object(source_uri):
        root, key = _split_url(source_uri)
        return patiently(root, key, lambda: obstore.get(open_objects(root), key).bytes().to_bytes())
    files, path = _open_url(source_uri)
    return patiently(_place(source_uri), path, lambda: bytes(files.cat_file(path)))


def read_head(source_uri: str, num_bytes: int) -> bytes:
    """The first bytes of a file, fewer if it is shorter.

    Raises:
        FileNotFoundError: it is gone.
        OSError: it cannot be read: no permission, an archived object, a broken connection.
    """
    local = _local_path(source_uri)
    if local is not None:
        with Path(local).open("rb") as file:
            return file.read(num_bytes)
    if _is_object(source_uri):
        root, key = _split_url(source_uri)
        return patiently(
            root,
            key,
            lambda: obstore.get_range(open_objects(root), key, start=0, end=num_bytes).to_bytes(),
        )
    files, path = _open_url(source_uri)
    return patiently(
        _place(source_uri), path, lambda: bytes(files.cat_file(path, start=0, end=num_bytes))
    )


def collection_name(source: str) -> str:
    """A slug of the last part of a folder or URL: ASCII letters, digits, '.', '_' and '-'."""
    local = _local_path(source)
    url = urlsplit(source)
    path = os.path.normpath(local) if local is not None else url.path
    name = next((part for part in reversed(path.split("/")) if part), url.netloc)
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_name).strip("-._")
    return slug or f"images-{hashlib.sha256(os.fsencode(name)).hexdigest()[:6]}"


def _table(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


# --- Which paths ----------------------------------------------------------------------------------


def _path_filter(config: IngestConfig) -> _Accepts:
    suffixes = tuple(suffix.lower() for suffix in config.suffixes)
    include = [compile_glob(glob) for glob in config.include]
    exclude = [compile_glob(glob) for glob in config.exclude]

    def accepts(path: str) -> bool:
        return (
            path.lower().endswith(suffixes)
            and (not include or any(glob.fullmatch(path) for glob in include))
            and not any(glob.fullmatch(path) for glob in exclude)
        )

    return accepts


def compile_glob(glob: str) -> re.Pattern[str]:
    """A regular expression for a whole relative path; see `list_images`."""
    if "/" not in glob:
        glob = "**/" + glob
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pattern = ""
    for token in re.findall(r"\*\*/|\*\*|\[!?\]?[^\]]*\]|.", glob.removeprefix("/"), re.DOTALL):
        if len(token) > 2 and token[0] == "[":
            pattern += fnmatch.translate(token).removeprefix("(?s:")[: -len(r")\Z")]
        else:
            pattern += tokens.get(token) or re.escape(token)
    return re.compile(pattern, re.DOTALL)


# --- Local folders --------------------------------------------------------------------------------


def _local_path(source: str) -> str | None:
    """The absolute path of a local source; None for another URL."""
    scheme, separator, rest = source.partition("://")
    if not separator:
        return str(Path(source).expanduser().absolute())
    return unquote(rest) if scheme == "file" else None


def _list_local(root: str, accepts: _Accepts, settle_s: float) -> Iterator[_ImageRow | _ProblemRow]:
    if not Path(root).exists():
        raise FileNotFoundError(
            f"no folder {root!r}; name one that exists, or a URL such as s3://bucket/folder"
        )
    if not Path(root).is_dir():
        raise NotADirectoryError(f"expected a folder of images, got the file {root!r}")
    root = root.rstrip("/") + "/"
    visited: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()  # each "" or "a/b/"
    while folders or links:
        if folders:
            folder = folders.pop()
        else:  # after all real folders, which thereby keep their own paths
            links.sort(reverse=True)
            folder = links.pop()
        try:
            status = Path(root + folder).stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(root + folder) as entries:
                for entry in entries:
                    path = folder + entry.name
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        (links if entry.is_symlink() else folders).append(path + "/")
                    elif row := _file_row(entry, root, path, accepts, settle_s):
                        yield row
        except OSError as err:
            yield _printable(folder.rstrip("/")) or ".", "unreadable_folder", _printable(str(err))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a folder without permission
        return False


def _file_row(
    entry: os.DirEntry[str], root: str, path: str, accepts: _Accepts, settle_s: float
) -> _ImageRow | _ProblemRow | None:
    try:
        status = entry.stat()
    except FileNotFoundError:
        # A link to nothing may have been one to a folder of images, so its name does not excuse it
        if entry.is_symlink():
            return _printable(path), "broken_link", _printable(f"-> {Path(root + path).readlink()}")
        return None  # deleted since
    except OSError as err:
        return _printable(path), "unreadable_file", _printable(str(err))
    if not accepts(path):
        return None
    if not stat.S_ISREG(status.st_mode):
        return _printable(path), "not_a_file", "a pipe, socket or device: reading could block"
    if _printable(path) != path:
        return _printable(path), "unreadable_name", "the name is not UTF-8; rename the file"
    # A time that is yet to come is that of another clock, not of a copy that goes on
    if settle_s and 0 <= time.time() - status.st_mtime < settle_s:
        return None
    return path, root + path, status.st_size, str(status.st_mtime_ns)


def _printable(name: str) -> str:
    """A file name with its undecodable bytes (lone surrogates in Python) spelt out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# --- URLs -----------------------------------------------------------------------------------------


def _list_url(source: str, accepts: _Accepts) -> Iterator[_ImageRow | _ProblemRow]:
    listed = _list_bucket(source) if _is_object(source) else _list_other(source)
    for row in listed:
        if accepts(row[0]) and not any(part.startswith(".") for part in row[0].split("/")):
            yield row


def _list_bucket(source: str) -> Iterator[_ImageRow]:
    root, folder = _split_url(source.rstrip("/"))
    prefix = f"{folder}/" if folder else ""
    is_empty = True
    try:
        for found in list_objects(root, folder):
            is_empty = False
            key = str(found["path"])
            version = found["e_tag"] or found["last_modified"].isoformat()
            yield key.removeprefix(prefix), f"{root}/{key}", int(found["size"]), str(version)
    except FileNotFoundError as err:
        raise _nothing_at(source) from err
    if is_empty:
        if folder and _is_there(root, folder):
            raise NotADirectoryError(f"expected a folder of images, got the file {source!r}")
        raise _nothing_at(source)


def _is_there(root: str, key: str) -> bool:
    try:
        patiently(root, key, lambda: obstore.head(open_objects(root), key))
    except FileNotFoundError:
        return False
    return True


def _list_other(source: str) -> Iterator[_ImageRow]:
    files, root = _open_url(source.rstrip("/"))
    prefix = root.rstrip("/") + "/"
    scheme = source.partition("://")[0]
    found = patiently(_place(source), root, lambda: files.find(root, detail=True))
    if not found and not patiently(_place(source), root, lambda: files.exists(root)):
        raise _nothing_at(source)
    for name, info in found.items():
        if name == root:
            raise NotADirectoryError(f"expected a folder of images, got the file {source!r}")
        if info["type"] == "file":
            # Some file systems keep the scheme in their names
            uri = name if "://" in name else f"{scheme}://{name}"
            yield name.removeprefix(prefix), uri, int(info["size"]), _version(info)


def _nothing_at(source: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"nothing at {printable(redact(source))!r}; check the bucket, the path and the "
        "credentials in the environment"
    )


def _version(info: dict[str, Any]) -> str:
    """Something that changes when the object does; empty if its store tells nothing."""
    value = next((info[key] for key in _VERSION_KEYS if info.get(key)), "")
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _is_object(url: str) -> bool:
    return url.partition("://")[0] in OBJECT_SCHEMES


def _split_url(url: str) -> tuple[str, str]:
    """`scheme://bucket`, and the key in it."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def _place(url: str) -> str:
    """Scheme and host of a URL, whose failures count together."""
    return redact(_split_url(url)[0])


def _open_url(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    files = _file_system(url.partition("://")[0], os.getpid())
    return files, files._strip_protocol(url)


@functools.cache
def _file_system(scheme: str, pid: int) -> Any:
    """One client per scheme and process: connections are kept, and not shared by a fork."""
    del pid
    return fsspec.filesystem(scheme)
