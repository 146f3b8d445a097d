"""A receipt is the commit of a shard: created once, or the shard was not scored."""

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Receipt", "StagedFile"]


class StagedFile(BaseModel):
    """A Parquet file that waits to be published.

    Attributes:
        model_key: None for tables that are not partitioned by model.
        path: relative to the root.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    model_key: str | None
    path: str
    num_rows: int
    size_bytes: int
    sha256: str


class Receipt(BaseModel):
    """What one shard gave.

    Attributes:
        attempt: 8 hex digits, new for every try; part of the names of all its files.
        committed_at: ISO 8601, UTC; also `scored_at` of its images.
        num_inputs: distinct paths that were catalogued or failed.
        num_scored: images per model.
        num_failed: failure rows.
        mask_stores: path relative to the root, by model.
        stats: measurements of the scorer. `wall_s` (seconds of the whole shard) and, where several
            models share it, `forward_s/<model_key>` feed `Store.throughput`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_id: str
    attempt: str
    run_id: str
    shard_index: int
    date: str
    collection: str
    committed_at: str
    num_inputs: int
    num_scored: dict[str, int]
    num_failed: int
    files: tuple[StagedFile, ...]
    mask_stores: dict[str, str] = Field(default_factory=dict)
    stats: dict[str, float | int | str] = Field(default_factory=dict)
