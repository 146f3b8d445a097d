"""Training losses as pure functions of tensors."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelmill.models.ops.boxes import (
    Weights,
    box_area,
    box_iou_pairs,
    decode_boxes,
    encode_boxes,
)

__all__ = [
    "BoxLoss",
    "balanced_weights",
    "box_loss",
    "dice_loss",
    "dice_per_class",
    "giou_loss",
    "hard_negatives",
    "pixel_cross_entropy",
    "pixel_weights",
    "sigmoid_focal_loss",
    "weighted_sum",
]

BoxLoss = Literal["smooth_l1", "l1", "iou", "giou"]


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Cross-entropy that counts what is already right for little.

    Args:
        logits: float, any shape.
        targets: the same shape, in {0, 1}.
        alpha: weight of the positives; 1 - alpha is that of the negatives.
        gamma: power of the error that multiplies the cross-entropy; 0 is plain cross-entropy.

    Returns:
        Loss per element, of the shape of `logits`.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, equation 5.
    """
    probs = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    error = probs + targets - 2 * probs * targets
    weight = (2 * alpha - 1) * targets + (1 - alpha)
    return weight * error**gamma * cross_entropy


def giou_loss(predicted_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """1 - generalised IoU of box pairs: has a gradient where the boxes do not meet, too.

    Args:
        predicted_xyxy: (N, 4) float.
        target_xyxy: (N, 4) float, sides above zero.

    Returns:
        (N,) in [0, 2].

    Source: Rezatofighi et al., Generalized Intersection over Union, 2019, algorithm 1.
    """
    low = torch.maximum(predicted_xyxy[:, :2], target_xyxy[:, :2])
    high = torch.minimum(predicted_xyxy[:, 2:], target_xyxy[:, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=1)
    union = box_area(predicted_xyxy) + box_area(target_xyxy) - intersection
    hull_low = torch.minimum(predicted_xyxy[:, :2], target_xyxy[:, :2])
    hull_high = torch.maximum(predicted_xyxy[:, 2:], target_xyxy[:, 2:])
    hull = (hull_high - hull_low).prod(dim=1)
    return 1 - intersection / union + (hull - union) / hull


def box_loss(
    kind: BoxLoss,
    deltas: Tensor,
    target_xyxy: Tensor,
    proposals_xyxy: Tensor,
    *,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
    beta: float = 1.0,
) -> Tensor:
    """How far predicted boxes are from their truth, in one of the usual measures.

    Args:
        kind: "smooth_l1" or "l1" of the encoded offsets, summed over the four of a box; 1 - "iou"
            or 1 - "giou" of the decoded box.
        deltas: (N, 4) float, predicted.
        target_xyxy: (N, 4) truth, sides above zero.
        proposals_xyxy: (N, 4) boxes that the offsets refer to, sides above zero.
        weights: of the box coding.
        beta: smooth L1 is quadratic below it.

    Returns:
        (N,).

    Raises:
        ValueError: no such kind.
    """
    if kind in ("smooth_l1", "l1"):
        codes = encode_boxes(target_xyxy, proposals_xyxy, weights)
        if kind == "l1":
            return (deltas - codes).abs().sum(dim=1)
        return F.smooth_l1_loss(deltas, codes, reduction="none", beta=beta).sum(dim=1)
    predicted = decode_boxes(deltas, proposals_xyxy, weights)
    if kind == "giou":
        return giou_loss(predicted, target_xyxy)
    if kind == "iou":
        return 1 - box_iou_pairs(predicted, target_xyxy)
    raise ValueError(f"expected a box loss of smooth_l1, l1, iou or giou, got {kind!r}")


def hard_negatives(errors: Tensor, positive: Tensor, ratio: float) -> Tensor:
    """The negatives with the largest errors, some for each positive of the same image.

    Args:
        errors: (B, A) float, what each would cost.
        positive: (B, A) bool.
        ratio: negatives per positive, at least one an image.

    Returns:
        (B, A) bool, false where `positive` is true.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, 2016, section 2.2.
    """
    wanted = (ratio * positive.sum(dim=1, keepdim=True)).clamp(min=1)
    of_negatives = errors.detach().masked_fill(positive, float("-inf"))
    place = of_negatives.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (place < wanted) & ~positive


def dice_per_class(probs: Tensor, targets: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """1 - Dice coefficient with squared sums, of each class.

    Args:
        probs: (B, K, ...) float in [0, 1].
        targets: the same shape, in [0, 1]; zero both where a pixel must not count.
        epsilon: added above and below, so that a class that is in neither costs nothing.

    Returns:
        (K,) in [0, 1].

    Source: Milletari et al., V-Net, 2016, section 3, over the pixels of the whole batch.
    """
    over = (0, *range(2, probs.ndim))
    overlap = 2 * (targets * probs).sum(over) + epsilon
    total = (targets**2).sum(over) + (probs**2).sum(over) + epsilon
    return 1 - overlap / total


def dice_loss(
    probs: Tensor,
    targets: Tensor,
    *,
    class_weights: Tensor | None = None,
    epsilon: float = 1e-6,
) -> Tensor:
    """Mean of `dice_per_class` over the classes.

    Args:
        probs: (B, K, ...) float in [0, 1].
        targets: the same shape.
        class_weights: (K,) of the mean; None: all the same.
        epsilon: see `dice_per_class`.

    Returns:
        Scalar in [0, 1].
    """
    losses = dice_per_class(probs, targets, epsilon=epsilon)
    if class_weights is None:
        return losses.mean()
    return (class_weights * losses).sum() / class_weights.sum()


def balanced_weights(frequencies: Tensor) -> Tensor:
    """Class weights that make up for rarity: mean frequency over own frequency.

    Args:
        frequencies: (K,) pixels or objects of each class.

    Returns:
        (K,) float; 0 for a class that does not occur.

    Source: what scikit-learn calls class_weight="balanced", after King and Zeng, Logistic
    Regression in Rare Events Data, 2001.
    """
    counts = frequencies.float()
    return torch.where(counts > 0, counts.sum() / (len(counts) * counts.clamp(min=1)), 0.0)


def pixel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    void: int,
    class_weights: Tensor | None = None,
    weights: Tensor | None = None,
    hard_share: float | None = None,
) -> Tensor:
    """Mean cross-entropy of the pixels that are not void, each with its weight.

    Args:
        logits: (B, K, H, W) float.
        labels: (B, H, W) int64.
        void: label that is not learnt from.
        class_weights: (K,) factor on the pixels of each class.
        weights: (B, H, W) factor on each pixel, such as `pixel_weights`.
        hard_share: only this share of the pixels, those that cost most, is learnt from.

    Returns:
        Scalar: the weighted sum over the sum of the weights, 0 where all pixels are void.

    Source: Ronneberger et al., U-Net, 2015, equation 1; the choice of the hardest pixels: Pohlen et
    al., Full-Resolution Residual Networks, 2017 (bootstrapped cross-entropy).
    """
    errors = F.cross_entropy(logits, labels, ignore_index=void, reduction="none")
    factor = (labels != void).float()
    if weights is not None:
        factor = factor * weights
    if class_weights is not None:
        factor = factor * class_weights.to(factor)[labels.masked_fill(labels == void, 0)]
    if hard_share is not None:
        costs = (errors.detach() * factor).flatten()
        number = max(1, round(hard_share * int((factor > 0).sum())))
        hardest = torch.zeros_like(costs)
        hardest[costs.topk(number).indices] = 1
        factor = factor * hardest.view_as(factor)
    return (errors * factor).sum() / factor.sum().clamp(min=1e-6)


def pixel_weights(
    labels: Tensor,
    instances: Tensor,
    class_weights: Tensor,
    *,
    border_weight: float = 10.0,
    sigma: float = 5.0,
) -> Tensor:
    """How much each pixel counts: by its class, and more in narrow gaps between objects.

    To be multiplied with the cross-entropy of the pixels.

    Args:
        labels: (H, W) int64, class of each pixel.
        instances: (H, W) int64, object of each pixel; 0 is none.
        class_weights: (K,) float, such as the inverse of each class' frequency.
        border_weight: of a pixel that touches two objects, w0 of the paper.
        sigma: pixels over which that fades.

    Returns:
        (H, W) float32.

    Source: Ronneberger, Fischer, Brox, U-Net, 2015, equation 2; distances are to the nearest pixel
    of an object, and beyond six sigma the second term, below 1e-7 of its peak, is left out.
    """
    reach = math.ceil(6 * sigma)
    beyond = float("inf")
    nearest = torch.full(labels.shape, beyond, device=labels.device)
    second = nearest.clone()
    height, width = labels.shape
    for name in instances.unique().tolist():
        if name == 0:
            continue
        rows, columns = torch.nonzero(instances == name, as_tuple=True)
        window = (
            slice(max(int(rows.min()) - reach, 0), min(int(rows.max()) + reach + 1, height)),
            slice(max(int(columns.min()) - reach, 0), min(int(columns.max()) + reach + 1, width)),
        )
        distance = _distance_to(instances[window] == name, reach)
        second[window] = torch.minimum(second[window], torch.maximum(nearest[window], distance))
        nearest[window] = torch.minimum(nearest[window], distance)
    gap = border_weight * torch.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return class_weights.float()[labels] + torch.where(instances == 0, gap, 0.0)


def _distance_to(mask: Tensor, reach: int) -> Tensor:
    """(H, W) Euclidean distance to the nearest pixel of a mask; inf beyond `reach` on an axis."""
    squared = torch.where(mask, 0.0, float("inf"))
    for axis in (1, 0):
        start, steps = squared, min(reach, squared.shape[axis] - 1)
        squared = start.clone()
        for step in range(1, steps + 1):
            length = start.shape[axis] - step
            for there, here in ((0, step), (step, 0)):
                target = squared.narrow(axis, there, length)
                target.copy_(torch.minimum(target, start.narrow(axis, here, length) + step**2))
    return squared.sqrt()


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of scalar terms, each times its weight; a term without a weight counts once."""
    return torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
