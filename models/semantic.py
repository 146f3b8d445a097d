"""What the networks for semantic segmentation share: how their logits are read, and learnt.

A network gives logits (B, K, H, W) of the canvas' size. In training it may give a tuple: the
logits that count, then those of auxiliary classifiers, which only help to train (PSPNet, Zhao et
al., 2017, section 3.3; deep supervision in U-Net++, Zhou et al., 2018, section 3.2).
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelmill.models.interface import SemanticOutput
from pixelmill.models.losses import dice_loss
from pixelmill.models.ops.masks import settled
from pixelmill.models.spec import ModelSpec
from pixelmill.models.targets import SemanticTarget, Target

__all__ = ["semantic_loss", "semantic_outputs"]

VOID = 255


def semantic_outputs(
    module: nn.Module, outputs: Tensor, spec: ModelSpec, canvas: tuple[int, int]
) -> list[SemanticOutput]:
    """Hand out the logits (B, K, H, W) image by image, where they are."""
    return [SemanticOutput(logits=logits) for logits in settled(outputs.float())]


def semantic_loss(
    module: nn.Module,
    outputs: Tensor | tuple[Tensor, ...],
    targets: Sequence[Target],
    *,
    auxiliary_weight: float = 1.0,
) -> dict[str, Tensor]:
    """Cross-entropy and Dice over the pixels that are not void.

    Args:
        module: not used.
        outputs: (B, K, H, W) logits; or a tuple of them, of which all but the first are auxiliary.
        targets: `SemanticTarget` per image.
        auxiliary_weight: of the mean of the auxiliary classifiers' terms.

    Returns:
        Scalars "cross_entropy" and "dice", and "auxiliary" where there are such outputs.
    """
    labels = torch.stack([cast("SemanticTarget", target).labels for target in targets]).long()
    main, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
    terms = _terms(main, labels)
    if auxiliary:
        sums = [sum(_terms(logits, labels).values(), torch.zeros(())) for logits in auxiliary]
        terms["auxiliary"] = auxiliary_weight * torch.stack(sums).mean()
    return terms


def _terms(outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    logits = outputs.float()
    valid = (labels != VOID)[:, None]
    one_hot = F.one_hot(labels.masked_fill(labels == VOID, 0), logits.shape[1]).permute(0, 3, 1, 2)
    return {
        "cross_entropy": F.cross_entropy(logits, labels, ignore_index=VOID),
        "dice": dice_loss(logits.softmax(dim=1) * valid, one_hot * valid),
    }
