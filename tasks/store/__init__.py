"""The exactly-once store: masks in Zarr, tables in Parquet, nothing lost, doubled or half visible.

A worker commits a shard by creating its receipt; a publisher turns receipts into table parts by an
append-only log; readers see only whole, published, single rows. The only primitive it needs is
create-if-absent, which local disks, S3, GCS and Azure have.
"""

from pixelmill.tasks.store.backend import (
    Backend,
    Entry,
    LocalBackend,
    ObjectBackend,
    open_backend,
    probe_create_if_absent,
)
from pixelmill.tasks.store.ledger import Ledger, end_run, run_ledger
from pixelmill.tasks.store.publish import PublishSummary, publish
from pixelmill.tasks.store.reader import Instances, Store
from pixelmill.tasks.store.receipts import Receipt, StagedFile
from pixelmill.tasks.store.rows import CatalogRow, FailureRow, ImageRow
from pixelmill.tasks.store.runs import (
    ModelCounts,
    RunEnd,
    RunRecord,
    ShardRef,
    SkipReason,
    new_run_id,
    shard_id,
)
from pixelmill.tasks.store.schemas import PLAN, TABLES
from pixelmill.tasks.store.writer import ShardWriter

__all__ = [
    "PLAN",
    "TABLES",
    "Backend",
    "CatalogRow",
    "Entry",
    "FailureRow",
    "ImageRow",
    "Instances",
    "Ledger",
    "LocalBackend",
    "ModelCounts",
    "ObjectBackend",
    "PublishSummary",
    "Receipt",
    "RunEnd",
    "RunRecord",
    "ShardRef",
    "ShardWriter",
    "SkipReason",
    "StagedFile",
    "Store",
    "end_run",
    "new_run_id",
    "open_backend",
    "probe_create_if_absent",
    "publish",
    "run_ledger",
    "shard_id",
]
