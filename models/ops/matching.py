"""Which anchor learns which object."""

import torch
from torch import Tensor

__all__ = ["BACKGROUND", "IGNORED", "match_anchors"]

BACKGROUND = -1
IGNORED = -2


def match_anchors(
    iou: Tensor, *, foreground: float = 0.5, background: float = 0.4, low_quality: bool = True
) -> Tensor:
    """Give each anchor the object that it overlaps most, if it does so enough.

    Args:
        iou: (N, A) of N objects with A anchors, in [0, 1].
        foreground: least overlap of a match.
        background: anchors whose best overlap is below it are background; those between the two
            are ignored.
        low_quality: an object also gets the anchors that overlap it most of all anchors, however
            little (but for not at all), so that no object is left out.

    Returns:
        (A,) int64: index of the object, or BACKGROUND, or IGNORED.

    Source: Ren et al., Faster R-CNN, 2015, section 3.1.2; thresholds of RetinaNet, 2017.
    """
    if iou.shape[0] == 0:
        return torch.full((iou.shape[1],), BACKGROUND, dtype=torch.int64, device=iou.device)
    best_iou, best_object = iou.max(dim=0)
    match = best_object.clone()
    match[best_iou < foreground] = IGNORED
    match[best_iou < background] = BACKGROUND
    if low_quality:
        best_of_object = iou.max(dim=1, keepdim=True).values
        needed = ((iou == best_of_object) & (iou > 0)).any(dim=0)
        match[needed] = best_object[needed]
    return match
