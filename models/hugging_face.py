"""Networks of Hugging Face's transformers: classifiers, detectors, segmenters and captioners.

Weights are a folder that `save_pretrained` wrote, or `hf:<owner>/<name>@<revision>`. Its
config.json says which network it is; how images are prepared is read from its image processor. Code
that a repository brings along is never run.

Differences to their own pipelines: images are resized on bytes and laid on canvases, so that a
detector which resizes to a shortest and a longest side gets one of a few sizes; it is told which
part of the canvas is padding, as they tell it. Boxes of all queries are candidates; no suppression
follows unless it is asked for.
"""

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pixelmill.configs.schema import CaptionPostprocess, PreprocessConfig, TaskName
from pixelmill.models.classifier import class_outputs
from pixelmill.models.defaults import Defaults, usual_canvases
from pixelmill.models.dense import dense_outputs
from pixelmill.models.hub import weights_in
from pixelmill.models.interface import BoxOutput, CaptionOutput
from pixelmill.models.ops.candidates import pieces
from pixelmill.models.semantic import semantic_outputs
from pixelmill.models.spec import ModelSpec
from pixelmill.models.trust import refuse_program
from pixelmill.models.zoo import ReadOut

__all__ = ["TRANSFORMERS", "find_defaults", "load_module", "read_out"]

TRANSFORMERS = "transformers"

_AUTO: Mapping[TaskName, tuple[str, ...]] = {
    "classification": ("AutoModelForImageClassification",),
    "detection": ("AutoModelForObjectDetection",),
    "semantic_segmentation": (
        "AutoModelForSemanticSegmentation",
        "AutoModelForUniversalSegmentation",
    ),
    "captioning": ("AutoModelForImageTextToText",),
}
# Detectors whose queries choose among the classes and "nothing", the last one; of the others every
# class has a probability of its own
_WITH_NOTHING = ("detr", "table-transformer", "yolos")
# Label of no class
_PLACEHOLDER = "N/A"
# Of the usual strides of their backbones
_MULTIPLE = 32
# PIL's numbers
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
# In units of the normalised pixels; a grey level is 0.015 or more
_SAME_PIXEL = 5e-3


def find_defaults(
    name: str,
    task: TaskName,
    folder: Path,
    classes: Sequence[str] | None,
    preprocess: PreprocessConfig | None,
) -> Defaults:
    """What config.json and the image processor of a folder say; the weights are not opened.

    Args:
        name: of the model, for messages.
        task: as configured.
        folder: that `save_pretrained` wrote.
        classes: as configured, for all outputs; None: the folder's labels, without placeholders.
        preprocess: as configured; where it is complete the image processor need not be there.

    Raises:
        ImportError: transformers is not installed.
        ValueError: the task is not among those that we read, or images are prepared as our
            canvases cannot be.
    """
    _check_task(name, task)
    try:
        config = _load("AutoConfig", folder)
    except (OSError, ValueError, KeyError) as err:
        raise ValueError(f"{name}: {str(folder)!r} cannot be used: {_first_line(err)}") from err
    if preprocess is None or not {"mean", "std"} <= preprocess.model_fields_set:
        preprocess = _preprocess(name, task, _load_processor(name, folder))
    if task == "captioning":
        return Defaults((), {}, preprocess)
    labels = [config.id2label[index] for index in range(config.num_labels)]
    labels = list(classes) if classes else labels
    if len(labels) != config.num_labels:
        raise ValueError(
            f"{name}: the network has {config.num_labels} classes, got {len(labels)} in classes:"
        )
    if task != "detection":
        return Defaults(tuple(labels), {}, preprocess)
    kept = {index: label for index, label in enumerate(labels) if label != _PLACEHOLDER}
    return Defaults(
        tuple(kept.values()), {"class_indices": tuple(kept)}, preprocess, {"nms": "none"}
    )


def load_module(spec: ModelSpec, folder: Path) -> nn.Module:
    """The network of a folder, giving raw tensors.

    Args:
        spec: task, preprocessing and trust are used.
        folder: that `save_pretrained` wrote.

    Raises:
        ImportError: transformers is not installed.
        ValueError: the weights are a pickle that would run code, lack a part of the network, or
            are of another task.
    """
    for path in weights_in(folder):
        refuse_program(spec.name, path, None, trusted=spec.trust)
    model = _load_model(spec, folder)
    if spec.task == "captioning":
        return _Captioner(model, _load_tokenizer(spec.name, folder))
    if spec.task == "detection":
        return _Detector(model, spec)
    return _Segmenter(model) if spec.task == "semantic_segmentation" else _Classifier(model)


def read_out(task: TaskName) -> ReadOut:
    """How the raw tensors of a task become predictions."""
    return _READ_OUTS[task]


def _check_task(name: str, task: TaskName) -> None:
    if task not in _AUTO:
        raise ValueError(f"{name}: of transformers we read {', '.join(_AUTO)}, not {task}")


def _load_model(spec: ModelSpec, folder: Path) -> Any:
    faults = []
    for auto in _AUTO[spec.task]:
        try:
            model, loading = _load(auto, folder, dtype=torch.float32, output_loading_info=True)
        except ValueError as err:  # not among the networks of this kind
            faults.append(_first_line(err))
            continue
        # What a checkpoint lacks is drawn at random, and the scores with it
        lacking = sorted({*loading["missing_keys"], *(key for key, *_ in _mismatched(loading))})
        if lacking:
            raise ValueError(
                f"{spec.name}: {str(folder)!r} has no weights for {', '.join(lacking[:3])} and "
                f"{max(0, len(lacking) - 3)} more; it was not trained for {spec.task}"
            )
        return model.eval()
    raise ValueError(f"{spec.name}: {str(folder)!r} cannot do {spec.task}: {faults[0]}")


def _mismatched(loading: Mapping[str, Any]) -> list[Any]:
    return [each if isinstance(each, tuple) else (each,) for each in loading["mismatched_keys"]]


def _load_tokenizer(name: str, folder: Path) -> Any:
    try:
        return _load("AutoTokenizer", folder)
    except (OSError, ValueError, KeyError) as err:
        raise ValueError(
            f"{name}: {str(folder)!r} has no tokenizer, without which its captions cannot be read; "
            "save it there by tokenizer.save_pretrained"
        ) from err


def _load_processor(name: str, folder: Path) -> Any:
    try:
        return _load("AutoImageProcessor", folder)
    except (OSError, ValueError, KeyError) as err:
        raise ValueError(
            f"{name}: {str(folder)!r} has no image processor that says how images are prepared; "
            "save it there by image_processor.save_pretrained, or set preprocess: with mean, std "
            "and canvases"
        ) from err


# --- preprocessing --------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Fields of a `PreprocessConfig`."""

    resize: str
    canvases: tuple[tuple[int, int], ...]
    crop_from: int | None = None


def _preprocess(name: str, task: TaskName, processor: Any) -> PreprocessConfig:
    """As the image processor prepares images."""
    layout = _layout(name, processor)
    resample = int(getattr(processor, "resample", 2))
    if resample not in _INTERPOLATIONS:
        raise _unknown(name, f"resample {resample}")
    if getattr(processor, "rescale_offset", False) or getattr(processor, "include_top", False):
        raise _unknown(name, "rescale_offset or include_top")
    factor = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
    does_normalise = getattr(processor, "do_normalize", True)
    mean = processor.image_mean if does_normalise else [0.0] * 3
    std = processor.image_std if does_normalise else [1.0] * 3
    unit = 255 * factor  # of their pixels in ours, which are in [0, 1]
    means = tuple(each / unit for each in mean)
    return PreprocessConfig.model_validate(
        {
            **layout._asdict(),
            "interpolation": _INTERPOLATIONS[resample],
            "channels": "bgr" if getattr(processor, "do_flip_channel_order", False) else "rgb",
            "mean": means,
            "std": tuple(each / unit for each in std),
            # the padding is 0 after normalisation, or nearly, as it has one grey level
            "pad_value": min(255, max(0, round(255 * sum(means) / 3))),
        }
    )


def _layout(name: str, processor: Any) -> _Layout:
    size = dict(processor.size or {}) if getattr(processor, "do_resize", True) else {}
    shorter, longest = size.get("shortest_edge"), size.get("longest_edge")
    crop = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", False) else {}
    share = getattr(processor, "crop_pct", None)
    if crop:
        # DeiT's name height and width of the resized image: its aspect was kept in its training
        crop_from = shorter or min(size.get("height", 0), size.get("width", 0))
        if not crop_from:
            raise _unknown(name, f"size {size} before a crop")
        return _Layout("center_crop", ((crop["height"], crop["width"]),), crop_from)
    if share and shorter:  # ConvNeXt's
        if shorter < 384:
            return _Layout("center_crop", ((shorter, shorter),), int(shorter / share))
        return _Layout("stretch", ((shorter, shorter),))
    if "height" in size and "width" in size:
        return _Layout("stretch", ((size["height"], size["width"]),))
    if shorter:
        return _Layout("letterbox", usual_canvases(shorter, longest, _MULTIPLE))
    raise _unknown(name, f"size {size}" if size else "images of any size")


def _unknown(name: str, what: str) -> ValueError:
    return ValueError(
        f"{name}: its image processor prepares images with {what}, which canvases cannot have; set "
        "preprocess: with mean, std and canvases"
    )


# --- trunks: everything up to the raw tensors -----------------------------------------------------


class _Classifier(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return cast("Tensor", self.model(pixel_values=images).logits)


class _Segmenter(nn.Module):
    """Logits (B, K, h, w); of mask classifiers such as Mask2Former scores in [0, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.model(pixel_values=images)
        if "masks_queries_logits" not in outputs:
            return cast("Tensor", outputs.logits)
        # Cheng et al., Per-Pixel Classification is Not All You Need, 2021, section 3.4
        classes = outputs.class_queries_logits.softmax(dim=-1)[..., :-1]
        masks = outputs.masks_queries_logits.sigmoid()
        return torch.einsum("bqk,bqhw->bkhw", classes, masks)


class _Detector(nn.Module):
    """Logits (B, Q, K) and boxes (B, Q, 4) xyxy in canvas pixels.

    A network that takes a `pixel_mask` knows boxes relative to what of the canvas is no padding,
    which is read from the pixels: whole rows below and columns right of the pad value's grey.
    """

    pad: Tensor

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        super().__init__()
        self.model = model
        self.class_indices = cast("tuple[int, ...]", spec.arguments["class_indices"])
        self.has_nothing = model.config.model_type in _WITH_NOTHING
        self._is_padded = (
            spec.preprocess.resize == "letterbox"
            and "pixel_mask" in inspect.signature(model.forward).parameters
        )
        preprocess = spec.preprocess
        colour = [
            (preprocess.pad_value / 255 - mean) / std
            for mean, std in zip(preprocess.mean, preprocess.std, strict=True)
        ]
        self.register_buffer("pad", torch.tensor(colour)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        size = images.new_tensor([width, height], dtype=torch.float32)
        if self._is_padded:
            rows, columns = _content(images, self.pad)
            mask = (rows[:, :, None] & columns[:, None, :]).long()
            outputs = self.model(pixel_values=images, pixel_mask=mask)
            size = torch.stack((columns.sum(dim=1), rows.sum(dim=1)), dim=1)[:, None].float()
        else:
            outputs = self.model(pixel_values=images)
        centre, extent = outputs.pred_boxes.float().split(2, dim=-1)
        boxes_xyxy = torch.cat((centre - extent / 2, centre + extent / 2), dim=-1)
        return outputs.logits, boxes_xyxy * torch.cat((size, size), dim=-1)


def _content(images: Tensor, pad: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H) rows and (B, W) columns up to the last one that is not all padding; one at least."""
    is_shown = ((images - pad).abs() > _SAME_PIXEL).any(dim=1)
    sides = []
    for across in (2, 1):
        has_pixels = is_shown.any(dim=across)
        is_before = has_pixels.flip(1).long().cumsum(dim=1).flip(1) > 0
        sides.append(is_before | ~has_pixels.any(dim=1, keepdim=True))
    return sides[0], sides[1]


class _Captioner(nn.Module):
    """Hands the images on: the search, which needs the whole network, is run by the read-out."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    def forward(self, images: Tensor) -> Tensor:
        return images


# --- read-outs ------------------------------------------------------------------------------------


def _box_outputs(
    module: nn.Module, outputs: tuple[Tensor, Tensor], spec: ModelSpec, canvas: tuple[int, int]
) -> list[BoxOutput]:
    detector = cast("_Detector", module)
    logits, boxes_xyxy = outputs
    scores = logits.float()
    if detector.has_nothing:  # a query is one object: only its best class counts
        scores = scores.softmax(dim=-1)[..., :-1]
        best = scores.argmax(dim=-1, keepdim=True)
        scores = torch.zeros_like(scores).scatter(-1, best, scores.gather(-1, best))
    else:
        scores = scores.sigmoid()
    return dense_outputs(
        boxes_xyxy.float(), scores[..., list(detector.class_indices)], spec, canvas
    )


def _caption_outputs(
    module: nn.Module, outputs: Tensor, spec: ModelSpec, canvas: tuple[int, int]
) -> list[CaptionOutput]:
    """Describe the images; on the CPU one by one, so that none depends on the batch's size."""
    captioner = cast("_Captioner", module)
    asked = cast("CaptionPostprocess", spec.postprocess)
    return [
        caption
        for piece in pieces(len(outputs), outputs.device)
        for caption in _describe(captioner, outputs[piece], asked)
    ]


def _describe(
    captioner: _Captioner, images: Tensor, asked: CaptionPostprocess
) -> list[CaptionOutput]:
    found = captioner.model.generate(
        pixel_values=images,
        do_sample=False,
        num_beams=asked.beam_size,
        max_new_tokens=asked.max_tokens,
        return_dict_in_generate=True,
        output_scores=True,
        # of beams alone: greedy search warns of it
        **({"length_penalty": asked.length_penalty} if asked.beam_size > 1 else {}),
    )
    # BLIP's search is its decoder's
    decoder = getattr(captioner.model, "text_decoder", captioner.model)
    logprobs = decoder.compute_transition_scores(
        found.sequences,
        found.scores,
        getattr(found, "beam_indices", None),
        normalize_logits=asked.beam_size == 1,
    )
    tokens = found.sequences[:, -logprobs.shape[1] :]
    is_said = _until_end(tokens, _end_tokens(captioner))
    texts = captioner.tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
    return [
        CaptionOutput(text.strip(), float(logprob), int(number))
        for text, logprob, number in zip(
            texts, (logprobs * is_said).sum(dim=1), is_said.sum(dim=1), strict=True
        )
    ]


def _end_tokens(captioner: _Captioner) -> list[int]:
    """Tokens that end a sentence: BERT's separator, as BLIP's decoder uses it, among them."""
    of_search = captioner.model.generation_config.eos_token_id
    ends = [*(of_search if isinstance(of_search, list) else [of_search])]
    ends += [captioner.tokenizer.eos_token_id, captioner.tokenizer.sep_token_id]
    return [each for each in ends if each is not None]


def _until_end(tokens: Tensor, ends: Sequence[int]) -> Tensor:
    """(B, T) bool: up to the first end token, itself included."""
    is_end = torch.isin(tokens, torch.tensor(list(ends), device=tokens.device))
    ends_before = is_end.long().cumsum(dim=1) - is_end.long()
    return ends_before == 0


_READ_OUTS: Mapping[TaskName, ReadOut] = {
    "classification": class_outputs,
    "detection": _box_outputs,
    "semantic_segmentation": semantic_outputs,
    "captioning": _caption_outputs,
}


# --- the library ----------------------------------------------------------------------------------


def _load(auto: str, folder: Path, **arguments: Any) -> Any:
    """What one of the library's automatic classes makes of a folder; it runs no code of it."""
    transformers = _import_transformers()
    with _quiet(transformers):
        return getattr(transformers, auto).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **arguments
        )


def _first_line(err: Exception) -> str:
    return str(err).strip().partition("\n")[0]


def _import_transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as err:
        raise ImportError(
            "models of Hugging Face need transformers; install it with: pip install 'pixelmill[hf]'"
        ) from err
    return transformers


@contextlib.contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Without its progress bars and notes on loading; what matters of them is an error here."""
    logs: Any = transformers.utils.logging
    before, had_bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logs.set_verbosity(before)
        if had_bar:
            logs.enable_progress_bar()
