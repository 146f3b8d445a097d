"""Keys of rows as 16 raw bytes: what is published already is told by sorted arrays of them."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import functools
import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pixelmill.tasks.store.backend import Backend

__all__ = [
    "KEY_COLUMNS",
    "Digests",
    "contains",
    "digests_of",
    "image_digests",
    "input_keys",
    "part_digests",
]

# Tables of which a key is published once only, and the columns that are its key within a model
# (images) or a collection (catalog).
KEY_COLUMNS = {"images": ["image_id"], "catalog": ["path", "size_bytes", "modified"]}

Digests = NDArray[np.bytes_]


def digests_of(name: str, table: pa.Table) -> Digests:
    """(N,) S16: the image_id itself, or 128 bits of a hash of the catalog's key."""
    if name == "images":
        return image_digests(table["image_id"])
    columns = [table[column].to_pylist() for column in KEY_COLUMNS[name]]
    raw = b"".join(_hash(values) for values in zip(*columns, strict=True))
    return np.frombuffer(raw, "S16")


def image_digests(image_id: pa.ChunkedArray) -> Digests:
    """(N,) S16: image ids as raw bytes.

    Args:
        image_id: (N,) string, 32 hexadecimal digits each, none missing.
    """
    # A chunk has less than 2 GB of text, so its ids joined are one Arrow string; all may not be
    return np.frombuffer(b"".join(_raw_ids(chunk) for chunk in image_id.chunks), "S16")


def _raw_ids(image_id: pa.StringArray) -> bytes:
    """Ids joined in Arrow: as Python strings a million would be 80 MB."""
    one_list = pa.ListArray.from_arrays(pa.array([0, len(image_id)], pa.int32()), image_id)
    return bytes.fromhex(pc.binary_join(one_list, "")[0].as_py())


def _hash(values: Iterable[object]) -> bytes:
    text = "\0".join(map(str, values))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@functools.lru_cache(maxsize=65_536)
def part_digests(backend: Backend, dataset_id: str, name: str, path: str) -> Digests:
    """Sorted digests of a published part; only its key columns are read, once per process.

    Args:
        backend: of the store.
        dataset_id: of the store: a part of the same name in a store made anew is another part.
        name: of the table.
        path: of the part.
    """
    with backend.open(path) as file:
        table = pq.read_table(file, columns=KEY_COLUMNS[name])
    return np.sort(digests_of(name, table))


def contains(published: Digests, digests: Digests) -> NDArray[np.bool_]:
    """(N,) bool: which digests are in the sorted array `published`."""
    if not len(published):
        return np.zeros(len(digests), bool)
    places = np.minimum(np.searchsorted(published, digests), len(published) - 1)
    return published[places] == digests


def input_keys(table: pa.Table) -> pa.ChunkedArray:
    """One string per row that says which file in which state: path, size and modification."""
    return pc.binary_join_element_wise(
        table["path"], table["size_bytes"].cast(pa.string()), table["modified"], "\0"
    )
