"""What a comparison found: plain data that the page, the JSON and the Parquet are made from."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pixelmill.tasks.metrics.results import Confusion, Metric
from pixelmill.tasks.slices import TruthComparison

__all__ = [
    "ClassChange",
    "Comparison",
    "Finding",
    "ImageChange",
    "ModelComparison",
    "ScoreShift",
]

Kind = Literal["boxes", "semantic", "captions", "labels"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that changed, to be ranked among all others.

    Attributes:
        what: short name, such as "lost" or "moved".
        class_name: None where it is no matter of one class.
        effect: in [0, 1]; what of is said in `text`.
        low: lower end of its 95 % interval, less what all other classes changed likewise. Ranks.
        text: the finding as a sentence.
    """

    what: str
    class_name: str | None
    effect: float
    low: float
    text: str


@dataclass(frozen=True, slots=True)
class ClassChange:
    """One class in both runs; `values` are the numbers, by name."""

    class_name: str
    num_a: int
    num_b: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class ScoreShift:
    """How scores of A read on the scale of B.

    Attributes:
        thresholds: of A.
        equivalents: of B, that keep as many boxes or labels; None where B has too few.
        edges: (n + 1,) of the histograms; counts_a, counts_b: (n,).
    """

    thresholds: tuple[float, ...]
    equivalents: tuple[float | None, ...]
    edges: tuple[float, ...]
    counts_a: tuple[int, ...]
    counts_b: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ImageChange:
    """How much one image's predictions changed.

    Attributes:
        change: in [0, 1]; ranks.
        reasons: what changed, in words, the largest part first.
        values: numbers of this image, by name.
    """

    image_id: str
    path: str
    source_uri: str
    change: float
    reasons: tuple[str, ...]
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """One model of A beside one model of B.

    Attributes:
        num_images: scored by both; only_a, only_b: by one of them.
        recipe: (setting, value in A, value in B) where the models' descriptions differ.
        findings: the largest change first.
        flips: counts, rows = class in A, columns = class in B; None where there are none to count.
        images: those that changed most, the first most; all are in images.parquet.
        truth: numbers with truth, and how sure their differences are; empty without truth.
    """

    kind: Kind
    model_a: str
    model_b: str
    num_images: int
    only_a: int
    only_b: int
    recipe: tuple[tuple[str, str, str], ...]
    headline: tuple[Metric, ...]
    findings: tuple[Finding, ...]
    per_class: tuple[ClassChange, ...]
    images: tuple[ImageChange, ...]
    flips: Confusion | None = None
    scores: ScoreShift | None = None
    truth: tuple[TruthComparison, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs of models of two sides.

    Attributes:
        a, b: the sides as they were named.
        root_a, root_b: their stores.
        skipped: model key -> why it has no counterpart.
    """

    a: str
    b: str
    root_a: str
    root_b: str
    created_at: str
    pairs: tuple[ModelComparison, ...]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; every number is finite."""
        return asdict(self)
