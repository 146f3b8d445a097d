"""The architectures as their papers have them: configuration, size, source.

One entry per published network. `published` is the figure of the paper or of the reference that is
named; where there is none, it was derived from the paper's layers by hand in the tests.
"""

from dataclasses import dataclass

import torch
from torch import nn

from pixelmill.configs.schema import CanvasSize, TaskName
from pixelmill.models.spec import Arguments
from pixelmill.models.zoo import ARCHITECTURES

__all__ = ["CATALOGUE", "Entry", "count_parameters", "entries_of"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A network of a paper.

    Attributes:
        name: of the network, as people call it.
        architecture: key of `ARCHITECTURES`.
        arguments: with which it is the paper's, or the reference's.
        paper: title, venue and year.
        url: of the paper.
        canvas: (height, width) that it was published with, or about.
        published: number of parameters elsewhere; None: the networks of the paper are others.
        source: of that number.
        with_statistics: the number counts running means and variances, as files do.
    """

    name: str
    architecture: str
    arguments: Arguments
    paper: str
    url: str
    canvas: CanvasSize
    published: int | None = None
    source: str = ""
    with_statistics: bool = False

    @property
    def tasks(self) -> tuple[TaskName, ...]:
        """What it can do."""
        return ARCHITECTURES[self.architecture].tasks

    def build(self) -> nn.Module:
        """The network, with random weights."""
        return ARCHITECTURES[self.architecture].build(**self.arguments)


def count_parameters(entry: Entry) -> int:
    """What `published` counts, of our network; no memory is taken for its weights."""
    with torch.device("meta"):
        module = entry.build()
    counted = [each.numel() for each in module.parameters()]
    if entry.with_statistics:
        counted += [each.numel() for name, each in module.named_buffers() if "running_" in name]
    return sum(counted)


def entries_of(architecture: str) -> tuple[Entry, ...]:
    """The networks of one architecture; the first is the one that its paper is about."""
    return tuple(entry for entry in CATALOGUE if entry.architecture == architecture)


_DARKNET = "file of pjreddie/darknet, running means and variances included"
_BY_HAND = "the paper's layers, by hand"

CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "Plain full resolution", "full_resolution", {"num_classes": 21, "width": 32, "depth": 8},
        "Baseline; after Fully Convolutional Networks, CVPR 2015",
        "https://arxiv.org/abs/1411.4038", (256, 256),
    ),
    Entry(
        "Encoder-decoder without skips", "encoder_decoder", {"num_classes": 21},
        "Baseline; after Learning Deconvolution Network, ICCV 2015",
        "https://arxiv.org/abs/1505.04366", (256, 256),
    ),
    Entry(
        "U-Net", "unet", {"num_classes": 2, "width": 64},
        "U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI 2015",
        "https://arxiv.org/abs/1505.04597", (512, 512),
        31_037_698, "milesial/Pytorch-UNet, 3 channels in",
    ),
    Entry(
        "U-Net++", "unet_plus_plus", {"num_classes": 1},
        "UNet++: A Nested U-Net Architecture, DLMIA 2018",
        "https://arxiv.org/abs/1807.10165", (96, 96),
        9_163_329, "4uiiurz1/pytorch-nested-unet",
    ),
    Entry(
        "U-Net++, deep supervision", "unet_plus_plus",
        {"num_classes": 1, "deep_supervision": True},
        "UNet++: A Nested U-Net Architecture, DLMIA 2018",
        "https://arxiv.org/abs/1807.10165", (96, 96),
        9_163_428, "4uiiurz1/pytorch-nested-unet",
    ),
    Entry(
        "PSPNet", "pspnet", {"num_classes": 21},
        "Pyramid Scene Parsing Network, CVPR 2017",
        "https://arxiv.org/abs/1612.01105", (480, 480),
        65_606_250, "zijundeng/pytorch-semantic-segmentation",
    ),
    Entry(
        "GCN", "gcn", {"num_classes": 21, "kernel": 7},
        "Large Kernel Matters, CVPR 2017",
        "https://arxiv.org/abs/1703.02719", (512, 512),
        59_369_620, "zijundeng/pytorch-semantic-segmentation",
    ),
    Entry(
        "FRRN-A", "frrn", {"num_classes": 19, "variant": "A"},
        "Full-Resolution Residual Networks, CVPR 2017",
        "https://arxiv.org/abs/1611.08323", (256, 512),
        17_712_259, "the paper's table 1, by hand (it says 17.7 million)",
    ),
    Entry(
        "FRRN-B", "frrn", {"num_classes": 19, "variant": "B"},
        "Full-Resolution Residual Networks, CVPR 2017",
        "https://arxiv.org/abs/1611.08323", (256, 512),
        24_721_155, "the paper's table 1, by hand (it says 24.8 million)",
    ),
    Entry(
        "Semantic FPN", "semantic_fpn", {"num_classes": 19},
        "Panoptic Feature Pyramid Networks, CVPR 2019",
        "https://arxiv.org/abs/1901.02446", (512, 1024),
    ),
    Entry(
        "R-CNN", "rcnn", {"num_classes": 20},
        "Rich feature hierarchies, CVPR 2014",
        "https://arxiv.org/abs/1311.2524", (375, 500),
        134_670_244, _BY_HAND,
    ),
    Entry(
        "Fast R-CNN", "fast_rcnn", {"num_classes": 20},
        "Fast R-CNN, ICCV 2015",
        "https://arxiv.org/abs/1504.08083", (608, 800),
        134_690_729, _BY_HAND,
    ),
    Entry(
        "Faster R-CNN, VGG16", "faster_rcnn", {"num_classes": 20},
        "Faster R-CNN, NIPS 2015",
        "https://arxiv.org/abs/1506.01497", (608, 800),
        137_078_239, _BY_HAND,
    ),
    Entry(
        "Faster R-CNN, ResNet-50 FPN", "faster_rcnn",
        {"num_classes": 90, "backbone": "resnet50", "fpn": True},
        "Feature Pyramid Networks for Object Detection, CVPR 2017",
        "https://arxiv.org/abs/1612.03144", (800, 1088),
        41_808_406, "torchvision, with its 53,120 frozen numbers of batch normalisation",
    ),
    Entry(
        "Mask R-CNN, ResNet-50 FPN", "mask_rcnn", {"num_classes": 90},
        "Mask R-CNN, ICCV 2017",
        "https://arxiv.org/abs/1703.06870", (800, 1088),
        44_454_513, "torchvision, with its 53,120 frozen numbers of batch normalisation",
    ),
    Entry(
        "YOLO", "yolo_v1", {"num_classes": 20},
        "You Only Look Once, CVPR 2016",
        "https://arxiv.org/abs/1506.02640", (448, 448),
        271_716_734, _BY_HAND,
    ),
    Entry(
        "Tiny YOLO", "yolo_v1", {"num_classes": 20, "variant": "tiny"},
        "You Only Look Once, CVPR 2016",
        "https://arxiv.org/abs/1506.02640", (448, 448),
        27_099_950, _DARKNET, with_statistics=True,
    ),
    Entry(
        "YOLOv2", "yolo_v2", {"num_classes": 80},
        "YOLO9000: Better, Faster, Stronger, CVPR 2017",
        "https://arxiv.org/abs/1612.08242", (416, 416),
        50_983_561, _DARKNET, with_statistics=True,
    ),
    Entry(
        "Tiny YOLOv2", "yolo_v2", {"num_classes": 80, "variant": "tiny"},
        "YOLO9000: Better, Faster, Stronger, CVPR 2017",
        "https://arxiv.org/abs/1612.08242", (416, 416),
        11_237_145, _DARKNET, with_statistics=True,
    ),
    Entry(
        "YOLOv3", "yolo_v3", {"num_classes": 80},
        "YOLOv3: An Incremental Improvement, 2018",
        "https://arxiv.org/abs/1804.02767", (416, 416),
        62_001_757, _DARKNET, with_statistics=True,
    ),
    Entry(
        "Tiny YOLOv3", "yolo_v3", {"num_classes": 80, "variant": "tiny"},
        "YOLOv3: An Incremental Improvement, 2018",
        "https://arxiv.org/abs/1804.02767", (416, 416),
        8_858_734, _DARKNET, with_statistics=True,
    ),
    Entry(
        "SSD300", "ssd", {"num_classes": 20},
        "SSD: Single Shot MultiBox Detector, ECCV 2016",
        "https://arxiv.org/abs/1512.02325", (300, 300),
        26_285_486, "amdegroot/ssd.pytorch",
    ),
    Entry(
        "SSD512", "ssd", {"num_classes": 20, "size": 512},
        "SSD: Single Shot MultiBox Detector, ECCV 2016",
        "https://arxiv.org/abs/1512.02325", (512, 512),
        27_188_676, _BY_HAND,
    ),
    Entry(
        "RetinaNet, small, with masks", "retinamask", {"num_classes": 7, "mask_head": True},
        "Focal Loss for Dense Object Detection, ICCV 2017; RetinaMask, 2019",
        "https://arxiv.org/abs/1708.02002", (320, 320),
    ),
    Entry(
        "Show and Tell", "show_and_tell", {"vocabulary_size": 9490},
        "Show and Tell: A Neural Image Caption Generator, CVPR 2015",
        "https://arxiv.org/abs/1411.4555", (299, 299),
        34_663_154, "the paper's widths on Inception-v3, by hand",
    ),
    Entry(
        "Show, Attend and Tell, small", "show_attend_tell", {"vocabulary_size": 9490},
        "Show, Attend and Tell, ICML 2015",
        "https://arxiv.org/abs/1502.03044", (224, 224),
    ),
    Entry(
        "Classifier, ResNet-50", "classifier", {"num_classes": 1000},
        "Deep Residual Learning for Image Recognition, CVPR 2016",
        "https://arxiv.org/abs/1512.03385", (224, 224),
        25_557_032, "torchvision",
    ),
    Entry(
        "Classification with a box, VGG16", "localiser", {"num_classes": 1000},
        "Very Deep Convolutional Networks, ICLR 2015, appendix A",
        "https://arxiv.org/abs/1409.1556", (224, 224),
    ),
)  # fmt: skip
