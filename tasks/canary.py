"""A sample that goes first: is the new model as good as the one that it shall replace?"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pixelmill.configs.schema import Gate
from pixelmill.tasks.ingest import Listing
from pixelmill.tasks.store import Store

__all__ = [
    "Canary",
    "broken_gates",
    "canary_document",
    "choose_sample",
    "keep_canary",
    "read_canary",
    "sample_digest",
    "unmeasured",
]

# A part is a run of its own, with its own date
_MAX_PARTS = 20


@dataclass(frozen=True, slots=True)
class Canary:
    """How the sample came out.

    Attributes:
        old: key of the model that was current.
        new: key of the one that is to score the archive.
        num_images: that were compared.
        measures: of `pixelmill compare`, by name.
        broken: gates that do not hold, in words.
        gates: bounds that the measures were held against: (least, most) by name.
        sample: see `sample_digest`.
    """

    old: str
    new: str
    num_images: int
    measures: Mapping[str, float]
    broken: tuple[str, ...]
    gates: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    sample: str = ""


def choose_sample(
    parts: Mapping[str, Listing], known: frozenset[str], num_images: int
) -> dict[str, Listing]:
    """Images of a sample that is spread over the parts, the same at every call.

    Args:
        parts: of the archive, in time.
        known: ids of the images that the current model has scored: others cannot be compared.
        num_images: wanted.

    Returns:
        At most 20 parts, evenly spaced, with the same share of each; without empty ones.
    """
    usable = {name: _known_rows(part, known) for name, part in parts.items()}
    names = [name for name, rows in usable.items() if rows]
    if not names or not num_images:
        return {}
    places = np.linspace(0, len(names) - 1, min(_MAX_PARTS, num_images, len(names)))
    chosen = [names[round(place)] for place in places]
    total = sum(len(usable[name]) for name in chosen)
    sample: dict[str, Listing] = {}
    for name in chosen:
        number = math.ceil(num_images * len(usable[name]) / total)
        rows = sorted(sorted(usable[name], key=lambda row: row[1])[:number])
        images = parts[name].images.take(pa.array([index for index, _ in rows], pa.int64()))
        sample[name] = Listing(images, parts[name].problems.slice(0, 0))
    return sample


def sample_digest(sample: Mapping[str, Listing]) -> str:
    """32 hex digits that differ where the parts or images of two samples do."""
    digest = hashlib.sha256()
    for name, part in sorted(sample.items()):
        digest.update(repr((name, part.images["image_id"].to_pylist())).encode())
    return digest.hexdigest()[:32]


def canary_document(canary: Canary) -> dict[str, Any]:
    """As JSON has it, which knows no measure that is no number."""
    measures = {
        name: value if math.isfinite(value) else None for name, value in canary.measures.items()
    }
    return asdict(canary) | {"measures": measures}


def keep_canary(store: Store, collection: str, canary: Canary) -> None:
    """Keep how a model's sample came out: the backfill that goes on does not repeat it."""
    data = json.dumps(canary_document(canary), indent=1).encode()
    store.backend.put(_canary_key(collection, canary.new), data)


def read_canary(store: Store, collection: str, model_key: str) -> Canary | None:
    """How the newest sample of a model came out; None if there was none."""
    try:
        data = store.backend.get(_canary_key(collection, model_key))
    except FileNotFoundError:
        return None
    document: dict[str, Any] = json.loads(data)
    measures = {
        name: math.nan if value is None else value for name, value in document["measures"].items()
    }
    gates = {name: (least, most) for name, (least, most) in document["gates"].items()}
    changed = {"measures": measures, "gates": gates, "broken": tuple(document["broken"])}
    return Canary(**document | changed)


def _canary_key(collection: str, model_key: str) -> str:
    return f"reports/{collection}/canary-{model_key}.json"


def _known_rows(part: Listing, known: frozenset[str]) -> list[tuple[int, str]]:
    """(row, digest of its path) of the images that are known."""
    columns = (part.images[name].to_pylist() for name in ("path", "image_id"))
    return [
        (index, hashlib.sha256(path.encode()).hexdigest())
        for index, (path, image_id) in enumerate(zip(*columns, strict=True))
        if image_id in known
    ]


def broken_gates(measures: Mapping[str, float], gates: Mapping[str, Gate]) -> tuple[str, ...]:
    """The gates that do not hold, in words; one whose measure is no number does not.

    Args:
        measures: of one model.
        gates: those of other measures are left out: other models have them, see `unmeasured`.
    """
    known = {name: gate for name, gate in gates.items() if name in measures}
    return tuple(
        told for name, gate in known.items() for told in _check(name, measures[name], gate)
    )


def unmeasured(gates: Mapping[str, Gate], measured: Sequence[str]) -> tuple[str, ...]:
    """The gates that nothing was held against, in words: they do not hold either."""
    there = f"there are: {', '.join(dict.fromkeys(measured))}"
    return tuple(f"{name} was not measured ({there})" for name in gates if name not in measured)


def _check(name: str, value: float, gate: Gate) -> Sequence[str]:
    broken = []
    if gate.min is not None and not value >= gate.min:
        broken.append(f"{name} is {value:.4g}, below {gate.min:g}")
    if gate.max is not None and not value <= gate.max:
        broken.append(f"{name} is {value:.4g}, above {gate.max:g}")
    return broken
