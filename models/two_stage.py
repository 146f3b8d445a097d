"""What detectors of two stages share: reading regions out, and what they are trained towards.

Regions of interest are proposed, by a network or from the pixels; each is pooled to one size,
classified, and its box refined by class. torchvision's modules hold the parts; its path through
them, with its own transforms and suppression, is bypassed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import roi_pool

from pixelmill.configs.schema import BoxPostprocess
from pixelmill.models.interface import BoxOutput, ViewOutput
from pixelmill.models.losses import BoxLoss, box_loss
from pixelmill.models.ops.boxes import Weights, box_area, clip_boxes, large_enough
from pixelmill.models.ops.candidates import (
    best_candidates,
    fetch,
    in_blocks,
    pieces,
    survivors,
    taken_from,
)
from pixelmill.models.ops.proposals import Proposer
from pixelmill.models.ops.suppression import class_thresholds, greedy_nms
from pixelmill.models.padding import fill_up
from pixelmill.models.spec import ModelSpec
from pixelmill.models.targets import BoxTarget, Target

__all__ = [
    "BOX_WEIGHTS",
    "IMAGES",
    "Parts",
    "RoIMaxPool",
    "TwoStage",
    "fully_connected",
    "make_heads",
    "propose_from_pixels",
    "propose_many",
    "read_two_stage",
    "two_stage_loss",
]

# Deviations of the offsets of 0.1 and 0.2: of the published implementations
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

# Name under which raw outputs hold the canvas itself, for proposals made from pixels
IMAGES = "images"

# Regions in one run of the mask head on a GPU
_BLOCK = 128
# Smooth L1 becomes linear here: sigma = 3 of Faster R-CNN's and 1 of Fast R-CNN's implementation
_RPN_BETA = 1 / 9
_BOX_BETA = 1.0


class Parts(NamedTuple):
    """torchvision's modules, or of their interface.

    Attributes:
        backbone: what an engine runs, in the precision asked for.
        rpn: RegionProposalNetwork; None where regions come from the pixels.
        roi_heads: RoIHeads.
    """

    backbone: nn.Module
    rpn: Any
    roi_heads: Any


class TwoStage(nn.Module):
    """A network whose forward gives features by name; the read-out and the loss do the rest.

    Attributes:
        class_indices: (K,) int64, output of the box predictor for each class.
        multiple: sides of the canvas are filled up to a multiple of it, right and below.
        stride: pixels per cell of the first feature map.
        box_loss: of both stages.
    """

    class_indices: Tensor
    multiple = 1
    stride = 1
    box_loss: BoxLoss = "smooth_l1"

    def assign_outputs(self, num_classes: int, first: int = 1) -> None:
        """Say which outputs of the box predictor are classes; those before are the background's."""
        indices = torch.arange(first, first + num_classes)
        self.register_buffer("class_indices", indices, persistent=False)

    @property
    def parts(self) -> Parts:
        """The modules that do the work."""
        raise NotImplementedError

    def to(self, *args: Any, **kwargs: Any) -> "TwoStage":
        """As for any module, but only the backbone gives up float32: anchors need its digits."""
        self.parts.backbone.to(*args, **kwargs)
        kwargs.pop("dtype", None)
        return super().to(*args, **kwargs)

    def filled_up(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) with zeros right and below, so that every level's cells fit."""
        return fill_up(images, self.multiple)

    def propose(self, images: Tensor) -> list[Tensor]:
        """Regions of each image of (B, 3, H, W), where there is no `rpn` to propose them.

        Returns:
            Per image (R, 4) float32, at least one.
        """
        raise NotImplementedError

    def class_scores(self, logits: Tensor) -> Tensor:
        """(R, outputs) scores in [0, 1]."""
        return F.softmax(logits, -1)

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar; labels (R,) int64 with 0 for the background."""
        return F.cross_entropy(logits, labels)


class RoIMaxPool(nn.Module):
    """RoI pooling of a single feature map: Girshick, Fast R-CNN, 2015, section 2.1.

    Args:
        size: cells of the output along a side.
        stride: pixels per cell of the map.
    """

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(
        self, features: dict[str, Tensor], regions: list[Tensor], canvases: list[tuple[int, int]]
    ) -> Tensor:
        """Features by name and (R, 4) boxes by image -> (sum of R, C, size, size)."""
        return cast("Tensor", roi_pool(features["0"], regions, self.size, 1 / self.stride))


def fully_connected(in_features: int, hidden: int, dropout: float) -> nn.Sequential:
    """VGG16's fc6 and fc7, on pooled regions."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_features, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    )


def make_heads(
    pool: nn.Module,
    head: nn.Module,
    predictor: nn.Module,
    *,
    match_iou: float,
    num_sampled: int,
    positive_share: float,
    box_weights: Weights,
    background_iou: float | None = None,
) -> Any:
    """Torchvision's RoIHeads; its suppression is never asked for.

    Args:
        pool: (features, regions, canvases) -> pooled regions.
        head: pooled regions -> (R, D).
        predictor: (R, D) -> logits and offsets by class.
        match_iou: least overlap of a region with the object that it learns.
        num_sampled: regions learnt from in each image.
        positive_share: how many of them may be objects; the others are background.
        box_weights: factors on the offsets of centre and sides.
        background_iou: regions that overlap everything by less are background, those between the
            two are not learnt from; None: `match_iou`.
    """
    return RoIHeads(
        pool,
        head,
        predictor,
        fg_iou_thresh=match_iou,
        bg_iou_thresh=match_iou if background_iou is None else background_iou,
        batch_size_per_image=num_sampled,
        positive_fraction=positive_share,
        bbox_reg_weights=box_weights,
        score_thresh=0.0,
        nms_thresh=1.0,
        detections_per_img=0,
    )


def propose_from_pixels(images: Tensor, proposer: Proposer, number: int) -> list[Tensor]:
    """Regions of normalised images, found without learning.

    Each image's range of values is stretched to that of bytes, so that it does not matter how the
    images were normalised.

    Args:
        images: (B, 3, H, W) float.
        proposer: (H, W, 3) uint8 -> (P, 4) boxes, best first.
        number: that are kept of each image.

    Returns:
        Per image (R, 4) float32, on the images' device.
    """
    regions = []
    for image in images.detach().float():
        low, high = image.aminmax()
        stretched = (image - low) * (255 / (high - low).clamp(min=1e-6))
        pixels = stretched.round().byte().permute(1, 2, 0).cpu().numpy()
        regions.append(torch.from_numpy(proposer(pixels)[:number]).to(images.device))
    return regions


# --- read-out -------------------------------------------------------------------------------------


def read_two_stage(
    module: nn.Module, outputs: dict[str, Tensor], spec: ModelSpec, canvas: tuple[int, int]
) -> list[ViewOutput]:
    """Regions of interest, their classes and boxes, and masks if the task wants them.

    On the CPU one image at a time: in a common matrix product of all regions an image's last bits
    would depend on how many regions its batch mates have. On a GPU all at once: there every image
    is given the same number of regions, of which the last may be empty.
    """
    trunk = cast("TwoStage", module)
    features = {name: tensor.float() for name, tensor in outputs.items()}
    first = next(iter(features.values()))
    results: list[ViewOutput] = []
    for piece in pieces(len(first), first.device):
        part = {name: tensor[piece] for name, tensor in features.items()}
        found = _read_regions(trunk, part, spec, canvas)
        if trunk.parts.roi_heads.has_mask() and spec.task == "instance_segmentation":
            found = _with_masks(trunk, part, found, spec, canvas)
        results += found
    return results


def _read_regions(
    trunk: TwoStage, features: dict[str, Tensor], spec: ModelSpec, canvas: tuple[int, int]
) -> list[BoxOutput]:
    rpn, heads = trunk.parts.rpn, trunk.parts.roi_heads
    config = cast("BoxPostprocess", spec.postprocess)
    padded = _padded(canvas, trunk.multiple)
    if rpn is None:
        proposals = pad_sequence(trunk.propose(features[IMAGES]), batch_first=True)
        is_region = box_area(proposals) > 0
    else:
        propose = _propose_one if trunk.class_indices.device.type == "cpu" else propose_many
        proposals, is_region = propose(rpn, features, canvas, padded)
    num_images, num_regions = is_region.shape
    regions = list(proposals)
    pooled = heads.box_roi_pool(features, regions, [padded] * num_images)
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    boxes_xyxy = heads.box_coder.decode(deltas, regions)[:, trunk.class_indices]
    boxes_xyxy = clip_boxes(boxes_xyxy, canvas).view(num_images, num_regions, -1, 4)
    scores = trunk.class_scores(logits)[:, trunk.class_indices].view(num_images, num_regions, -1)
    thresholds = class_thresholds(config, spec.classes).to(scores.device, non_blocking=True)
    # As torchvision does before its suppression
    usable = large_enough(boxes_xyxy, 1e-2) & is_region[..., None]
    best = best_candidates(
        (scores >= thresholds) & usable, taken_from(scores), config.pre_nms_top_k
    )
    images = torch.arange(num_images, device=scores.device)[:, None]
    return fetch(boxes_xyxy[images, best.places, best.labels.clamp(min=0)], best)


def _propose_one(
    rpn: Any, features: dict[str, Tensor], canvas: tuple[int, int], padded: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Torchvision's regions of one image; see `propose_many`."""
    (proposals,) = _run_rpn(rpn, features, _image_list(features, [canvas], padded)).proposals
    return proposals[None], proposals.new_ones((1, len(proposals)), dtype=torch.bool)


def propose_many(
    rpn: Any, features: dict[str, Tensor], canvas: tuple[int, int], padded: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Regions of all images of a batch, as many for each.

    What torchvision's RegionProposalNetwork gives, which asks the device for values several times
    per image.

    Args:
        rpn: torchvision's module.
        features: pyramid levels (B, C, h, w).
        canvas: (height, width) of the images.
        padded: that of the images that the features were made from, filled up.

    Returns:
        (B, R, 4) float32 boxes, best first and filled up with empty ones, and (B, R) bool: which
        are none of the latter.
    """
    levels = list(features.values())
    batch_size = len(levels[0])
    objectness, deltas = rpn.head(levels)
    images = _image_list(features, [canvas], padded)
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
    trunk: TwoStage,
    features: dict[str, Tensor],
    candidates: Sequence[BoxOutput],
    spec: ModelSpec,
    canvas: tuple[int, int],
) -> list[BoxOutput]:
    """Add the masks; drop the boxes that the engine's suppression would drop with theirs."""
    heads, device = trunk.parts.roi_heads, trunk.class_indices.device
    padded = _padded(canvas, trunk.multiple)
    kept = [survivors(each, cast("BoxPostprocess", spec.postprocess)) for each in candidates]
    boxes = [each.boxes_xyxy.to(device, non_blocking=True) for each in kept]
    pooled = heads.mask_roi_pool(features, boxes, [padded] * len(kept))
    logits = in_blocks(lambda part: heads.mask_predictor(heads.mask_head(part)), pooled, _BLOCK)
    labels = torch.cat([each.labels for each in kept]).to(device, non_blocking=True)
    own = logits[torch.arange(len(labels), device=device), trunk.class_indices[labels]]
    probs = own.sigmoid().cpu().split([len(each.labels) for each in kept])
    return [replace(each, mask_probs=mine) for each, mine in zip(kept, probs, strict=True)]


class _Proposed(NamedTuple):
    """What an RPN says of a batch.

    Attributes:
        proposals: per image (R, 4), best first.
        objectness: (B * A, 1) logits of the anchors.
        deltas: (B * A, 4).
        anchors: per image (A, 4).
    """

    proposals: list[Tensor]
    objectness: Tensor
    deltas: Tensor
    anchors: list[Tensor]


def _run_rpn(rpn: Any, features: dict[str, Tensor], images: ImageList) -> _Proposed:
    """The forward pass of torchvision's RegionProposalNetwork, without its loss."""
    levels = list(features.values())
    objectness, deltas = rpn.head(levels)
    anchors = rpn.anchor_generator(images, levels)
    sizes = [level[0].numel() for level in objectness]
    objectness, deltas = concat_box_prediction_layers(objectness, deltas)
    objectness, deltas = objectness.float(), deltas.float()
    boxes = rpn.box_coder.decode(deltas.detach(), anchors).view(len(anchors), -1, 4)
    proposals, _ = rpn.filter_proposals(boxes, objectness, images.image_sizes, sizes)
    return _Proposed(proposals, objectness, deltas, anchors)


def _padded(canvas: tuple[int, int], multiple: int) -> tuple[int, int]:
    return canvas[0] + -canvas[0] % multiple, canvas[1] + -canvas[1] % multiple


def _image_list(
    features: dict[str, Tensor], canvases: list[tuple[int, int]], padded: tuple[int, int]
) -> ImageList:
    """Images of which torchvision reads nothing but the size."""
    empty = next(iter(features.values())).new_empty(())
    return ImageList(empty.expand(len(canvases), 3, *padded), canvases)


# --- training -------------------------------------------------------------------------------------


def two_stage_loss(
    module: nn.Module, outputs: dict[str, Tensor], targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Errors of the proposals, and of the classes, boxes and masks of a sample of them.

    Args:
        module: the `TwoStage` that gave the outputs.
        outputs: of one batch.
        targets: `BoxTarget` per image, with masks for a mask head.

    Returns:
        Scalars "class" and "box"; with an RPN "objectness" and "rpn_box"; with a mask head "mask".

    Raises:
        ValueError: a mask head has no masks to learn from.

    Source: Ren et al., Faster R-CNN, 2015, equation 1; Girshick, Fast R-CNN, 2015, section 2.3; He
    et al., Mask R-CNN, 2017, section 3.
    """
    trunk = cast("TwoStage", module)
    heads = trunk.parts.roi_heads
    truths = [_truth(cast("BoxTarget", target)) for target in targets]
    features = {name: tensor.float() for name, tensor in outputs.items()}
    first = next(iter(features.values()))
    height, width = (side * trunk.stride for side in first.shape[-2:])
    sizes = [(height, width)] * len(first)
    terms: dict[str, Tensor] = {}
    if trunk.parts.rpn is None:
        proposals = trunk.propose(features[IMAGES])
    else:
        rpn, images = trunk.parts.rpn, _image_list(features, sizes, (height, width))
        found = _run_rpn(rpn, features, images)
        proposals, terms = found.proposals, _rpn_terms(rpn, found, truths, trunk.box_loss)
    regions, matches, labels, _ = heads.select_training_samples(proposals, truths)
    logits, deltas = heads.box_predictor(
        heads.box_head(heads.box_roi_pool(features, regions, sizes))
    )
    label = torch.cat(labels)
    terms["class"] = trunk.class_loss(logits.float(), label)
    (positive,) = torch.nonzero(label > 0, as_tuple=True)
    column = trunk.class_indices[label[positive] - 1]
    errors = box_loss(
        trunk.box_loss,
        deltas.float().view(len(label), -1, 4)[positive, column],
        _matched(truths, matches)[positive],
        torch.cat(regions)[positive],
        weights=heads.box_coder.weights,
        beta=_BOX_BETA,
    )
    terms["box"] = errors.sum() / max(len(label), 1)
    if heads.has_mask():
        terms["mask"] = _mask_term(heads, features, regions, matches, labels, truths, sizes)
    return terms


def _truth(target: BoxTarget) -> dict[str, Tensor]:
    """In torchvision's words; 0 is the background's label."""
    truth = {"boxes": target.boxes_xyxy, "labels": 1 + target.labels}
    return truth if target.masks is None else truth | {"masks": target.masks}


def _matched(truths: Sequence[dict[str, Tensor]], matches: Sequence[Tensor]) -> Tensor:
    """(sum of R, 4) box of the object that each region learns; no box where there is no object."""
    boxes = []
    for truth, match in zip(truths, matches, strict=True):
        own = truth["boxes"]
        boxes.append(own[match] if len(own) else own.new_zeros((len(match), 4)))
    return torch.cat(boxes)


def _rpn_terms(
    rpn: Any, found: _Proposed, truths: list[dict[str, Tensor]], kind: BoxLoss
) -> dict[str, Tensor]:
    """As torchvision's RegionProposalNetwork, with a choice of the boxes' error."""
    labels, wanted = rpn.assign_targets_to_anchors(found.anchors, truths)
    positive, negative = (torch.cat(each) > 0 for each in rpn.fg_bg_sampler(labels))
    sampled = positive | negative
    number = sampled.sum().clamp(min=1)
    errors = F.binary_cross_entropy_with_logits(
        found.objectness.flatten()[sampled], torch.cat(labels)[sampled], reduction="sum"
    )
    box = box_loss(
        kind,
        found.deltas[positive],
        torch.cat(wanted)[positive],
        torch.cat(found.anchors)[positive],
        weights=rpn.box_coder.weights,
        beta=_RPN_BETA,
    )
    return {"objectness": errors / number, "rpn_box": box.sum() / number}


def _mask_term(
    heads: Any,
    features: dict[str, Tensor],
    regions: Sequence[Tensor],
    matches: Sequence[Tensor],
    labels: Sequence[Tensor],
    truths: Sequence[dict[str, Tensor]],
    sizes: list[tuple[int, int]],
) -> Tensor:
    """Mean cross-entropy of the masks of the regions that learn an object, each of its class."""
    chosen = [label > 0 for label in labels]
    boxes = [region[mine] for region, mine in zip(regions, chosen, strict=True)]
    owners = [match[mine] for match, mine in zip(matches, chosen, strict=True)]
    pooled = heads.mask_roi_pool(features, boxes, sizes)
    logits = heads.mask_predictor(heads.mask_head(pooled)).float()
    masks = [truth["masks"] for truth in truths]
    kinds = [truth["labels"] for truth in truths]
    return cast("Tensor", maskrcnn_loss(logits, boxes, masks, kinds, owners))
