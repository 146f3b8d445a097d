"""A change of published parts: prepare what comes, then record it, and only then do it."""

import hashlib
import io
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

import pyarrow.parquet as pq

from pixelmill.tasks.store import layout
from pixelmill.tasks.store.log import AddedPart, Operation, ReplaceRecord
from pixelmill.tasks.store.publish import roll_forward
from pixelmill.tasks.store.reader import Store
from pixelmill.tasks.store.swap import apply_replacement, prepare_folders

__all__ = ["Change"]


class Change:
    """Takes parts out of the tables and puts others in their place, as one step.

    Nothing changes for anybody before `commit`, which creates one log record. From then on every
    process finishes it that publishes or changes something, so it may be killed anywhere.

    Args:
        store: whose parts.
        op: why.
        remove: parts that go, as `Store.parts` gives them.
        mask_stores: stores of masks that only rows of those parts name, and none of the new ones.
    """

    def __init__(
        self,
        store: Store,
        op: Operation,
        remove: Sequence[layout.Part],
        *,
        mask_stores: Sequence[str] = (),
    ) -> None:
        self._store = store
        self._op: Operation = op
        self._remove = tuple(sorted(part.key for part in remove))
        self._mask_stores = tuple(sorted(mask_stores))
        self._add: list[AddedPart] = []
        self._nonce = secrets.token_hex(8)

    def add(self, name: str, partitions: dict[str, str], seq: int, data: bytes) -> None:
        """Write a part that comes, aside.

        Args:
            name: of the table.
            partitions: values by name, as in `layout.Part`.
            seq: its number. An image and its boxes must stay in parts of the same number, and no
                two parts of one folder may have the same.
            data: as `encode_table` gives it, of rows sorted as the table's parts are, of its schema
                with metadata.
        """
        digest = hashlib.sha256(data).hexdigest()
        # What was removed is never removed again, so a name that contains it is never used again.
        tag = hashlib.sha256("\n".join([*self._remove, digest]).encode()).hexdigest()[:8]
        key = layout.part_key(name, partitions, seq, tag)
        staged = f"{layout.change_of(self._nonce)}/parts/{key}"
        self._store.backend.put(staged, data)
        self._add.append(
            AddedPart(
                key=key,
                staged=staged,
                num_rows=pq.read_metadata(io.BytesIO(data)).num_rows,
                size_bytes=len(data),
                sha256=digest,
            )
        )

    def commit(self) -> ReplaceRecord | None:
        """Record the change and do it.

        Returns:
            The record; None if another process has replaced one of the parts since they were
            listed: then nothing was done.
        """
        backend = self._store.backend
        # Links are as old as what they link to: this tells how old the change is.
        backend.put(f"{layout.change_of(self._nonce)}/started", b"")
        while True:
            log, _ = roll_forward(self._store)
            gone = {key for done in log if isinstance(done, ReplaceRecord) for key in done.remove}
            if not gone.isdisjoint(self._remove):
                self.abandon()
                return None
            try:
                folders = self._prepare()
            except (FileNotFoundError, FileExistsError):
                # Parts were replaced since the log was read, perhaps by ones that were to come
                if all(backend.exists(part.staged) for part in self._add):
                    continue
                raise
            record = ReplaceRecord(
                seq=len(log),
                op=self._op,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                remove=self._remove,
                add=tuple(self._add),
                mask_stores=self._mask_stores,
                folders=folders,
                nonce=self._nonce,
            )
            # False: another process took this place in the order; what it did may matter here.
            if backend.create(layout.log_key(record.seq), record.model_dump_json().encode()):
                apply_replacement(backend, record)
                return record

    def abandon(self) -> None:
        """Delete what was written aside."""
        folder = layout.change_of(self._nonce)
        backend = self._store.backend
        backend.delete([entry.key for entry in backend.list(folder)])

    def _prepare(self) -> tuple[str, ...] | None:
        affected = [layout.parse_part(key) for key in (*self._remove, *(p.key for p in self._add))]
        folders = {part.folder: part for part in affected}
        kept = [
            part.key
            for folder in folders.values()
            for part in self._store.parts(folder.table, **folder.partitions)
            if part.key not in self._remove
        ]
        return prepare_folders(self._store.backend, self._nonce, kept, self._remove, self._add)
