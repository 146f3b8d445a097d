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
from pixelmill.models.losses import dice_loss, pixel_cross_entropy
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
    class_weights: Tensor | None = None,
    hard_share: float | None = None,
) -> dict[str, Tensor]:
    """Cross-entropy and Dice over the pixels that are not void.

    Args:
        module: not used.
        outputs: (B, K, H, W) logits; or a tuple of them, of which all but the first are auxiliary.
        targets: `SemanticTarget` per image.
        auxiliary_weight: of the mean of the auxiliary classifiers' terms.
        class_weights: (K,) of both terms.
        hard_share: of the pixels whose cross-entropy is learnt from, the worst; None: all.

    Returns:
        Scalars "cross_entropy" and "dice", and "auxiliary" where there are such outputs.
    """
    truths = [cast("SemanticTarget", target) for target in targets]
    labels = torch.stack([truth.labels for truth in truths]).long()
    known = [truth.weights for truth in truths if truth.weights is not None]
    weights = torch.stack(known) if len(known) == len(truths) else None

    def terms_of(logits: Tensor) -> dict[str, Tensor]:
        return _terms(logits.float(), labels, class_weights, weights, hard_share)

    main, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
    terms = terms_of(main)
    if auxiliary:
        sums = [torch.stack([*terms_of(logits).values()]).sum() for logits in auxiliary]
        terms["auxiliary"] = auxiliary_weight * torch.stack(sums).mean()
    return terms


def _terms(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    weights: Tensor | None,
    hard_share: float | None,
) -> dict[str, Tensor]:
    if class_weights is not None:
        class_weights = class_weights.to(logits.device)
    valid = (labels != VOID)[:, None]
    one_hot = F.one_hot(labels.masked_fill(labels == VOID, 0), logits.shape[1]).permute(0, 3, 1, 2)
    return {
        "cross_entropy": pixel_cross_entropy(
            logits,
            labels,
            void=VOID,
            class_weights=class_weights,
            weights=weights,
            hard_share=hard_share,
        ),
        "dice": dice_loss(
            logits.softmax(dim=1) * valid, one_hot * valid, class_weights=class_weights
        ),
    }
