"""All of torchvision's detectors, segmenters and classifiers, scored by our engine.

Their own transforms (resizing and normalising in float, at full resolution) and suppression are
bypassed: a detector gets our canvas, its anchors are laid on that canvas, and it hands out
candidates. Labels are those of the weights without placeholders such as "N/A".
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.detection import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

from pixelmill.configs.schema import BoxPostprocess, PreprocessConfig, TaskName
from pixelmill.models.classifier import class_outputs
from pixelmill.models.defaults import Defaults, usual_canvases
from pixelmill.models.interface import SemanticOutput, ViewOutput
from pixelmill.models.ops.boxes import clip_boxes
from pixelmill.models.ops.candidates import best_candidates, fetch, pieces, taken_from
from pixelmill.models.ops.masks import settled
from pixelmill.models.ops.suppression import class_thresholds
from pixelmill.models.spec import Arguments, ModelSpec
from pixelmill.models.two_stage import Parts, TwoStage, read_two_stage
from pixelmill.models.zoo import Architecture, ReadOut

__all__ = [
    "PREFIX",
    "architecture",
    "download_weights",
    "find_defaults",
    "find_weights_meta",
    "list_architectures",
]

PREFIX = "torchvision/"

# Names that stand for no class
_PLACEHOLDERS = ("__background__", "N/A")
_BACKGROUND = "__background__"

# torchvision's `overwrite_eps`: their COCO_V1 weights, the only ones, were trained without it
_EPS_0 = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")

Family = Literal["one_stage", "two_stage", "semantic", "classification"]


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

    To the arguments come our own `class_indices` (output index of each class, without placeholders)
    and `batch_norm_eps` (where the weights want another one than the builder's).

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


def find_weights_meta(name: str, weights: str = "DEFAULT") -> Mapping[str, Any]:
    """What torchvision says of a builder's weights: `num_params`, `_metrics`, `_docs`, and so on.

    Raises:
        ValueError: the builder has no such weights.
    """
    meta: Mapping[str, Any] = _weights(name.removeprefix(PREFIX), weights).meta
    return meta


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
        return PreprocessConfig(canvases=usual_canvases(shorter, None, 8), mean=mean, std=std)
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
        canvases=usual_canvases(
            int(transform.min_size[-1]), int(transform.max_size), int(transform.size_divisible)
        ),
        mean=mean,
        std=std,
    )


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

    def by_output(self, thresholds: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        """What is said by class, by output of the network: to take the classes' would be a copy.

        Args:
            thresholds: (K,) by class.
            num_outputs: of the network.

        Returns:
            (outputs,) thresholds, which those without a class do not reach, and (outputs + 1,) the
            class of each, or -1: of those, and at the end for the output -1.
        """
        indices = self.class_indices
        floors = torch.full((num_outputs,), torch.inf, device=indices.device)
        classes = torch.full((num_outputs + 1,), -1, device=indices.device)
        floors[indices] = thresholds.to(indices.device, non_blocking=True)
        classes[indices] = torch.arange(len(indices), device=indices.device)
        return floors, classes

    def _make_anchors(self, images: Tensor, features: Sequence[Tensor]) -> Tensor:
        # Float32 stand-ins: with bfloat16 features the generators would round the anchors
        shapes = [images.new_empty((1, 1, *f.shape[-2:]), dtype=torch.float32) for f in features]
        canvas = (images.shape[-2], images.shape[-1])
        one = ImageList(images[:1], [canvas])
        return cast("Tensor", self.model.anchor_generator(one, shapes)[0])


class _TwoStage(_Detector, TwoStage):
    """The backbone; the rest is run by the read-out."""

    @property
    def parts(self) -> Parts:
        return Parts(self.model.backbone, self.model.rpn, self.model.roi_heads)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self._features(images)


_TRUNKS: Mapping[Family, type[_Trunk]] = {
    "one_stage": _OneStage,
    "two_stage": _TwoStage,
    "semantic": _Segmenter,
    "classification": _Classifier,
}


# --- read-outs ------------------------------------------------------------------------------------


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
    floors, classes = trunk.by_output(
        class_thresholds(config, spec.classes), head["cls_logits"].shape[-1]
    )
    results: list[ViewOutput] = []
    for piece in pieces(len(head["cls_logits"]), anchors.device):
        raw = {name: tensor[piece].float() for name, tensor in head.items()}
        scores = _one_stage_scores(trunk.model, raw)
        best = best_candidates(scores >= floors, taken_from(scores), config.pre_nms_top_k)
        deltas = raw["bbox_regression"].gather(1, best.places[..., None].expand(-1, -1, 4))
        boxes_xyxy = _decode_one_stage(
            trunk.model, deltas.flatten(0, 1), anchors[best.places.flatten()]
        ).view_as(deltas)
        best = replace(best, labels=classes[best.labels])
        results += fetch(clip_boxes(boxes_xyxy, canvas), best)
    return results


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


_READ_OUTS: Mapping[Family, ReadOut] = {
    "one_stage": _read_one_stage,
    "two_stage": read_two_stage,
    "semantic": _read_semantic,
    "classification": class_outputs,
}
