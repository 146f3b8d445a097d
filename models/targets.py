"""What a network is trained towards: the truth of one view, as the losses take it."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["BoxTarget", "CaptionTarget", "ClassTarget", "SemanticTarget", "Target"]


@dataclass(frozen=True, slots=True)
class BoxTarget:
    """Objects of one view.

    Attributes:
        boxes_xyxy: (N, 4) float32, canvas pixels, max exclusive, sides above zero.
        labels: (N,) int64, class indices.
        masks: (N, H, W) uint8, 1 inside, the canvas' size; None where only boxes are learnt.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SemanticTarget:
    """Class of every pixel of one view.

    Attributes:
        labels: (H, W) integer, the canvas' size; 255 is not learnt from.
        weights: (H, W) float, factor on each pixel's cross-entropy; None: 1.
    """

    labels: Tensor
    weights: Tensor | None = None


@dataclass(frozen=True, slots=True)
class CaptionTarget:
    """One sentence for one view.

    Attributes:
        tokens: (T,) int64 indices into the vocabulary, start and end tokens included.
    """

    tokens: Tensor


@dataclass(frozen=True, slots=True)
class ClassTarget:
    """The class of one whole view.

    Attributes:
        label: () int64, class index.
    """

    label: Tensor


Target = BoxTarget | SemanticTarget | CaptionTarget | ClassTarget
