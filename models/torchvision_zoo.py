"""All of torchvision's detectors, segmenters and classifiers, scored by our engine.

Their own transforms (resizing and normalising in float, at full resolution) and suppression are
bypassed: a detector gets our canvas, its anchors are laid on that canvas, and it hands out
candidates. Labels are those of the weights without placeholders such as "N/A".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.detection import FCOS, MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.ssd import SSD

from pixelmill.configs.schema import BoxPostprocess, CanvasSize, PreprocessConfig, TaskName
from pixelmill.models.interface import BoxOutput, ClassOutput, SemanticOutput, ViewOutput
from pixelmill.models.ops.boxes import clip_boxes, large_enough
from pixelmill.models.ops.candidates import best_candidates, fetch, in_blocks, pieces, survivors
from pixelmill.models.ops.masks import settled
from pixelmill.models.ops.suppression import class_thresholds, greedy_nms
from pixelmill.models.spec import Arguments, ModelSpec
from pixelmill.models.zoo import Architecture

__all__ = [
    "PREFIX",
    "Defaults",
    "architecture",
    "download_weights",
    "find_defaults",
    "list_architectures",
    "propose_many",
]

PREFIX = "torchvision/"

# Names that stand for no class
_PLACEHOLDERS = ("__background__", "N/A")
_BACKGROUND = "__background__"

# torchvision's `overwrite_eps`: their COCO_V1 weights, the only ones, were trained without it
_EPS_0 = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")

# Regions in one run of the mask head on a GPU
_BLOCK = 128

Family = Literal["one_stage", "two_stage", "semantic", "classification"]


class Defaults(NamedTuple):
    """What weights say about their use.

    Attributes:
        classes: names, without placeholders.
        arguments: of the builder, and of our own `class_indices` (output index of each class) and
            `batch_norm_eps` (where the weights want another one than the builder's).
        preprocess: as the weights were trained.
    """

    classes: tuple[str, ...]
    arguments: Arguments
    preprocess: PreprocessConfig


def list_architectures() -> dict[str, tuple[TaskName, ...]]:
    """Names with the tasks that each can do."""
    names = [name for name in list_models() if not name.startswith("quantized_")]
    return {PREFIX + name: tasks for name in names if (tasks := _tasks(name))}


def architecture(name: str) -> Architecture:
    """How `torchvision/<builder>` is built and read.

    Raises:
        ValueError: torchvision has no such builder, or it is of a task that we do not have.
    """
    builder = name.removeprefix(PREFIX)
    tasks = _tasks(builder)
    if not tasks:
        raise ValueError(
            f"{name!r} is no detector, segmenter or classifier of torchvision; `pixelmill models` "
            "lists them"
        )
    read_out = _READ_OUTS[_family(builder)]

    def build(**arguments: Any) -> nn.Module:
        return _build(builder, arguments)

    return Architecture(build=build, tasks=tasks, read_out=read_out)


def find_defaults(
    name: str, arguments: Arguments, classes: Sequence[str] | None, weights: str
) -> Defaults:
    """Classes, arguments and preprocessing of a builder's weights; needs no download.

    Args:
        name: `torchvision/<builder>`.
        arguments: what the config says of the builder's.
        classes: what the config says: names by label, with or without a leading
            "__background__". None: those of the weights.
        weights: an entry of the builder's weights enum, such as DEFAULT or COCO_V1.

    Raises:
        ValueError: the builder has no such weights, or the number of classes does not fit.
    """
    builder = name.removeprefix(PREFIX)
    meta_weights = _weights(builder, weights)
    labels = list(classes or meta_weights.meta["categories"])
    num_outputs = arguments.get("num_classes", len(labels) + _missing_background(builder, labels))
    if num_outputs == len(labels) + 1:
        labels = [_BACKGROUND, *labels]
    if num_outputs != len(labels):
        raise ValueError(
            f"{name} has num_classes: {num_outputs}, but {len(labels)} class names are known; name "
            "them in classes, by label"
        )
    kept = {
        index: label
        for index, label in enumerate(labels)
        if label not in _PLACEHOLDERS or _family(builder) in ("semantic", "classification")
    }
    resolved: Arguments = dict(arguments)
    resolved["num_classes"] = num_outputs
    resolved["class_indices"] = tuple(kept)
    if classes is None and builder in _EPS_0:
        resolved.setdefault("batch_norm_eps", 0.0)
    names = tuple("background" if label == _BACKGROUND else label for label in kept.values())
    return Defaults(names, resolved, _preprocess(builder, resolved, meta_weights))


def download_weights(name: str, weights: str) -> Path:
    """The weights file in torch hub's cache, fetched if it is not there.

    Raises:
        ValueError: the builder has no such weights.
        OSError: it is not there and cannot be fetched.
    """
    builder = name.removeprefix(PREFIX)
    url = _weights(builder, weights).url
    file_name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir(), "checkpoints", file_name)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = file_name.removesuffix(".pth").rpartition("-")[2]
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
    except (OSError, RuntimeError) as err:
        raise OSError(
            f"cannot fetch the weights of {name} from {url} ({err}); run `pixelmill models fetch "
            f"{name}` on a connected machine and copy the file to {path}, or set weights: to a "
            "local file"
        ) from err
    return path


def _weights(builder: str, weights: str) -> Any:
    enum = get_model_weights(builder)
    try:
        return enum[weights]
    except KeyError as err:
        known = ", ".join(["DEFAULT", *(entry.name for entry in enum)])
        raise ValueError(f"{PREFIX}{builder} has no weights {weights!r}, it has: {known}") from err


def _missing_background(builder: str, labels: Sequence[str]) -> int:
    """1 where label 0 is the background's and the names do not have it."""
    if _BACKGROUND in labels or _family(builder) in ("semantic", "classification"):
        return 0
    return 0 if builder.startswith(("retinanet", "fcos")) else 1


def _tasks(builder: str) -> tuple[TaskName, ...]:
    prefixes: Mapping[str, tuple[TaskName, ...]] = {
        "fasterrcnn": ("detection",),
        "retinanet": ("detection",),
        "ssd": ("detection",),
        "fcos": ("detection",),
        "maskrcnn": ("instance_segmentation", "detection"),
        "keypointrcnn": (),
        "deeplabv3": ("semantic_segmentation",),
        "fcn_": ("semantic_segmentation",),
        "lraspp": ("semantic_segmentation",),
        "raft": (),
    }
    if builder not in list_models() or builder.startswith("quantized_"):
        return ()
    for prefix, tasks in prefixes.items():
        if builder.startswith(prefix):
            return tasks
    return () if _is_video(builder) else ("classification",)


def _is_video(builder: str) -> bool:
    return builder.startswith(("r3d", "mc3", "r2plus1d", "s3d", "mvit", "swin3d"))


def _family(builder: str) -> Family:
    if builder.startswith(("retinanet", "ssd", "fcos")):
        return "one_stage"
    if builder.startswith(("fasterrcnn", "maskrcnn")):
        return "two_stage"
    tasks = _tasks(builder)
    return "semantic" if tasks == ("semantic_segmentation",) else "classification"


def _build(builder: str, arguments: Mapping[str, Any]) -> nn.Module:
    arguments = dict(arguments)
    class_indices = arguments.pop("class_indices")
    eps = arguments.pop("batch_norm_eps", None)
    family = _family(builder)
    if family != "classification":
        arguments["weights_backbone"] = None
    if builder.startswith(("deeplabv3", "fcn_")):
        # The weights have the auxiliary head, which is not run here
        arguments.setdefault("aux_loss", True)
    if builder in ("googlenet", "inception_v3"):
        arguments.setdefault("init_weights", False)
        # Published weights expect it, and pixels scaled as ours are
        arguments.setdefault("transform_input", True)
    model = get_model(builder, weights=None, **arguments)
    if eps is not None:
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = eps
    return _TRUNKS[family](model, class_indices)


# --- preprocessing --------------------------------------------------------------------------------


def _preprocess(builder: str, arguments: Arguments, weights: Any) -> PreprocessConfig:
    family = _family(builder)
    if family in ("one_stage", "two_stage"):
        return _detector_preprocess(builder, arguments)
    preset = weights.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if family == "semantic":
        shorter = int(preset.resize_size[0])
        return PreprocessConfig(canvases=_canvases(shorter, None, 8), mean=mean, std=std)
    crop = int(preset.crop_size[0])
    return PreprocessConfig(
        resize="center_crop",
        crop_from=int(preset.resize_size[0]),
        canvases=((crop, crop),),
        mean=mean,
        std=std,
    )


def _detector_preprocess(builder: str, arguments: Arguments) -> PreprocessConfig:
    """As the detector's own transform, read from a detector built with the same arguments."""
    trunk = cast("_Detector", _build(builder, arguments))
    transform = trunk.model.transform
    mean, std = tuple(transform.image_mean), tuple(transform.image_std)
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
        return PreprocessConfig(resize="stretch", canvases=((height, width),), mean=mean, std=std)
    return PreprocessConfig(
        canvases=_canvases(
            int(transform.min_size[-1]), int(transform.max_size), int(transform.size_divisible)
        ),
        mean=mean,
        std=std,
    )


def _canvases(shorter: int, longest: int | None, multiple: int) -> tuple[CanvasSize, ...]:
    """Canvases of the usual aspects, 1, 4:3, 3:2 and 16:9, lying and standing."""

    def up(length: float) -> int:
        return -(-int(length) // multiple) * multiple

    limit = up(longest) if longest else None
    sizes: dict[CanvasSize, None] = {(up(shorter), up(shorter)): None}
    for aspect in (4 / 3, 3 / 2, 16 / 9):
        longer = up(shorter * aspect)
        longer = min(longer, limit) if limit else longer
        sizes[up(shorter), longer] = None
        sizes[longer, up(shorter)] = None
    return tuple(sizes)


# --- trunks: everything up to the raw tensors -----------------------------------------------------


class _Trunk(nn.Module):
    """A torchvision model whose forward gives raw tensors.

    Args:
        model: torchvision's.
        class_indices: output index of each of the spec's classes.
    """

    class_indices: Tensor

    def __init__(self, model: nn.Module, class_indices: Sequence[int]) -> None:
        super().__init__()
        self.model: Any = model
        self.register_buffer(
            "class_indices", torch.tensor(class_indices, dtype=torch.int64), persistent=False
        )

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Take the names of torchvision's own files."""
        return self.model.load_state_dict(*args, **kwargs)


class _Classifier(_Trunk):
    def forward(self, images: Tensor) -> Tensor:
        return cast("Tensor", self.model(images))


class _Segmenter(_Trunk):
    """Without the upsampling to the canvas: the engine resizes once, to the original."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.model.backbone(images)
        if hasattr(self.model, "aux_classifier"):  # FCN and DeepLab; LR-ASPP reads all features
            features = features["out"]
        return cast("Tensor", self.model.classifier(features))


class _Detector(_Trunk):
    def _features(self, images: Tensor) -> dict[str, Tensor]:
        features = self.model.backbone(images)
        return {"0": features} if isinstance(features, Tensor) else features


class _OneStage(_Detector):
    def __init__(self, model: nn.Module, class_indices: Sequence[int]) -> None:
        super().__init__(model, class_indices)
        self._made_anchors: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(B, A, ...) predictions by name, and the (A, 4) anchors that they refer to."""
        features = list(self._features(images).values())
        return self.model.head(features), self._anchors(images, features)

    def _anchors(self, images: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Made once per canvas, but in every graph that is traced, where they are constants."""
        if type(images) is not Tensor or torch.compiler.is_compiling():
            return self._make_anchors(images, features)
        key = tuple(images.shape[-2:]), images.device
        if key not in self._made_anchors:
            self._made_anchors[key] = self._make_anchors(images, features)
        return self._made_anchors[key]

    def _make_anchors(self, images: Tensor, features: Sequence[Tensor]) -> Tensor:
        # Float32 stand-ins: with bfloat16 features the generators would round the anchors
        shapes = [images.new_empty((1, 1, *f.shape[-2:]), dtype=torch.float32) for f in features]
        canvas = (images.shape[-2], images.shape[-1])
        one = ImageList(images[:1], [canvas])
        return cast("Tensor", self.model.anchor_generator(one, shapes)[0])


class _TwoStage(_Detector):
    """The backbone; the rest is run by the read-out."""

    def to(self, *args: Any, **kwargs: Any) -> "_TwoStage":
        """As for any module, but only the backbone gives up float32: anchors need its digits."""
        self.model.backbone.to(*args, **kwargs)
        kwargs.pop("dtype", None)
        return super().to(*args, **kwargs)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self._features(images)


_TRUNKS: Mapping[Family, type[_Trunk]] = {
    "one_stage": _OneStage,
    "two_stage": _TwoStage,
    "semantic": _Segmenter,
    "classification": _Classifier,
}


# --- read-outs ------------------------------------------------------------------------------------


def _read_classes(
    module: nn.Module, outputs: Tensor, spec: ModelSpec, canvas: tuple[int, int]
) -> list[ViewOutput]:
    return [ClassOutput(probs) for probs in outputs.float().softmax(dim=1).cpu()]


def _read_semantic(
    module: nn.Module, outputs: Tensor, spec: ModelSpec, canvas: tuple[int, int]
) -> list[ViewOutput]:
    return [SemanticOutput(logits) for logits in settled(outputs.float())]


def _read_one_stage(
    module: nn.Module,
    outputs: tuple[dict[str, Tensor], Tensor],
    spec: ModelSpec,
    canvas: tuple[int, int],
) -> list[ViewOutput]:
    trunk = cast("_OneStage", module)
    head, anchors = outputs
    config = cast("BoxPostprocess", spec.postprocess)
    thresholds = class_thresholds(config, spec.classes).to(anchors.device, non_blocking=True)
    results: list[ViewOutput] = []
    for piece in pieces(len(head["cls_logits"]), anchors.device):
        raw = {name: tensor[piece].float() for name, tensor in head.items()}
        scores = _one_stage_scores(trunk.model, raw)[..., trunk.class_indices]
        best = best_candidates(scores >= thresholds, _taken_from(scores), config.pre_nms_top_k)
        deltas = raw["bbox_regression"].gather(1, best.places[..., None].expand(-1, -1, 4))
        boxes_xyxy = _decode_one_stage(
            trunk.model, deltas.flatten(0, 1), anchors[best.places.flatten()]
        ).view_as(deltas)
        results += fetch(clip_boxes(boxes_xyxy, canvas), best)
    return results


def _taken_from(scores: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """How `best_candidates` looks up (B, A, K) scores."""

    def score_of(image: Tensor, place: Tensor, label: Tensor) -> Tensor:
        return scores[image, place, label]

    return score_of


def _one_stage_scores(model: nn.Module, raw: Mapping[str, Tensor]) -> Tensor:
    """(B, A, outputs) in [0, 1], as the model's own postprocess_detections computes them."""
    if isinstance(model, SSD):
        return F.softmax(raw["cls_logits"], dim=-1)
    scores = raw["cls_logits"].sigmoid()
    if isinstance(model, FCOS):
        return (scores * raw["bbox_ctrness"].sigmoid()).sqrt()
    return scores


def _decode_one_stage(model: Any, deltas: Tensor, anchors: Tensor) -> Tensor:
    if isinstance(model, FCOS):
        return cast("Tensor", model.box_coder.decode(deltas, anchors))
    return cast("Tensor", model.box_coder.decode_single(deltas, anchors))


def _read_two_stage(
    module: nn.Module, outputs: dict[str, Tensor], spec: ModelSpec, canvas: tuple[int, int]
) -> list[ViewOutput]:
    """Regions of interest, their classes and boxes, and masks if the task wants them.

    On the CPU one image at a time: in a common matrix product of all regions an image's last bits
    would depend on how many regions its batch mates have. On a GPU all at once: there every image
    is given the same number of regions, of which the last may be empty.
    """
    trunk = cast("_TwoStage", module)
    features = {name: tensor.float() for name, tensor in outputs.items()}
    first = next(iter(features.values()))
    results: list[ViewOutput] = []
    for piece in pieces(len(first), first.device):
        part = {name: tensor[piece] for name, tensor in features.items()}
        found = _read_regions(trunk, part, spec, canvas)
        if isinstance(trunk.model, MaskRCNN) and spec.task == "instance_segmentation":
            found = _with_masks(trunk, part, found, spec, canvas)
        results += found
    return results


def _read_regions(
    trunk: _TwoStage, features: dict[str, Tensor], spec: ModelSpec, canvas: tuple[int, int]
) -> list[BoxOutput]:
    heads = trunk.model.roi_heads
    config = cast("BoxPostprocess", spec.postprocess)
    propose = _propose_one if trunk.class_indices.device.type == "cpu" else propose_many
    proposals, is_region = propose(trunk.model.rpn, features, canvas)
    num_images, num_regions = is_region.shape
    regions = list(proposals)
    pooled = heads.box_roi_pool(features, regions, [canvas] * num_images)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    boxes_xyxy = heads.box_coder.decode(deltas, regions)[:, trunk.class_indices]
    boxes_xyxy = clip_boxes(boxes_xyxy, canvas).view(num_images, num_regions, -1, 4)
    scores = F.softmax(logits, -1)[:, trunk.class_indices].view(num_images, num_regions, -1)
    thresholds = class_thresholds(config, spec.classes).to(scores.device, non_blocking=True)
    # As torchvision does before its suppression
    usable = large_enough(boxes_xyxy, 1e-2) & is_region[..., None]
    best = best_candidates(
        (scores >= thresholds) & usable, _taken_from(scores), config.pre_nms_top_k
    )
    images = torch.arange(num_images, device=scores.device)[:, None]
    return fetch(boxes_xyxy[images, best.places, best.labels.clamp(min=0)], best)


def _propose_one(
    rpn: Any, features: dict[str, Tensor], canvas: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Torchvision's regions of one image; see `propose_many`."""
    one = ImageList(next(iter(features.values())).new_empty(()).expand(1, 3, *canvas), [canvas])
    (proposals,), _ = rpn(one, features)
    return proposals[None], proposals.new_ones((1, len(proposals)), dtype=torch.bool)


def propose_many(
    rpn: Any, features: dict[str, Tensor], canvas: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Regions of all images of a batch, as many for each.

    What torchvision's RegionProposalNetwork gives, which asks the device for values several times
    per image.

    Args:
        rpn: torchvision's module.
        features: pyramid levels (B, C, h, w).
        canvas: (height, width) of the images.

    Returns:
        (B, R, 4) float32 boxes, best first and filled up with empty ones, and (B, R) bool: which
        are none of the latter.
    """
    levels = list(features.values())
    batch_size = len(levels[0])
    objectness, deltas = rpn.head(levels)
    images = ImageList(levels[0].new_empty(()).expand(1, 3, *canvas), [canvas])
    (anchors,) = rpn.anchor_generator(images, [level[:1] for level in levels])
    sizes = [level.shape[1] * level.shape[2] * level.shape[3] for level in objectness]
    objectness, deltas = concat_box_prediction_layers(objectness, deltas)
    objectness, deltas = objectness.view(batch_size, -1), deltas.view(batch_size, -1, 4)
    boxes, scores, starts = [], [], 0
    for part, part_anchors in zip(objectness.split(sizes, 1), anchors.split(sizes), strict=True):
        best, places = part.topk(min(rpn.pre_nms_top_n(), part.shape[1]), dim=1)
        chosen = deltas[:, starts : starts + part.shape[1]].gather(
            1, places[..., None].expand(-1, -1, 4)
        )
        decoded = rpn.box_coder.decode_single(chosen.flatten(0, 1), part_anchors[places.flatten()])
        part_boxes = clip_boxes(decoded, canvas).view_as(chosen)
        part_scores = best.sigmoid()
        usable = large_enough(part_boxes, rpn.min_size) & (part_scores >= rpn.score_thresh)
        kept = greedy_nms(part_boxes, usable, rpn.nms_thresh)
        boxes.append(part_boxes)
        scores.append(torch.where(kept, part_scores, -1.0))
        starts += part.shape[1]
    all_boxes, all_scores = torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
    order = all_scores.sort(dim=1, descending=True, stable=True)
    top = order.indices[:, : rpn.post_nms_top_n()]
    is_region = order.values[:, : rpn.post_nms_top_n()] >= 0
    proposals = all_boxes.gather(1, top[..., None].expand(-1, -1, 4))
    return proposals * is_region[..., None], is_region


def _with_masks(
    trunk: _TwoStage,
    features: dict[str, Tensor],
    candidates: Sequence[BoxOutput],
    spec: ModelSpec,
    canvas: tuple[int, int],
) -> list[BoxOutput]:
    """Add the masks; drop the boxes that the engine's suppression would drop with theirs."""
    heads, device = trunk.model.roi_heads, trunk.class_indices.device
    kept = [survivors(each, cast("BoxPostprocess", spec.postprocess)) for each in candidates]
    boxes = [each.boxes_xyxy.to(device, non_blocking=True) for each in kept]
    pooled = heads.mask_roi_pool(features, boxes, [canvas] * len(kept))
    logits = in_blocks(lambda part: heads.mask_predictor(heads.mask_head(part)), pooled, _BLOCK)
    labels = torch.cat([each.labels for each in kept]).to(device, non_blocking=True)
    own = logits[torch.arange(len(labels), device=device), trunk.class_indices[labels]]
    probs = own.sigmoid().cpu().split([len(each.labels) for each in kept])
    return [replace(each, mask_probs=mine) for each, mine in zip(kept, probs, strict=True)]


_READ_OUTS: Mapping[
    Family, Callable[[nn.Module, Any, ModelSpec, tuple[int, int]], list[ViewOutput]]
] = {
    "one_stage": _read_one_stage,
    "two_stage": _read_two_stage,
    "semantic": _read_semantic,
    "classification": _read_classes,
}
