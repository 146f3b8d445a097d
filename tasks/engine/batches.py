"""Views gathered into full batches, scored, and handed back to the images they are of."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pixelmill.models.interface import Network, ViewOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.views import Placement
from pixelmill.tasks.store import ImageRow

__all__ = ["Batches", "Work", "is_out_of_memory"]

Canvas = NDArray[np.uint8]

_MIN_BATCH_SIZE = 2


@dataclass(slots=True, eq=False)
class Work:
    """One image on its way through one model.

    Attributes:
        row: of the shard.
        image: what the store is told of it.
        placements: of its views.
        outputs: by view; None while it is not scored.
        error: why a view could not be scored.
    """

    row: int
    image: ImageRow
    placements: tuple[Placement, ...]
    outputs: list[ViewOutput | None] = field(init=False)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.outputs = [None] * len(self.placements)

    @property
    def is_done(self) -> bool:
        """All views are scored, or it is known that not all can be."""
        return self.error is not None or None not in self.outputs


class Batches:
    """The waiting views of one model, by canvas size.

    Every batch has exactly `spec.batch_size` canvases, the last ones are filled up with empty
    ones: the same kernels run on the same shapes whatever is in the batch, which is what makes an
    image's result independent of its batch mates. On the CPU it is independent of the batch size
    too, from 2 on; for a single image PyTorch takes other convolutions (its `use_mkldnn` asks for
    more than one image or 20,480 numbers), so a size of 1 acts as 2.

    Args:
        spec: of the model.
        network: built from it.
    """

    def __init__(self, spec: ModelSpec, network: Network) -> None:
        self.spec = spec
        self.forward_s = 0.0
        self._network = network
        size = 8 if spec.batch_size == "auto" else spec.batch_size
        self._batch_size = max(size, _MIN_BATCH_SIZE)
        self._waiting: dict[tuple[int, ...], list[tuple[Work, int, Canvas]]] = {}

    @property
    def rows(self) -> set[int]:
        """Rows of the shard that have views waiting."""
        return {work.row for queue in self._waiting.values() for work, _, _ in queue}

    def add(self, work: Work, view_index: int, canvas: Canvas) -> list[Work]:
        """Take a view in; score a batch if it is full.

        Returns:
            Work that is done by it.
        """
        queue = self._waiting.setdefault(canvas.shape, [])
        queue.append((work, view_index, canvas))
        if len(queue) < self._batch_size:
            return []
        return self._score(self._waiting.pop(canvas.shape))

    def flush(self) -> list[Work]:
        """Score what is waiting.

        Returns:
            Work that is done by it, which is all there was.
        """
        waiting, self._waiting = self._waiting, {}
        return [work for queue in waiting.values() for work in self._score(queue)]

    def _score(self, queue: list[tuple[Work, int, Canvas]]) -> list[Work]:
        started = time.perf_counter()
        results = self._predict([canvas for _, _, canvas in queue], self._batch_size)
        self.forward_s += time.perf_counter() - started
        touched: dict[Work, None] = {}
        for (work, view_index, _), result in zip(queue, results, strict=True):
            if work.is_done:  # another view of it has failed before
                continue
            if isinstance(result, Exception):
                work.error = result
            else:
                work.outputs[view_index] = result
            touched[work] = None
        return [work for work in touched if work.is_done]

    def _predict(self, canvases: list[Canvas], batch_size: int) -> list[ViewOutput | Exception]:
        """Outputs, with an exception in the place of each canvas that the network fails on."""
        try:
            return [*_predict_padded(self._network, canvases, batch_size)]
        except Exception as err:
            if len(canvases) == 1 and not (is_out_of_memory(err) and batch_size > 1):
                self._raise_if_broken(canvases[0], batch_size, err)
                return [err]
            error = err
        if is_out_of_memory(error):
            # Padding is what does not fit, so smaller batches are not filled up
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            batch_size = max(1, (batch_size + 1) // 2)
        middle = max(1, len(canvases) // 2)
        halves = [half for half in (canvases[:middle], canvases[middle:]) if half]
        return [result for half in halves for result in self._predict(half, batch_size)]

    def _raise_if_broken(self, canvas: Canvas, batch_size: int, error: Exception) -> None:
        """Tell a bad image from a network that cannot score anything."""
        try:
            _predict_padded(self._network, [np.zeros_like(canvas)], batch_size)
        except Exception:
            error.add_note(f"{self.spec.name}: the network cannot score even an empty image")
            raise error from None


def _predict_padded(network: Network, canvases: list[Canvas], batch_size: int) -> list[ViewOutput]:
    batch = np.zeros((max(batch_size, len(canvases)), *canvases[0].shape), np.uint8)
    for index, canvas in enumerate(canvases):
        batch[index] = canvas
    outputs = network.predict(torch.from_numpy(batch))
    if len(outputs) != len(batch):
        raise ValueError(f"the network gave {len(outputs)} outputs for {len(batch)} images")
    return outputs[: len(canvases)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the same images may succeed with more memory, or fewer at a time."""
    # PyTorch has a class for the GPU's memory only
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
