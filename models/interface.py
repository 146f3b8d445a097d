"""What every network of the pipeline offers, whatever its architecture.

A *view* is one canvas with one image (or one tile, mirror or scale of it) on it. The engine makes
views, a `Network` scores a batch of them, and the outputs, in canvas pixels, are mapped back to
the original image and merged by `pixelmill.tasks.engine`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = [
    "BoxOutput",
    "CaptionOutput",
    "ClassOutput",
    "GateReport",
    "Network",
    "SemanticOutput",
    "ViewOutput",
]


@dataclass(frozen=True, slots=True)
class BoxOutput:
    """Candidates of one view, before thresholds and suppression.

    Attributes:
        boxes_xyxy: (N, 4) float32, canvas pixels, max exclusive.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64, index into the model's classes.
        mask_probs: (N, M, M) float32 in [0, 1] over each box, or None for a pure detector.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    mask_probs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SemanticOutput:
    """Class scores of one view.

    Attributes:
        logits: (K, h, w) float32 that cover the whole canvas; h, w may be the canvas' size
            divided by the output stride. On the network's device: labels are made there, and
            only they are fetched.
    """

    logits: Tensor


@dataclass(frozen=True, slots=True)
class CaptionOutput:
    """The sentence found for one view.

    Attributes:
        text: detokenised.
        logprob: natural logarithm of the sentence's probability.
        num_tokens: tokens generated, the end token included.
    """

    text: str
    logprob: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class ClassOutput:
    """Class probabilities of one view.

    Attributes:
        probs: (K,) float32 in [0, 1].
    """

    probs: Tensor


ViewOutput = BoxOutput | SemanticOutput | CaptionOutput | ClassOutput


@dataclass(frozen=True, slots=True)
class GateReport:
    """How an engine's answers compare with those of PyTorch in float32.

    Attributes:
        figures: what was measured, by name; `pixelmill.models.engines.parity` explains them.
        faults: the figures beyond their limits, in words; empty: the engine may be used.
    """

    figures: Mapping[str, float]
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all figures are within their limits."""
        return not self.faults

    def __str__(self) -> str:
        """The figures in a line, and what is wrong with them."""
        figures = ", ".join(f"{name} {value:.3g}" for name, value in self.figures.items())
        return "; ".join((figures, *self.faults))


class Network(Protocol):
    """A model that is ready to score; built by `pixelmill.models.build.build_network`.

    `predict` is `read_out(forward(images), canvas)`: an engine with a stage for each overlaps the
    forward pass of one batch with the reading of the one before.

    Attributes:
        device: where `forward` wants its images and leaves its raw outputs.
        engine_used: engine and precision, such as "openvino fp32".
        gate: how the engine compares with PyTorch in float32; None: it is that.
    """

    device: torch.device
    engine_used: str
    gate: GateReport | None

    def forward(self, images: Tensor) -> Any:
        """Start the forward pass of a batch.

        Waits for nothing: on a GPU the outputs may still be in the making when it returns.

        Args:
            images: (B, H, W, 3) uint8 RGB canvases, all of one size, on the network's device.

        Returns:
            A tree of tensors on the network's device, for `read_out` of the same network only;
            they are its own, and no later call overwrites them.
        """
        ...

    def read_out(self, raw: Any, canvas: tuple[int, int]) -> list[ViewOutput]:
        """Make predictions of raw outputs.

        Args:
            raw: of `forward`.
            canvas: (H, W) of the images.

        Returns:
            One output per image, independent of the other images of the batch.
        """
        ...

    def predict(self, images: Tensor) -> list[ViewOutput]:
        """Score a batch: `forward`, then `read_out`.

        Args:
            images: (B, H, W, 3) uint8 RGB canvases, all of one size, on any device.
        """
        ...
