"""What an audit can find, how bad it is, and what is done about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pixelmill.tasks.store.digests import Digests

__all__ = ["KINDS", "Finding", "Kind", "Lost", "Severity"]

Severity = Literal["damage", "garbage", "note"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding.

    Attributes:
        severity: damage: rows or objects are wrong, or readers are disturbed; garbage: what killed
            processes leave behind, harmless; note: nothing to do, or the next run does it.
        meaning: in a few words.
        remedy: what `--repair` does, or who else mends it; empty if nothing is to be done.
        is_mendable: whether `--repair` mends it.
    """

    severity: Severity
    meaning: str
    remedy: str = ""
    is_mendable: bool = True


_MOVE = "moved to _commit/quarantine"
_AGAIN = "rebuilt from the staged files, or else taken out and scored again"
_OUT = "the images' predictions are taken out, and scored again"

KINDS: Mapping[str, Kind] = {
    "log_damaged": Kind(
        "damage",
        "a log record is missing or cannot be read",
        "restored from its mark, or taken back if it was not finished",
    ),
    "mark_damaged": Kind("damage", "a publication's mark cannot be read", "written anew"),
    "receipt_damaged": Kind("damage", "a receipt cannot be read", _MOVE),
    "staged_damaged": Kind(
        "damage",
        "a staged file that is not published yet is missing or changed",
        "its model's tables of that shard are left out, and scored again",
    ),
    "run_damaged": Kind("damage", "a run's record cannot be read", f"{_MOVE}, with its plan"),
    "plan_damaged": Kind(
        "damage",
        "a run's plan is missing or cannot be read",
        f"{_MOVE}, and the run ended as failed",
    ),
    "end_damaged": Kind("damage", "how a run ended cannot be read", "reckoned again"),
    "foreign_object": Kind("damage", "no part of a table, yet in its folder", _MOVE),
    "stray_part": Kind("damage", "a part that no log record published", _MOVE),
    "part_missing": Kind("damage", "a published part is gone", _AGAIN),
    "part_damaged": Kind("damage", "a published part was changed or cannot be read", _AGAIN),
    "rows_unsorted": Kind("damage", "rows are not in the order of their key", _OUT),
    "rows_doubled": Kind("damage", "a key is there twice", "the later rows are taken out"),
    "rows_orphaned": Kind("damage", "rows of images that are not in images", _OUT),
    "counts_differ": Kind("damage", "n_detections or n_captions is not the number of rows", _OUT),
    "masks_missing": Kind("damage", "a mask store or an object of it is gone", _OUT),
    "masks_damaged": Kind("damage", "an object of a mask store was changed or is unreadable", _OUT),
    "masks_misfit": Kind("damage", "masks and rows contradict each other", _OUT),
    "catalog_unknown": Kind(
        "damage",
        "catalogued as an image that no table knows",
        "the rows are taken out, and the files read again",
    ),
    "ledger_untrue": Kind(
        "damage",
        "a run that ended had scored more than is there",
        "the run's end is written anew, and what is missing scored again",
    ),
    "orphaned_plan": Kind("garbage", "the plan of a run that was never created", "deleted"),
    "orphan": Kind("garbage", "what killed processes left, or nobody needs any more", "deleted"),
    "unfinished": Kind("note", "a log record waits to be finished", "publish finishes it"),
    "unpublished": Kind("note", "committed shards wait to be published", "publish publishes them"),
    "left_out": Kind(
        "note", "a shard's tables were damaged before they were published", "scored again", False
    ),
    "receipt_missing": Kind("note", "a published shard has no receipt any more", "", False),
}


@dataclass(frozen=True, slots=True)
class Lost:
    """Rows that cannot stay.

    Attributes:
        table: images: predictions, with all their rows in all tables; catalog: its rows.
        scope: model or collection.
        date: empty for the catalog.
        seq: of the parts.
        keys: which rows, as sorted digests; None: all of these parts.
    """

    table: Literal["images", "catalog"]
    scope: str
    date: str
    seq: int
    keys: Digests | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: a key of `KINDS`.
        key: of the object, or of the folder with a "/" at its end.
        what: what exactly.
        lost: rows that a repair has to take out.
    """

    kind: str
    key: str
    what: str
    lost: Lost | None = field(default=None, repr=False, compare=False)

    @property
    def severity(self) -> Severity:
        """See `Kind`."""
        return KINDS[self.kind].severity

    @property
    def is_mendable(self) -> bool:
        """Whether `--repair` mends it."""
        return KINDS[self.kind].is_mendable

    @property
    def remedy(self) -> str:
        """What is done about it."""
        return KINDS[self.kind].remedy

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "severity": self.severity,
            "kind": self.kind,
            "key": self.key,
            "what": self.what,
            "mendable": self.is_mendable,
            "remedy": self.remedy,
        }
