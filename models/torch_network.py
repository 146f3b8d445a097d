"""Networks that PyTorch runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.models.fold import fold_batch_norm
from pixelmill.models.interface import ViewOutput
from pixelmill.models.spec import ModelSpec

__all__ = ["TorchNetwork", "normalise"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def normalise(images: Tensor, preprocess: PreprocessConfig) -> Tensor:
    """(B, H, W, 3) uint8 RGB -> (B, 3, H, W) float32 as the network was trained, channels last."""
    if preprocess.channels == "bgr":
        images = images.flip(-1)
    # In units of the pixels, so that one subtraction and one division do it
    mean = torch.tensor(preprocess.mean, device=images.device) * 255
    std = torch.tensor(preprocess.std, device=images.device) * 255
    return ((images - mean) / std).permute(0, 3, 1, 2)


class TorchNetwork:
    """A module ready to score: folded, channels last, in the spec's precision.

    Args:
        module: maps normalised (B, 3, H, W) to raw outputs.
        spec: its preprocess and precision are used, the rest goes to `read_out`.
        read_out: (module, raw outputs, spec, canvas (H, W)) -> one output per image.
        device: where it runs.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: ModelSpec,
        read_out: Callable[[nn.Module, Any, ModelSpec, tuple[int, int]], Sequence[ViewOutput]],
        device: str | torch.device = "cpu",
    ) -> None:
        canvas = spec.preprocess.canvases[0]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (1, *canvas, 3), dtype=torch.uint8, generator=generator)
        module = fold_batch_norm(module.eval(), normalise(noise, spec.preprocess))
        self.device = torch.device(device)
        self._dtype = _DTYPES[spec.precision]
        self._module = module.to(device=self.device, dtype=self._dtype).to(
            memory_format=torch.channels_last
        )
        self._spec = spec
        self._read_out = read_out

    def forward(self, images: Tensor) -> Any:
        """Raw outputs of (B, H, W, 3) uint8 RGB canvases on the network's device; see `Network`."""
        with _scoring():
            return self._module(normalise(images, self._spec.preprocess).to(self._dtype))

    def read_out(self, raw: Any, canvas: tuple[int, int]) -> list[ViewOutput]:
        """Predictions of what `forward` gave; see `Network`."""
        with _scoring():
            return list(self._read_out(self._module, raw, self._spec, canvas))

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
