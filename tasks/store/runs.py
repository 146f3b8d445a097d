"""A run: what was planned, for which models, from which listing."""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pixelmill.models.spec import ModelSpec

__all__ = [
    "ModelCounts",
    "RunEnd",
    "RunRecord",
    "ShardRef",
    "SkipReason",
    "new_run_id",
    "shard_id",
    "shard_index",
]

# Why an input is not scored by a model, and need not be or was not to be:
# predicted    its prediction by the model stands already
# duplicate    the same bytes are scored under another path
# quarantined  it failed for good before and has not changed since
# other_run    another run scored it meanwhile, or claimed its shard
# deadline     its shard would have ended after the deadline
# stopped      the run was stopped before its shard was done
SkipReason = Literal["predicted", "duplicate", "quarantined", "other_run", "deadline", "stopped"]

_TIME_FORMAT = "%Y%m%dT%H%M%S"
RUN_ID_PATTERN = r"^\d{8}T\d{6}-[0-9a-f]{6}$"


class RunRecord(BaseModel):
    """What makes a run exist; created once, after its plan table.

    Attributes:
        date: logical date of the batch, YYYY-MM-DD, not the wall clock.
        source: root URL or folder of the images.
        created_at: ISO 8601, UTC.
        config: the resolved `RunConfig` as JSON.
        listing: counts of the plan (listed, new, reused, ...), for people.
        session: id of the session that planned it and works on it; see `claims`.
        software: versions of the code and the libraries that planned it, by name; workers have the
            same version of ours, which is checked when they are connected to.
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
    session: str = ""
    software: dict[str, str] = Field(default_factory=dict)

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


@dataclass(frozen=True, slots=True)
class ShardRef:
    """A shard of a run; all that travels to a worker.

    Attributes:
        num_images: inputs that it has.
    """

    run_id: str
    index: int
    num_images: int

    @property
    def id(self) -> str:
        """Its name, the same for every try."""
        return shard_id(self.run_id, self.index)


class ModelCounts(BaseModel):
    """What became of the listed inputs for one model; each input is in exactly one count.

    Attributes:
        listed: inputs.
        scored: with something found.
        scored_empty: with nothing found.
        failed: by "stage/reason".
        retryable: of the failed, those that the next run tries again.
        skipped: by reason.
        missing: by cause: inputs of which nothing is recorded. Always a fault.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    listed: int = Field(ge=0)
    scored: int = Field(ge=0)
    scored_empty: int = Field(ge=0)
    failed: dict[str, int] = Field(default_factory=dict)
    retryable: int = Field(ge=0)
    skipped: dict[SkipReason, int] = Field(default_factory=dict)
    missing: dict[str, int] = Field(default_factory=dict)

    @property
    def adds_up(self) -> bool:
        """Whether every input is accounted for, once."""
        known = self.scored + self.scored_empty
        known += sum(self.failed.values()) + sum(self.skipped.values())
        return known == self.listed and not sum(self.missing.values())


class RunEnd(BaseModel):
    """How a run ended; a run without one was killed, or is running.

    Attributes:
        ended_at: ISO 8601, UTC.
        state: complete: the ledger adds up and nothing was left for another run; stopped: it adds
            up, and `reason` says what ended it early; incomplete: it does not add up; failed: the
            run itself broke, or gave shards up.
        ledger: by model key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str = Field(pattern=RUN_ID_PATTERN)
    ended_at: str
    state: Literal["complete", "incomplete", "stopped", "failed"]
    reason: str | None = None
    ledger: dict[str, ModelCounts]


def new_run_id(now: datetime | None = None, *, after: str | None = None) -> str:
    """`YYYYMMDDTHHMMSS-<6 hex>` in UTC: sorts by time, never repeats.

    Args:
        now: left out: the clock's time.
        after: an id that the new one sorts behind, even if the clock has gone back since.
    """
    now = (now or datetime.now(UTC)).astimezone(UTC)
    if after is not None:
        last = datetime.strptime(after[:15], _TIME_FORMAT).replace(tzinfo=UTC)
        now = max(now, last + timedelta(seconds=1))
    return f"{now:{_TIME_FORMAT}}-{secrets.token_hex(3)}"


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
