"""What a user who knows the libraries would write around the same models.

Pillow decodes and resizes, the networks are as they were trained (fp32, PyTorch's own memory
format) in evaluation and inference mode, and boxes, masks and label maps come back in original
pixels by torchvision's and PyTorch's own functions. Nothing is stored: the loops stop where the
results are arrays in memory, which is less than Pixelmill does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import batched_nms
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

from pixelbench.workloads import NUM_CLASSES, Workload
from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.build import locate_weights
from pixelmill.models.checkpoint import load_state
from pixelmill.models.interface import BoxOutput, CaptionOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.models.zoo import ARCHITECTURES

__all__ = ["LOOPS", "Loop", "Prepared", "Result", "build_loop", "open_image"]

SCORE_THRESHOLD = 0.05


@dataclass(frozen=True, slots=True)
class Result:
    """What was found in one image, in its original pixels; what the model is not for is None.

    Attributes:
        boxes_xyxy: (N, 4) float32.
        scores: (N,) float32.
        labels: (N,) int64, index into the network's classes.
        masks: (N, H, W) bool.
        semantic: (H, W) uint8.
        caption: a sentence.
        probs: (K,) float32.
    """

    boxes_xyxy: NDArray[np.float32] | None = None
    scores: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | None = None
    masks: NDArray[np.bool_] | None = None
    semantic: NDArray[np.uint8] | None = None
    caption: str | None = None
    probs: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """An image ready for its batch: (3, h, w) float32, and (height, width) of the original."""

    pixels: Tensor
    original_size: tuple[int, int]


class Loop(Protocol):
    """A user's model with its preparation and its postprocessing."""

    def prepare(self, image: Image.Image) -> Prepared:
        """Bring an RGB image to what the network takes."""
        ...

    def score(self, batch: Sequence[Prepared]) -> list[Result]:
        """Score a batch."""
        ...


def open_image(path: Path) -> Image.Image:
    """Decode a file, upright, as RGB."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


class _OwnModel:
    """One of Pixelmill's small architectures as its module: resized to fit, padded, normalised."""

    def __init__(self, spec: ModelSpec, device: str) -> None:
        architecture = ARCHITECTURES[spec.architecture]
        module = architecture.build(**spec.arguments)
        module.load_state_dict(load_state(locate_weights(spec.weights_path)))
        self.module = module.eval().to(device)
        self.spec = spec
        self._read_out = architecture.read_out
        self._device = device
        self._canvas = spec.preprocess.canvases[0]

    def prepare(self, image: Image.Image) -> Prepared:
        (height, width), preprocess = self._canvas, self.spec.preprocess
        ratio = min(height / image.height, width / image.width)
        size = round(image.width * ratio), round(image.height * ratio)
        canvas = Image.new("RGB", (width, height), (preprocess.pad_value,) * 3)
        canvas.paste(image.resize(size, Image.Resampling.BILINEAR))
        pixels = pil_to_tensor(canvas).float() / 255
        pixels = normalize(pixels, list(preprocess.mean), list(preprocess.std))
        return Prepared(pixels, (image.height, image.width))

    def score(self, batch: Sequence[Prepared]) -> list[Result]:
        with torch.inference_mode():
            images = torch.stack([each.pixels for each in batch]).to(self._device)
            outputs = self._read_out(self.module, self.module(images), self.spec, self._canvas)
            return [
                self.finish(output, each.original_size)
                for output, each in zip(outputs, batch, strict=True)
            ]

    def finish(self, output: Any, size: tuple[int, int]) -> Result:
        raise NotImplementedError


class _OwnDetector(_OwnModel):
    def finish(self, output: BoxOutput, size: tuple[int, int]) -> Result:
        config = cast("BoxPostprocess", self.spec.postprocess)
        kept = batched_nms(output.boxes_xyxy, output.scores, output.labels, config.iou_threshold)
        kept = kept[: config.max_detections]
        ratio = max(size[0] / self._canvas[0], size[1] / self._canvas[1])
        limit = torch.tensor([size[1], size[0], size[1], size[0]])
        boxes = torch.minimum(output.boxes_xyxy[kept].cpu() * ratio, limit)
        probs = cast("Tensor", output.mask_probs)[kept].cpu()
        masks = paste_masks_in_image(probs[:, None], boxes, size)[:, 0] > config.mask_threshold
        return Result(
            boxes_xyxy=boxes.numpy(),
            scores=output.scores[kept].cpu().numpy(),
            labels=output.labels[kept].cpu().numpy(),
            masks=masks.numpy(),
        )


class _OwnSegmenter(_OwnModel):
    def finish(self, output: Any, size: tuple[int, int]) -> Result:
        logits = F.interpolate(output.logits[None], size, mode="bilinear")[0]
        return Result(semantic=logits.argmax(0).to(torch.uint8).cpu().numpy())


class _OwnCaptioner(_OwnModel):
    def finish(self, output: CaptionOutput, size: tuple[int, int]) -> Result:
        return Result(caption=output.text)


class _TorchvisionModel:
    """A torchvision model with its own transforms, used as its documentation does."""

    def __init__(self, spec: ModelSpec, device: str) -> None:
        self.module = self.build(spec).eval().to(device)
        self.module.load_state_dict(torch.load(spec.weights_path, weights_only=True))
        self.spec = spec
        self._device = device

    def build(self, spec: ModelSpec) -> nn.Module:
        raise NotImplementedError


class _TorchvisionDetector(_TorchvisionModel):
    def build(self, spec: ModelSpec) -> nn.Module:
        own = {
            name: value
            for name, value in spec.arguments.items()
            if name not in ("class_indices", "batch_norm_eps", "num_classes")
        }
        prefix = "box_" if "rcnn" in spec.architecture else ""
        own |= {
            f"{prefix}score_thresh": SCORE_THRESHOLD,
            f"{prefix}nms_thresh": 0.5,
            f"{prefix}detections_per_img": 100,
        }
        name = spec.architecture.removeprefix("torchvision/")
        module = get_model(
            name, weights=None, weights_backbone=None, num_classes=NUM_CLASSES, **own
        )
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d) and "batch_norm_eps" in spec.arguments:
                layer.eps = cast("float", spec.arguments["batch_norm_eps"])
        return module

    def prepare(self, image: Image.Image) -> Prepared:
        return Prepared(pil_to_tensor(image).float() / 255, (image.height, image.width))

    def score(self, batch: Sequence[Prepared]) -> list[Result]:
        with torch.inference_mode():
            found = self.module([each.pixels.to(self._device) for each in batch])
            return [
                Result(
                    boxes_xyxy=each["boxes"].cpu().numpy(),
                    scores=each["scores"].cpu().numpy(),
                    labels=each["labels"].cpu().numpy(),
                    masks=(each["masks"][:, 0] > 0.5).cpu().numpy() if "masks" in each else None,
                )
                for each in found
            ]


class _TorchvisionSegmenter(_TorchvisionModel):
    def build(self, spec: ModelSpec) -> nn.Module:
        name = spec.architecture.removeprefix("torchvision/")
        return get_model(name, weights=None, weights_backbone=None, aux_loss=True)

    def prepare(self, image: Image.Image) -> Prepared:
        height, width = self.spec.preprocess.canvases[0]
        pixels = pil_to_tensor(image.resize((width, height), Image.Resampling.BILINEAR)).float()
        preprocess = self.spec.preprocess
        pixels = normalize(pixels / 255, list(preprocess.mean), list(preprocess.std))
        return Prepared(pixels, (image.height, image.width))

    def score(self, batch: Sequence[Prepared]) -> list[Result]:
        with torch.inference_mode():
            images = torch.stack([each.pixels for each in batch]).to(self._device)
            logits = self.module(images)["out"]
            return [
                Result(
                    semantic=F.interpolate(each[None], prepared.original_size, mode="bilinear")[0]
                    .argmax(0)
                    .to(torch.uint8)
                    .cpu()
                    .numpy()
                )
                for each, prepared in zip(logits, batch, strict=True)
            ]


class _Identity:
    def __init__(self, spec: ModelSpec, device: str) -> None:
        self._spec = spec
        self._device = device

    def prepare(self, image: Image.Image) -> Prepared:
        height, width = self._spec.preprocess.canvases[0]
        pixels = pil_to_tensor(image.resize((width, height), Image.Resampling.BILINEAR))
        return Prepared(pixels, (image.height, image.width))

    def score(self, batch: Sequence[Prepared]) -> list[Result]:
        with torch.inference_mode():
            images = torch.stack([each.pixels for each in batch]).to(self._device)
            probs = (images[:, :, 0, 0] / 255).softmax(dim=1).cpu().numpy()
        return [Result(probs=each) for each in probs]


LOOPS: dict[str, Any] = {
    "own_detector": _OwnDetector,
    "own_segmenter": _OwnSegmenter,
    "own_captioner": _OwnCaptioner,
    "torchvision_detector": _TorchvisionDetector,
    "torchvision_segmenter": _TorchvisionSegmenter,
    "identity": _Identity,
}


def build_loop(workload: Workload, device: str) -> Loop:
    """The user's code for a workload, its model loaded."""
    return cast("Loop", LOOPS[workload.loop](workload.specs[0], device))
