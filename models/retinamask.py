"""RetinaNet, with RetinaMask's branch for instance masks.

Tsung-Yi Lin, Priya Goyal, Ross Girshick, Kaiming He, Piotr Dollár: Focal Loss for Dense Object
Detection, ICCV 2017, https://arxiv.org/abs/1708.02002, section 4 and figure 3.
Cheng-Yang Fu, Mykhailo Shvets, Alexander C. Berg: RetinaMask: Learning to predict masks improves
state-of-the-art single-shot detection for free, 2019, https://arxiv.org/abs/1901.03353, section 3.

Differences from RetinaNet, all of them defaults of arguments: the small residual backbone of
`backbone.py`; pyramid levels P3 to P6 (small canvases have no use for P7) of 64 channels instead of
256; heads of two convolutions instead of four; two scales and three ratios, six anchors a cell
instead of nine; boxes learn the generalised IoU of the decoded box instead of smooth L1 on its
deltas; an object whose best anchor overlaps it by less than 0.5 gets that anchor all the same
(RetinaMask's "best matching policy").
Differences from RetinaMask: smooth L1 with adapting control points is not needed with that loss;
in training the regions are truth boxes, moved at random, instead of the detector's best 100
detections; two convolutions instead of four before the upsampling; regions are read from P3 to P5.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.backbone import ResidualBackbone
from pixelmill.models.feature_extractor import FeatureExtractor, build_extractor, check_padded
from pixelmill.models.interface import BoxOutput
from pixelmill.models.losses import BoxLoss, box_loss, sigmoid_focal_loss
from pixelmill.models.ops.anchors import cached_anchors
from pixelmill.models.ops.boxes import Weights, box_iou, clip_boxes, decode_boxes
from pixelmill.models.ops.candidates import best_candidates, fetch, in_blocks, pieces, survivors
from pixelmill.models.ops.matching import BACKGROUND, IGNORED, match_anchors
from pixelmill.models.ops.regions import align_regions
from pixelmill.models.ops.suppression import class_thresholds
from pixelmill.models.spec import ModelSpec
from pixelmill.models.targets import BoxTarget, Target

__all__ = ["RetinaMask", "RetinaOutput", "detection_loss", "detection_outputs"]

# Of the paper's section 4.1: at the start every anchor is background with this error, so that the
# many easy negatives do not drown the first steps.
PRIOR = 0.01
ROI_SIZE = 14
# Smooth L1 is linear from here on, as in the published implementation of RetinaNet
_BOX_BETA = 1 / 9

# Regions in one run of the mask head on a GPU
_MASK_BLOCK = 64


class RetinaOutput(NamedTuple):
    """Raw outputs of a batch.

    Attributes:
        class_logits: (B, A, K).
        box_deltas: (B, A, 4), to be decoded with the anchors.
        features: of the pyramid's levels that have some of the backbone's own, such as P3, P4, P5:
            (B, C, H / stride, W / stride).
    """

    class_logits: Tensor
    box_deltas: Tensor
    features: tuple[Tensor, ...]


def _halve(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)


class FeaturePyramid(nn.Module):
    """Adds what deep features know to shallow ones.

    Args:
        in_channels: of the backbone's features, shallow first.
        channels: of each level.
        num_extra: 0, 1 or 2 levels above them; RetinaNet's footnote 2 says how they are made.

    Source: Lin et al., Feature Pyramid Networks for Object Detection, 2017, figure 3.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_extra: int = 1) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(each, channels, 1) for each in in_channels)
        self.smoothers = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels
        )
        self.extra = _halve(in_channels[-1], channels) if num_extra else None
        self.last = _halve(channels, channels) if num_extra > 1 else None

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Backbone features, shallow first -> as many levels and the extra ones."""
        laterals = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for level in reversed(range(len(laterals) - 1)):
            above = F.interpolate(laterals[level + 1], size=laterals[level].shape[-2:])
            laterals[level] = laterals[level] + above
        levels = [smooth(x) for smooth, x in zip(self.smoothers, laterals, strict=True)]
        if self.extra is not None:
            levels.append(self.extra(features[-1]))
        if self.last is not None:
            levels.append(self.last(F.relu(levels[-1])))
        return tuple(levels)


class _DenseHead(nn.Module):
    """The same convolutions over every level."""

    def __init__(self, channels: int, depth: int, outputs: int, per_cell: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth)
        )
        self.predictor = nn.Conv2d(channels, outputs * per_cell, 3, padding=1)
        self.outputs = outputs

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, C, h, w) by level -> (B, A, outputs), ordered as `make_anchors` orders."""
        rows = []
        for x in levels:
            for conv in self.convs:
                x = F.relu(conv(x))
            cells = self.predictor(x).permute(0, 2, 3, 1)
            rows.append(cells.reshape(cells.shape[0], -1, self.outputs))
        return torch.cat(rows, dim=1)


class MaskHead(nn.Module):
    """Probability logits inside each box, by class.

    Source: He et al., Mask R-CNN, 2017, figure 4 (right), as RetinaMask uses it.
    """

    def __init__(self, channels: int, depth: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth)
        )
        self.upsampler = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.predictor = nn.Conv2d(channels, num_classes, 1)

    def forward(self, regions: Tensor) -> Tensor:
        """(N, C, 14, 14) -> (N, K, 28, 28) logits."""
        for conv in self.convs:
            regions = F.relu(conv(regions))
        return cast("Tensor", self.predictor(F.relu(self.upsampler(regions))))


class RetinaMask(nn.Module):
    """One-stage detector, with masks if asked for.

    Args:
        num_classes: K, without a background class.
        mask_head: learn and predict a mask for each box.
        width: channels of our backbone's first stage.
        depths: blocks of our backbone's four stages.
        fpn_channels: C of every pyramid level and head.
        head_depth: convolutions in each head before its predictor.
        anchor_sizes: side of the square anchor of scale 1 in canvas pixels, for each level.
        anchor_scales: factors on the size, at every cell.
        anchor_ratios: height over width, at every cell.
        backbone: None for our own; or of `feature_extractor.EXTRACTORS`, of which the papers' are
            resnet50 and resnet101; not Inception-v3.
        levels: of the pyramid, that is powers of 2 of their strides: 2 to 7, one after the other;
            the papers' are 3 to 7. Those above 5 are made of those below.
        match_iou: anchors that overlap an object by less than the first are background, by at
            least the second learn the object.
        match_best: whether an object also gets the anchors that overlap it most, however little
            (RetinaMask's "best matching policy").
        box_loss: of `losses.box_loss`; RetinaNet's is "smooth_l1".
        box_weights: factors on the offsets of centre and sides.

    Raises:
        ValueError: no such backbone or levels, or not a size for each level.
    """

    def __init__(
        self,
        num_classes: int,
        mask_head: bool = False,
        width: int = 32,
        depths: Sequence[int] = (1, 2, 2, 1),
        fpn_channels: int = 64,
        head_depth: int = 2,
        anchor_sizes: Sequence[float] = (28, 56, 112, 224),
        anchor_scales: Sequence[float] = (1.0, 2**0.5),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        backbone: str | None = None,
        levels: Sequence[int] = (3, 4, 5, 6),
        match_iou: tuple[float, float] = (0.4, 0.5),
        match_best: bool = True,
        box_loss: BoxLoss = "giou",
        box_weights: Weights = (1.0, 1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if len(depths) != 4:
            raise ValueError(f"depths must name four stages, got {tuple(depths)}")
        _check_levels(levels, anchor_sizes)
        self.match_iou, self.match_best = match_iou, match_best
        self.box_loss: BoxLoss = box_loss
        self.box_weights = box_weights
        self.strides = tuple(2**level for level in levels)
        self.anchor_sizes = tuple(anchor_sizes)
        self.anchor_scales = tuple(anchor_scales)
        self.anchor_ratios = tuple(anchor_ratios)
        per_cell = len(self.anchor_scales) * len(self.anchor_ratios)
        if backbone is None:
            self.backbone: ResidualBackbone | FeatureExtractor = ResidualBackbone(width, depths)
        else:
            check_padded(backbone)
            self.backbone = build_extractor(backbone)
        # Of all the backbone's features, those of the levels
        of_stride = dict(zip(self.backbone.strides, range(len(self.backbone.strides)), strict=True))
        self.stages = tuple(of_stride[each] for each in self.strides if each in of_stride)
        self.pyramid = FeaturePyramid(
            [self.backbone.channels[stage] for stage in self.stages],
            fpn_channels,
            len(self.strides) - len(self.stages),
        )
        self.class_head = _DenseHead(fpn_channels, head_depth, num_classes, per_cell)
        self.box_head = _DenseHead(fpn_channels, head_depth, 4, per_cell)
        self.mask_head = MaskHead(fpn_channels, head_depth, num_classes) if mask_head else None
        self._initialise()

    def _initialise(self) -> None:
        for head in (self.class_head, self.box_head):
            for layer in head.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(cast("Tensor", layer.bias))
            nn.init.normal_(head.predictor.weight, std=0.01)
        nn.init.constant_(
            cast("Tensor", self.class_head.predictor.bias), math.log(PRIOR / (1 - PRIOR))
        )

    def forward(self, images: Tensor) -> RetinaOutput:
        """(B, 3, H, W) normalised float -> logits and deltas for every anchor."""
        features = self.backbone(images)
        levels = self.pyramid([features[stage] for stage in self.stages])
        return RetinaOutput(
            self.class_head(levels), self.box_head(levels), levels[: len(self.stages)]
        )

    def anchors(self, canvas: tuple[int, int], device: torch.device) -> Tensor:
        """(A, 4) boxes of a canvas (height, width), in the order of the outputs; not to change."""
        return cached_anchors(
            canvas, self.strides, self.anchor_sizes, self.anchor_scales, self.anchor_ratios, device
        )

    def mask_logits(self, features: Sequence[Tensor], boxes_xyxy: Sequence[Tensor]) -> Tensor:
        """Masks of the boxes of a batch.

        Args:
            features: of the outputs of the batch.
            boxes_xyxy: per image (N_i, 4), canvas pixels; on the CPU, or where the features are.

        Returns:
            (sum of N_i, K, 28, 28) logits.

        Raises:
            ValueError: the model was built without mask_head.
        """
        if self.mask_head is None:
            raise ValueError("this RetinaMask has no masks; build it with mask_head=True")
        regions = _pool_regions(features, self.strides, boxes_xyxy).to(features[0].dtype)
        if self.training:
            return cast("Tensor", self.mask_head(regions))
        return in_blocks(self.mask_head, regions, _MASK_BLOCK)


def _pool_regions(
    features: Sequence[Tensor], strides: Sequence[int], boxes_xyxy: Sequence[Tensor]
) -> Tensor:
    """(sum of N_i, C, 14, 14): each box is read from the level at which it has about 14 cells.

    Source: Lin et al., Feature Pyramid Networks, 2017, equation 1, with a box of 14 cells of P3
    (112 pixels) as the canonical one.
    """
    boxes = torch.cat(list(boxes_xyxy))
    owners = [torch.full((len(each), 1), float(i)) for i, each in enumerate(boxes_xyxy)]
    rois = torch.cat((torch.cat(owners).to(boxes), boxes), dim=1)
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).prod(dim=1).sqrt()
    level_of_box = torch.log2(sides / (ROI_SIZE * strides[0])).floor().long()
    level_of_box = level_of_box.clamp(0, len(features) - 1)
    scales = [1 / stride for stride in strides[: len(features)]]
    return align_regions(features, scales, rois, level_of_box, ROI_SIZE)


def _check_levels(levels: Sequence[int], anchor_sizes: Sequence[float]) -> None:
    wanted = list(range(levels[0], levels[0] + len(levels))) if levels else []
    if not wanted or list(levels) != wanted or levels[0] not in (2, 3, 4, 5) or levels[-1] > 7:
        raise ValueError(
            f"expected levels one after the other, the first of 2 to 5, the last at most 7, got "
            f"{tuple(levels)}"
        )
    if len(anchor_sizes) != len(levels):
        raise ValueError(
            f"expected an anchor size for each of {len(levels)} levels, got {tuple(anchor_sizes)}"
        )


def detection_outputs(
    module: nn.Module, outputs: RetinaOutput, spec: ModelSpec, canvas: tuple[int, int]
) -> list[BoxOutput]:
    """Candidates over their score threshold, at most `pre_nms_top_k`, with masks if there are any.

    Masks are computed for boxes that survive the suppression that the engine will repeat (it
    then finds nothing to suppress); where the spec asks for another kind of suppression, or to
    keep the candidates, for all.
    """
    model = cast("RetinaMask", module)
    postprocess = cast("BoxPostprocess", spec.postprocess)
    device = outputs.box_deltas.device
    floors = torch.logit(class_thresholds(postprocess, spec.classes))
    floors = floors.to(device, non_blocking=True)
    results: list[BoxOutput] = []
    for piece in pieces(len(outputs.class_logits), device):
        logits, deltas = outputs.class_logits[piece].float(), outputs.box_deltas[piece].float()
        found = _candidates(
            logits,
            deltas,
            model.anchors(canvas, device),
            floors,
            postprocess,
            canvas,
            model.box_weights,
        )
        if model.mask_head is not None:
            features = [level[piece] for level in outputs.features]
            found = _with_masks(model, features, found, postprocess)
        results += found
    return results


def _candidates(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    floors: Tensor,
    postprocess: BoxPostprocess,
    canvas: tuple[int, int],
    box_weights: Weights,
) -> list[BoxOutput]:
    best = best_candidates(
        logits >= floors,
        lambda image, place, label: logits[image, place, label].sigmoid(),
        postprocess.pre_nms_top_k,
    )
    kept = deltas.gather(1, best.places[..., None].expand(-1, -1, 4))
    boxes_xyxy = decode_boxes(kept, anchors[best.places], box_weights)
    return fetch(clip_boxes(boxes_xyxy, canvas), best)


def detection_loss(
    module: nn.Module, outputs: RetinaOutput, targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Focal loss of the classes, the boxes' error, cross-entropy of the masks.

    Args:
        module: the `RetinaMask` that gave the outputs.
        outputs: of one batch.
        targets: `BoxTarget` per image; with masks if the model has a mask head.

    Returns:
        Scalars "class", "box" and, with a mask head, "mask".
    """
    model = cast("RetinaMask", module)
    boxes = [cast("BoxTarget", target) for target in targets]
    height, width = (side * model.strides[0] for side in outputs.features[0].shape[-2:])
    anchors = model.anchors((height, width), outputs.box_deltas.device)
    background, foreground = model.match_iou
    matches = torch.stack(
        [
            match_anchors(
                box_iou(target.boxes_xyxy, anchors),
                foreground=foreground,
                background=background,
                low_quality=model.match_best,
            )
            for target in boxes
        ]
    )
    num_matches = (matches >= 0).sum().clamp(min=1)
    terms = {
        "class": _class_loss(outputs.class_logits.float(), matches, boxes) / num_matches,
        "box": _box_loss(model, outputs.box_deltas.float(), anchors, matches, boxes) / num_matches,
    }
    if model.mask_head is not None:
        terms["mask"] = _mask_loss(model, outputs.features, boxes)
    return terms


def _class_loss(logits: Tensor, matches: Tensor, targets: Sequence[BoxTarget]) -> Tensor:
    one_hot = torch.zeros_like(logits)
    for index, target in enumerate(targets):
        (matched,) = torch.nonzero(matches[index] >= 0, as_tuple=True)
        one_hot[index, matched, target.labels[matches[index, matched]]] = 1
    return sigmoid_focal_loss(logits, one_hot)[matches != IGNORED].sum()


def _box_loss(
    model: RetinaMask,
    deltas: Tensor,
    anchors: Tensor,
    matches: Tensor,
    targets: Sequence[BoxTarget],
) -> Tensor:
    image_index, anchor_index = torch.nonzero(matches > BACKGROUND, as_tuple=True)
    truth = torch.cat(
        [
            target.boxes_xyxy[match[match > BACKGROUND]]
            for target, match in zip(targets, matches, strict=True)
        ]
    )
    return box_loss(
        model.box_loss,
        deltas[image_index, anchor_index],
        truth,
        anchors[anchor_index],
        weights=model.box_weights,
        beta=_BOX_BETA,
    ).sum()


def _mask_loss(
    model: RetinaMask, features: Sequence[Tensor], targets: Sequence[BoxTarget]
) -> Tensor:
    """Mean binary cross-entropy over truth boxes whose corners are moved by up to a tenth."""
    regions = [_jitter(target.boxes_xyxy) for target in targets]
    labels = torch.cat([target.labels for target in targets])
    logits = model.mask_logits(features, regions)[torch.arange(len(labels)), labels].float()
    truth = torch.cat(
        [
            _crop_masks(target, region, logits.shape[-1])
            for target, region in zip(targets, regions, strict=True)
        ]
    )
    # a sum, since the mean over no objects is no number
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
    return loss / max(logits.numel(), 1)


def _jitter(boxes_xyxy: Tensor) -> Tensor:
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).repeat(1, 2)
    return boxes_xyxy + 0.1 * sides * (2 * torch.rand_like(boxes_xyxy) - 1)


def _crop_masks(target: BoxTarget, regions_xyxy: Tensor, size: int) -> Tensor:
    """(N, size, size) float in {0, 1}: each truth mask as seen in its region."""
    if target.masks is None:
        raise ValueError("a model with mask_head needs truth masks; expected a target with masks")
    rois = torch.cat((torch.arange(len(regions_xyxy))[:, None].to(regions_xyxy), regions_xyxy), 1)
    crops = roi_align(target.masks[:, None].float(), rois, size, 1.0, 1, aligned=True)
    return (crops[:, 0] >= 0.5).float()


def _with_masks(
    model: RetinaMask,
    features: Sequence[Tensor],
    candidates: Sequence[BoxOutput],
    postprocess: BoxPostprocess,
) -> list[BoxOutput]:
    """Add the masks; drop what the engine's suppression would drop with its mask."""
    kept = [survivors(each, postprocess) for each in candidates]
    logits = model.mask_logits(features, [each.boxes_xyxy for each in kept])
    labels = torch.cat([each.labels for each in kept]).to(logits.device, non_blocking=True)
    own = logits[torch.arange(len(labels), device=logits.device), labels]
    probs = own.float().sigmoid().cpu().split([len(each.labels) for each in kept])
    return [replace(each, mask_probs=mine) for each, mine in zip(kept, probs, strict=True)]
