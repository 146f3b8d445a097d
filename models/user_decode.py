"""A user's function between the raw outputs of their network and predictions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelmill.configs.schema import TaskName
from pixelmill.models.interface import (
    BoxOutput,
    CaptionOutput,
    ClassOutput,
    SemanticOutput,
    ViewOutput,
)
from pixelmill.models.spec import ModelSpec
from pixelmill.models.user_code import import_file

__all__ = ["Decode", "load_decode", "read_arrays"]

Decode = Callable[[list[NDArray[Any]], tuple[int, int]], Sequence[Any]]


def load_decode(spec: ModelSpec) -> Decode | None:
    """Import the function that a spec names, from its file.

    Raises:
        FileNotFoundError: the file is gone.
        ValueError: the file has changed since the model was resolved, or has no such function.
    """
    if spec.decode_path is None or spec.decode_function is None:
        return None
    path = Path(spec.decode_path)
    return cast("Decode", import_file(spec.name, path, spec.decode_function, spec.decode_sha256))


def read_arrays(
    outputs: list[NDArray[Any]],
    spec: ModelSpec,
    canvas: tuple[int, int],
    decode: Decode | None,
) -> list[ViewOutput]:
    """What a batch's raw arrays say of each image.

    Args:
        outputs: of the network, in its order, batch axis first.
        spec: says the task and the number of classes.
        canvas: (height, width).
        decode: the user's function. Without one, the first output is taken for class logits:
            (B, K, h, w) of a segmenter, (B, K) of a classifier.

    Raises:
        ValueError: there is no decode function and the task needs one, or what it returned does
            not fit the task.
    """
    if decode is not None:
        results: Sequence[Any] = decode(outputs, canvas)
    elif spec.task == "semantic_segmentation":
        results = list(outputs[0])
    elif spec.task == "classification":
        results = list(torch.from_numpy(outputs[0]).float().softmax(dim=1).numpy())
    else:
        raise ValueError(
            f"{spec.name}: the task {spec.task} needs a decode function for this network's "
            "outputs; set decode: file.py:function"
        )
    if len(results) != len(outputs[0]):
        raise ValueError(
            f"{spec.name}: decode must return one result for each of {len(outputs[0])} images, "
            f"got {len(results)}"
        )
    return [_READERS[spec.task](result, spec) for result in results]


def _read_boxes(result: Any, spec: ModelSpec) -> BoxOutput:
    boxes, scores, labels = (_tensor(part) for part in result[:3])
    masks = _tensor(result[3]).float() if len(result) > 3 else None
    boxes, scores, labels = boxes.float(), scores.float(), labels.long()
    count = len(scores)
    if boxes.shape != (count, 4) or labels.shape != (count,) or scores.ndim != 1:
        raise ValueError(
            f"{spec.name}: decode must return boxes (N, 4), scores (N,), labels (N,), got "
            f"{tuple(boxes.shape)}, {tuple(scores.shape)}, {tuple(labels.shape)}"
        )
    if masks is not None and (masks.ndim != 3 or len(masks) != count):
        raise ValueError(f"{spec.name}: masks must be (N, M, M), got {tuple(masks.shape)}")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < len(spec.classes):
        raise ValueError(
            f"{spec.name}: labels must be in [0, {len(spec.classes)}), got "
            f"{int(labels.min())} to {int(labels.max())}"
        )
    return BoxOutput(boxes, scores, labels, masks)


def _read_semantic(result: Any, spec: ModelSpec) -> SemanticOutput:
    logits = _tensor(result).float()
    if logits.ndim != 3 or len(logits) != len(spec.classes):
        raise ValueError(
            f"{spec.name}: logits must be ({len(spec.classes)}, h, w), got {tuple(logits.shape)}"
        )
    return SemanticOutput(logits)


def _read_caption(result: Any, spec: ModelSpec) -> CaptionOutput:
    text, logprob, num_tokens = result
    return CaptionOutput(str(text), float(logprob), int(num_tokens))


def _read_classes(result: Any, spec: ModelSpec) -> ClassOutput:
    probs = _tensor(result).float()
    if probs.shape != (len(spec.classes),):
        raise ValueError(
            f"{spec.name}: probs must be ({len(spec.classes)},), got {tuple(probs.shape)}"
        )
    return ClassOutput(probs)


_READERS: dict[TaskName, Callable[[Any, ModelSpec], ViewOutput]] = {
    "detection": _read_boxes,
    "instance_segmentation": _read_boxes,
    "semantic_segmentation": _read_semantic,
    "captioning": _read_caption,
    "classification": _read_classes,
}


def _tensor(array: Any) -> Tensor:
    return array.cpu() if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
