"""A network that is ready to score: a trunk that some engine runs, and how its outputs are read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pixelmill.models.engines.pixels import Trunk
from pixelmill.models.interface import GateReport, ViewOutput

__all__ = ["EngineNetwork", "Reader"]

# (raw outputs, canvas (H, W)) -> one output per image
Reader = Callable[[Any, tuple[int, int]], Sequence[ViewOutput]]


class EngineNetwork:
    """The `Network` of every engine.

    Args:
        trunk: made by an engine.
        read: reads what the trunk gives.
        engine_used: see `Network`.
    """

    def __init__(self, trunk: Trunk, read: Reader, engine_used: str) -> None:
        self.device = trunk.device
        self.engine_used = engine_used
        self.gate: GateReport | None = None
        self.trunk = trunk
        self._read = read

    def forward(self, images: Tensor) -> Any:
        """Raw outputs of (B, H, W, 3) uint8 RGB canvases on the network's device; see `Network`."""
        with _scoring():
            return self.trunk(images)

    def read_out(self, raw: Any, canvas: tuple[int, int]) -> list[ViewOutput]:
        """Predictions of what `forward` gave; see `Network`."""
        with _scoring():
            return list(self._read(raw, canvas))

    def predict(self, images: Tensor) -> list[ViewOutput]:
        """Score (B, H, W, 3) uint8 RGB canvases; see `Network`."""
        height, width = images.shape[1:3]
        return self.read_out(self.forward(images.to(self.device)), (height, width))


@contextmanager
def _scoring() -> Iterator[None]:
    """Without gradients, and denormal numbers are zero.

    They made a published checkpoint 3.5 times slower. The switch belongs to the thread, and other
    libraries in it may count on them: off again afterwards.
    """
    torch.set_flush_denormal(True)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_flush_denormal(False)
