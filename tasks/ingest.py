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
from pixelmill.tasks.sources import list_images, read_head
from pixelmill.tasks.stage import stage

__all__ = ["KNOWN_COLUMNS", "LISTING_SCHEMA", "Listing", "ingest", "ingest_task", "input_keys"]

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
    found = list_images(source, config)
    row = _find_rows(found.images, known)
    columns = {
        name: pc.take(known[name].cast(LISTING_SCHEMA.field(name).type), row).combine_chunks()
        for name in ("image_id", "width", "height")
    }
    is_small = pc.less_equal(found.images["size_bytes"], config.max_file_bytes)
    probed = pc.and_(pc.is_null(row), is_small).combine_chunks()
    sizes = _read_sizes(found.images["source_uri"].filter(probed).to_pylist())
    for index, name in enumerate(("width", "height")):
        values = pa.array([size[index] for size in sizes], pa.int32())
        columns[name] = pc.replace_with_mask(columns[name], probed, values)
    images = found.images
    for name, column in columns.items():
        images = images.append_column(name, column)
    return Listing(images.cast(LISTING_SCHEMA), found.problems)


def _find_rows(images: pa.Table, known: pa.Table) -> pa.Array | pa.ChunkedArray:
    """For each file the row of `known` with its path, size and modification, or null.

    By the path alone first, which nearly always settles it: keys of all three would cost 200 MB
    more for a million files.
    """
    row = pc.index_in(images["path"], value_set=known["path"])
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


def input_keys(table: pa.Table) -> pa.ChunkedArray:
    """One string per row that says which file in which state: path, size and modification."""
    return pc.binary_join_element_wise(
        table["path"], table["size_bytes"].cast(pa.string()), table["modified"], "\0"
    )


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
