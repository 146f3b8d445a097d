"""All of torchvision's detectors, segmenters and classifiers, scored by our engine.

Their own transforms (resizing and normalising in float, at full resolution) and suppression are
bypassed: a detector gets our canvas, its anchors are laid on that canvas, and it hands out
candidates. Labels are those of the weights without placeholders such as "N/A".
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.detection import FCOS, MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

from pixelmill.configs.schema import BoxPostprocess, CanvasSize, PreprocessConfig, TaskName
from pixelmill.models.interface import BoxOutput, ClassOutput, SemanticOutput, ViewOutput
from pixelmill.models.ops.boxes import clip_boxes, large_enough
from pixelmill.models.ops.suppression import class_thresholds, hard_nms, preselect
from pixelmill.models.spec import Arguments, ModelSpec
from pixelmill.models.zoo import Architecture

__all__ = [
    "PREFIX",
    "Defaults",
    "architecture",
    "download_weights",
    "find_defaults",
    "list_architectures",
]

PREFIX = "torchvision/"

# Names that stand for no class
_PLACEHOLDERS = ("__background__", "N/A")
_BACKGROUND = "__background__"

# torchvision's `overwrite_eps`: their COCO_V1 weights, the only ones, were trained without it
_EPS_0 = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")

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
    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """(B, A, ...) predictions by name, and the (A, 4) anchors that they refer to."""
        features = list(self._features(images).values())
        return self.model.head(features), self._anchors(images, features)

    def _anchors(self, images: Tensor, features: Sequence[Tensor]) -> Tensor:
        # Float32 stand-ins: with bfloat16 features the generators would round the anchors
        shapes = [images.new_empty((1, 1, *f.shape[-2:]), dtype=torch.float32) for f in features]
        canvas = (images.shape[-2], images.shape[-1])
        one = ImageList(images[:1], [canvas])
        return cast("Tensor", self.model.anchor_generator(one, shapes)[0])


class _TwoStage(_Detector):
    """The backbone; the rest is run by the read-out, image by image."""

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
    return [SemanticOutput(logits) for logits in outputs.float().cpu()]


def _read_one_stage(
    module: nn.Module,
    outputs: tuple[dict[str, Tensor], Tensor],
    spec: ModelSpec,
    canvas: tuple[int, int],
) -> list[ViewOutput]:
    trunk = cast("_OneStage", module)
    head, anchors = outputs
    config = cast("BoxPostprocess", spec.postprocess)
    thresholds = class_thresholds(config, spec.classes).to(anchors.device)
    results: list[ViewOutput] = []
    for index in range(len(head["cls_logits"])):
        raw = {name: tensor[index].float() for name, tensor in head.items()}
        scores = _one_stage_scores(trunk.model, raw)[:, trunk.class_indices]
        anchor_index, labels = torch.nonzero(scores >= thresholds, as_tuple=True)
        kept = _best(scores[anchor_index, labels], labels, thresholds, config)
        anchor_index, labels = anchor_index[kept], labels[kept]
        deltas = raw["bbox_regression"][anchor_index]
        boxes_xyxy = _decode_one_stage(trunk.model, deltas, anchors[anchor_index])
        results.append(
            BoxOutput(
                clip_boxes(boxes_xyxy, canvas).cpu(),
                scores[anchor_index, labels].cpu(),
                labels.cpu(),
            )
        )
    return results


def _best(scores: Tensor, labels: Tensor, thresholds: Tensor, config: BoxPostprocess) -> Tensor:
    return preselect(scores, labels, thresholds, config.pre_nms_top_k)


def _one_stage_scores(model: nn.Module, raw: Mapping[str, Tensor]) -> Tensor:
    """(A, outputs) in [0, 1], as the model's own postprocess_detections computes them."""
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
    trunk = cast("_TwoStage", module)
    features = {name: tensor.float() for name, tensor in outputs.items()}
    batch_size = len(next(iter(features.values())))
    # One image at a time: in a common matrix product of all regions an image's last bits would
    # depend on how many regions its batch mates have
    return [
        _read_regions(
            trunk,
            {name: tensor[index : index + 1] for name, tensor in features.items()},
            spec,
            canvas,
        )
        for index in range(batch_size)
    ]


def _read_regions(
    trunk: _TwoStage, features: dict[str, Tensor], spec: ModelSpec, canvas: tuple[int, int]
) -> BoxOutput:
    rpn, heads = trunk.model.rpn, trunk.model.roi_heads
    config = cast("BoxPostprocess", spec.postprocess)
    device = trunk.class_indices.device
    one = ImageList(torch.empty((1, 3, *canvas), device=device), [canvas])
    proposals, _ = rpn(one, features)
    pooled = heads.box_roi_pool(features, proposals, [canvas])
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    boxes_xyxy = heads.box_coder.decode(deltas, proposals)[:, trunk.class_indices]
    scores = F.softmax(logits, -1)[:, trunk.class_indices]
    thresholds = class_thresholds(config, spec.classes).to(device)
    region_index, labels = torch.nonzero(scores >= thresholds, as_tuple=True)
    boxes_xyxy = clip_boxes(boxes_xyxy[region_index, labels], canvas)
    scores = scores[region_index, labels]
    usable = large_enough(boxes_xyxy, 1e-2)  # as torchvision does before its suppression
    boxes_xyxy, scores, labels = boxes_xyxy[usable], scores[usable], labels[usable]
    kept = _best(scores, labels, thresholds, config)
    boxes_xyxy, scores, labels = boxes_xyxy[kept], scores[kept], labels[kept]
    if not (isinstance(trunk.model, MaskRCNN) and spec.task == "instance_segmentation"):
        return BoxOutput(boxes_xyxy.cpu(), scores.cpu(), labels.cpu())
    if config.nms == "hard" and not config.keep_candidates:
        # The mask of a box that the engine's suppression will drop need not be computed
        groups = torch.zeros_like(labels) if config.class_agnostic else labels
        kept = hard_nms(boxes_xyxy, scores, groups, config.iou_threshold, overlap=config.overlap)
        kept = kept[: config.max_detections]
        boxes_xyxy, scores, labels = boxes_xyxy[kept], scores[kept], labels[kept]
    pooled = heads.mask_roi_pool(features, [boxes_xyxy], [canvas])
    mask_logits = heads.mask_predictor(heads.mask_head(pooled))
    probs = mask_logits[torch.arange(len(labels)), trunk.class_indices[labels]].sigmoid()
    return BoxOutput(boxes_xyxy.cpu(), scores.cpu(), labels.cpu(), probs.cpu())


_READ_OUTS: Mapping[
    Family, Callable[[nn.Module, Any, ModelSpec, tuple[int, int]], list[ViewOutput]]
] = {
    "one_stage": _read_one_stage,
    "two_stage": _read_two_stage,
    "semantic": _read_semantic,
    "classification": _read_classes,
}
