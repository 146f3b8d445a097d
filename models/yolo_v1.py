"""YOLO: detection as one regression over a grid.

Joseph Redmon, Santosh Divvala, Ross Girshick, Ali Farhadi: You Only Look Once: Unified, Real-Time
Object Detection, CVPR 2016, https://arxiv.org/abs/1506.02640, figure 3 and section 2.

Differences: batch normalisation follows each convolution, as in the published configuration; the
number of channels is an argument, and a tiny variant, also published, has nine layers instead of
26.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from pixelmill.models.darknet import conv_leaky
from pixelmill.models.dense import dense_outputs
from pixelmill.models.interface import BoxOutput
from pixelmill.models.ops.boxes import box_iou_pairs
from pixelmill.models.spec import ModelSpec
from pixelmill.models.targets import BoxTarget, Target

__all__ = ["YOLOv1", "YOLOv1Output", "yolo_v1_loss", "yolo_v1_outputs"]

STRIDE = 64
# Section 2.2: boxes count for more than the many cells that hold nothing
COORDINATES_WEIGHT = 5.0
NO_OBJECT_WEIGHT = 0.5


class YOLOv1Output(NamedTuple):
    """Raw outputs of a batch over S x S cells.

    Attributes:
        boxes: (B, S, S, P, 4): centre within the cell in [0, 1], square roots of width and height
            relative to the canvas.
        confidences: (B, S, S, P): probability of an object times the overlap with it.
        classes: (B, S, S, K): class probabilities, given that there is an object.
    """

    boxes: Tensor
    confidences: Tensor
    classes: Tensor


def _convolutions(width: int) -> list[nn.Module]:
    w = width
    pool = nn.MaxPool2d(2)
    middle: list[nn.Module] = []
    for _ in range(4):
        middle += [conv_leaky(8 * w, 4 * w, 1), conv_leaky(4 * w, 8 * w)]
    late: list[nn.Module] = []
    for _ in range(2):
        late += [conv_leaky(16 * w, 8 * w, 1), conv_leaky(8 * w, 16 * w)]
    return [
        *(conv_leaky(3, w, 7, stride=2), pool),
        *(conv_leaky(w, 3 * w), pool),
        *(conv_leaky(3 * w, 2 * w, 1), conv_leaky(2 * w, 4 * w)),
        *(conv_leaky(4 * w, 4 * w, 1), conv_leaky(4 * w, 8 * w), pool),
        *middle,
        *(conv_leaky(8 * w, 8 * w, 1), conv_leaky(8 * w, 16 * w), pool),
        *late,
        *(conv_leaky(16 * w, 16 * w), conv_leaky(16 * w, 16 * w, stride=2)),
        *(conv_leaky(16 * w, 16 * w), conv_leaky(16 * w, 16 * w)),
    ]


def _tiny_convolutions(width: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = [3, *(width // 4 * 2**level for level in range(6))]
    for before, after in pairwise(channels):
        layers += [conv_leaky(before, after), nn.MaxPool2d(2)]
    return [*layers, conv_leaky(8 * width, 16 * width), conv_leaky(16 * width, 4 * width)]


class YOLOv1(nn.Module):
    """Boxes and classes of a grid's cells.

    Args:
        num_classes: K.
        image_size: side of the square canvas, a multiple of 64; the grid has a cell per 64 pixels.
        boxes_per_cell: P.
        width: channels of the first convolution; the paper's is 64.
        hidden: of the fully connected layer between; the paper's is 4096. The tiny one has none.
        variant: "full" or "tiny".
        dropout: after the hidden layer.

    Raises:
        ValueError: the side is no multiple of 64.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int = 448,
        boxes_per_cell: int = 2,
        width: int = 64,
        hidden: int = 4096,
        variant: Literal["full", "tiny"] = "full",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if image_size % STRIDE:
            raise ValueError(f"expected image_size to be a multiple of {STRIDE}, got {image_size}")
        self.cells = image_size // STRIDE
        self.boxes_per_cell = boxes_per_cell
        self.num_classes = num_classes
        tiny = variant == "tiny"
        layers = _tiny_convolutions(width) if tiny else _convolutions(width)
        self.convolutions = nn.Sequential(*layers)
        inputs = self.cells**2 * width * (4 if tiny else 16)
        outputs = self.cells**2 * (5 * boxes_per_cell + num_classes)
        self.head = (
            nn.Linear(inputs, outputs)
            if tiny
            else nn.Sequential(
                nn.Linear(inputs, hidden),
                nn.LeakyReLU(0.1),
                nn.Dropout(dropout),
                nn.Linear(hidden, outputs),
            )
        )

    def forward(self, images: Tensor) -> YOLOv1Output:
        """(B, 3, image_size, image_size) normalised float -> what each cell says.

        Raises:
            ValueError: images of another size.
        """
        side = self.cells * STRIDE
        if images.shape[-2:] != (side, side):
            raise ValueError(
                f"expected a canvas of {side} x {side} pixels for the fully connected layer, got "
                f"{tuple(images.shape[-2:])}; set preprocess.canvases or image_size"
            )
        features = self.convolutions(images).flatten(1)
        cells = self.head(features).unflatten(1, (self.cells, self.cells, -1))
        boxes = cells[..., : 4 * self.boxes_per_cell].unflatten(-1, (self.boxes_per_cell, 4))
        rest = cells[..., 4 * self.boxes_per_cell :]
        return YOLOv1Output(
            boxes, rest[..., : self.boxes_per_cell], rest[..., self.boxes_per_cell :]
        )


def decode_cells(boxes: Tensor) -> Tensor:
    """Boxes of a grid's cells relative to the canvas.

    Args:
        boxes: (..., S, S, P, 4) as in `YOLOv1Output`.

    Returns:
        (..., S, S, P, 4) x_min, y_min, x_max, y_max, 1 being the canvas' side.
    """
    cells = boxes.shape[-3]
    steps = torch.arange(cells, device=boxes.device, dtype=boxes.dtype)
    x = (boxes[..., 0] + steps[None, :, None]) / cells
    y = (boxes[..., 1] + steps[:, None, None]) / cells
    half_width, half_height = (boxes[..., 2:] ** 2 / 2).unbind(-1)
    return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), dim=-1)


def encode_cells(boxes_xyxy: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where boxes lie on the grid, and what their cells should say; undone by `decode_cells`.

    Args:
        boxes_xyxy: (N, 4), 1 being the canvas' side.
        cells: S.

    Returns:
        rows (N,) and columns (N,) of the cells that hold the centres, int64; codes (N, 4).
    """
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2 * cells
    corner = centres.floor().clamp(0, cells - 1)
    roots = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=0).sqrt()
    columns, rows = corner.long().unbind(1)
    return rows, columns, torch.cat((centres - corner, roots), dim=1)


def yolo_v1_outputs(
    module: nn.Module, outputs: YOLOv1Output, spec: ModelSpec, canvas: tuple[int, int]
) -> list[BoxOutput]:
    """Boxes whose class probability times confidence is over the threshold."""
    height, width = canvas
    boxes = decode_cells(outputs.boxes.float()).flatten(1, 3)
    boxes = boxes * boxes.new_tensor((width, height, width, height))
    scores = outputs.confidences[..., None] * outputs.classes[..., None, :]
    return dense_outputs(boxes, scores.float().clamp(0, 1).flatten(1, 3), spec, canvas)


def yolo_v1_loss(
    module: nn.Module, outputs: YOLOv1Output, targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Sum of squared errors, equation 3, per image.

    Of the objects whose centres fall into one cell, the largest is learnt. The box of that cell
    that overlaps it most is responsible for it.

    Args:
        module: the `YOLOv1` that gave the outputs.
        outputs: of one batch.
        targets: `BoxTarget` per image.

    Returns:
        Scalars "box", "object", "no_object" and "class".
    """
    model = cast("YOLOv1", module)
    side = model.cells * STRIDE
    sums = {name: outputs.boxes.new_zeros(()) for name in ("box", "object", "no_object", "class")}
    for index, target in enumerate(cast("Sequence[BoxTarget]", targets)):
        truth = target.boxes_xyxy / side
        order = (truth[:, 2:] - truth[:, :2]).prod(dim=1).argsort(descending=True, stable=True)
        rows, columns, codes = encode_cells(truth, model.cells)
        cell = rows * model.cells + columns
        # The largest object of each cell: the first of its kind in order of size
        first = torch.tensor(
            [int(order[cell[order] == each][0]) for each in cell.unique()],
            dtype=torch.int64,
            device=cell.device,
        )
        rows, columns, codes, truth = rows[first], columns[first], codes[first], truth[first]
        here = outputs.boxes[index, rows, columns]
        decoded = decode_cells(outputs.boxes[index])[rows, columns]
        overlap = box_iou_pairs(decoded.detach(), truth[:, None])
        responsible = overlap.argmax(dim=1)
        number = torch.arange(len(first), device=cell.device)
        confidences = outputs.confidences[index]
        is_object = torch.zeros_like(confidences, dtype=torch.bool)
        is_object[rows, columns, responsible] = True
        sums["box"] = sums["box"] + ((here[number, responsible] - codes) ** 2).sum()
        found = confidences[rows, columns, responsible]
        sums["object"] = sums["object"] + ((found - overlap[number, responsible]) ** 2).sum()
        sums["no_object"] = sums["no_object"] + (confidences[~is_object] ** 2).sum()
        wanted = nn.functional.one_hot(target.labels[first], model.num_classes)
        errors = outputs.classes[index, rows, columns] - wanted
        sums["class"] = sums["class"] + (errors**2).sum()
    weights = {"box": COORDINATES_WEIGHT, "no_object": NO_OBJECT_WEIGHT}
    return {name: weights.get(name, 1.0) * each / len(targets) for name, each in sums.items()}
