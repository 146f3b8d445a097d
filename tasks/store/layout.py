"""Names of the store's objects: every key is made and read here."""

import re
from dataclasses import dataclass

from pixelmill.tasks.store.schemas import TABLES

__all__ = [
    "CLAIMS",
    "CRUMBS",
    "CURRENT",
    "DATASET",
    "ENDS",
    "LOG",
    "RECEIPTS",
    "RUNS",
    "STAGING",
    "Part",
    "claim_key",
    "current_key",
    "done_key",
    "end_key",
    "evaluation_of",
    "is_changing",
    "log_key",
    "mask_store_key",
    "parse_claim",
    "parse_part",
    "parse_session",
    "part_key",
    "plan_key",
    "receipt_key",
    "receipts_of",
    "run_key",
    "session_key",
    "staged_key",
    "staging_of",
]

DATASET = "_commit/dataset.json"
RUNS = "_commit/runs"
ENDS = "_commit/ends"
RECEIPTS = "_commit/receipts"
LOG = "_commit/log"
DAMAGED = "_commit/damaged"
QUARANTINE = "_commit/quarantine"
STAGING = "_commit/staging"
CRUMBS = "_commit/crumbs"
CHANGES = "_commit/changes"
CURRENT = "_commit/current"
CLAIMS = "_commit/claims"
EVALUATIONS = "evaluations"


def run_key(run_id: str) -> str:
    """The run record, whose creation makes the run exist."""
    return f"{RUNS}/{run_id}.json"


def end_key(run_id: str) -> str:
    """How the run ended, if it did so in order."""
    return f"{ENDS}/{run_id}.json"


def plan_key(run_id: str) -> str:
    """The table of the run's inputs."""
    return f"{RUNS}/{run_id}.parquet"


def receipts_of(run_id: str) -> str:
    """The folder of a run's receipts, so that one listing tells what is committed."""
    return f"{RECEIPTS}/{run_id}"


def receipt_key(run_id: str, shard: str) -> str:
    """The receipt of a shard."""
    return f"{receipts_of(run_id)}/{shard}.json"


def damage_key(run_id: str, shard: str) -> str:
    """What of a committed shard is left out, because it was damaged."""
    return f"{DAMAGED}/{run_id}/{shard}.json"


def staging_of(shard: str, attempt: str) -> str:
    """The folder of an attempt's tables."""
    return f"{STAGING}/{shard}-{attempt}"


def staged_key(shard: str, attempt: str, table: str, model_key: str | None) -> str:
    """A table of one shard that waits to be published."""
    name = table if model_key is None else f"{table}-{model_key}"
    return f"{staging_of(shard, attempt)}/{name}.parquet"


def mask_store_key(model_key: str, date: str, shard: str, attempt: str) -> str:
    """The Zarr store of a shard's masks."""
    return f"masks/model={model_key}/date={date}/{shard}-{attempt}.zarr"


def evaluation_of(model_key: str, kind: str, parameters: str) -> str:
    """The folder of what evaluations keep of single images; nothing else rests on it."""
    return f"{EVALUATIONS}/model={model_key}/{kind}-{parameters}"


def claim_key(name: str, generation: int) -> str:
    """The mark of who works on something; a takeover has the next generation."""
    return f"{CLAIMS}/{name}.{generation:04d}.json"


def parse_claim(key: str) -> tuple[str, int] | None:
    """The name and generation of a claim; None for a session, which lies in the same folder.

    That folder is never empty while somebody works, so it is not removed and made all the time.
    """
    match = re.fullmatch(r"(.+)\.(\d{4,})\.json", key.rpartition("/")[2])
    return (match[1], int(match[2])) if match else None


def session_key(session: str) -> str:
    """What a session renews while it lives."""
    return f"{CLAIMS}/session-{session}.json"


def parse_session(key: str) -> str | None:
    """The id of a session; None for a claim."""
    match = re.fullmatch(r"session-([0-9a-f]+)\.json", key.rpartition("/")[2])
    return match[1] if match else None


def log_key(seq: int) -> str:
    """The record that orders a publication."""
    return f"{LOG}/{seq:08d}.json"


def done_key(seq: int) -> str:
    """The mark that the record's parts are all written."""
    return f"{LOG}/{seq:08d}.done"


def replaced_key(seq: int) -> str:
    """The mark that all parts that the record replaces are gone and the new ones in place."""
    return f"{LOG}/{seq:08d}.replaced"


def change_of(nonce: str) -> str:
    """The folder of a change of parts: what is prepared before its record is created."""
    return f"{CHANGES}/{nonce}"


def current_key(seq: int) -> str:
    """A promotion or the undoing of one."""
    return f"{CURRENT}/{seq:08d}.json"


def changing_key(folder: str, nonce: str) -> str:
    """What stands in a partition while its parts are replaced one by one: no Parquet file.

    Whoever reads the partition without us finds it and fails, instead of seeing rows twice or not.
    """
    return f"{folder}/changing-{nonce}.parquet"


def is_changing(key: str) -> bool:
    """Whether it is such a file."""
    return re.search(r"/changing-[0-9a-f]+\.parquet$", key) is not None


@dataclass(frozen=True, slots=True)
class Part:
    """A published file of a table.

    Attributes:
        partitions: name -> value, as in the path.
        seq: the log record that published it; of one that took the place of several, the last of
            theirs.
        tag: 8 hex digits where it took the place of others, else empty.
        path: where its bytes lie: its key, or a staged file as long as it is not there.
    """

    key: str
    table: str
    partitions: dict[str, str]
    seq: int
    tag: str
    path: str

    @property
    def folder(self) -> str:
        """The partition's folder."""
        return self.key.rpartition("/")[0]


def part_key(table: str, partitions: dict[str, str], seq: int, tag: str = "") -> str:
    """The name of a published file."""
    folders = "/".join(f"{name}={partitions[name]}" for name in TABLES[table].partitions)
    return f"{table}/{folders}/part-{seq:08d}{tag and '-'}{tag}.parquet"


def parse_part(key: str) -> Part:
    """What a published file's name says.

    Raises:
        ValueError: nothing that the store publishes is named so.
    """
    table, *folders, name = key.split("/")
    match = re.fullmatch(r"part-(\d{8,})(?:-([0-9a-f]{8}))?\.parquet", name)
    partitions = {text.partition("=")[0]: text.partition("=")[2] for text in folders}
    if match is None or table not in TABLES or tuple(partitions) != TABLES[table].partitions:
        raise ValueError(
            f"{key!r} was not written by Pixelmill: table folders hold published parts only; "
            "move it out of the store"
        )
    return Part(key, table, partitions, int(match[1]), match[2] or "", key)
