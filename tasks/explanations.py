"""Where a model looked: heat maps of the classes and words that it gave an image.

A class is explained by Grad-CAM (Selvaraju et al., 2017), a word of a captioner by the attention
that chose it (Xu et al., Show, Attend and Tell, 2015, section 5.4). The maps lie on the original
image, so that a picture of them needs no more than the image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pixelmill.configs.schema import CaptionPostprocess, IngestConfig
from pixelmill.models.build import build_network
from pixelmill.models.captioning import END, Captioner, beam_search
from pixelmill.models.engines.pixels import normalise
from pixelmill.models.engines.torch_eager import TorchTrunk
from pixelmill.models.grad_cam import grad_cam
from pixelmill.models.localiser import LocaliserOutput
from pixelmill.models.network import EngineNetwork
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.decode import decode_image
from pixelmill.tasks.engine.views import Placement, draw_view, place_whole

__all__ = [
    "ExplainedModel",
    "attention_maps",
    "class_activation",
    "heat_picture",
    "load_explained",
    "write_explanations",
]

Heat = NDArray[np.float32]

# Of a heat picture: what is hot turns to this colour, and never hides the image altogether
_HOT = (255, 64, 0)
_OPACITY = 0.7


@dataclass(frozen=True, slots=True)
class ExplainedModel:
    """A model that can be asked why: its module in PyTorch, float32, on the CPU.

    Attributes:
        spec: of the model, with the engine and the precision that the module has.
        module: in evaluation mode, with its weights; maps normalised images to raw outputs.
    """

    spec: ModelSpec
    module: nn.Module


def load_explained(spec: ModelSpec) -> ExplainedModel:
    """Build a model so that it can be explained, whichever engine it scores with.

    Raises:
        ValueError: the model is neither a classifier nor a captioner, or is no PyTorch module.
        FileNotFoundError: its weights are not on this machine.
    """
    if spec.task not in ("classification", "captioning") and spec.architecture != "localiser":
        raise ValueError(
            f"{spec.name}: classes of images and words of captions can be explained, not "
            f"{spec.task}"
        )
    plain = spec.model_copy(
        update={
            "engine": "torch",
            "precision": "fp32",
            "quantized_path": None,
            "quantized_sha256": None,
        }
    )
    network = build_network(plain)
    trunk = network.trunk if isinstance(network, EngineNetwork) else None
    if not isinstance(trunk, TorchTrunk):
        raise ValueError(
            f"{spec.name}: no gradient can be asked of the layers of {spec.architecture} files"
        )
    return ExplainedModel(plain, trunk.pixels.module)


def class_activation(
    model: ExplainedModel,
    image: NDArray[np.uint8],
    label: int | None = None,
    *,
    layer: str | None = None,
) -> Heat:
    """How much each place of an image spoke for a class.

    Args:
        model: a classifier.
        image: (H, W, 3) uint8 RGB.
        label: class index; None: the class that the model gives the image.
        layer: of the module, see `grad_cam`.

    Returns:
        (H, W) in [0, 1], 1 where it is hottest; all 0 where nothing spoke for the class, and where
        the model does not look.

    Raises:
        ValueError: the model gives no class logits, or there is no such layer or class.
    """
    if label is not None and not 0 <= label < len(model.spec.classes):
        raise ValueError(f"expected a class of {len(model.spec.classes)}, got {label}")
    normalised, placement = _prepared(model, image)
    labels = None if label is None else torch.tensor([label])
    heat = grad_cam(model.module, normalised, labels, layer=layer, logits_of=_class_logits)
    return _on_image(heat[0], placement)


def attention_maps(model: ExplainedModel, image: NDArray[np.uint8]) -> list[tuple[str, Heat]]:
    """The words of an image's caption, and where the model looked for each.

    Args:
        model: a captioner with attention.
        image: (H, W, 3) uint8 RGB.

    Returns:
        Per word the (H, W) share of attention, relative to that of the most looked at place.

    Raises:
        ValueError: the model is no captioner with attention.
    """
    normalised, placement = _prepared(model, image)
    captioner = cast("Captioner", model.module)
    grid = getattr(model.module, "grid", lambda canvas: (1, 1))(placement.canvas)
    if grid == (1, 1):
        raise ValueError(f"{model.spec.name}: {model.spec.architecture} looks at no place apart")
    with torch.no_grad():
        features = model.module(normalised)
        postprocess = cast("CaptionPostprocess", model.spec.postprocess)
        (found,) = beam_search(captioner, features, postprocess)
    return [
        (model.spec.vocabulary[token], _on_image(looked.view(grid), placement))
        for token, looked in zip(found.tokens, found.attention, strict=True)
        if token != END
    ]


def heat_picture(image: NDArray[np.uint8], heat: Heat) -> NDArray[np.uint8]:
    """The image, grey, with its hot places coloured.

    Args:
        image: (H, W, 3) uint8 RGB.
        heat: (H, W) in [0, 1].

    Returns:
        (H, W, 3) uint8 RGB.
    """
    grey = np.asarray(Image.fromarray(image).convert("L").convert("RGB"), np.float32)
    opacity = _OPACITY * heat[..., None]
    mixed = (1 - opacity) * grey + opacity * np.asarray(_HOT, np.float32)
    return mixed.round().astype(np.uint8)


def write_explanations(model: ExplainedModel, path: Path, folder: Path) -> list[Path]:
    """Write a PNG for the class that an image is given, or for each word of its caption.

    Args:
        model: a classifier or a captioner.
        path: of the image.
        folder: is made.

    Returns:
        The files `<stem>.<number>-<class or word>.png`; the number is the class' or the word's.

    Raises:
        ValueError: the model cannot be explained, or the image cannot be read.
    """
    image = decode_image(path.read_bytes(), max_pixels=IngestConfig().max_pixels).pixels
    if model.spec.task == "captioning":
        named = [(index, *each) for index, each in enumerate(attention_maps(model, image))]
    else:
        label = _given_label(model, image)
        named = [(label, model.spec.classes[label], class_activation(model, image, label))]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index, name, heat in named:
        safe = "".join(letter if letter.isalnum() else "_" for letter in name)
        target = folder / f"{path.stem}.{index:02d}-{safe}.png"
        Image.fromarray(heat_picture(image, heat)).save(target)
        written.append(target)
    return written


def _given_label(model: ExplainedModel, image: NDArray[np.uint8]) -> int:
    normalised, _ = _prepared(model, image)
    with torch.no_grad():
        return int(_class_logits(model.module(normalised)).argmax())


def _prepared(model: ExplainedModel, image: NDArray[np.uint8]) -> tuple[Tensor, Placement]:
    """(1, 3, H, W) of the image's canvas, as scoring draws it, and where the image lies there."""
    preprocess = model.spec.preprocess
    height, width = image.shape[:2]
    placement = place_whole((height, width), preprocess)
    canvas = torch.from_numpy(draw_view(image, placement, preprocess))
    return normalise(canvas[None], preprocess), placement


def _class_logits(outputs: Any) -> Tensor:
    if isinstance(outputs, LocaliserOutput):
        return outputs.class_logits[:, 1:]
    if isinstance(outputs, Tensor) and outputs.ndim == 2:
        return outputs
    raise ValueError("expected class logits (B, K) of the network, got other outputs")


def _on_image(cells: Tensor, placement: Placement) -> Heat:
    """(h, w) heat of a canvas' cells -> (H, W) of the image, 1 at the hottest place."""
    on_canvas = F.interpolate(
        cells[None, None].float(), placement.canvas, mode="bilinear", align_corners=False
    )
    rows, columns = placement.content
    left, top, right, bottom = (round(side) for side in placement.region_xyxy)
    height, width = placement.image_size
    shown = F.interpolate(
        on_canvas[..., :rows, :columns], (bottom - top, right - left), mode="bilinear"
    )[0, 0]
    heat = torch.zeros(height, width)
    heat[top:bottom, left:right] = shown
    return (heat / heat.max().clamp(min=torch.finfo(torch.float32).tiny)).numpy()
