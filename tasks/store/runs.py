"""A run: what was planned, for which models, from which listing."""

import re
import secrets
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pixelmill.models.spec import ModelSpec

__all__ = ["RunRecord", "new_run_id", "shard_id", "shard_index"]

RUN_ID_PATTERN = r"^\d{8}T\d{6}-[0-9a-f]{6}$"


class RunRecord(BaseModel):
    """What makes a run exist; created once, after its plan table.

    Attributes:
        date: logical date of the batch, YYYY-MM-DD, not the wall clock.
        source: root URL or folder of the images.
        created_at: ISO 8601, UTC.
        config: the resolved `RunConfig` as JSON.
        listing: counts of the plan (listed, new, reused, ...), for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str = Field(pattern=RUN_ID_PATTERN)
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    collection: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    source: str
    created_at: str
    config: dict[str, Any]
    models: tuple[ModelSpec, ...]
    num_images: int = Field(ge=0)
    num_shards: int = Field(ge=0)
    listing: dict[str, int] = Field(default_factory=dict)

    def model(self, model_key: str) -> ModelSpec:
        """The spec of one of the run's models.

        Raises:
            KeyError: the run has no such model.
        """
        for spec in self.models:
            if spec.key == model_key:
                return spec
        known = ", ".join(spec.key for spec in self.models)
        raise KeyError(f"run {self.run_id} has no model {model_key!r}, it has: {known}")


def new_run_id(now: datetime | None = None) -> str:
    """`YYYYMMDDTHHMMSS-<6 hex>` in UTC: sorts by time, never repeats."""
    now = now or datetime.now(UTC)
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def shard_id(run_id: str, index: int) -> str:
    """`<run_id>-<k:06d>`: fixed by the plan, so a retry has the same name."""
    return f"{run_id}-{index:06d}"


def shard_index(name: str) -> int:
    """The index in a shard's name.

    Raises:
        ValueError: not a shard's name.
    """
    match = re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{6}-(\d{6,})", name)
    if match is None:
        raise ValueError(f"expected <run_id>-<index>, got {name!r}")
    return int(match[1])
