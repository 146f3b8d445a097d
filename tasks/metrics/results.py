"""What an evaluation found: plain data that the report, the JSON and the Parquet are made from."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = [
    "ClassRow",
    "Confusion",
    "Curve",
    "ErrorBreakdown",
    "ErrorKind",
    "ErrorShare",
    "Evaluation",
    "ImageRow",
    "Kind",
    "Metric",
    "Mistake",
    "ModelEvaluation",
    "ThresholdSweep",
]

Kind = Literal["boxes", "masks", "panoptic", "semantic", "captions", "labels"]
ErrorKind = Literal[
    "class", "localisation", "class and localisation", "duplicate", "background", "missed"
]


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
class ErrorShare:
    """One kind of error, and what it costs.

    Attributes:
        count: detections with the error, or instances that were missed.
        delta_ap: AP at IoU 0.50 that mending all of them, and nothing else, would add.
        definition: in words.
    """

    kind: ErrorKind
    count: int
    delta_ap: float
    definition: str


@dataclass(frozen=True, slots=True)
class ErrorBreakdown:
    """Why AP is not 1.

    Attributes:
        ap: at IoU 0.50, of the run as it is.
        shares: one per kind; their gains do not add up to 1 - ap, as errors hide one another.
        delta_false_positives: AP that removing every wrong detection would add.
        delta_misses: AP that finding every instance would add.
        source: the definition's paper.
    """

    ap: float
    shares: tuple[ErrorShare, ...]
    delta_false_positives: float
    delta_misses: float
    source: str


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong detection, or an instance that was missed, for the gallery.

    Attributes:
        class_name: that was predicted; of a miss, the truth's.
        score: of the detection; None for a miss.
        rank: of the detection in its image, as in `detections`; None for a miss.
        box_xyxy: of the detection, or of the missed instance; pixels.
        truth_class: of the instance that it is confused with or lies beside; None: of none.
        truth_box_xyxy: of that instance.
        iou: with that instance.
    """

    path: str
    image_id: str | None
    kind: ErrorKind
    class_name: str
    score: float | None
    rank: int | None
    box_xyxy: tuple[float, float, float, float]
    truth_class: str | None = None
    truth_box_xyxy: tuple[float, float, float, float] | None = None
    iou: float | None = None


@dataclass(frozen=True, slots=True)
class ThresholdSweep:
    """Precision, recall and F1 of one class at score thresholds, falling.

    Attributes:
        recommended: the threshold of the best F1, the highest of equals; None: nothing was right.
    """

    class_name: str
    thresholds: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    recommended: float | None


@dataclass(frozen=True, slots=True)
class ModelEvaluation:
    """One model against one kind of truth.

    Attributes:
        headline: the few numbers that come first; metrics: all of them.
        policies: what -> the rule that the numbers follow (maxDets, areas, crowds, void, absent
            classes), in words.
        errors: of boxes and masks: why AP is not 1.
        mistakes: of boxes and masks: the worst, by kind, the worst first.
        sweeps: of boxes and masks: each class that has truth.
        thresholds: class of the model -> score of the best F1, rounded down.
        partner_key: of panoptic quality, the model whose label maps gave the stuff.
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
    policies: dict[str, str] = field(default_factory=dict)
    errors: ErrorBreakdown | None = None
    mistakes: tuple[Mistake, ...] = ()
    sweeps: tuple[ThresholdSweep, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)
    partner_key: str | None = None


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
