"""Batch normalisation folded into the convolution before it: same function, fewer passes.

Pairs are found by watching one forward pass, so that any module folds without symbolic tracing;
the result is compared with the original on the same input, and thrown away if it differs.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

__all__ = ["fold_batch_norm"]

Norm = nn.BatchNorm2d | FrozenBatchNorm2d

# Relative to the largest output; R50-FPN in float32 differs by 4e-5
_TOLERANCE = 1e-3


def fold_batch_norm(module: nn.Module, example: Tensor) -> nn.Module:
    """A copy of the module whose convolutions do what the normalisation behind them did.

    Args:
        module: in eval mode.
        example: (1, 3, H, W) float input that reaches all layers.

    Returns:
        The folded copy; the module itself where there is nothing to fold, or where folding would
        change what it computes (something else reads a convolution's output too).
    """
    # not inference_mode, which would make inference tensors of the copied parameters
    with torch.no_grad():
        expected = module(example)
        pairs = _find_pairs(module, example)
        if not pairs:
            return module
        folded = copy.deepcopy(module)
        for conv_name, norm_name in pairs:
            _fold(folded, conv_name, norm_name)
        return folded if _is_close(expected, folded(example)) else module


def _find_pairs(module: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the one normalisation that reads each one's output."""
    made_by: dict[int, str] = {}
    readers: dict[str, set[str]] = {}
    sources: dict[str, set[str | None]] = {}
    alive: list[Tensor] = []  # an id is unique only while its tensor lives

    def watch(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(layer, nn.Conv2d):
                made_by[id(output)] = name
                alive.append(output)
            else:
                source = made_by.get(id(inputs[0]))
                sources.setdefault(name, set()).add(source)
                if source is not None:
                    readers.setdefault(source, set()).add(name)

        return hook

    handles = [
        layer.register_forward_hook(watch(name))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d) or _has_statistics(layer)
    ]
    try:
        module(example)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (conv, next(iter(norms)))
        for conv, norms in readers.items()
        if len(norms) == 1 and sources[next(iter(norms))] == {conv}
    ]


def _has_statistics(layer: nn.Module) -> bool:
    """Whether it is a normalisation by stored numbers, and not by those of each batch."""
    return isinstance(layer, Norm) and layer.running_mean is not None


def _fold(module: nn.Module, conv_name: str, norm_name: str) -> None:
    conv = module.get_submodule(conv_name)
    norm: Any = module.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    scale: Tensor = torch.rsqrt(norm.running_var + norm.eps)
    shift: Tensor = -norm.running_mean * scale
    if norm.weight is not None:
        scale, shift = scale * norm.weight, shift * norm.weight
    if norm.bias is not None:
        shift = shift + norm.bias
    bias = shift if conv.bias is None else conv.bias * scale + shift
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None], requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
    parent, _, child = norm_name.rpartition(".")
    setattr(module.get_submodule(parent), child, nn.Identity())


def _is_close(expected: Any, actual: Any) -> bool:
    left, right = (
        [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
        for tree in (expected, actual)
    )
    return len(left) == len(right) and all(
        one.shape == other.shape
        and torch.allclose(
            one.float(), other.float(), rtol=0, atol=_TOLERANCE * max(1.0, _peak(one))
        )
        for one, other in zip(left, right, strict=True)
    )


def _peak(tensor: Tensor) -> float:
    return float(tensor.float().abs().max()) if tensor.numel() else 0.0
