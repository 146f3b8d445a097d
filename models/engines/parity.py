"""The parity gate: an engine must answer as PyTorch in float32 does, or it is not used."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.interface import (
    BoxOutput,
    CaptionOutput,
    ClassOutput,
    GateReport,
    Network,
    SemanticOutput,
    ViewOutput,
)
from pixelmill.models.ops.boxes import box_iou
from pixelmill.models.ops.suppression import hard_nms
from pixelmill.models.spec import ModelSpec

__all__ = [
    "INT8_LIMITS",
    "LIMITS",
    "NUM_IMAGES",
    "REDUCED_LIMITS",
    "check_parity",
    "compare_outputs",
    "sample_images",
]

NUM_IMAGES = 8

# Figures, and how bad they may be. In float32 engines differ by the order of their sums: 6e-7 was
# measured on our networks, 5e-5 on 50 layers; a wrong layout, constant or normalisation gives more
# than 0.1. What follows may flip where two classes or words are equally likely, hardly elsewhere.
LIMITS: Mapping[str, float] = {
    "raw_error": 1e-3,
    "boxes_found": 0.99,
    "mask_iou": 0.99,
    "labels_equal": 0.999,
    "top_class_equal": 0.999,
    "captions_equal": 0.85,
}
# bfloat16 has 8 bits of precision (0.4 % a number): 4e-3 to 2e-2 was measured on trained networks,
# 99 % of the boxes, 99.8 % of the labels, all sentences.
REDUCED_LIMITS: Mapping[str, float] = {
    "raw_error": 0.1,
    "boxes_found": 0.9,
    "mask_iou": 0.9,
    "labels_equal": 0.97,
    "top_class_equal": 0.85,
    "captions_equal": 0.5,
}
# int8 has 256 steps for the whole range of a tensor, found on the user's images, not on these. The
# accuracy is judged where the graphs are made; here only that this machine computes them rightly.
# Raw outputs were 0.14 away for a detector that lost 0.3 % of its AP, 0.93 for one that lost 6 %.
INT8_LIMITS: Mapping[str, float] = {
    "raw_error": 1.0,
    "boxes_found": 0.7,
    "mask_iou": 0.85,
    "labels_equal": 0.9,
    "top_class_equal": 0.6,
    "captions_equal": 0.0,
}
_UPPER = ("raw_error",)

# Per image; beyond them come candidates that nobody reads, at scores of noise
_BEST_BOXES = 20
_LEAST_IOU = 0.8
_SCORE_STEP = 0.1


def sample_images(canvas: tuple[int, int], seed: int = 0) -> Tensor:
    """(8, H, W, 3) uint8: an empty image, noise, and six of shaded shapes before a gradient."""
    generator = torch.Generator().manual_seed(seed)
    height, width = canvas
    images = torch.zeros((NUM_IMAGES, height, width, 3))
    images[1] = torch.rand((height, width, 3), generator=generator) * 255
    rows = torch.linspace(0, 1, height)[:, None, None]
    columns = torch.linspace(0, 1, width)[None, :, None]
    for image in images[2:]:
        top, bottom = torch.rand((2, 3), generator=generator) * 255
        image += top * (1 - rows) + bottom * rows
        for _ in range(12):
            colour = torch.rand(3, generator=generator) * 255
            y, x, h, w, is_round = torch.rand(5, generator=generator).tolist()
            dy, dx = (rows - y) / (0.03 + 0.25 * h), (columns - x) / (0.03 + 0.25 * w)
            reach = dy**2 + dx**2 if is_round > 0.5 else torch.maximum(dy.abs(), dx.abs())
            shade = (1 - 0.4 * dy).clamp(0, 1)
            image[:] = torch.where(reach < 1, colour * shade, image)
        image += torch.randn((height, width, 1), generator=generator) * 4
    return images.clamp(0, 255).to(torch.uint8)


def check_parity(network: Network, reference: Network, spec: ModelSpec) -> GateReport:
    """Compare two networks on eight images of the model's first canvas.

    Args:
        network: to be judged.
        reference: the same model in PyTorch, or an .onnx file in ONNX Runtime, in float32.
        spec: of the network that is judged.

    Returns:
        Figures and those beyond `LIMITS`, `INT8_LIMITS`, or `REDUCED_LIMITS` for bf16 and fp16:

        - raw_error: largest relative error (Frobenius norm) of a raw output tensor;
        - boxes_found: share of the best boxes of either that the other has too, of that class, with
          an overlap of 0.8 and a score that is no more than 0.1 away;
        - mask_iou: mean overlap of their masks;
        - labels_equal: share of the places with the same best class;
        - top_class_equal, captions_equal: share of the images with the same best class, sentence.
    """
    canvas = spec.preprocess.canvases[0]
    images = sample_images(canvas)
    size = spec.batch_size if isinstance(spec.batch_size, int) else NUM_IMAGES
    batches = images.split(min(max(size, 2), NUM_IMAGES))
    raw_errors: list[float] = []
    ours: list[ViewOutput] = []
    theirs: list[ViewOutput] = []
    for batch in batches:
        raw = network.forward(batch.to(network.device))
        expected = reference.forward(batch.to(reference.device))
        raw_errors.append(_raw_error(raw, expected))
        ours += network.read_out(raw, canvas)
        theirs += reference.read_out(expected, canvas)
    figures = {"raw_error": max(raw_errors), **compare_outputs(ours, theirs, spec)}
    limits = {"fp32": LIMITS, "int8": INT8_LIMITS}.get(spec.precision, REDUCED_LIMITS)
    return GateReport(figures, tuple(_faults(figures, limits)))


def _faults(figures: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    faults = []
    for name, value in figures.items():
        limit = limits[name]
        # a comparison with NaN is false, so it is asked whether the figure is good
        is_good = value <= limit if name in _UPPER else value >= limit
        if not is_good:
            word = "over" if name in _UPPER else "under"
            faults.append(f"{name} is {value:.4g}, {word} the limit of {limit:g}")
    return faults


def _raw_error(raw: object, expected: object) -> float:
    pairs = list(zip(_numbers(raw), _numbers(expected), strict=True))
    return max((_relative_error(one, other) for one, other in pairs), default=0.0)


def _numbers(tree: object) -> list[Tensor]:
    return [leaf.double().cpu() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _relative_error(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    size = float(expected.norm())
    error = float((found - expected).norm())
    if not math.isfinite(error):
        return math.inf
    return error / size if size > 0 else error


def compare_outputs(
    ours: Sequence[ViewOutput], theirs: Sequence[ViewOutput], spec: ModelSpec
) -> dict[str, float]:
    """The figures of `check_parity` that need no raw outputs, of the same views in one order."""
    comparisons: dict[type, Callable[..., dict[str, float]]] = {
        BoxOutput: _compare_boxes,
        SemanticOutput: _compare_semantic,
        CaptionOutput: _compare_captions,
        ClassOutput: _compare_classes,
    }
    return comparisons[type(theirs[0])](ours, theirs, spec)


def _compare_boxes(
    ours: Sequence[BoxOutput], theirs: Sequence[BoxOutput], spec: ModelSpec
) -> dict[str, float]:
    config = cast("BoxPostprocess", spec.postprocess)
    found: list[bool] = []
    overlaps: list[float] = []
    for one, other in zip(ours, theirs, strict=True):
        for best, among in ((one, other), (other, one)):
            matches = _match(best, among, config)
            found += [index >= 0 for _, index in matches]
            if best.mask_probs is not None and among.mask_probs is not None:
                overlaps += [
                    _mask_iou(best.mask_probs[mine], among.mask_probs[index])
                    for mine, index in matches
                    if index >= 0
                ]
    figures = {"boxes_found": _mean(found)}
    return figures | ({"mask_iou": _mean(overlaps)} if overlaps else {})


def _match(best: BoxOutput, among: BoxOutput, config: BoxPostprocess) -> list[tuple[int, int]]:
    """Index of each of the best boxes, and of the most similar one of all the others, or -1."""
    boxes, scores, labels = best.boxes_xyxy.cpu(), best.scores.cpu(), best.labels.cpu()
    # Boxes near their class's threshold come and go with the last bits
    low = min([config.score_threshold, *config.class_thresholds.values()]) + _SCORE_STEP
    kept = hard_nms(boxes, scores, labels, config.iou_threshold, overlap=config.overlap)
    kept = kept[scores[kept] >= low][:_BEST_BOXES]
    if not len(among.scores):
        return [(index, -1) for index in kept.tolist()]
    overlap = box_iou(boxes[kept], among.boxes_xyxy.cpu())
    overlap[labels[kept][:, None] != among.labels.cpu()] = 0
    overlap[(scores[kept][:, None] - among.scores.cpu()).abs() > _SCORE_STEP] = 0
    value, index = overlap.max(dim=1)
    index[value < _LEAST_IOU] = -1
    return list(zip(kept.tolist(), index.tolist(), strict=True))


def _mask_iou(one: Tensor, other: Tensor) -> float:
    left, right = one.cpu() > 0.5, other.cpu() > 0.5
    union = int((left | right).sum())
    return int((left & right).sum()) / union if union else 1.0


def _compare_semantic(
    ours: Sequence[SemanticOutput], theirs: Sequence[SemanticOutput], spec: ModelSpec
) -> dict[str, float]:
    equal = [
        float((one.logits.argmax(0).cpu() == other.logits.argmax(0).cpu()).float().mean())
        for one, other in zip(ours, theirs, strict=True)
    ]
    return {"labels_equal": _mean(equal)}


def _compare_classes(
    ours: Sequence[ClassOutput], theirs: Sequence[ClassOutput], spec: ModelSpec
) -> dict[str, float]:
    equal = [
        int(one.probs.argmax()) == int(other.probs.argmax())
        for one, other in zip(ours, theirs, strict=True)
    ]
    return {"top_class_equal": _mean(equal)}


def _compare_captions(
    ours: Sequence[CaptionOutput], theirs: Sequence[CaptionOutput], spec: ModelSpec
) -> dict[str, float]:
    pairs = zip(ours, theirs, strict=True)
    return {"captions_equal": _mean([one.text == other.text for one, other in pairs])}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0
