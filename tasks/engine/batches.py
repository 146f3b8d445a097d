"""Views gathered into batches, scored, and handed back to the images they are of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pixelmill.models.interface import ViewOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.device import DeviceLostError, is_device_lost, is_out_of_memory
from pixelmill.tasks.engine.networks import Model
from pixelmill.tasks.engine.tuning import DEFAULT_SIZE, BatchSizes
from pixelmill.tasks.engine.views import Placement
from pixelmill.tasks.store import ImageRow

__all__ = [
    "Batch",
    "Batches",
    "View",
    "Work",
    "checked",
    "gives_same_bits",
    "score_piecewise",
]

Canvas = NDArray[np.uint8]
Size = tuple[int, int]


@dataclass(slots=True, eq=False)
class Work:
    """One image on its way through one model.

    Attributes:
        row: of the shard.
        image: what the store is told of it.
        spec: of the model.
        placements: of its views.
        outputs: by view; None while it is not scored.
        error: why a view could not be scored.
    """

    row: int
    image: ImageRow
    spec: ModelSpec
    placements: tuple[Placement, ...]
    outputs: list[ViewOutput | None] = field(init=False)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.outputs = [None] * len(self.placements)

    @property
    def is_done(self) -> bool:
        """All views are scored, or it is known that not all can be."""
        return self.error is not None or None not in self.outputs

    def take(self, view_index: int, result: ViewOutput | Exception) -> bool:
        """Take what a view gave.

        Returns:
            Whether the work is done by it.
        """
        if self.is_done:  # another view of it has failed before
            return False
        if isinstance(result, Exception):
            self.error = result
        else:
            self.outputs[view_index] = result
        return self.is_done


@dataclass(frozen=True, slots=True)
class View:
    """A canvas of an image, for one model.

    Attributes:
        model: index in the run's models.
        work: that it is part of.
        index: in the work's placements.
        canvas: (H, W, 3) uint8, which other models may share.
    """

    model: int
    work: Work
    index: int
    canvas: Canvas


@dataclass(frozen=True, slots=True)
class Batch:
    """Views that are scored together.

    Attributes:
        model: that scores them.
        views: at least one, of one canvas size.
        size: that they are filled up to.
        check: a smaller size that is to be compared with it.
    """

    model: Model
    views: tuple[View, ...]
    size: int
    check: int | None = None

    @property
    def canvas(self) -> Size:
        """(height, width) of the views."""
        height, width = self.views[0].canvas.shape[:2]
        return height, width

    @property
    def canvases(self) -> list[Canvas]:
        """Of the views."""
        return [view.canvas for view in self.views]


class Batches:
    """The waiting views, by model and canvas size.

    Args:
        load: gives the model of an index.
        sizes: of the batches.
        prepare: called before the first batch of a model and canvas size.
    """

    def __init__(
        self,
        load: Callable[[int], Model],
        sizes: BatchSizes,
        prepare: Callable[[Model, Canvas], None] = lambda model, canvas: None,
    ) -> None:
        self._load = load
        self._sizes = sizes
        self._prepare = prepare
        self._waiting: dict[tuple[int, Size], list[View]] = {}
        self._prepared: set[tuple[int, Size]] = set()

    def add(self, view: View) -> list[Batch]:
        """Take a view in; a batch comes out if it is full."""
        height, width = view.canvas.shape[:2]
        kind = view.model, (height, width)
        model = self._load(view.model)
        if kind not in self._prepared:
            self._prepare(model, view.canvas)
            self._prepared.add(kind)
        queue = self._waiting.setdefault(kind, [])
        queue.append(view)
        size, check = self._full(model, kind[1])
        whole = len(queue) - len(queue) % size  # more than one batch where the size has shrunk
        self._waiting[kind] = queue[whole:]
        return [
            Batch(model, tuple(queue[start : start + size]), size, check)
            for start in range(0, whole, size)
        ]

    def flush(self) -> list[Batch]:
        """What is waiting, in batches that are not full."""
        waiting, self._waiting = self._waiting, {}
        batches = []
        for (index, canvas), queue in waiting.items():
            if not queue:
                continue
            model = self._load(index)
            full, _ = self._full(model, canvas)
            for start in range(0, len(queue), full):
                views = tuple(queue[start : start + full])
                size, check = full, None
                if model.is_eager:
                    size, check = self._sizes.partial(model.spec.key, canvas, full, len(views))
                batches.append(Batch(model, views, size, check))
        return batches

    def _full(self, model: Model, canvas: Size) -> tuple[int, int | None]:
        wanted = model.spec.batch_size
        settled = model.is_eager or self._sizes.is_settled(model.spec.key, canvas)
        if wanted == "auto" and not settled:
            wanted = DEFAULT_SIZE  # trying others would have each compiled
        return self._sizes.full(model.spec.key, canvas, wanted)


def score_piecewise(
    model: Model,
    canvases: list[Canvas],
    size: int,
    *,
    error: Exception,
    run_short: Callable[[int], None],
) -> list[ViewOutput | Exception]:
    """Score a batch on which the network has failed, in halves down to the bad image.

    Args:
        model: that has failed.
        canvases: of the batch.
        size: that it was filled up to.
        error: that it failed with.
        run_short: called with a size that fitted, after a larger one did not fit into memory.

    Returns:
        By canvas its output, or the exception that it gives.

    Raises:
        DeviceLostError: the device is of no more use.
        Exception: the network cannot score even an empty image; its own.
    """
    if is_device_lost(error):
        raise DeviceLostError(str(error)) from error
    short = is_out_of_memory(error)
    if len(canvases) == 1 and not (short and size > 1):
        _raise_if_broken(model, canvases[0], size, error)
        return [error]
    if short:
        # Padding is what does not fit, so smaller batches are not filled up
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = max(1, (size + 1) // 2)
    middle = max(1, len(canvases) // 2)
    results: list[ViewOutput | Exception] = []
    for half in (canvases[:middle], canvases[middle:]):
        if not half:
            continue
        try:
            results += _predict_padded(model, half, size)
        except Exception as err:
            results += score_piecewise(model, half, size, error=err, run_short=run_short)
        else:
            if short:
                run_short(size)
    return results


def gives_same_bits(
    model: Model, canvases: list[Canvas], raw: Any, outputs: Sequence[ViewOutput], size: int
) -> bool:
    """Whether a smaller batch gives the bits that a larger one has given.

    Args:
        model: that is asked.
        canvases: of the larger batch, as many of which are taken as the smaller one holds.
        raw: the network's outputs of the larger batch, padding and all.
        outputs: read from them.
        size: of the smaller batch.
    """
    canvases = canvases[:size]
    count = len(canvases)
    with model.lock:
        smaller = model.network.forward(_padded(canvases, size).to(model.network.device))
    if not _equal_trees(raw, smaller, count):
        return False
    height, width = canvases[0].shape[:2]
    again = model.network.read_out(smaller, (height, width))
    return all(
        _equal_fields(one, other) for one, other in zip(outputs[:count], again, strict=False)
    )


def _equal_trees(larger: Any, smaller: Any, count: int) -> bool:
    """Whether raw outputs agree in their first images; what is no array by image says nothing."""
    pairs = [
        (one, other)
        for one, other in zip(tree_leaves(larger), tree_leaves(smaller), strict=False)
        if isinstance(one, Tensor | np.ndarray)
    ]
    if not pairs or any(len(one) < count or len(other) < count for one, other in pairs):
        return False
    return all(
        torch.equal(torch.as_tensor(one[:count]), torch.as_tensor(other[:count]))
        for one, other in pairs
    )


def _equal_fields(one: ViewOutput, other: ViewOutput) -> bool:
    if type(one) is not type(other):
        return False
    for name in one.__dataclass_fields__:
        left, right = getattr(one, name), getattr(other, name)
        same = torch.equal(left, right) if isinstance(left, Tensor) else bool(left == right)
        if not same:
            return False
    return True


def _raise_if_broken(model: Model, canvas: Canvas, size: int, error: Exception) -> None:
    """Tell a bad image from a network that cannot score anything."""
    try:
        _predict_padded(model, [np.zeros_like(canvas)], size)
    except Exception:
        error.add_note(f"{model.spec.name}: the network cannot score even an empty image")
        raise error from None


def _predict_padded(model: Model, canvases: list[Canvas], size: int) -> list[ViewOutput]:
    with model.lock:
        outputs = model.network.predict(_padded(canvases, size))
    return checked(outputs, max(size, len(canvases)))[: len(canvases)]


def _padded(canvases: list[Canvas], size: int) -> Tensor:
    batch = np.zeros((max(size, len(canvases)), *canvases[0].shape), np.uint8)
    np.stack(canvases, out=batch[: len(canvases)])
    return torch.from_numpy(batch)


def checked(outputs: list[ViewOutput], number: int) -> list[ViewOutput]:
    """A network's outputs, if they are as many as its images."""
    if len(outputs) != number:
        raise ValueError(f"the network gave {len(outputs)} outputs for {number} images")
    return outputs
