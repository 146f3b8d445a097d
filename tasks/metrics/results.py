"""What an evaluation found: plain data that the report, the JSON and the Parquet are made from."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = [
    "ClassRow",
    "Confusion",
    "Curve",
    "Evaluation",
    "ImageRow",
    "Metric",
    "ModelEvaluation",
]

Kind = Literal["boxes", "masks", "semantic", "captions", "labels"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number, with its definition in words (maxDets, thresholds, void policy and the like).

    Attributes:
        interval: low and high end of its 95 % interval over draws of images; None: not known.
    """

    name: str
    value: float
    definition: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ClassRow:
    """The numbers of one class."""

    class_name: str
    num_truth: int
    num_predicted: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot; `group` collects the lines of one plot ("precision-recall @ IoU 0.50")."""

    group: str
    name: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts, rows = truth, columns = prediction; both named, in order."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    unit: str


@dataclass(frozen=True, slots=True)
class ImageRow:
    """The numbers of one image, for sorting the gallery."""

    path: str
    image_id: str | None
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class ModelEvaluation:
    """One model against one kind of truth.

    Attributes:
        headline: the few numbers that come first; metrics: all of them.
        num_images: images of the truth; those in `missing` (never scored) and `failed`
            (quarantined) count as empty predictions.
        notes: what a reader must know (policies, caps, libraries and their versions).
    """

    model_key: str
    task: str
    kind: Kind
    headline: tuple[Metric, ...]
    metrics: tuple[Metric, ...]
    per_class: tuple[ClassRow, ...] = ()
    curves: tuple[Curve, ...] = ()
    confusion: Confusion | None = None
    per_image: tuple[ImageRow, ...] = ()
    num_images: int = 0
    missing: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that was evaluated in one go.

    Attributes:
        truth: where each kind of truth came from.
        skipped: model key -> why it was not evaluated, such as no truth of its kind.
    """

    collection: str
    created_at: str
    models: tuple[ModelEvaluation, ...]
    truth: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
