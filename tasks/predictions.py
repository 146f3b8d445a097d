"""What the engine hands to the store: finished results of one image by one model."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Caption", "Detections", "ImagePrediction", "Label", "MaskCrop"]


@dataclass(frozen=True, slots=True)
class MaskCrop:
    """An instance mask without the empty space around it.

    Attributes:
        top: first row of the crop in the original image.
        left: first column.
        mask: (h, w) bool.
    """

    top: int
    left: int
    mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes of one image, best first.

    Attributes:
        boxes_xyxy: (N, 4) float32, pixels of the original image, max exclusive.
        scores: (N,) float32 in [0, 1], not increasing.
        labels: (N,) int32, index into the model's classes.
        masks: one per box, or None for a pure detector.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    masks: tuple[MaskCrop, ...] | None = None


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence; `logprob` is natural, `num_tokens` includes the end token."""

    text: str
    logprob: float
    num_tokens: int
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """One class given to the whole image."""

    class_id: int
    score: float


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """All that one model says of one image; what its task does not give is left empty.

    Attributes:
        semantic: (H, W) uint8 or uint16 class indices at the original size, 255 / 65535 = void.
        candidates: detections before suppression, where the config keeps them.
    """

    detections: Detections | None = None
    semantic: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    captions: tuple[Caption, ...] = ()
    labels: tuple[Label, ...] = ()
    candidates: Detections | None = None
    flags: tuple[str, ...] = field(default=())
