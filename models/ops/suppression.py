"""Which of many overlapping candidates are one object: NMS hard and soft, and box fusion.

Everything here is deterministic under equal scores: the candidate with the lower index goes first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.ops.boxes import box_ios, box_iou

__all__ = [
    "Kept",
    "class_thresholds",
    "greedy_nms",
    "hard_nms",
    "preselect",
    "rank",
    "soft_nms",
    "suppress",
    "weighted_box_fusion",
]

# Boxes compared with all at once: against 10,000 others they take 10 MB
_NMS_ROWS = 256
# Rounds of suppression between two looks at whether it has ended, each a wait for a GPU
_ROUNDS = 4

Overlap = Literal["iou", "ios"]
_OVERLAPS: dict[Overlap, Callable[[Tensor, Tensor], Tensor]] = {"iou": box_iou, "ios": box_ios}


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left of N candidates, best first.

    Attributes:
        boxes_xyxy: (M, 4) float32.
        scores: (M,) float32, not increasing.
        labels: (M,) int64.
        source: (M,) int64, index of the candidate that the box is, or is led by if it is fused.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    source: Tensor

    def first(self, count: int) -> "Kept":
        """The best `count`."""
        return Kept(
            self.boxes_xyxy[:count], self.scores[:count], self.labels[:count], self.source[:count]
        )


def rank(scores: Tensor) -> Tensor:
    """(N,) indices from the best to the worst score."""
    return torch.sort(scores, descending=True, stable=True).indices


def class_thresholds(config: BoxPostprocess, classes: Sequence[str]) -> Tensor:
    """(K,) least score of each class.

    Raises:
        ValueError: a threshold is given for a class that the model does not have.
    """
    unknown = sorted(set(config.class_thresholds) - set(classes))
    if unknown:
        raise ValueError(
            f"class_thresholds names {', '.join(unknown)}, but the model's classes are "
            f"{', '.join(classes)}"
        )
    return torch.tensor(
        [config.class_thresholds.get(name, config.score_threshold) for name in classes]
    )


def preselect(scores: Tensor, labels: Tensor, thresholds: Tensor, top_k: int) -> Tensor:
    """(M,) indices of the best `top_k` candidates that reach their class' threshold, best first."""
    passing = torch.nonzero(scores >= thresholds[labels]).squeeze(1)
    return passing[rank(scores[passing])[:top_k]]


def suppress(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    config: BoxPostprocess,
    thresholds: Tensor,
    *,
    num_votes: int = 1,
) -> Kept:
    """Reconcile the candidates of one image as the config says.

    Args:
        boxes_xyxy: (N, 4) float32 pixels.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64.
        config: names the method and its numbers.
        thresholds: (K,) least score of each class, which rescored boxes must reach again.
        num_votes: times that the same scene was scored; for weighted_fusion.

    Returns:
        At most `config.max_detections` boxes.
    """
    groups = torch.zeros_like(labels) if config.class_agnostic else labels
    if config.nms == "weighted_fusion":
        kept = weighted_box_fusion(
            boxes_xyxy,
            scores,
            labels,
            groups,
            config.iou_threshold,
            overlap=config.overlap,
            num_votes=num_votes,
        )
        passing = kept.scores >= thresholds[kept.labels]
        kept = Kept(
            kept.boxes_xyxy[passing],
            kept.scores[passing],
            kept.labels[passing],
            kept.source[passing],
        )
        return kept.first(config.max_detections)
    if config.nms in ("soft_linear", "soft_gaussian"):
        index, scores = soft_nms(
            boxes_xyxy,
            scores,
            groups,
            thresholds[labels],
            config.iou_threshold,
            sigma=config.sigma if config.nms == "soft_gaussian" else None,
            overlap=config.overlap,
            max_detections=config.max_detections,
        )
        return Kept(boxes_xyxy[index], scores, labels[index], index)
    if config.nms == "hard":
        index = hard_nms(boxes_xyxy, scores, groups, config.iou_threshold, overlap=config.overlap)
    else:
        index = rank(scores)
    index = index[: config.max_detections]
    return Kept(boxes_xyxy[index], scores[index], labels[index], index)


def hard_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    groups: Tensor,
    iou_threshold: float,
    *,
    overlap: Overlap = "iou",
) -> Tensor:
    """Drop each box that overlaps a better one of its group by more than the threshold.

    With "iou" it keeps exactly what `torchvision.ops.batched_nms` keeps.

    Args:
        boxes_xyxy: (N, 4) float32.
        scores: (N,) float32.
        groups: (N,) int64; boxes of different groups do not compete.
        iou_threshold: overlap above which the worse box goes.
        overlap: how it is measured.

    Returns:
        (M,) indices of the boxes kept, best first.
    """
    order = rank(scores)
    boxes_xyxy, scores, groups = boxes_xyxy[order], scores[order], groups[order]
    if overlap == "iou":
        keep = batched_nms(boxes_xyxy, scores, groups, iou_threshold)
        return order[keep.sort().values]
    alive = torch.ones(len(order), dtype=torch.bool, device=scores.device)
    for start in range(0, len(order), _NMS_ROWS):
        rows, rest = slice(start, start + _NMS_ROWS), slice(start, None)
        overlaps = _OVERLAPS[overlap](boxes_xyxy[rows], boxes_xyxy[rest]) > iou_threshold
        rivals = (overlaps & (groups[rows, None] == groups[rest])).triu(diagonal=1)
        size = len(rivals)
        alive[rows] = _greedy(rivals[:, :size], alive[rows])
        alive[rest][size:] &= ~(rivals[:, size:] & alive[rows, None]).any(dim=0)
    return order[alive]


def greedy_nms(boxes_xyxy: Tensor, usable: Tensor, iou_threshold: float) -> Tensor:
    """Suppression within each of many groups at once, without a wait for each.

    Args:
        boxes_xyxy: (G, N, 4) float32, best first.
        usable: (G, N) bool: which of them count.
        iou_threshold: overlap above which the worse box goes.

    Returns:
        (G, N) bool: the usable boxes that no better one of its group suppresses.
    """
    rivals = torch.stack(
        [(box_iou(boxes, boxes) > iou_threshold).triu(diagonal=1) for boxes in boxes_xyxy]
    )
    return _greedy(rivals, usable)


def _greedy(rivals: Tensor, usable: Tensor) -> Tensor:
    """Which are kept if each, best first, drops its later rivals unless it was dropped itself.

    All at once, until nothing changes: after t rounds all is settled that depends on chains of up
    to t rivals, so the end is what going through them one by one gives.

    Args:
        rivals: (..., N, N) bool: row i drops column j > i.
        usable: (..., N) bool.
    """
    kept = usable
    while True:
        before = kept
        for _ in range(_ROUNDS):
            kept = usable & ~(rivals & kept[..., None]).any(dim=-2)
        if torch.equal(kept, before):
            return kept


def soft_nms(
    boxes_xyxy: Tensor,
    scores: Tensor,
    groups: Tensor,
    floors: Tensor,
    iou_threshold: float,
    *,
    sigma: float | None = None,
    overlap: Overlap = "iou",
    max_detections: int = 100,
) -> tuple[Tensor, Tensor]:
    """Lower the score of boxes that overlap a better one, instead of dropping them.

    Args:
        boxes_xyxy: (N, 4) float32.
        scores: (N,) float32.
        groups: (N,) int64; boxes of different groups do not compete.
        floors: (N,) scores below which a box is dropped.
        iou_threshold: overlap from which the linear decay sets in.
        sigma: width of the Gaussian decay; None: linear decay.
        overlap: how it is measured.
        max_detections: boxes returned at most.

    Returns:
        (M,) indices, best first, and their (M,) lowered scores.

    Source: Bodla et al., Soft-NMS: Improving Object Detection With One Line of Code, 2017.
    """
    scores = scores.clone()
    waiting = scores >= floors
    index: list[int] = []
    while len(index) < max_detections and waiting.any():
        best = int(torch.where(waiting, scores, -1.0).argmax())
        waiting[best] = False
        index.append(best)
        row = _OVERLAPS[overlap](boxes_xyxy[best : best + 1], boxes_xyxy)[0]
        if sigma is None:
            decay = torch.where(row >= iou_threshold, 1 - row, 1.0)
        else:
            decay = torch.exp(-(row**2) / sigma)
        rival = waiting & (groups == groups[best])
        scores = torch.where(rival, scores * decay, scores)
        waiting &= scores >= floors
    chosen = torch.tensor(index, dtype=torch.int64, device=scores.device)
    return chosen, scores[chosen]


def weighted_box_fusion(
    boxes_xyxy: Tensor,
    scores: Tensor,
    labels: Tensor,
    groups: Tensor,
    iou_threshold: float,
    *,
    overlap: Overlap = "iou",
    num_votes: int = 1,
) -> Kept:
    """Average boxes that overlap, weighted by their scores.

    Args:
        boxes_xyxy: (N, 4) float32.
        scores: (N,) float32.
        labels: (N,) int64; a fused box has the label of its best member.
        groups: (N,) int64; boxes of different groups are not fused.
        iou_threshold: overlap with the average so far above which a box joins it.
        overlap: how it is measured.
        num_votes: times that the scene was scored; a box found fewer times loses score.

    Source: Solovyev et al., Weighted boxes fusion, 2021, section 3.
    """
    order = rank(scores)
    total = boxes_xyxy.new_zeros((len(order), 5))  # per cluster: sum of score * box, of scores
    fused = boxes_xyxy.new_zeros((len(order), 4))
    members = scores.new_zeros(len(order))
    leaders: list[int] = []
    for candidate in order.tolist():
        box, score = boxes_xyxy[candidate : candidate + 1], scores[candidate]
        count = len(leaders)
        row = _OVERLAPS[overlap](box, fused[:count])[0]
        row = torch.where(groups[leaders] == groups[candidate], row, -1.0)
        cluster = int(row.argmax()) if count else 0
        if not count or row[cluster] <= iou_threshold:
            cluster = count
            leaders.append(candidate)
        total[cluster, :4] += score * box[0]
        total[cluster, 4] += score
        members[cluster] += 1
        # a score of 0 has no weight; such a cluster is its first box
        weight = total[cluster, 4]
        fused[cluster] = total[cluster, :4] / weight if weight > 0 else boxes_xyxy[candidate]
    count = len(leaders)
    confidence = total[:count, 4] / members[:count] * members[:count].clamp(max=num_votes)
    confidence = confidence / num_votes
    best_first = rank(confidence)
    source = torch.tensor(leaders, dtype=torch.int64, device=scores.device)[best_first]
    return Kept(fused[:count][best_first], confidence[best_first], labels[source], source)
