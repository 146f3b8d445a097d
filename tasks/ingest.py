"""The listing of a source joined to what is known of it, and the headers of what is new."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pixelmill.configs.schema import IngestConfig
from pixelmill.tasks.engine.header import DecodeError, read_header
from pixelmill.tasks.sources import SourceListing, list_images, read_head
from pixelmill.tasks.stage import stage
from pixelmill.tasks.store.digests import input_keys

__all__ = [
    "KNOWN_COLUMNS",
    "LISTING_SCHEMA",
    "Listing",
    "describe_files",
    "find_rows",
    "ingest",
    "ingest_task",
    "join_again",
]

LISTING_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("modified", pa.string(), nullable=False),
        pa.field("image_id", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
)
# What `ingest` reads of the catalog
KNOWN_COLUMNS = ("path", "size_bytes", "modified", "image_id", "width", "height")

# Nearly all headers are within the first; photographs with large previews or profiles need more.
_HEAD_BYTES = (65_536, 1_048_576)
# Ids of 32 characters at a time: an Arrow string array ends at 2 GB.
_ROWS_TAKEN = 1 << 24
# Waiting for disks and networks, not computing.
_NUM_READERS = 16


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds, and what is known of it.

    Attributes:
        images: `LISTING_SCHEMA`, sorted by path. `image_id` is null for an input that is not in
            the catalog with this size and modification; `width` and `height` (as displayed) are
            null where the header could not be read, which the worker will find out about.
        problems: `pixelmill.tasks.sources.PROBLEMS_SCHEMA`: what could not be listed.
    """

    images: pa.Table
    problems: pa.Table

    @property
    def num_known(self) -> int:
        """Inputs that are not read again."""
        return self.images.num_rows - self.images["image_id"].null_count


def ingest(source: str, config: IngestConfig, known: pa.Table) -> Listing:
    """List a source, look its files up in the catalog, and read the headers of the new ones.

    Args:
        source: a folder or URL.
        config: which files are images.
        known: the collection's catalog with at least `KNOWN_COLUMNS`.

    Raises:
        FileNotFoundError: there is no such source.
        NotADirectoryError: the source is a file.
    """
    return describe_files(list_images(source, config), config, known)


def describe_files(found: SourceListing, config: IngestConfig, known: pa.Table) -> Listing:
    """Look files up in the catalog, and read the headers of those that are not in it.

    Args:
        found: the files.
        config: which of them are too large to look into.
        known: the collection's catalog with at least `KNOWN_COLUMNS`.
    """
    row = find_rows(found.images, known)
    columns = {name: _take(known, name, row) for name in ("image_id", "width", "height")}
    is_small = pc.less_equal(found.images["size_bytes"], config.max_file_bytes)
    probed = pc.and_(pc.is_null(row), is_small).combine_chunks()
    sizes = _read_sizes(found.images["source_uri"].filter(probed).to_pylist())
    for index, name in enumerate(("width", "height")):
        values = pa.array([size[index] for size in sizes], pa.int32())
        columns[name] = pc.replace_with_mask(columns[name].combine_chunks(), probed, values)
    images = found.images
    for name, column in columns.items():
        images = images.append_column(name, column)
    return Listing(images.cast(LISTING_SCHEMA), found.problems)


def join_again(listing: Listing, known: pa.Table) -> Listing:
    """A listing, with what its collection's catalog has learnt since.

    Args:
        listing: of `ingest`.
        known: as there.
    """
    images = listing.images
    if not images["image_id"].null_count:
        return listing
    row = find_rows(images, known)
    for name in ("image_id", "width", "height"):
        learnt = pc.coalesce(images[name], _take(known, name, row))
        images = images.set_column(images.schema.get_field_index(name), name, learnt)
    return Listing(images.cast(LISTING_SCHEMA), listing.problems)


def find_rows(images: pa.Table, known: pa.Table) -> pa.Array | pa.ChunkedArray:
    """For each file the row of `known` with its path, size and modification, or null.

    By the path alone first, which nearly always settles it: keys of all three would cost 200 MB
    more for a million files.
    """
    # 32-bit offsets would end at 2 GB of text, which 30 million paths may have
    paths = known["path"].cast(pa.large_string())
    row = pc.index_in(images["path"].cast(pa.large_string()), value_set=paths)
    is_same = pc.and_(
        pc.equal(images["size_bytes"], pc.take(known["size_bytes"], row)),
        pc.equal(images["modified"], pc.take(known["modified"], row)),
    )
    is_open = pc.equal(is_same, False).fill_null(False)
    if pc.any(is_open).as_py():  # the path is known in another state: perhaps in this one too
        changed = images.filter(is_open)
        states = pc.indices_nonzero(pc.is_in(known["path"], value_set=changed["path"]))
        state = pc.index_in(input_keys(changed), value_set=input_keys(known.take(states)))
        found = pc.take(states, state.combine_chunks()).cast(pa.int32())
        row = pc.replace_with_mask(row.combine_chunks(), is_open.combine_chunks(), found)
    return row


def _take(known: pa.Table, name: str, row: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """A column's values at those rows, null where there is none, in chunks far below 2 GB."""
    column = known[name]
    if pa.types.is_string(column.type):
        column = column.cast(pa.large_string())
    row = row if isinstance(row, pa.ChunkedArray) else pa.chunked_array([row])
    slices = [row.slice(start, _ROWS_TAKEN) for start in range(0, len(row), _ROWS_TAKEN)]
    of_type = LISTING_SCHEMA.field(name).type
    chunks = [chunk for each in slices for chunk in pc.take(column, each).chunks]
    return pa.chunked_array([chunk.cast(of_type) for chunk in chunks], of_type)


def _read_sizes(source_uris: Iterable[str]) -> list[tuple[int | None, int | None]]:
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return list(pool.map(_read_size, source_uris))


def _read_size(source_uri: str) -> tuple[int | None, int | None]:
    """(width, height) from the file's beginning; (None, None) if that cannot be told.

    Nothing is decided here: the worker reads the whole file, and records why it fails.
    """
    for num_bytes in _HEAD_BYTES:
        try:
            header = read_header(read_head(source_uri, num_bytes))
        except DecodeError as err:
            if err.reason != "truncated":
                break
        except OSError:
            break
        else:
            return header.width, header.height
    return None, None


ingest_task = stage("ingest")(ingest)
