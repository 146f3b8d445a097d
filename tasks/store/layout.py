"""Names of the store's objects: every key is made and read here."""

import re
from dataclasses import dataclass

from pixelmill.tasks.store.schemas import TABLES

__all__ = [
    "DATASET",
    "LOG",
    "RECEIPTS",
    "RUNS",
    "Part",
    "done_key",
    "log_key",
    "mask_store_key",
    "parse_part",
    "part_key",
    "plan_key",
    "receipt_key",
    "receipts_of",
    "run_key",
    "staged_key",
    "staging_of",
]

DATASET = "_commit/dataset.json"
RUNS = "_commit/runs"
RECEIPTS = "_commit/receipts"
LOG = "_commit/log"


def run_key(run_id: str) -> str:
    """The run record, whose creation makes the run exist."""
    return f"{RUNS}/{run_id}.json"


def plan_key(run_id: str) -> str:
    """The table of the run's inputs."""
    return f"{RUNS}/{run_id}.parquet"


def receipts_of(run_id: str) -> str:
    """The folder of a run's receipts, so that one listing tells what is committed."""
    return f"{RECEIPTS}/{run_id}"


def receipt_key(run_id: str, shard: str) -> str:
    """The receipt of a shard."""
    return f"{receipts_of(run_id)}/{shard}.json"


def staging_of(shard: str, attempt: str) -> str:
    """The folder of an attempt's tables."""
    return f"_commit/staging/{shard}-{attempt}"


def staged_key(shard: str, attempt: str, table: str, model_key: str | None) -> str:
    """A table of one shard that waits to be published."""
    name = table if model_key is None else f"{table}-{model_key}"
    return f"{staging_of(shard, attempt)}/{name}.parquet"


def mask_store_key(model_key: str, date: str, shard: str, attempt: str) -> str:
    """The Zarr store of a shard's masks."""
    return f"masks/model={model_key}/date={date}/{shard}-{attempt}.zarr"


def log_key(seq: int) -> str:
    """The record that orders a publication."""
    return f"{LOG}/{seq:08d}.json"


def done_key(seq: int) -> str:
    """The mark that the record's parts are all written."""
    return f"{LOG}/{seq:08d}.done"


@dataclass(frozen=True, slots=True)
class Part:
    """A published file of a table.

    Attributes:
        partitions: name -> value, as in the path.
        seq: the log record that published it.
    """

    key: str
    table: str
    partitions: dict[str, str]
    seq: int


def part_key(table: str, partitions: dict[str, str], seq: int) -> str:
    """The name of a published file."""
    folders = "/".join(f"{name}={partitions[name]}" for name in TABLES[table].partitions)
    return f"{table}/{folders}/part-{seq:08d}.parquet"


def parse_part(key: str) -> Part:
    """What a published file's name says.

    Raises:
        ValueError: nothing that the store publishes is named so.
    """
    table, *folders, name = key.split("/")
    match = re.fullmatch(r"part-(\d{8,})\.parquet", name)
    partitions = {text.partition("=")[0]: text.partition("=")[2] for text in folders}
    if match is None or table not in TABLES or tuple(partitions) != TABLES[table].partitions:
        raise ValueError(
            f"{key!r} was not written by Pixelmill: table folders hold published parts only; "
            "move it out of the store"
        )
    return Part(key, table, partitions, int(match[1]))
