"""Label maps of two models on one image: where they agree, class by class."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelmill.tasks.comparison.findings import lower_share, rank_findings
from pixelmill.tasks.comparison.results import ClassChange, Finding
from pixelmill.tasks.comparison.tallies import seen_classes
from pixelmill.tasks.metrics.results import Confusion, Metric

__all__ = ["VOID", "RegionTally", "agreement", "joint_pixels"]

VOID = "void"


def joint_pixels(
    labels_a: NDArray[Any],
    labels_b: NDArray[Any],
    index_a: NDArray[np.int64],
    index_b: NDArray[np.int64],
    num_classes: int,
) -> NDArray[np.int64]:
    """(K + 1, K + 1) pixels by class in A and in B; the last is void.

    Args:
        labels_a: (H, W) label map of A.
        labels_b: the same of B.
        index_a: label value of A -> class of both together, K for void.
        index_b: the same of B.
        num_classes: K.

    Raises:
        ValueError: the maps have different sizes.
    """
    if labels_a.shape != labels_b.shape:
        raise ValueError(
            f"label maps of one image must be of one size, got {labels_a.shape} and "
            f"{labels_b.shape}: one of the stores is damaged, see `pixelmill audit`"
        )
    a = index_a[np.minimum(labels_a, len(index_a) - 1)]
    b = index_b[np.minimum(labels_b, len(index_b) - 1)]
    size = num_classes + 1
    joint = np.bincount((a * size + b).ravel(), minlength=size * size)
    return joint.reshape(size, size)


def agreement(joint: NDArray[np.int64]) -> float:
    """Share of the pixels, less those that are void in both, that have one class."""
    total = int(joint.sum() - joint[-1, -1])
    return int(np.trace(joint[:-1, :-1])) / total if total else 1.0


@dataclass(slots=True)
class RegionTally:
    """Sums over images of two models that give label maps.

    Attributes:
        joint: (K + 1, K + 1) pixels.
        present: (K, 2) images in which A, and B, has the class.
        apart: (K, 3) of images with the class in either: how many, and the sum and the sum of
            squares of 1 - IoU. Pixels of one image depend on each other, so images are counted.
    """

    classes: tuple[str, ...]
    joint: NDArray[np.int64] = field(init=False)
    present: NDArray[np.int64] = field(init=False)
    apart: NDArray[np.float64] = field(init=False)
    num_images: int = 0
    sum_agreement: float = 0.0

    def __post_init__(self) -> None:
        """Begin at nothing."""
        size = len(self.classes)
        self.joint = np.zeros((size + 1, size + 1), np.int64)
        self.present = np.zeros((size, 2), np.int64)
        self.apart = np.zeros((size, 3))

    def add(self, joint: NDArray[np.int64]) -> None:
        """Take one image's `joint_pixels`."""
        self.joint += joint
        in_a, in_b = joint.sum(axis=1)[:-1], joint.sum(axis=0)[:-1]
        both = np.diag(joint)[:-1]
        self.present += np.column_stack([in_a > 0, in_b > 0])
        either = in_a + in_b - both
        known = either > 0
        apart = 1 - both[known] / either[known]
        self.apart[known] += np.column_stack([np.ones(len(apart)), apart, apart**2])
        self.num_images += 1
        self.sum_agreement += agreement(joint)

    def _iou(self) -> NDArray[np.float64]:
        both = np.diag(self.joint)[:-1].astype(float)
        either = self.joint.sum(axis=1)[:-1] + self.joint.sum(axis=0)[:-1] - both
        return np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)

    def headline(self) -> tuple[Metric, ...]:
        """Numbers over all classes."""
        iou = self._iou()
        found = [
            Metric(
                "pixel agreement",
                agreement(self.joint),
                "pixels to which both give one class, as a share of all that are not void in both",
            )
        ]
        if np.isfinite(iou).any():
            found.append(
                Metric(
                    "mask IoU",
                    float(np.nanmean(iou)),
                    "pixels of a class in both over pixels of it in either, all images together; "
                    "mean over the classes that either has",
                )
            )
        return tuple(found)

    def per_class(self) -> tuple[ClassChange, ...]:
        """Images with the class, its share of the pixels, and how far the two agree."""
        total = max(1, int(self.joint.sum()))
        iou = self._iou()
        rows = []
        for k, name in enumerate(self.classes):
            if np.isnan(iou[k]):
                continue
            share_a = float(self.joint[k].sum() / total)
            share_b = float(self.joint[:, k].sum() / total)
            values = {"IoU": float(iou[k]), "share in A": share_a, "share in B": share_b}
            num_a, num_b = (int(number) for number in self.present[k])
            rows.append(ClassChange(name, num_a, num_b, values))
        return tuple(rows)

    def confusion(self) -> Confusion | None:
        """Pixels by class in A and in B."""
        return seen_classes(self.joint, (*self.classes, VOID), "pixels")

    def findings(self) -> tuple[Finding, ...]:
        """Classes by how much more of them changed than of the others, and all together."""
        found = []
        apart = 1 - agreement(self.joint)
        found.append(
            Finding(
                "pixels",
                None,
                apart,
                lower_share(apart * self.num_images, self.num_images),
                f"all classes: {apart:.1%} of the pixels have another class in B",
            )
        )
        for k, name in enumerate(self.classes):
            count, total, squares = self.apart[k]
            if not count:
                continue
            rest_count, rest_total, _ = self.apart.sum(axis=0) - self.apart[k]
            usual = rest_total / rest_count if rest_count else 0.0
            mean = total / count
            spread = max(0.0, squares / count - mean**2) / count
            low = min(mean - 1.96 * spread**0.5, lower_share(total, count)) - usual
            text = self._text(k, int(count), mean)
            found.append(Finding("regions", name, float(mean), float(low), text))
        return rank_findings(found)

    def _text(self, k: int, count: int, mean: float) -> str:
        num_a, num_b = (int(number) for number in self.present[k])
        name = self.classes[k]
        if not num_b:
            return f"class {name}: gone, in {num_a:,} images of A and in none of B"
        if not num_a:
            return f"class {name}: new, in {num_b:,} images of B and in none of A"
        gone = self.joint[k].copy()
        gone[k] = 0
        text = f"class {name}: IoU {1 - mean:.3f} on average over {count:,} images"
        if gone.sum() > 0.05 * self.joint[k].sum():
            to = (*self.classes, VOID)[int(np.argmax(gone))]
            text += f"; {gone.sum() / self.joint[k].sum():.0%} of its pixels went, most to {to}"
        return text
