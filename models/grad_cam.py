"""Grad-CAM: which places of an image spoke for a class.

Ramprasaath R. Selvaraju, Michael Cogswell, Abhishek Das, Ramakrishna Vedantam, Devi Parikh, Dhruv
Batra: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017,
https://arxiv.org/abs/1610.02391, section 3, equations 1 and 2.

Differences: none known. Guided Grad-CAM is not here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["grad_cam"]


def grad_cam(
    module: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    layer: str | None = None,
    logits_of: Callable[[Any], Tensor] = lambda outputs: outputs,
) -> Tensor:
    """How much each place of a layer's feature maps spoke for a class.

    Args:
        module: in evaluation mode; its weights may be frozen. It is left as it was.
        images: (B, 3, H, W) normalised float.
        labels: (B,) int64, the class asked about; None: the most probable one of each image.
        layer: name of a submodule whose output is (B, C, h, w); None: the last one with more than
            one place that the class depends on.
        logits_of: what of the module's outputs are the (B, K) logits.

    Returns:
        (B, h, w) float32 from 0 up, in units of the logits.

    Raises:
        ValueError: there is no such layer, or it has no feature maps that the class depends on.
    """
    with torch.enable_grad(), _watched(module, layer) as maps:
        # A leaf with a gradient, so that all that is computed of it has one
        logits = logits_of(module(images.detach().clone().requires_grad_()))
        chosen = logits.argmax(dim=1) if labels is None else labels
        # Without batch normalisation in training an image's score depends on that image alone
        score = logits.gather(1, chosen[:, None].to(logits.device)).sum()
        for features in reversed(maps):
            (gradient,) = torch.autograd.grad(score, features, retain_graph=True, allow_unused=True)
            if gradient is not None:
                break
        else:
            raise ValueError(
                f"{type(module).__name__} has no feature maps (B, C, h, w) that its classes depend "
                f"on{f' in layer {layer!r}' if layer else ''}; name another layer"
            )
    importance = gradient.float().mean(dim=(2, 3), keepdim=True)
    return (importance * features.detach().float()).sum(dim=1).relu()


@contextmanager
def _watched(module: nn.Module, layer: str | None) -> Iterator[list[Tensor]]:
    """Feature maps with more than one place that the module's layers give, in their order."""
    layers = dict(module.named_modules())
    if layer is not None and layer not in layers:
        raise ValueError(f"expected a layer of {type(module).__name__}, got {layer!r}")
    maps: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            maps.append(output)

    watched = layers.values() if layer is None else (layers[layer],)
    handles = [each.register_forward_hook(keep) for each in watched]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
