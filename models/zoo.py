"""The architectures of our own that a config may name, and how their outputs are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from pixelmill.configs.schema import TaskName
from pixelmill.models.captioning import caption_loss, caption_outputs
from pixelmill.models.classifier import build_classifier, class_loss, class_outputs
from pixelmill.models.fast_rcnn import FastRCNN
from pixelmill.models.faster_rcnn import FasterRCNN
from pixelmill.models.frrn import FRRN
from pixelmill.models.fully_convolutional import EncoderDecoder, FullResolutionNet
from pixelmill.models.gcn import GCN
from pixelmill.models.interface import ViewOutput
from pixelmill.models.localiser import Localiser, localiser_loss, localiser_outputs
from pixelmill.models.mask_rcnn import MaskRCNN
from pixelmill.models.pspnet import PSPNet
from pixelmill.models.rcnn import RCNN
from pixelmill.models.retinamask import RetinaMask, detection_loss, detection_outputs
from pixelmill.models.semantic import semantic_loss, semantic_outputs
from pixelmill.models.semantic_fpn import SemanticFPN
from pixelmill.models.show_and_tell import ShowAndTell
from pixelmill.models.show_attend_tell import ShowAttendTell
from pixelmill.models.spec import ModelSpec
from pixelmill.models.ssd import SSD, ssd_loss, ssd_outputs
from pixelmill.models.targets import Target
from pixelmill.models.two_stage import read_two_stage, two_stage_loss
from pixelmill.models.unet import UNet
from pixelmill.models.unet_plus_plus import UNetPlusPlus
from pixelmill.models.yolo_v1 import YOLOv1, yolo_v1_loss, yolo_v1_outputs
from pixelmill.models.yolo_v2 import YOLOv2, yolo_v2_loss, yolo_v2_outputs
from pixelmill.models.yolo_v3 import YOLOv3, yolo_v3_loss, yolo_v3_outputs

__all__ = ["ARCHITECTURES", "Architecture", "Loss", "ReadOut"]

ReadOut = Callable[[nn.Module, Any, ModelSpec, tuple[int, int]], Sequence[ViewOutput]]
Loss = Callable[[nn.Module, Any, Sequence[Target]], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a network is built from numbers, and how its raw outputs become predictions.

    Attributes:
        build: keyword arguments -> module in training mode, random weights; the module maps
            normalised float32 images (B, 3, H, W) to raw tensors.
        tasks: what it can do.
        read_out: (module, raw outputs, spec, canvas (H, W)) -> one output per image of the batch.
        loss: (module, raw outputs, one target per image) -> scalar terms whose sum is minimised;
            None where we have no training for it.
    """

    build: Callable[..., nn.Module]
    tasks: tuple[TaskName, ...]
    read_out: ReadOut
    loss: Loss | None = None

    @property
    def trainable(self) -> bool:
        """Whether `pixelmill train` takes it."""
        return self.loss is not None


def _semantic(build: Callable[..., nn.Module], auxiliary_weight: float = 1.0) -> Architecture:
    return Architecture(
        build=build,
        tasks=("semantic_segmentation",),
        read_out=semantic_outputs,
        loss=partial(semantic_loss, auxiliary_weight=auxiliary_weight),
    )


def _two_stage(build: Callable[..., nn.Module], *more: TaskName) -> Architecture:
    return Architecture(build, ("detection", *more), read_two_stage, two_stage_loss)


ARCHITECTURES: Mapping[str, Architecture] = {
    "retinamask": Architecture(
        build=RetinaMask,
        tasks=("detection", "instance_segmentation"),
        read_out=detection_outputs,
        loss=detection_loss,
    ),
    "ssd": Architecture(SSD, ("detection",), ssd_outputs, ssd_loss),
    "yolo_v1": Architecture(YOLOv1, ("detection",), yolo_v1_outputs, yolo_v1_loss),
    "yolo_v2": Architecture(YOLOv2, ("detection",), yolo_v2_outputs, yolo_v2_loss),
    "yolo_v3": Architecture(YOLOv3, ("detection",), yolo_v3_outputs, yolo_v3_loss),
    "rcnn": _two_stage(RCNN),
    "fast_rcnn": _two_stage(FastRCNN),
    "faster_rcnn": _two_stage(FasterRCNN),
    "mask_rcnn": _two_stage(MaskRCNN, "instance_segmentation"),
    "full_resolution": _semantic(FullResolutionNet),
    "encoder_decoder": _semantic(EncoderDecoder),
    "unet": _semantic(UNet),
    "unet_plus_plus": _semantic(UNetPlusPlus),
    "pspnet": _semantic(PSPNet, auxiliary_weight=0.4),  # the paper's, section 3.3
    "gcn": _semantic(GCN),
    "frrn": _semantic(FRRN),
    "semantic_fpn": _semantic(SemanticFPN),
    "classifier": Architecture(build_classifier, ("classification",), class_outputs, class_loss),
    "localiser": Architecture(
        build=Localiser,
        tasks=("detection", "classification"),
        read_out=localiser_outputs,
        loss=localiser_loss,
    ),
    "show_and_tell": Architecture(
        build=ShowAndTell,
        tasks=("captioning",),
        read_out=caption_outputs,
        loss=caption_loss,
    ),
    "show_attend_tell": Architecture(
        build=ShowAttendTell,
        tasks=("captioning",),
        read_out=caption_outputs,
        loss=caption_loss,
    ),
}
