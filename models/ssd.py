"""SSD: one-stage detection from feature maps of several scales.

Wei Liu, Dragomir Anguelov, Dumitru Erhan, Christian Szegedy, Scott Reed, Cheng-Yang Fu, Alexander
C. Berg: SSD: Single Shot MultiBox Detector, ECCV 2016, https://arxiv.org/abs/1512.02325, figure 2
and section 2; SSD512's seventh map as in section 3.4.

Differences: any torchvision backbone may take VGG16's place (its features at strides 8 and 16 then,
in place of conv4_3 and fc7); canvases of other sizes than 300 and 512 get the default boxes
of the nearer one, relative to the canvas.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pixelmill.models.dense import dense_outputs
from pixelmill.models.feature_extractor import build_extractor
from pixelmill.models.interface import BoxOutput
from pixelmill.models.losses import BoxLoss, box_loss, hard_negatives
from pixelmill.models.ops.boxes import Weights, box_iou, decode_boxes
from pixelmill.models.ops.matching import BACKGROUND, match_anchors
from pixelmill.models.spec import ModelSpec
from pixelmill.models.targets import BoxTarget, Target

__all__ = ["SSD", "SSDOutput", "ssd_loss", "ssd_outputs"]

# Section 2.2 and the published implementation: "variances" 0.1 and 0.2
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# Section 3.4 and the published implementation: box sides relative to the canvas, smallest first,
# and the one above the last map's; pixels between cells; aspect ratios beside 1
SCALES = {
    300: (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    512: (0.04, 0.1, 0.26, 0.42, 0.58, 0.74, 0.9, 1.06),
}
STEPS = {300: (8, 16, 32, 64, 100, 300), 512: (8, 16, 32, 64, 128, 256, 512)}
RATIOS = {300: ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)), 512: ((2,), *((2, 3),) * 4, (2,), (2,))}


class SSDOutput(NamedTuple):
    """Raw outputs of a batch.

    Attributes:
        class_logits: (B, A, 1 + K), background first.
        box_deltas: (B, A, 4), to be decoded with the default boxes.
        default_boxes: (A, 4) float32 canvas pixels.
    """

    class_logits: Tensor
    box_deltas: Tensor
    default_boxes: Tensor


class _Normalise(nn.Module):
    """Each place's features scaled to length 20 at first, then as learnt.

    conv4_3 is much larger than the deeper maps (Liu et al., ParseNet, 2015).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), 20.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.scale[:, None, None]


def _extra(in_channels: int, channels: int, out_channels: int, **last: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, out_channels, **({"kernel_size": 3} | last)),  # type: ignore[arg-type]
        nn.ReLU(inplace=True),
    )


class _VGGBase(nn.Module):
    """VGG16 up to conv4_3, and on to fc7, its fully connected layers made convolutions."""

    channels = (512, 1024)

    def __init__(self) -> None:
        super().__init__()
        vgg = cast("Any", torchvision.models.vgg16(weights=None, init_weights=False))
        layers = list(vgg.features)
        pools = [layer for layer in layers if isinstance(layer, nn.MaxPool2d)]
        pools[2].ceil_mode = True  # 75 -> 38 cells
        self.conv4_3 = nn.Sequential(*layers[:23])
        self.fc7 = nn.Sequential(
            *layers[23:30],
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(inplace=True),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        shallow = self.conv4_3(images)
        return shallow, self.fc7(shallow)


class _ExtractorBase(nn.Module):
    """A backbone's features at strides 8 and 16."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.extractor = build_extractor(name)
        self.channels = self.extractor.channels[2:4]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x, maps = images, []
        for stage in self.extractor.stages[:4]:  # the last one, at stride 32, is not asked for
            x = stage(x)
            maps.append(x)
        return maps[2], maps[3]


class SSD(nn.Module):
    """Classes and offsets of default boxes on six or seven feature maps.

    Args:
        num_classes: K, without the background.
        size: 300 or 512: number of maps, default boxes, and the side that these are made for.
        backbone: "vgg16", or another of `feature_extractor.EXTRACTORS`.
        match_iou: least overlap of a default box with the object that it learns.
        negative_ratio: background boxes learnt for each matched one, the worst ones.
        match_best: whether an object also gets the default box that overlaps it most, however
            little; without it an object may be left out.
        box_loss: "smooth_l1" (the paper's), or another of `losses.box_loss`.
        box_weights: factors on the offsets of centre and sides.
        maps: which feature maps have default boxes, 0 being the finest; None: all (section 3.3,
            table 3 compares).

    Raises:
        ValueError: no such backbone, or no such maps.
    """

    def __init__(
        self,
        num_classes: int,
        size: Literal[300, 512] = 300,
        backbone: str = "vgg16",
        match_iou: float = 0.5,
        negative_ratio: float = 3.0,
        match_best: bool = True,
        box_loss: BoxLoss = "smooth_l1",
        box_weights: Weights = BOX_WEIGHTS,
        maps: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.match_iou, self.negative_ratio = match_iou, negative_ratio
        self.match_best, self.box_weights = match_best, box_weights
        self.box_loss: BoxLoss = box_loss
        self.size = size
        self.base = _VGGBase() if backbone == "vgg16" else _ExtractorBase(backbone)
        shallow, deep = self.base.channels
        extras = [
            _extra(deep, 256, 512, stride=2, padding=1),
            _extra(512, 128, 256, stride=2, padding=1),
        ]
        if size == 300:
            extras += [_extra(256, 128, 256), _extra(256, 128, 256)]
        else:
            extras += [_extra(256, 128, 256, stride=2, padding=1) for _ in range(2)]
            extras.append(_extra(256, 128, 256, kernel_size=4, padding=1))
        channels = (shallow, deep, 512, *(256,) * (len(extras) - 1))
        self.maps = tuple(range(len(channels))) if maps is None else tuple(maps)
        if not self.maps or not set(self.maps) <= set(range(len(channels))):
            raise ValueError(f"expected some of {len(channels)} feature maps, got {self.maps}")
        self.normalise = _Normalise(shallow) if 0 in self.maps else nn.Identity()
        self.extras = nn.ModuleList(extras[: max(self.maps) - 1])
        used = [(channels[index], 2 + 2 * len(RATIOS[size][index])) for index in self.maps]
        self.class_heads = nn.ModuleList(
            nn.Conv2d(each, boxes * (1 + num_classes), 3, padding=1) for each, boxes in used
        )
        self.box_heads = nn.ModuleList(
            nn.Conv2d(each, boxes * 4, 3, padding=1) for each, boxes in used
        )
        self.num_outputs = 1 + num_classes
        for layer in (*self.extras.modules(), *self.class_heads, *self.box_heads):
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(cast("Tensor", layer.bias))

    def forward(self, images: Tensor) -> SSDOutput:
        """(B, 3, H, W) normalised float -> logits and offsets of every default box.

        Raises:
            ValueError: the canvas is too small for the last feature map.
        """
        shallow, deep = self.base(images)
        maps = [self.normalise(shallow), deep]
        for extra in self.extras:
            try:
                maps.append(extra(maps[-1]))
            except RuntimeError as err:  # a kernel larger than the map
                raise ValueError(
                    f"expected a canvas of about {self.size} pixels, got {tuple(images.shape[-2:])}"
                ) from err

        maps = [maps[index] for index in self.maps]

        def flat(heads: nn.ModuleList, outputs: int) -> Tensor:
            cells = [head(x).permute(0, 2, 3, 1) for head, x in zip(heads, maps, strict=True)]
            # Not reshaped by their number: a graph would then be for that number of images only
            return torch.cat([each.flatten(1).unflatten(1, (-1, outputs)) for each in cells], dim=1)

        sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
        return SSDOutput(
            flat(self.class_heads, self.num_outputs),
            flat(self.box_heads, 4),
            self.default_boxes(sizes, (images.shape[-2], images.shape[-1])).to(images.device),
        )

    def default_boxes(self, sizes: Sequence[tuple[int, int]], canvas: tuple[int, int]) -> Tensor:
        """(A, 4) boxes in canvas pixels, in the order of the outputs.

        Args:
            sizes: (rows, columns) of each feature map that has default boxes.
            canvas: (height, width).
        """
        extent = torch.tensor((canvas[1], canvas[0]))
        scales, maps = list(pairwise(SCALES[self.size])), []
        for index, (rows, columns) in zip(self.maps, sizes, strict=True):
            step, ratios = STEPS[self.size][index], RATIOS[self.size][index]
            small, large = scales[index]
            shapes = [(small, small), ((small * large) ** 0.5,) * 2]
            for ratio in ratios:
                root = ratio**0.5
                shapes += [(small * root, small / root), (small / root, small * root)]
            half = torch.tensor(shapes).clamp(max=1) * extent / 2
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            centres = (torch.stack((x, y), dim=-1).view(-1, 1, 2) + 0.5) * step
            maps.append(torch.cat((centres - half, centres + half), dim=-1).view(-1, 4))
        return torch.cat(maps)


def ssd_outputs(
    module: nn.Module, outputs: SSDOutput, spec: ModelSpec, canvas: tuple[int, int]
) -> list[BoxOutput]:
    """Boxes whose class probability is over the threshold."""
    model = cast("SSD", module)
    boxes = decode_boxes(outputs.box_deltas.float(), outputs.default_boxes, model.box_weights)
    return dense_outputs(boxes, outputs.class_logits.float().softmax(-1)[..., 1:], spec, canvas)


def ssd_loss(module: nn.Module, outputs: SSDOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Cross-entropy over matched boxes and the worst of the others, and the offsets' error.

    Args:
        module: the `SSD` that gave the outputs.
        outputs: of one batch.
        targets: `BoxTarget` per image.

    Returns:
        Scalars "class" and "box", per matched box (equation 1).
    """
    model = cast("SSD", module)
    truths = cast("Sequence[BoxTarget]", targets)
    logits, deltas = outputs.class_logits.float(), outputs.box_deltas.float()
    defaults = outputs.default_boxes
    wanted = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
    box = deltas.new_zeros(())
    for index, target in enumerate(truths):
        iou = box_iou(target.boxes_xyxy, defaults)
        match = match_anchors(
            iou,
            foreground=model.match_iou,
            background=model.match_iou,
            low_quality=model.match_best,
        )
        matched = match > BACKGROUND
        wanted[index, matched] = 1 + target.labels[match[matched]]
        wanted_boxes = target.boxes_xyxy[match[matched]]
        box = (
            box
            + box_loss(
                model.box_loss,
                deltas[index, matched],
                wanted_boxes,
                defaults[matched],
                weights=model.box_weights,
            ).sum()
        )
    errors = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
    positive = wanted > 0
    counted = positive | hard_negatives(errors, positive, model.negative_ratio)
    number = positive.sum().clamp(min=1)
    return {"class": errors[counted].sum() / number, "box": box / number}
