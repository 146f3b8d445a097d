"""A smoke test of one model: does it answer, and as the pipeline may rely on?

Runs on made images, so that nothing is needed but the model: whether its outputs have the shapes
and ranges of its task, whether an image's answer depends on its batch mates or on the day, and how
fast and large it is here.
"""

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pixelmill.models.build import build_network
from pixelmill.models.engines.parity import LIMITS, compare_outputs, sample_images
from pixelmill.models.interface import (
    BoxOutput,
    CaptionOutput,
    ClassOutput,
    Network,
    SemanticOutput,
    ViewOutput,
)
from pixelmill.models.spec import ModelSpec

__all__ = ["Finding", "check_model", "images_per_s"]

# Boxes may reach over the canvas by the rounding of their coordinates
_OVER = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the check.

    Attributes:
        what: was looked at.
        result: in words.
        passed: None where there is nothing to pass, such as speed.
    """

    what: str
    result: str
    passed: bool | None = None


def check_model(spec: ModelSpec, *, device: str = "cpu", seconds: float = 3.0) -> list[Finding]:
    """Build the model and ask it.

    Args:
        spec: of the model.
        device: "cpu" or "cuda".
        seconds: at least so long each speed is measured.

    Raises:
        OSError: the weights are not here.
        ValueError: the model cannot be built.
    """
    started = time.perf_counter()
    network = build_network(spec, device)
    findings = [Finding("built", f"{network.engine_used}, {time.perf_counter() - started:.1f} s")]
    for canvas in spec.preprocess.canvases:
        findings += _check_canvas(network, spec, canvas)
    canvas = spec.preprocess.canvases[0]
    for batch_size in (1, 8):
        rate = images_per_s(network, sample_images(canvas)[-batch_size:], seconds)
        what = f"speed {canvas[0]}x{canvas[1]}, batch of {batch_size}"
        findings.append(Finding(what, f"{rate:.1f} images/s"))
    findings.append(Finding("peak memory", _peak_memory(network.device)))
    return findings


def _check_canvas(network: Network, spec: ModelSpec, canvas: tuple[int, int]) -> list[Finding]:
    images = sample_images(canvas)
    together = network.predict(images)
    alone = [network.predict(image[None])[0] for image in images]
    again = network.predict(images)
    place = f"{canvas[0]}x{canvas[1]}"
    faults = [fault for output in together for fault in _faults(output, spec, canvas)]
    shown = "; ".join(dict.fromkeys(faults)) or _described(together)
    same_day = all(_is_same(one, other) for one, other in zip(together, again, strict=True))
    findings = [
        Finding(f"outputs {place}", shown, not faults),
        Finding(f"repeated {place}", "same bits" if same_day else "other bits", same_day),
    ]
    if faults:  # of answers that are none, it would say nothing
        return findings
    return [*findings, _compare(f"batch mates {place}", together, alone, spec)]


def _compare(
    what: str, ours: Sequence[ViewOutput], theirs: Sequence[ViewOutput], spec: ModelSpec
) -> Finding:
    """Equal to the bit, or to the limits of the parity gate: sums may be taken in other orders."""
    if all(_is_same(one, other) for one, other in zip(ours, theirs, strict=True)):
        return Finding(what, "change no bit", True)
    figures = compare_outputs(ours, theirs, spec)
    passed = all(value >= LIMITS[name] for name, value in figures.items())
    told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    return Finding(what, f"change {'digits' if passed else 'answers'}: {told}", passed)


def _is_same(one: ViewOutput, other: ViewOutput) -> bool:
    if isinstance(one, CaptionOutput):
        return one == other
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(_tensors(one), _tensors(other), strict=True)
    )


def _tensors(output: ViewOutput) -> tuple[Tensor | None, ...]:
    if isinstance(output, BoxOutput):
        return output.boxes_xyxy, output.scores, output.labels, output.mask_probs
    return (
        output.logits if isinstance(output, SemanticOutput) else cast("ClassOutput", output).probs,
    )


def _described(outputs: Sequence[ViewOutput]) -> str:
    first = outputs[0]
    if isinstance(first, BoxOutput):
        counts = [len(cast("BoxOutput", each).scores) for each in outputs]
        masks = "" if first.mask_probs is None else f", masks {tuple(first.mask_probs.shape[1:])}"
        return f"{min(counts)} to {max(counts)} candidates an image{masks}"
    if isinstance(first, SemanticOutput):
        return f"logits {tuple(first.logits.shape)}"
    if isinstance(first, ClassOutput):
        return f"probabilities of {len(first.probs)} classes"
    return f"sentences such as {first.text!r}"


def _faults(output: ViewOutput, spec: ModelSpec, canvas: tuple[int, int]) -> list[str]:
    """What an output has that its task forbids."""
    if isinstance(output, BoxOutput):
        return _box_faults(output, spec, canvas)
    if isinstance(output, SemanticOutput):
        shape = tuple(output.logits.shape)
        return _told(
            (len(shape) == 3 and shape[0] == len(spec.classes),
             f"expected logits of {len(spec.classes)} classes, got {shape}"),
            (_is_finite(output.logits), "logits that are no numbers"),
        )  # fmt: skip
    if isinstance(output, ClassOutput):
        shape = tuple(output.probs.shape)
        return _told(
            (shape == (len(spec.classes),),
             f"expected probabilities of {len(spec.classes)} classes, got {shape}"),
            (_is_in(output.probs, 0, 1), "probabilities outside of 0 to 1"),
        )  # fmt: skip
    return _told(
        (math.isfinite(output.logprob) and output.logprob <= 0, "a log probability above 0"),
        (output.num_tokens > 0, "a sentence of no token"),
    )


def _box_faults(output: BoxOutput, spec: ModelSpec, canvas: tuple[int, int]) -> list[str]:
    height, width = canvas
    boxes, count = output.boxes_xyxy, len(output.scores)
    limits = torch.tensor([width, height, width, height]) + _OVER
    if boxes.shape != (count, 4) or output.labels.shape != (count,):
        return [f"boxes {tuple(boxes.shape)} with {count} scores"]
    masks = output.mask_probs
    return _told(
        (_is_finite(boxes), "boxes that are no numbers"),
        (bool(((boxes >= -_OVER) & (boxes <= limits)).all()), "boxes outside of the canvas"),
        (bool((boxes[:, 2:] >= boxes[:, :2]).all()), "boxes whose ends come before their starts"),
        (_is_in(output.scores, 0, 1), "scores outside of 0 to 1"),
        (_is_in(output.labels, 0, len(spec.classes) - 1), "labels of no class"),
        (masks is None or (len(masks) == count and _is_in(masks, 0, 1)), "masks outside of 0 to 1"),
    )


def _told(*checks: tuple[bool, str]) -> list[str]:
    return [fault for passed, fault in checks if not passed]


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _is_in(tensor: Tensor, low: float, high: float) -> bool:
    """No number that is not one either."""
    return bool(((tensor >= low) & (tensor <= high)).all())


def images_per_s(
    network: Network,
    images: Tensor,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Whole predictions of a batch, after a first one that is not counted.

    Args:
        network: that predicts.
        images: (B, H, W, 3) uint8 RGB canvases.
        seconds: at least so long, and at least one batch.
        clock: `time.process_time` counts the time of all threads, and no other process in it.
    """
    network.predict(images)
    started, rounds, elapsed = clock(), 0, 0.0
    while rounds == 0 or elapsed < seconds:
        network.predict(images)
        rounds += 1
        elapsed = clock() - started
    return rounds * len(images) / elapsed


def _peak_memory(device: torch.device) -> str:
    """Of the process, Python and libraries included; on a GPU what PyTorch had there at once."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 1e6:,.0f} MB on the GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} MB of the process"
