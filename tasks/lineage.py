"""Where a prediction comes from: its run, code, configuration, weights and file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.store import RunRecord, Store
from pixelmill.tasks.store.runs import shard_index

__all__ = ["Lineage", "trace"]


@dataclass(frozen=True, slots=True)
class Lineage:
    """All that one model's rows of one image follow from.

    Attributes:
        row: of `images`, with `model` and `date`.
        run: that planned it; its `software` is the code that did.
        spec: of the model, with the digest of its weights.
        engine: that ran the forward pass, with its precision; empty where no receipt tells.
        attempt: of the shard that committed it.
    """

    row: Mapping[str, Any]
    run: RunRecord
    spec: ModelSpec
    engine: str
    attempt: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        row = {key: value for key, value in self.row.items() if key != "scored_at"}
        return asdict(self) | {
            "row": row | {"scored_at": self.row["scored_at"].isoformat()},
            "run": self.run.model_dump(mode="json"),
            "spec": self.spec.model_dump(mode="json") | {"key": self.spec.key},
        }


def trace(store: Store, image: str, model: str | None = None) -> list[Lineage]:
    """The lineage of an image's predictions, one per model.

    Args:
        store: that has them.
        image: an image_id, or a path as in the catalog.
        model: only this model's, or `current:<task>`.

    Raises:
        KeyError: there is no such prediction, or the path is in several collections.
    """
    found = []
    for row in store.find(image, model):
        run = store.run(row["run_id"])
        receipt = store.receipt(run.run_id, shard_index(row["shard_id"]))
        found.append(
            Lineage(
                row=row,
                run=run,
                spec=run.model(row["model"]),
                engine=str(receipt.stats.get(f"engine/{row['model']}", "")) if receipt else "",
                attempt=receipt.attempt if receipt else "",
            )
        )
    return found
