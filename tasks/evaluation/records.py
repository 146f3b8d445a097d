"""What was found out about single images, kept in the store: the next evaluation starts from it.

    evaluations/model=<model_key>/<kind>-<parameters>/part-<nonce>.parquet

A row is one image. Its key is a digest of the image's content, of the commit that its predictions
come from and of its truth; the folder's name holds a digest of everything else that the row depends
on. So a changed image, prediction, truth or setting has another key and finds nothing, and what is
found is what would be computed: nothing is ever out of date, and nothing needs to be thrown away
for an answer to be right.

Parts are written whole, under names of their own: killed processes leave nothing half, and two
evaluations at once leave the same rows twice, of which the first is taken. A part that cannot be
read any more is left out, and its images are computed again. All of it may be deleted.
"""

import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pixelmill.tasks.store import Store, layout
from pixelmill.tasks.store.backend import Entry

__all__ = ["EvaluationRecords", "digest", "image_keys"]

# Any: its functions are made when it is imported, and some type checkers cannot see them.
pc: Any = pyarrow.compute
_DIGEST_BYTES = 16
_KEY = pa.binary(_DIGEST_BYTES)
# Beyond so many parts they become one: a part a night, and reading stays a few files.
_MOST_PARTS = 8
_ROW_GROUP_ROWS = 16_384
# Raised whenever the same input would give other rows.
_RECORDS_VERSION = 1


class EvaluationRecords:
    """The records of one model and kind of truth.

    Args:
        store: that they are kept in.
        model_key: whose predictions they are about.
        kind: of truth.
        parameters: all that they depend on besides the images; anything JSON takes.
        schema: of the rows, without the key.
    """

    def __init__(
        self, store: Store, model_key: str, kind: str, parameters: Any, schema: pa.Schema
    ) -> None:
        self._backend = store.backend
        described = json.dumps([_RECORDS_VERSION, parameters, str(schema)], sort_keys=True)
        self._folder = layout.evaluation_of(model_key, kind, digest(described.encode()).hex())
        self._schema = pa.schema([pa.field("key", _KEY, False), *schema])

    def rows(
        self,
        keys: Sequence[bytes],
        compute: Callable[[NDArray[np.int64]], Iterator[pa.Table]],
    ) -> tuple[pa.Table, tuple[str, ...]]:
        """The rows of these images, those that are not kept computed and kept.

        Args:
            keys: one per image.
            compute: indices of images -> their rows in that order, in tables as they are done;
                each is kept at once, so that a killed evaluation goes on from there.

        Returns:
            One row per key, and what is to be told of the records.
        """
        kept, damaged = self._find(keys)
        place = pc.index_in(pa.array(keys, _KEY), value_set=kept["key"].combine_chunks())
        index = place.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        todo = np.flatnonzero(index < 0)
        tables, done = [kept.drop_columns(["key"])], 0
        for table in compute(todo) if len(todo) else ():
            self._write([keys[i] for i in todo[done : done + table.num_rows]], table)
            tables.append(table)
            done += table.num_rows
        index[todo] = kept.num_rows + np.arange(len(todo))
        self._backend.delete(damaged)
        self._tidy()
        notes = [
            f"{len(keys) - len(todo):,} of {len(keys):,} images as they were matched before, "
            f"{len(todo):,} anew"
        ]
        if damaged:
            notes.append(f"{len(damaged)} files of records could not be read: computed anew")
        return pa.concat_tables(tables).take(pa.array(index)), tuple(notes)

    def _find(self, keys: Sequence[bytes]) -> tuple[pa.Table, list[str]]:
        """Rows of these images, with keys, and the files that cannot be read."""
        wanted = pa.array(keys, _KEY)
        tables, damaged = [self._schema.empty_table()], list[str]()
        for entry in self._parts():
            try:
                table = self._read(entry)
            except FileNotFoundError:  # another evaluation has merged it meanwhile
                continue
            if table is None:
                damaged.append(entry.key)
            else:
                tables.append(table.filter(pc.is_in(table["key"], value_set=wanted)))
        return pa.concat_tables(tables), damaged

    def _tidy(self) -> None:
        parts = self._parts()
        if len(parts) > _MOST_PARTS:
            self._merge(parts)

    def _merge(self, parts: Sequence[Entry]) -> None:
        """What is merged stands before what it came from goes: a reader may see a row twice."""
        tables, gone = [], []
        for entry in parts:
            with suppress(FileNotFoundError):
                tables.append(self._read(entry))
                gone.append(entry.key)
        kept = [table for table in tables if table is not None]
        merged = pa.concat_tables([self._schema.empty_table(), *kept])
        unique = pc.unique(merged["key"].combine_chunks())
        first = merged.take(pc.index_in(unique, value_set=merged["key"].combine_chunks()))
        self._write(first["key"], first)
        self._backend.delete(gone)

    def _parts(self) -> list[Entry]:
        return list(self._backend.list(self._folder))

    def _read(self, entry: Entry) -> pa.Table | None:
        """A part, or None where it is damaged."""
        content = pa.BufferReader(self._backend.get(entry.key))
        try:
            return pq.read_table(content, page_checksum_verification=True).cast(self._schema)
        except (pa.ArrowException, OSError):
            return None

    def _write(self, keys: Sequence[bytes] | pa.ChunkedArray, rows: pa.Table) -> None:
        column = keys if isinstance(keys, pa.ChunkedArray) else pa.array(keys, _KEY)
        arrays = [column, *(rows[name] for name in self._schema.names[1:])]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        sink = io.BytesIO()
        pq.write_table(
            table,
            sink,
            compression="zstd",
            row_group_size=_ROW_GROUP_ROWS,
            use_dictionary=False,
            write_page_checksum=True,
        )
        key = f"{self._folder}/part-{uuid.uuid4().hex}.parquet"
        self._backend.put(key, sink.getvalue())


def digest(data: bytes) -> bytes:
    """16 bytes that stand for any number of bytes."""
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def image_keys(
    image_ids: Sequence[str | None], commits: Sequence[str | None], truths: Sequence[bytes]
) -> list[bytes]:
    """The key of each image.

    Args:
        image_ids: None: the model has not scored the image.
        commits: the shard that its predictions were committed with: the same image scored anew,
            after its rows were taken out, may have others.
        truths: digest of each image's truth.
    """
    return [
        digest(f"{image_id}|{commit}|".encode() + truth)
        for image_id, commit, truth in zip(image_ids, commits, truths, strict=True)
    ]
