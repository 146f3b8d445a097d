"""The best candidates of all images of a batch at once.

On a GPU every question for a value (`.cpu()`, `nonzero`, indexing by a mask) waits for all that was
asked of the device before. Here a batch waits twice, whatever is found in it: once to learn how
many candidates there are, once to fetch them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.interface import BoxOutput
from pixelmill.models.ops.suppression import hard_nms

__all__ = [
    "Candidates",
    "best_candidates",
    "fetch",
    "in_blocks",
    "pieces",
    "survivors",
    "taken_from",
]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best M candidates of each image, best first; images with fewer are filled up.

    Attributes:
        places: (B, M) int64, index of the anchor or region.
        labels: (B, M) int64, class; -1 says filling.
        scores: (B, M) float32.
    """

    places: Tensor
    labels: Tensor
    scores: Tensor


def pieces(batch_size: int, device: torch.device) -> Iterator[slice]:
    """How a batch is read out: on the CPU, which waits for nothing, image by image in its cache."""
    step = 1 if device.type == "cpu" else max(batch_size, 1)
    return (slice(start, start + step) for start in range(0, batch_size, step))


def best_candidates(
    passing: Tensor, score_of: Callable[[Tensor, Tensor, Tensor], Tensor], top_k: int
) -> Candidates:
    """The candidates with the highest scores; of equal ones those with the lower index.

    Args:
        passing: (B, A, K) bool: class k at place a of image b is a candidate.
        score_of: their (N,) image, place and class -> (N,) float32 scores in [0, 1].
        top_k: at most so many of each image.
    """
    image, places, labels = _indices_of(passing)
    scores = score_of(image, places, labels)
    # One sort by image, then by falling score: floats from 0 up are in the order of their bits
    falling = image * 2**32 - scores.view(torch.int32)
    order = torch.sort(falling, stable=True).indices
    images = torch.arange(len(passing), device=image.device)
    first = torch.searchsorted(image, images)
    count = torch.searchsorted(image, images, right=True) - first
    rank = torch.arange(min(top_k, len(image)), device=image.device)
    chosen = order[(first[:, None] + rank).clamp(max=len(image) - 1)]
    return Candidates(
        places=places[chosen],
        labels=torch.where(rank < count[:, None], labels[chosen], -1),
        scores=scores[chosen],
    )


def _indices_of(passing: Tensor) -> tuple[Tensor, ...]:
    """`torch.nonzero(passing, as_tuple=True)`."""
    if passing.device.type != "cpu":
        return torch.nonzero(passing, as_tuple=True)
    # NumPy skips what is false by words: where little is true, PyTorch takes many times as long
    found = np.unravel_index(np.flatnonzero(passing.numpy()), passing.shape)
    return tuple(torch.from_numpy(np.ascontiguousarray(each)) for each in found)


def taken_from(scores: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """How `best_candidates` looks up (B, A, K) scores."""

    def score_of(image: Tensor, place: Tensor, label: Tensor) -> Tensor:
        return scores[image, place, label]

    return score_of


def fetch(boxes_xyxy: Tensor, candidates: Candidates) -> list[BoxOutput]:
    """Bring the candidates of a batch to the CPU, in one copy and without the filling.

    Args:
        boxes_xyxy: (B, M, 4) float32 of the candidates.
        candidates: of B images.
    """
    labels = candidates.labels[..., None].to(boxes_xyxy.dtype)  # exact: classes are few
    table = torch.cat((boxes_xyxy, candidates.scores[..., None], labels), dim=-1).cpu()
    counts = (table[..., 5] >= 0).sum(dim=1).tolist()
    return [
        BoxOutput(
            rows[:count, :4].contiguous(),
            rows[:count, 4].contiguous(),
            rows[:count, 5].to(torch.int64),
        )
        for rows, count in zip(table, counts, strict=True)
    ]


def survivors(candidates: BoxOutput, config: BoxPostprocess) -> BoxOutput:
    """Those of an image's candidates, on the CPU, whose masks the engine may ask for.

    All of them, unless its suppression is one that we can do beforehand: it will repeat it, and
    find nothing to suppress.
    """
    if config.nms != "hard" or config.keep_candidates:
        return candidates
    boxes_xyxy, scores, labels = candidates.boxes_xyxy, candidates.scores, candidates.labels
    groups = torch.zeros_like(labels) if config.class_agnostic else labels
    kept = hard_nms(boxes_xyxy, scores, groups, config.iou_threshold, overlap=config.overlap)
    kept = kept[: config.max_detections]
    return BoxOutput(boxes_xyxy[kept], scores[kept], labels[kept])


def in_blocks(head: Callable[[Tensor], Tensor], regions: Tensor, size: int) -> Tensor:
    """Run a head over the regions of a batch.

    On a GPU in blocks of one size, the last one filled up: the number of regions changes which
    kernels are taken, and with them a region's last digits, and it depends on the batch mates. On
    the CPU, where `regions` are those of one image, all at once.

    Args:
        head: (n, ...) -> (n, ...).
        regions: (N, ...).
        size: of a block.
    """
    if regions.device.type == "cpu" or not len(regions):
        return head(regions)
    missing = -len(regions) % size
    filled = torch.cat((regions, regions.new_zeros(missing, *regions.shape[1:])))
    return torch.cat([head(block) for block in filled.split(size)])[: len(regions)]
