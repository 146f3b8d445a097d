"""What is scored: a model, images that all take the same canvas, and a batch size.

Nobody pays for padding or for a mixture of shapes here, neither Pixelmill nor the loops beside it.
Random weights get statistics and thresholds like trained ones: with PyTorch's initial values a
detector finds either nothing or everything, and time would tell nothing.
"""

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import onnx
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import nn
from torchvision.models import get_model
from torchvision.transforms.v2.functional import normalize, pil_to_tensor, resize_image

from pixelbench.machine import describe_machine
from pixelmill.configs.load import load_config
from pixelmill.configs.schema import (
    ClassificationModel,
    DetectionModel,
    InstanceModel,
    ModelConfig,
    PreprocessConfig,
    RunConfig,
    SemanticModel,
    ShardConfig,
)
from pixelmill.models.build import resolve_model
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.quantize import quantize_model
from pixelmill.tasks.scenes import write_scenes

__all__ = ["WORKLOADS", "Workload", "find_photos", "make_workload", "number_files"]

PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "coco_small" / "images"
NUM_CLASSES = 91  # of torchvision's COCO detectors
# Labels without a meaning ("N/A"), which Pixelmill does not hand out
PLACEHOLDERS = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IDENTITY_CLASSES = 3
# The same for everybody, instead of one that Pixelmill chooses
BATCH_SIZE = 8
# Images whose values give int8's ranges, and as many others that judge it
_CALIBRATION = 48


@dataclass(frozen=True, slots=True)
class Workload:
    """Something to score.

    Attributes:
        title: for the table.
        loop: which of the loops in `user_code` a user would write.
        config: of Pixelmill's run.
        paths: images, in order.
        best: configuration with the fastest settings whose answers the parity gate passes.
        int8: the same in int8, or why there is none.
    """

    name: str
    title: str
    loop: str
    config: RunConfig
    paths: tuple[Path, ...]
    best: RunConfig
    int8: RunConfig | str

    @property
    def folder(self) -> Path:
        """Of the images."""
        return self.paths[0].parent

    @property
    def specs(self) -> tuple[ModelSpec, ...]:
        """The models, complete."""
        return tuple(resolve_model(model, Path.cwd()) for model in self.config.models)

    def variant(self, name: Literal["", "best", "int8"]) -> "Workload":
        """With the common settings, the fastest, or the fastest in int8.

        Raises:
            ValueError: there is no int8.
        """
        if name == "int8":
            if isinstance(self.int8, str):
                raise ValueError(self.int8)
            return self.with_config(self.int8)
        return self.with_config(self.best) if name == "best" else self

    def with_config(self, config: RunConfig) -> "Workload":
        """The same images for other models."""
        return replace(self, config=config)

    def save(self, path: Path) -> Path:
        """Write it down for another process."""
        path.write_bytes(pickle.dumps(self))
        return path

    @staticmethod
    def load(path: Path) -> "Workload":
        """What `save` wrote."""
        return cast("Workload", pickle.loads(path.read_bytes()))


@dataclass(frozen=True, slots=True)
class _Recipe:
    title: str
    loop: str
    model: Callable[[Path], ModelConfig]
    images: Callable[[Path, int], list[Path]]
    num_images: int


def make_workload(
    name: str, scratch: Path, num_images: int | None = None, *, with_int8: bool = False
) -> Workload:
    """Images, weights and configuration of one workload.

    Args:
        name: of `WORKLOADS`.
        scratch: folder for rendered images and random weights; reused.
        num_images: instead of the recipe's, with which a round of Pixelmill takes about five
            seconds.
        with_int8: quantize the model too, which takes half a minute.
    """
    recipe = WORKLOADS[name]
    folder = scratch / f"images-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    count = num_images or recipe.num_images
    sources = recipe.images(scratch, count)
    paths = number_files(sources, folder, count)
    config = RunConfig(
        name=f"bench-{name}",
        models=(recipe.model(scratch),),
        shard=ShardConfig(max_images=65_535, max_pixels=10**12),
    )
    best = _fastest(config)
    int8 = _quantized(best, paths, scratch) if with_int8 else "was not asked for"
    return Workload(name, recipe.title, recipe.loop, config, paths, best, int8)


def _fastest(config: RunConfig) -> RunConfig:
    """OpenVINO and scaled decoding; in bfloat16 where the processor multiplies matrices in it.

    With AVX512-BF16 alone bfloat16 is slower than float32; and the gate may refuse it.
    """
    (model,) = config.models
    preprocess = resolve_model(model, Path.cwd()).preprocess
    scaled = {"preprocess": preprocess.model_copy(update={"decode": "scaled"})}
    if model.architecture == "onnx":
        return config.model_copy(update={"models": (model.model_copy(update=scaled),)})
    has_amx = "amx_bf16" in describe_machine()["features"]
    choices = [
        model.model_copy(update=scaled | {"engine": "openvino", "precision": precision})
        for precision in (("bf16", "fp32") if has_amx else ("fp32",))
    ]
    passing = (each for each in choices if not resolve_model(each, Path.cwd()).engine_note)
    chosen = next(passing, model.model_copy(update=scaled))
    return config.model_copy(update={"models": (chosen,)})


def _quantized(best: RunConfig, paths: tuple[Path, ...], scratch: Path) -> RunConfig | str:
    """The fastest settings in int8, calibrated and judged on the images, or why that is not so."""
    (model,) = best.models
    if model.engine != "openvino":
        return "has no engine that knows int8"
    if not model.weights.startswith("embedded:"):
        return "has random weights, of which int8 leaves nothing"
    file = scratch / f"{model.name}.int8.safetensors"
    if not file.exists():
        try:
            quantize_model(
                model, Path.cwd(), paths[0].parent, file, num_images=min(_CALIBRATION, len(paths))
            )
        except (ImportError, RuntimeError, ValueError) as err:
            return str(err).partition(", and nothing was written")[0]
    changes = {"precision": "int8", "quantized": str(file)}
    return best.model_copy(update={"models": (model.model_copy(update=changes),)})


# --- images ---------------------------------------------------------------------------------------


def find_photos() -> list[Path]:
    """Photographs that lie beside the checkout; none elsewhere."""
    return sorted(PHOTOS.glob("*.jpg"))


def number_files(
    sources: list[Path], folder: Path, count: int, *, first: int = 0
) -> tuple[Path, ...]:
    """`count` JPEGs with the pictures of `sources` in turn, no two of them the same bytes.

    A comment of its own makes each file another image for the store, at no cost to a decoder.
    """
    paths = tuple(folder / f"{index:07d}.jpg" for index in range(first, first + count))
    for index, path in enumerate(paths, first):
        data = sources[index % len(sources)].read_bytes()
        comment = b"\xff\xfe" + (10).to_bytes(2, "big") + index.to_bytes(8, "big")
        path.write_bytes(data[:2] + comment + data[2:])
    for path in set(folder.iterdir()).difference(paths):
        path.unlink()
    return paths


def _scenes(scratch: Path, count: int) -> list[Path]:
    """Rendered scenes of 4:3, which fill the embedded models' first canvas."""
    folder = scratch / "scenes"
    rendered = folder / "images"
    if not rendered.exists():
        write_scenes(folder, 160, seed=3)
    return [path for path in sorted(rendered.iterdir()) if _size(path) in ((384, 288), (400, 300))]


def _photos(scratch: Path, count: int) -> list[Path]:
    """Photographs of 640 x 480; rendered scenes enlarged to that where there are none."""
    photos = [path for path in find_photos() if _size(path) == (640, 480)]
    if photos:
        return photos
    folder = scratch / "enlarged"
    folder.mkdir(exist_ok=True)
    for path in _scenes(scratch, count)[:40]:
        with Image.open(path) as image:
            image.resize((640, 480)).save(folder / path.name, quality=90)
    return sorted(folder.iterdir())


def _squares(scratch: Path, count: int) -> list[Path]:
    """The photographs at 320 x 320, so that nobody resizes them.

    Networks of random weights enlarge the grey level by which two ways of resizing differ until
    hardly a box agrees.
    """
    folder = scratch / "squares"
    folder.mkdir(exist_ok=True)
    for path in _photos(scratch, count)[:40]:
        with Image.open(path) as image:
            image.resize((320, 320)).save(folder / path.name, quality=90)
    return sorted(folder.iterdir())


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


# --- models ---------------------------------------------------------------------------------------


def _demo(name: str) -> Callable[[Path], ModelConfig]:
    def find(scratch: Path) -> ModelConfig:
        del scratch
        model = next(each for each in load_config("demo").models if each.name == name)
        return model.model_copy(update={"batch_size": BATCH_SIZE})

    return find


def _ssdlite(scratch: Path) -> ModelConfig:
    return DetectionModel(
        name="ssdlite",
        architecture="torchvision/ssdlite320_mobilenet_v3_large",
        weights=str(
            _random_weights(scratch, "ssdlite320_mobilenet_v3_large", _settle_ssdlite, (320, 320))
        ),
        preprocess=PreprocessConfig(
            resize="stretch",
            canvases=((320, 320),),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        batch_size=BATCH_SIZE,
    )


def _retinanet(scratch: Path) -> ModelConfig:
    return DetectionModel(
        name="retinanet",
        architecture="torchvision/retinanet_resnet50_fpn",
        arguments={"min_size": 480, "max_size": 640},
        weights=str(_random_weights(scratch, "retinanet_resnet50_fpn", _settle_retinanet)),
        preprocess=PreprocessConfig(canvases=((480, 640),)),
        batch_size=2,
    )


def _maskrcnn(scratch: Path) -> ModelConfig:
    return InstanceModel(
        name="maskrcnn",
        architecture="torchvision/maskrcnn_resnet50_fpn",
        arguments={"min_size": 480, "max_size": 640},
        weights=str(_random_weights(scratch, "maskrcnn_resnet50_fpn", _settle_maskrcnn)),
        preprocess=PreprocessConfig(canvases=((480, 640),)),
        batch_size=2,
    )


def _deeplab(scratch: Path) -> ModelConfig:
    return SemanticModel(
        name="deeplabv3",
        architecture="torchvision/deeplabv3_resnet50",
        weights=str(_random_weights(scratch, "deeplabv3_resnet50", _settle_segmenter)),
        preprocess=PreprocessConfig(canvases=((480, 640),)),
        batch_size=2,
    )


def _identity(scratch: Path) -> ModelConfig:
    """A classifier of three numbers: the first pixel's."""
    path = scratch / "identity.onnx"
    if not path.exists():
        path.write_bytes(_identity_graph().SerializeToString())
    return ClassificationModel(
        name="identity",
        architecture="onnx",
        weights=str(path),
        classes=("red", "green", "blue"),
        preprocess=PreprocessConfig(resize="stretch", canvases=((224, 224),)),
        batch_size=BATCH_SIZE,
    )


def _identity_graph() -> onnx.ModelProto:
    """(B, H, W, 3) uint8 -> (B, 3) float32: the upper left pixel, in [0, 1]."""
    ends = [("start", [0, 0]), ("end", [1, 1]), ("axes", [1, 2])]
    nodes = [
        helper.make_node("Slice", ["images", "start", "end", "axes"], ["pixel"]),
        helper.make_node("Squeeze", ["pixel", "axes"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["number", "scale"], ["logits"]),
    ]
    constants = [helper.make_tensor(name, TensorProto.INT64, [2], value) for name, value in ends]
    constants.append(helper.make_tensor("scale", TensorProto.FLOAT, [1], [1 / 255]))
    graph = helper.make_graph(
        nodes,
        "identity",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", "H", "W", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", IDENTITY_CLASSES])],
        initializer=constants,
    )
    return helper.make_model(
        graph,
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 17)],
        producer_name="pixelbench",
    )


# --- random weights -------------------------------------------------------------------------------


def _random_weights(
    scratch: Path,
    builder: str,
    settle: Callable[[Any, torch.Tensor], None],
    size: tuple[int, int] = (480, 640),
) -> Path:
    """A state dict of a torchvision model that behaves like a trained one, made once."""
    path = scratch / f"{builder}.pt"
    if not path.exists():
        torch.manual_seed(int(hashlib.sha256(builder.encode()).hexdigest()[:8], 16))
        options = {"aux_loss": True} if builder.startswith("deeplab") else {}
        model: Any = get_model(builder, weights=None, weights_backbone=None, **options)
        sample = _sample(scratch, size, model)
        with torch.inference_mode():
            _forget_norms(model.eval())
            model.backbone.train()(sample)
            model.backbone.eval()
            settle(model, sample)
        torch.save(model.state_dict(), path)
    return path


def _sample(scratch: Path, size: tuple[int, int], model: Any) -> torch.Tensor:
    """(4, 3, height, width) of the images that will be scored, normalised for the model."""
    images = torch.stack([pil_to_tensor(Image.open(path)) for path in _photos(scratch, 4)[:4]])
    pixels = resize_image(images, list(size)).float() / 255
    own = getattr(model, "transform", None)
    mean, std = (own.image_mean, own.image_std) if own else (IMAGENET_MEAN, IMAGENET_STD)
    return normalize(pixels, list(mean), list(std))


def _forget_norms(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the plain mean of what comes
            layer.reset_running_stats()


def _spread(logits: torch.Tensor, layer: nn.Conv2d | nn.Linear, share: float, level: float) -> None:
    """Scale a last layer so that of most images `share` of the outputs (N, ...) is over `level`."""
    scale = 1.5 / float(logits.std().clamp(min=1e-6))
    layer.weight.mul_(scale)
    count = max(1, round(share * logits[0].numel()))
    highest = logits.flatten(1).topk(count).values[:, -1].median()
    cast("nn.Parameter", layer.bias).fill_(level - float(highest) * scale)


def _settle_retinanet(model: Any, sample: torch.Tensor) -> None:
    head = model.head.classification_head
    features = list(model.backbone(sample).values())
    head.cls_logits.bias.zero_()
    logits = head(features)
    # about 200 candidates of 480 x 640 pixels, so 2e-5 of anchors x classes
    _spread(logits, head.cls_logits, share=2e-5, level=-2.9)
    head.cls_logits.bias.view(-1, NUM_CLASSES)[:, [0, *PLACEHOLDERS]] = -100.0


def _settle_ssdlite(model: Any, sample: torch.Tensor) -> None:
    heads = model.head.classification_head.module_list
    model.head.train()
    features = list(model.backbone(sample).values())
    model.head(features)
    model.head.eval()
    for head in heads:
        head[1].weight.mul_(1.5 / float(head[1].weight.std() * head[1].in_channels ** 0.5))
        head[1].bias.zero_()
    logits = model.head(features)["cls_logits"]
    logits[..., PLACEHOLDERS] = -100.0
    # The background wins in all but about 300 of 3234 anchors x 80 classes
    low, high = 0.0, 100.0
    for _ in range(30):
        shifted = logits.clone()
        shifted[..., 0] += (low + high) / 2
        count = int((shifted.softmax(-1)[..., 1:] > 0.05).sum()) / len(logits)
        low, high = ((low + high) / 2, high) if count > 300 else (low, (low + high) / 2)
    for head in heads:
        bias = head[1].bias.view(-1, NUM_CLASSES)
        bias[:, PLACEHOLDERS] = -100.0
        bias[:, 0] = high


def _settle_maskrcnn(model: Any, sample: torch.Tensor) -> None:
    predictor = model.roi_heads.box_predictor
    box_features = torch.randn(512, predictor.cls_score.in_features).relu()
    logits = predictor.cls_score(box_features)
    _spread(logits, predictor.cls_score, share=2e-3, level=0.0)


def _settle_segmenter(model: Any, sample: torch.Tensor) -> None:
    last = model.classifier[-1]
    logits = model.classifier(model.backbone(sample)["out"])
    last.weight.mul_(3 / float(logits.std()))


WORKLOADS = {
    "ssdlite": _Recipe(
        "light detector (torchvision SSDlite320-MobileNetV3, images of 320x320)",
        "torchvision_detector", _ssdlite, _squares, 320,
    ),
    "instances": _Recipe(
        "light instance segmenter (RetinaMask 1.5 M, 240x320)",
        "own_detector", _demo("demo-detector"), _scenes, 320,
    ),
    "heavy": _Recipe(
        "heavy detector (torchvision RetinaNet-R50-FPN, images of 480x640)",
        "torchvision_detector", _retinanet, _photos, 4,
    ),
    "segmenter": _Recipe(
        "semantic segmenter (U-Net 1.9 M, 144x192)",
        "own_segmenter", _demo("demo-segmenter"), _scenes, 320,
    ),
    "captioner": _Recipe(
        "captioner (Show, Attend and Tell 1.4 M, beam 3)",
        "own_captioner", _demo("demo-captioner"), _scenes, 640,
    ),
    "identity": _Recipe(
        "identity (costs nothing, 224x224)",
        "identity", _identity, _photos, 3200,
    ),
    "maskrcnn": _Recipe(
        "instance segmenter (torchvision Mask R-CNN-R50-FPN, 480x640)",
        "torchvision_detector", _maskrcnn, _photos, 4,
    ),
    "deeplabv3": _Recipe(
        "semantic segmenter (torchvision DeepLabV3-R50, 480x640)",
        "torchvision_segmenter", _deeplab, _photos, 4,
    ),
}  # fmt: skip
